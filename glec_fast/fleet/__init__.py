"""The fleet API of the specification: manager, settings, typed messages, offline queue.

Knows topics and vehicles. Must not know of bytes on the wire, SQL, or the command line.
"""
