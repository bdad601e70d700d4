"""The queue on disk: the file, its tables, transactions, reading in order, what is dropped and why, the queue's time.

Must not know of MQTT's packets (but for the properties that a row keeps), sockets, or callbacks of a program.
"""
