"""The thread of `loop_start`: how it begins, goes on after a failure, waits between attempts, and ends."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from paho.mqtt.enums import MQTTErrorCode

from glec_fast._paho import ConnectionState
from glec_fast.engine import farewell as farewells
from glec_fast.engine.loop import HandedOver
from glec_fast.runtime import process
from glec_fast.runtime.thread import Thread
from glec_fast.transport.dial import break_link

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast._paho import Paho
    from glec_fast.engine.arrivals import Arrivals
    from glec_fast.engine.connector import Connector
    from glec_fast.engine.farewell import Farewell
    from glec_fast.engine.policy import Policy
    from glec_fast.engine.wakeup import Wakeup
    from glec_fast.engine.writing import Writer
    from glec_fast.outbox._outbox import Outbox

# Long enough for a slow link to take what is left to send, short enough for a service manager that waits for our end.
LEAVE_TIMEOUT_S = 5.0
_MIN_WAIT_S = 0.01
# A connection that is accepted and ends sooner, so often in a row: as with two clients of one name, each of which ends
# the other's. From then on the pauses grow, though each attempt succeeds.
_SHORT_LIFE_S = 5.0
_SHORT_LIVES = 3
_SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS
_LEAVING = ConnectionState.MQTT_CS_DISCONNECTING, ConnectionState.MQTT_CS_DISCONNECTED


def _has_begun(thread: threading.Thread | None) -> bool:
    """False for one whose start an exception has cut into."""
    return thread is not None and thread.ident is not None


class NetworkThread:
    """Of one client. `start`, `stop`, `end` and `begin_exit` are for any other thread; the rest is for itself."""

    def __init__(
        self,
        paho: Paho,
        outbox: Outbox,
        arrivals: Arrivals,
        wakeup: Wakeup,
        farewell: Farewell,
        writer: Writer,
        connector: Connector,
        policy: Policy,
    ) -> None:
        self._paho = paho
        self._outbox = outbox
        self._arrivals = arrivals
        self._wakeup = wakeup
        self._farewell = farewell
        self._writer = writer
        self._connector = connector
        self._policy = policy
        # Until then that of a client with a store goes on after `stop`, of `time.monotonic`.
        self._stops_by_s: float | None = None
        # While it ends: what the peer has not taken, and since when.
        self._unsent_bytes = 0
        self._unsent_since_s = 0.0
        # The last pause, until when it lasted, and how many connections after such pauses were short.
        self._delay_s: float | None = None
        self._waited_until_s = float("-inf")
        self._short_lives = 0
        # Called by the thread as its last act, where its loop says that a connection goes on with another's loop.
        self.hand_over: Callable[[], None] | None = None
        self._is_handed_over = False

    @property
    def is_running(self) -> bool:
        """True from `start` until its end."""
        return _has_begun(self._paho.thread)

    # ---- from without

    def start(self) -> MQTTErrorCode:
        """MQTT_ERR_INVAL where it runs."""
        paho = self._paho
        if _has_begun(paho.thread):
            return MQTTErrorCode.MQTT_ERR_INVAL
        self._wakeup.open()
        paho.is_ending = False
        self._stops_by_s = None
        name = f"paho-mqtt-client-{paho.client_id.decode()}"
        thread = paho.thread = Thread(target=self._run_where_it_is_the_one, name=name, daemon=True)
        thread.start()
        return _SUCCESS

    def _run_where_it_is_the_one(self) -> None:
        # Another has its place where an exception had cut into its start.
        if self._paho.thread is threading.current_thread():
            self._paho.run_thread()

    def stop(self) -> MQTTErrorCode:
        """Have it end once all is acknowledged, and wait for that; MQTT_ERR_INVAL where there is none."""
        paho = self._paho
        thread = paho.thread
        if thread is None:
            return MQTTErrorCode.MQTT_ERR_INVAL
        if self._outbox.is_stored:
            # DISCONNECT, where it waits, goes first.
            leaving_s = farewells.HEAR_OUT_S if self._farewell.is_waiting else 0.0
            self._stops_by_s = time.monotonic() + farewells.TIMEOUT_S + leaving_s
        self._unsent_bytes, self._unsent_since_s = 0, time.monotonic()
        paho.is_ending = True
        self._wakeup.wake()
        if threading.current_thread() is not thread:
            thread.join()
        return _SUCCESS

    def end(self, disconnect: Callable[[], object]) -> None:
        """`disconnect`, and have the connection and the thread end. Idempotent."""
        paho = self._paho
        thread = paho.thread
        self._connector.end()
        self._outbox.begin_close()
        disconnect()
        paho.is_ending = True
        if thread in (None, threading.current_thread()):
            self._leave_alone()
        elif thread is not None:
            self._wakeup.wake()
            thread.join(LEAVE_TIMEOUT_S)
            # Nothing ends a look-up but the system. The thread comes to nobody then, and ends.
            if thread.is_alive() and not self._connector.attempt.is_without_socket:
                sock = paho.sock
                if sock is not None:
                    break_link(sock)
                # From a drop callback it may wait for us: for the disk, which the store's thread cannot write to.
                if not self._outbox.is_own_thread():
                    thread.join()
        if thread is not None and not thread.is_alive():
            # Where it has ended to hand the connection over, and nobody has taken it.
            self._leave_alone()
            # Nobody is to be woken; the next loop makes another pair.
            paho.close_wake_pair()

    def _leave_alone(self) -> None:
        """Without a thread that would send DISCONNECT."""
        self._arrivals.acknowledge_returned()
        if self._paho.sock is not None:
            self._farewell.leave_now()
            self._paho.client.loop_write()
            self._paho.close()

    def begin_exit(self, deadline_s: float) -> None:
        """The process ends. The connection is left as it is, so that the will is published, as with paho's thread.

        But for a program that has said `disconnect`: it leaves in order.
        """
        paho = self._paho
        thread = paho.thread
        is_leaving = self._farewell.is_waiting or paho.state == ConnectionState.MQTT_CS_DISCONNECTING
        if thread is not None and is_leaving:
            thread.join(max(deadline_s - time.monotonic(), 0.0))
        if not self._outbox.wait_direct(deadline_s):
            # A link that does not move: what went past the queue goes to the disk.
            paho.close()

    def let_go_in_child(self) -> bool:
        """In a forked child: close its copies of the parent's sockets. True where there was no connection or thread."""
        paho = self._paho
        copies = paho.sock, paho.wake_reader, paho.wake_writer
        is_unused = paho.sock is None and paho.thread is None
        paho.sock = paho.wake_reader = paho.wake_writer = paho.thread = None
        self._connector.attempt.let_go_in_child()
        for each in copies:
            # One that the program has closed itself.
            with suppress(OSError):
                process.close_copy(each)
        return is_unused

    # ---- what keeps it after `stop`

    def unfinished(self) -> int:
        """So many messages. A store's outlive it, and may be many: it stays a while."""
        return 0 if self._is_stuck() else self._outbox.unfinished(self._stops_by_s)

    def unsent(self) -> int:
        """Not 0 while there is something to send. What waits at the gate is on disk, and may wait for ever."""
        if self._stops_by_s is not None and time.monotonic() >= self._stops_by_s:
            return 0
        if self._is_stuck():
            return 0
        return int(self._outbox.session.sendable_bytes) or int(self._farewell.is_waiting)

    def _is_stuck(self) -> bool:
        """The peer has taken nothing of what waits for it for a while."""
        session = self._outbox.session
        unsent_bytes, now_s = session.unsent_bytes if session.sendable_bytes else 0, time.monotonic()
        if not unsent_bytes or unsent_bytes != self._unsent_bytes:
            self._unsent_bytes, self._unsent_since_s = unsent_bytes, now_s
        return now_s - self._unsent_since_s >= LEAVE_TIMEOUT_S

    # ---- the thread itself

    def main(self) -> None:
        """Where its loop raises, the policy says whether it begins again."""
        paho, interrupt = self._paho, self._connector.interrupt
        try:
            while not self._run():
                pass
        finally:
            is_handed_over, self._is_handed_over = self._is_handed_over, False
            try:
                if not paho.is_ending and not is_handed_over:
                    self._close_for_good()
                elif interrupt.is_set():
                    # A connection that was being made while `close` was called.
                    paho.close()
            finally:
                paho.thread = None
                # Where a callback of this thread has called `close`, nobody else would.
                interrupt.clear()
            if is_handed_over and self.hand_over is not None:
                self.hand_over()

    def _run(self) -> bool:
        """True where the thread is to end."""
        try:
            self._paho.client.loop_forever(retry_first_connection=self._policy.retries_first)
        except HandedOver:
            self._is_handed_over = True
        except Exception as error:
            return not self._policy.goes_on(self, error)
        return True

    def goes_on_behind(self) -> bool:
        """See `Failed`."""
        paho = self._paho
        if paho.is_ending:
            return False
        self._arrivals.pass_over()
        if paho.state in _LEAVING:
            return paho.sock is not None
        return paho.sock is not None or bool(paho.reconnects)

    def begins_anew(self) -> bool:
        """See `Failed`."""
        paho = self._paho
        paho.close()
        if not paho.reconnects:
            return False
        self.wait_to_reconnect()
        paho.state = ConnectionState.MQTT_CS_CONNECT_ASYNC
        return not paho.is_ending

    def _close_for_good(self) -> None:
        """The thread ends and nobody asked it to: nobody must go on waiting for its connection."""
        if self._paho.state not in _LEAVING:
            self._paho.state = ConnectionState.MQTT_CS_CONNECTION_LOST
        self._paho.close()

    # ---- between two attempts

    def wait_to_reconnect(self) -> None:
        """The pause before the next attempt, with the policy's timers in it; `Connector.interrupt` ends it."""
        policy = self._policy
        delay_s = policy.next_delay_s()
        remaining_s = self._next_delay_s() if delay_s is None else delay_s
        while remaining_s > 0 and not self._paho.is_ending:
            if self._paho.state in _LEAVING:
                return
            slice_s = min(remaining_s, max(policy.tick(), _MIN_WAIT_S))
            if policy.wait(self._connector.interrupt, slice_s):
                return
            remaining_s -= slice_s
        self._waited_until_s = time.monotonic()

    def _next_delay_s(self) -> float:
        """paho's: doubled from the least to the most of `reconnect_delay_set`, anew after each accepted connection."""
        paho = self._paho
        with paho.delay_lock:
            last_s = self._delay_s if paho.delay_s is None and self._is_cut_short() else paho.delay_s
            self._delay_s = min(paho.min_delay_s if last_s is None else last_s * 2, paho.max_delay_s)
            paho.delay_s = self._delay_s
            return float(self._delay_s)

    def _is_cut_short(self) -> bool:
        """The connection that has just ended was accepted, and is one of several in a row that lasted no time."""
        is_short = time.monotonic() - self._waited_until_s < _SHORT_LIFE_S
        self._short_lives = self._short_lives + 1 if is_short else 0
        return self._short_lives >= _SHORT_LIVES
