"""DISCONNECT, while it waits for what goes before it, and until the broker has closed the connection."""

from __future__ import annotations

import ssl
import threading
import time
from typing import TYPE_CHECKING

from paho.mqtt import client as paho_client
from paho.mqtt.enums import MQTTErrorCode

from glec_fast._paho import ConnectionState
from glec_fast.transport.dial import end_sending
from glec_fast.transport.poller import Poller, has_pending

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast._paho import Paho
    from glec_fast.engine.arrivals import Arrivals
    from glec_fast.engine.takeover import Takeover
    from glec_fast.engine.wakeup import Wakeup
    from glec_fast.outbox._outbox import Outbox

# DISCONNECT waits so long for what goes before it.
TIMEOUT_S = 5.0
# With a farewell that waits for the disk or the broker: how late its deadline may be seen.
LOOK_S = 0.1
# A broker needs the time of a round trip to close a connection.
HEAR_OUT_S = 1.0
_RECEIVE_BYTES = 64 * 1024


class Farewell:
    """Of one client. `begin` is for any thread, the rest for whoever has the loop.

    No lock: what waits is one tuple, replaced as a whole.
    """

    def __init__(self, paho: Paho, outbox: Outbox, arrivals: Arrivals, wakeup: Wakeup, takeover: Takeover) -> None:
        self._paho = paho
        self._outbox = outbox
        self._arrivals = arrivals
        self._wakeup = wakeup
        self._takeover = takeover
        # What sends DISCONNECT, and until when at most it waits.
        self._waiting: tuple[Callable[[], MQTTErrorCode], float] | None = None
        # The thread that was last in a loop of the program's own.
        self._looped_by = 0

    @property
    def is_waiting(self) -> bool:
        """True where DISCONNECT is yet to be put."""
        return self._waiting is not None

    def note_loop(self) -> None:
        """This thread runs the loop."""
        self._looped_by = threading.get_ident()

    def begin(self, leave: Callable[[], MQTTErrorCode]) -> MQTTErrorCode:
        """Call `leave`, which sends DISCONNECT, behind what was published; returns at once where a loop sees to it."""
        paho, outbox = self._paho, self._outbox
        if not self._takeover.is_connecting_again and (paho.sock is None or not outbox.has_to_send()):
            return leave()
        self._waiting = leave, time.monotonic() + TIMEOUT_S
        outbox.hasten()
        self._wakeup.wake()
        if paho.thread is None and paho.on_socket_register_write is None and paho.callback_mark.acquire(False):
            self._loop_until_left()
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _loop_until_left(self) -> None:
        """Nobody else would, unless another thread of the program has the loop."""
        looped_by = self._looped_by
        if looped_by != threading.get_ident() and any(each.ident == looped_by for each in threading.enumerate()):
            return
        while self._waiting is not None and self._paho.sock is not None:
            self._paho.client.loop()

    def leave_when_due(self) -> None:
        """Send DISCONNECT once what goes before it has been encoded."""
        waiting = self._waiting
        if waiting is None:
            return
        leave, deadline_s = waiting
        self._arrivals.link.do(self._outbox.pull)
        if not self._outbox.has_to_send() or time.monotonic() >= deadline_s:
            self._waiting = None
            leave()

    def leave_now(self) -> None:
        """Send it, whatever is left."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting[0]()

    def forget(self) -> None:
        """The program makes a new connection: it was for the one that ends with this."""
        if not self._takeover.is_connecting_again:
            self._waiting = None

    def end(self) -> None:
        """The connection has ended, and is not to be made again."""
        if self._waiting is not None and not self._takeover.is_connecting_again:
            self._waiting = None
            self._paho.state = ConnectionState.MQTT_CS_DISCONNECTING

    def on_sent(self) -> None:
        """DISCONNECT has left."""
        paho = self._paho
        try:
            self.hear_out(0.0 if paho.on_socket_register_write is not None else HEAR_OUT_S)
            paho.tell_disconnected(MQTTErrorCode.MQTT_ERR_SUCCESS)
        finally:
            paho.close()
            if paho.state == ConnectionState.MQTT_CS_DISCONNECTING:
                paho.state = ConnectionState.MQTT_CS_DISCONNECTED

    def hear_out(self, wait_s: float = HEAR_OUT_S, until: int = 0) -> bool:
        """Let the broker, which closes the connection at DISCONNECT (MQTT 3.14.4), do so first.

        Where we closed it with anything of the broker's unread, or still coming, our kernel would reset it, and the
        broker lose what it has not read yet. A store takes the last acknowledgements, and need not send those messages
        again. A program's own loop has other duties, and is not held up.
        until: a packet's type, after which it listens no longer; True where that came.
        """
        paho, arrivals = self._paho, self._arrivals
        sock = paho.sock
        if sock is None:
            return False
        if not until:
            end_sending(sock)
        deadline_s = time.monotonic() + wait_s
        has_come = False
        poller = Poller()
        takes_acks = self._outbox.is_stored
        # A loop that does not wait cannot tell.
        is_read = not wait_s
        while paho.sock is sock:
            if takes_acks:
                has_come = until in arrivals.take_last_acks()
            if has_come:
                break
            remaining_s = max(deadline_s - time.monotonic(), 0.0)
            try:
                flags, _ = poller.wait(sock.fileno(), -1, for_room=False, timeout_ms=remaining_s * 1000)
                if not flags and not has_pending(sock):
                    break
                if takes_acks:
                    size = arrivals.link.read(sock, _RECEIVE_BYTES, paho_client.time_func())
                else:
                    size = len(paho.receive(_RECEIVE_BYTES))
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                continue
            except (OSError, ValueError):
                # However it ended.
                break
            if not size:
                is_read = True
                break
        if is_read:
            self._outbox.on_heard_out()
        arrivals.tell_published()
        return has_come
