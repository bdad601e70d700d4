"""What drives one connection: how it is made and when again, its loop, reading, writing and farewell, its thread.

Must not know of SQL, of topics, or of paho's private names.
"""
