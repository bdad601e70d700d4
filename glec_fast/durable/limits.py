"""What a queue may hold, in which order it is read, and what it gives up where it is full."""

from __future__ import annotations

from typing import NamedTuple

# In which order messages are read: as they came; or what has QoS 2 ahead of all else, and each QoS as it came.
FIFO = "fifo"
ALERTS_FIRST = "alerts_first"
# What a full queue gives up of QoS 0: every second message of the older half, so that all of a way is kept at a coarser
# grain; or the oldest.
THIN = "thin"
OLDEST = "oldest"


class Limits(NamedTuple):
    """max_rows: above 0. max_bytes: of the queue file, 0 for no limit. overflow: THIN or OLDEST.

    is_ranked: telemetry (QoS 0) goes before results (QoS 1), and these before alerts (QoS 2). If not, OLDEST is the
    oldest of all.
    """

    max_rows: int
    max_bytes: int = 0
    overflow: str = OLDEST
    is_ranked: bool = False
