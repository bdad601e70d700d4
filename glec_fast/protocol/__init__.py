"""MQTT's packets and states, from bytes to bytes (sans-I/O, in Cython).

Must not know of sockets, clocks, logs, locks, or the disk.
"""
