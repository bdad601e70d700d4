"""How whoever publishes wakes the thread that waits in the loop."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from paho.mqtt.enums import LogLevel

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast._paho import Paho
    from glec_fast.outbox._outbox import Outbox
    from glec_fast.transport._link import Link


class Wakeup:
    """A pair of sockets. `wake` is for any thread, `open` and `hear` for whoever has the loop. No lock: see `Link`."""

    def __init__(self, paho: Paho, outbox: Outbox, link: Link) -> None:
        self._paho = paho
        self._outbox = outbox
        self._link = link
        # In the place of the pair, while a loop that is not ours has the connection; for any thread.
        self.ring: Callable[[], None] | None = None

    def wake(self) -> None:
        """Have the loop look for something to send."""
        ring = self.ring
        if ring is not None:
            ring()
            return
        writer = self._paho.wake_writer
        if writer is None:
            return
        try:
            self._link.wake(writer)
        except OSError as error:
            self._paho.log(LogLevel.MQTT_LOG_DEBUG, "the loop ended while it was woken: %s", error)

    @property
    def is_open(self) -> bool:
        """True where there is a pair."""
        return self._paho.wake_reader is not None and self._paho.wake_writer is not None

    def open(self) -> None:
        """Not paho's, which goes over TCP: dearer to make and to write to, and any process may connect to it first."""
        # First, as it may fail: a loop cannot go on with a pair that is closed.
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        for end in (self._paho.wake_reader, self._paho.wake_writer):
            if end is not None:
                end.close()
        # Who woke the loop by the old pair was heard by nobody.
        self._outbox.is_woken = False
        self._paho.wake_reader, self._paho.wake_writer = reader, writer
