"""What waits to be sent beside the session that sends it: in memory, or over the store; the handle of a message.

Must not know of sockets, callbacks' threads, or SQL.
"""
