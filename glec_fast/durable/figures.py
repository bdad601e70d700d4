"""What a store counts, for those who watch it."""

from __future__ import annotations

from typing import NamedTuple

from glec_fast.runtime.latency import Latency


class Figures(NamedTuple):
    """A snapshot; counters begin with the opening of the file.

    accepted, on_disk: messages by QoS, those of `Store.append` and those of them that were synchronised. writing: from
    the one to the other. oldest_s: how long the oldest message has waited, 0 if none does. syncs: of the disk, for
    transactions, for images written alone and, as far as that can be told, for what moves the log into the file.
    clock_steps: times that the wall clock stepped, and the times of all messages with it.
    """

    accepted: tuple[int, int, int]
    on_disk: tuple[int, int, int]
    writing: Latency
    oldest_s: float
    syncs: int
    clock_steps: int
