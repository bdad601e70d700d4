"""A link that does more than break: single bytes, delays, one way that stalls, a reset at a chosen byte."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from glec_fast.testbed.link import Link, _Connection

if TYPE_CHECKING:
    from glec_fast.testbed.link import Direction, _Flow


class FaultyLink(Link):
    """As `Link`, and with:

    piece_bytes: the most that one send hands on; 0 for all there is. delay_s: how long each read is held.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.piece_bytes = 0
        self.delay_s = 0.0
        self.pieces_sent = 0
        self._resets = False
        super().__init__(target)

    def restore_until(self, count_bytes: int, direction: Direction, *, reset: bool = False) -> None:
        """Let clients in, and cut after exactly so many more bytes that way, with a reset or in order."""
        with self._changed:
            self.restore()
            self._resets = reset
            self.cut_after(count_bytes, direction)

    def _read(self, flow: _Flow) -> None:
        if self.delay_s:
            time.sleep(self.delay_s)
        super()._read(flow)

    def _write(self, flow: _Flow) -> None:
        if not self.piece_bytes:
            super()._write(flow)
            return
        whole, flow.pending = flow.pending, flow.pending[: self.piece_bytes]
        piece = len(flow.pending)
        super()._write(flow)
        self.pieces_sent += len(flow.pending) < piece
        flow.pending = whole[piece - len(flow.pending) :]

    def _part(self, connection: _Connection) -> None:
        if self._resets:
            self._end(connection, reset=True)
        else:
            super()._part(connection)

    def __enter__(self) -> Any:
        return self
