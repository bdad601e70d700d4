"""One turn of the network loop: wait, read, write, and now and then what else is due."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from paho.mqtt import client as paho_client
from paho.mqtt.enums import LogLevel, MQTTErrorCode

from glec_fast._paho import ConnectionState
from glec_fast.engine.farewell import LOOK_S
from glec_fast.runtime._lock import is_green
from glec_fast.runtime.polling import UNKNOWN, WRITABLE
from glec_fast.transport.poller import Poller, has_pending

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast._paho import Paho
    from glec_fast.engine.arrivals import Arrivals
    from glec_fast.engine.farewell import Farewell
    from glec_fast.engine.policy import Policy
    from glec_fast.engine.reading import Reader
    from glec_fast.engine.writing import Writer
    from glec_fast.outbox._outbox import Outbox

# With a full window: long enough for the broker to answer a batch, short enough that it never runs out of work. Less
# where it had answered a quarter by then: until more is sent it answers as much again, and over TLS twice as much.
_GATHER_S = 0.002
_GATHER_MIN_S = 0.0001
_GATHER_WINDOW = 1000
# Keep alive and the like need no better; a busy loop has thousands of turns a second.
_MISC_INTERVAL_S = 0.05
_NEVER_S = float("inf")
# While anything is on its way it is looked at so often.
_BUSY_S = 1.0
# Behind the moment that something is due, so that it is not missed by the clock's grain and waited for again.
_BEHIND_S = 0.005
# Without a keep alive nothing may ever be due; poll(2) counts milliseconds in an int.
_QUIET_MAX_S = 3600.0
# An enum's members are looked up at some cost.
_SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS
_CONN_LOST = MQTTErrorCode.MQTT_ERR_CONN_LOST
_LEAVING = ConnectionState.MQTT_CS_DISCONNECTING, ConnectionState.MQTT_CS_DISCONNECTED


class HandedOver(Exception):  # noqa: N818 - nothing has failed
    """This thread's part in the loop is over, and the connection goes on with another's."""


class Loop:
    """Of one client. A program's own loop may have several threads run it, as with paho; otherwise one thread does."""

    def __init__(
        self,
        paho: Paho,
        outbox: Outbox,
        arrivals: Arrivals,
        reader: Reader,
        writer: Writer,
        farewell: Farewell,
        policy: Policy,
    ) -> None:
        self._paho = paho
        self._outbox = outbox
        self._arrivals = arrivals
        self._link = arrivals.link
        self._reader = reader
        self._writer = writer
        self._farewell = farewell
        self._policy = policy
        self._pollers: list[Poller] = []
        # With a full window; and from where on the server is too quick for that, of `Session.answered_to`.
        self._gather_s = _GATHER_S
        self._quick_from = _NEVER_S
        # When what is due now and then was done, of `time.monotonic`; and when the policy has something to do.
        self.misc_done_s = self._policy_due_s = float("-inf")
        # Asked before each turn: True where the next ones are another's, see `NetworkThread.hand_over`.
        self.is_anothers: Callable[[], bool] | None = None

    def turn(self, timeout_s: float) -> MQTTErrorCode:
        """Wait for at most `timeout_s`, and do what there is to do. Raises ValueError where it is below 0.

        The thread of `loop_start` waits until something is due, whatever paho's loop says.
        """
        if timeout_s < 0.0:
            raise ValueError("Invalid timeout.")
        paho, arrivals, farewell = self._paho, self._arrivals, self._farewell
        sock = paho.sock
        if sock is None:
            return self._no_connection()
        if self._reader.is_torn:
            return self._reader.end_torn()
        if self.is_anothers is not None and self.is_anothers():
            raise HandedOver
        if farewell.is_waiting:
            farewell.leave_when_due()
            if paho.sock is None:
                return self._no_connection()
        pull_at_s = self._outbox.pull_at_s
        if self._reader.is_stream:
            self.let_acks_gather()
        if self._reader.is_stream and not self._outbox.is_woken:
            # The read tells what is there as well as a wait.
            readable, writable = True, False
        else:
            events = self.wait(sock, self._wait_s(timeout_s))
            if events is None:
                farewell.end()
                if paho.state not in _LEAVING:
                    paho.state = ConnectionState.MQTT_CS_CONNECTION_LOST
                return _CONN_LOST
            readable, writable = events
        if pull_at_s < _NEVER_S and time.monotonic() >= pull_at_s:
            self._link.do(self._outbox.pull)
        if readable or arrivals.is_behind():
            if self._may_flow():
                self._link.flow(paho, _MISC_INTERVAL_S, self.let_acks_gather, paho_client.time_func)
            try:
                rc = paho.client.loop_read()
            finally:
                self._link.flow_no_more()
            if rc or paho.sock is None:
                return rc
        if writable or self._outbox.session.sendable_bytes:
            rc = paho.client.loop_write()
            if rc or paho.sock is None:
                return rc
        now_s = time.monotonic()
        # Before a long wait it is done in any case: a callback may have changed what is due.
        is_recent = paho.thread is not None and now_s - self.misc_done_s < _MISC_INTERVAL_S
        if is_recent and (self._outbox.session.in_flight or self.is_busy()):
            return _SUCCESS
        self.misc_done_s = now_s
        return paho.client.loop_misc()

    def _may_flow(self) -> bool:
        """True where a turn has nothing to do but to move bytes."""
        paho = self._paho
        return (
            paho.thread is not None
            and paho.holder is paho
            and paho.is_tcp
            and paho.on_socket_register_write is None
            and paho.on_socket_unregister_write is None
            and not self._farewell.is_waiting
            and not is_green()
        )

    def _wait_s(self, timeout_s: float) -> float:
        if self._arrivals.is_behind():
            return 0.0
        if self._paho.thread is not None:
            timeout_s = self.quiet_s()
        if self._farewell.is_waiting:
            timeout_s = min(timeout_s, LOOK_S)
        pull_at_s = self._outbox.pull_at_s
        return timeout_s if pull_at_s == _NEVER_S else min(timeout_s, max(pull_at_s - time.monotonic(), 0.0))

    def is_busy(self) -> bool:
        """True while anything is on its way, or was begun, that must be looked at though nothing wakes the loop."""
        paho, outbox = self._paho, self._outbox
        session = outbox.session
        return bool(
            session.in_flight
            or session.unsent_bytes
            or session.pinged_to
            or session.answered_to < session.sent_to
            or paho.state != ConnectionState.MQTT_CS_CONNECTED
            or outbox.is_to_settle
            or outbox.has_timers
            or paho.is_ending
            or self._policy.is_moving
        )

    def quiet_s(self) -> float:
        """For how long nothing is due that does not wake the loop.

        On an idle connection, until the keep alive: a modem that is left alone sleeps.
        """
        if self.is_busy():
            return _BUSY_S
        paho = self._paho
        due_s = self._policy_due_s - time.monotonic()
        if paho.keepalive_s:
            now_s = paho_client.time_func()
            due_s = min(due_s, min(paho.sent_s, paho.received_s) + paho.keepalive_s - now_s)
        return min(max(due_s + _BEHIND_S, 0.0), _QUIET_MAX_S)

    def let_acks_gather(self) -> None:
        """Under load, take acknowledgements by the hundred: a turn of the loop costs as much as the acks of many."""
        session = self._outbox.session
        if not session.sendable_bytes:
            was_quick = session.answered_to >= self._quick_from
            self._gather_s = max(self._gather_s / 2, _GATHER_MIN_S) if was_quick else min(self._gather_s * 2, _GATHER_S)
            self._quick_from = (3 * session.answered_to + session.sent_to) // 4
            # A small window, such as paho's own 20, is through in less than that: the broker would wait for us.
            pause_s = self._gather_s * min(session.in_flight / max(session.window, _GATHER_WINDOW), 1.0)
            if pause_s > _GATHER_MIN_S:
                time.sleep(pause_s)

    def _no_connection(self) -> MQTTErrorCode:
        paho = self._paho
        text = "Client is not connected. Socket: %r). Last known Connection State: %s"
        paho.log(LogLevel.MQTT_LOG_ERR, text, paho.sock, paho.state.name)
        return MQTTErrorCode.MQTT_ERR_NO_CONN

    def wait(self, sock: Any, timeout_s: float) -> tuple[bool, bool] | None:
        """(readable, writable), or None where the socket is gone."""
        wake = self._paho.wake_reader
        pending = has_pending(sock)
        try:
            # A program's own loop may have several threads wait.
            poller = self._pollers.pop()
        except IndexError:
            poller = Poller()
        try:
            flags, woken = poller.wait(
                sock.fileno(),
                -1 if wake is None else wake.fileno(),
                for_room=bool(self._outbox.session.sendable_bytes),
                timeout_ms=0 if pending else timeout_s * 1000,
            )
            self._pollers.append(poller)
        except (TypeError, ValueError, OSError):
            return None
        if flags & UNKNOWN:
            return None
        if woken and wake is not None:
            # Before the pull: whoever wakes from here on is either seen by it or writes again.
            woken = self._link.hear(wake)
            self._link.do(self._outbox.pull)
        return pending or bool(flags & ~WRITABLE), woken or bool(flags & WRITABLE)

    def do_misc(self) -> MQTTErrorCode:
        """What is due now and then, but for keep alive; what an exception kept from being done is made up for."""
        paho, outbox = self._paho, self._outbox
        self._policy_due_s = time.monotonic() + self._policy.tick()
        if self._policy.is_moving and paho.state == ConnectionState.MQTT_CS_CONNECTED:
            return self._leave_for_another()
        if paho.sock is not None:
            if outbox.is_to_settle:
                self._arrivals.settle_sent()
            if outbox.session.sendable_bytes and not paho.is_registered:
                self._writer.ask_for_room()
        if paho.sock is not None:
            if paho.thread is None:
                self._writer.pull_for_own_loop()
            elif outbox.is_due:
                self._link.do(outbox.pull)
            outbox.look_for_answers()
            self._farewell.leave_when_due()
        return self._reader.catch_up()

    def _leave_for_another(self) -> MQTTErrorCode:
        """In order; the loop makes the next connection."""
        self._policy.on_moving()
        self._writer.write_disconnect()
        self._farewell.hear_out()
        return self._paho.lose(_CONN_LOST)
