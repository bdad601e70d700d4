"""What a running Python does to us: exceptions at any step, the end of the process, forks; locks and threads for it.

Must not know of MQTT, files or sockets.
"""
