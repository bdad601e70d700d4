"""What a queue may hold, in which order it is read, and what it gives up where it is full."""

from __future__ import annotations

# In which order messages are read: as they came; or what has QoS 2 ahead of all else, and each QoS as it came.
FIFO = "fifo"
ALERTS_FIRST = "alerts_first"
