"""Whether a connection is alive, and when to ask.

A link that dies says nothing. What tells is an answer that does not come, and only PINGREQ asks for one at any time
(MQTT 3.1.1, 3.12). So it goes out where the keep alive asks for it, and as soon as too long nothing has come back for
what went out. From then on the answer has a time:

- While PINGREQ is still on its way, behind a backlog in our kernel or a large message, bytes that leave are life: the
  time begins anew with each that the peer's kernel acknowledges (SIOCOUTQ).
- Once the peer's kernel has it, that proves no more of the peer than its kernel, and bytes that leave prove nothing:
  what swallows packets acknowledges them, too. The time is longer by what the peer took to read the backlog before it,
  as far as that can fill its receive buffer.
- Bytes that arrive are life in either case: the answer may be behind a large message.

A peer that answers PINGREQ and does not acknowledge a message for `ack_timeout_s` is given up, too: the message goes
again on another connection.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from collections import deque
from typing import TYPE_CHECKING, Any

from paho.mqtt import client as paho_client
from paho.mqtt.enums import MQTTErrorCode

from glec_fast._paho import ConnectionState
from glec_fast.runtime.polling import is_readable
from glec_fast.transport.poller import has_pending

if TYPE_CHECKING:
    from glec_fast._paho import Paho
    from glec_fast.engine.ending import Ending
    from glec_fast.outbox._outbox import Outbox

# What a peer that reads slowly may have in its kernel.
_PEER_BUFFER_BYTES = 256 * 1024
# Looks are a second apart at most; where a callback takes longer, nobody knows what happened meanwhile.
_STEP_MAX_S = 2.0
# The unacknowledged are looked for so many times in their time.
_LOOKS = 8
_LEAVING = ConnectionState.MQTT_CS_DISCONNECTING, ConnectionState.MQTT_CS_DISCONNECTED


class Liveness:
    """Of one client. For whoever has its loop, which calls `check` at least once a second, or on an
    idle connection when PINGREQ is due.

    answer_timeout_s: how long nothing may come back for what went out before PINGREQ asks, and how long its answer may
    take. 0 for paho's way: PINGREQ for the keep alive alone, which is the time of its answer, too.
    ack_timeout_s: how long a message may go unacknowledged on a connection that lives; 0 for ever.
    """

    def __init__(
        self, paho: Paho, outbox: Outbox, ending: Ending, *, answer_timeout_s: float, ack_timeout_s: float
    ) -> None:
        self._paho = paho
        self._outbox = outbox
        self._ending = ending
        self._answer_timeout_s = answer_timeout_s
        self._ack_timeout_s = ack_timeout_s
        self.begin()

    def begin(self) -> None:
        """A new connection."""
        # Stream offset up to which the peer's kernel acknowledged, and when that last grew.
        self._acked = 0
        self._acked_s = float("-inf")
        # The same as of when nothing waited to leave, or something last came; and how long something has since.
        self._drained, self._backlog_s = 0, 0.0
        self._looked_s = float("-inf")
        # Up to where all is proven, and since when it has been less than what went out.
        self._proven_to = 0
        self._unanswered_s: float | None = None
        # Of the oldest PINGREQ without an answer: where it ends, when it was first seen; when the peer's kernel had it,
        # and for how much longer its answer may take.
        self._pinged_to = 0
        self._pinged_s = 0.0
        self._reached_s: float | None = None
        self._allowance_s = 0.0
        # Something was on its way before it.
        self._is_behind = False
        # (when, what was acknowledged by the peer's kernel), of connections with unacknowledged messages.
        self._looks: deque[tuple[float, int]] = deque()

    def check(self) -> MQTTErrorCode:
        """Ask, or end the connection, where that is due."""
        paho = self._paho
        sock = paho.sock
        if sock is None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        now_s = paho_client.time_func()
        session = self._outbox.session
        sent_to = session.sent_to
        acked = sent_to - unacknowledged_bytes(sock)
        if acked > self._acked:
            self._acked, self._acked_s = acked, now_s
        has_backlog = acked < sent_to or session.sendable_bytes > 0
        self._backlog_s += min(now_s - self._looked_s, _STEP_MAX_S)
        if paho.received_s >= self._looked_s:
            self._drained, self._backlog_s = acked, 0.0
        self._looked_s = now_s
        # What has come and was not read, as the program was busy, comes first.
        if self._is_silent(now_s) and not _has_come(sock):
            return self._end(MQTTErrorCode.MQTT_ERR_KEEPALIVE, "keep alive: PINGREQ was not answered in time")
        if self._is_unacknowledged(now_s):
            cause = f"it left a message unacknowledged for {self._ack_timeout_s:g} s"
            return self._end(MQTTErrorCode.MQTT_ERR_CONN_LOST, cause)
        if not has_backlog:
            self._drained, self._backlog_s = acked, 0.0
        if self._is_ping_due(now_s):
            paho.send_pingreq()
            self._note_ping(now_s)
            self._is_behind = has_backlog
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _answer_limit_s(self) -> float:
        keepalive_s = self._paho.keepalive_s
        if not (keepalive_s and self._answer_timeout_s):
            return float(keepalive_s or self._answer_timeout_s)
        return min(float(keepalive_s), self._answer_timeout_s)

    def _is_silent(self, now_s: float) -> bool:
        paho = self._paho
        received_s = paho.received_s
        if paho.state != ConnectionState.MQTT_CS_CONNECTED:
            # Before CONNACK, as paho.
            return bool(paho.keepalive_s) and now_s - max(received_s, paho.sent_s) >= paho.keepalive_s
        self._note_ping(now_s)
        limit_s = self._answer_limit_s()
        if not (self._pinged_to and limit_s):
            return False
        if self._reached_s is None and self._acked >= self._pinged_to:
            if self._is_behind:
                # A peer that reads as slowly as that left may yet have as much of it as its kernel holds.
                part = min(1.0, _PEER_BUFFER_BYTES / max(self._acked - self._drained, 1))
                self._reached_s, self._allowance_s = now_s, self._backlog_s * part
            else:
                self._reached_s, self._allowance_s = self._pinged_s, 0.0
        if self._reached_s is None:
            return now_s - max(self._pinged_s, self._acked_s, received_s) >= limit_s
        return now_s - max(self._reached_s, received_s) >= limit_s + self._allowance_s

    def _note_ping(self, now_s: float) -> None:
        pinged_to = self._outbox.session.pinged_to
        if pinged_to != self._pinged_to:
            self._pinged_to, self._pinged_s, self._reached_s = pinged_to, now_s, None
            self._is_behind = True

    def _is_unacknowledged(self, now_s: float) -> bool:
        session, looks, limit_s = self._outbox.session, self._looks, self._ack_timeout_s
        if not (limit_s and (session.in_flight or session.unanswered_count)):
            looks.clear()
            return False
        if not looks or now_s - looks[-1][0] >= limit_s / _LOOKS:
            looks.append((now_s, self._acked))
        while len(looks) > 1 and now_s - looks[1][0] >= limit_s:
            looks.popleft()
        return now_s - looks[0][0] >= limit_s and session.has_unanswered(looks[0][1])

    def _is_ping_due(self, now_s: float) -> bool:
        paho, session = self._paho, self._outbox.session
        is_waiting = session.answered_to < session.sent_to
        if not is_waiting:
            self._unanswered_s = None
        elif self._unanswered_s is None or session.answered_to != self._proven_to:
            self._unanswered_s = now_s
        self._proven_to = session.answered_to
        if paho.state != ConnectionState.MQTT_CS_CONNECTED:
            return False
        if session.pinged_to:
            # Its answer is behind a large message, say. The server's time for us goes on (MQTT 3.1.1, 3.1.2.10).
            reached_s, keepalive_s = self._reached_s, paho.keepalive_s
            return bool(keepalive_s) and reached_s is not None and now_s - max(paho.sent_s, reached_s) >= keepalive_s
        if paho.keepalive_s and now_s - min(paho.sent_s, paho.received_s) >= paho.keepalive_s:
            return True
        since_s, timeout_s = self._unanswered_s, self._answer_timeout_s
        return bool(timeout_s) and since_s is not None and now_s - since_s >= timeout_s

    def _end(self, rc: MQTTErrorCode, cause: str) -> MQTTErrorCode:
        paho = self._paho
        self._ending.note(cause)
        self._outbox.is_silent = True
        paho.close()
        if paho.state in _LEAVING:
            paho.state = ConnectionState.MQTT_CS_DISCONNECTED
            rc = MQTTErrorCode.MQTT_ERR_SUCCESS
        else:
            paho.state = ConnectionState.MQTT_CS_CONNECTION_LOST
        paho.tell_disconnected(rc)
        return MQTTErrorCode.MQTT_ERR_CONN_LOST


def unacknowledged_bytes(sock: Any) -> int:
    """What the socket took and the peer's kernel has not acknowledged, with TLS in it; 0 where nobody knows."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    except (OSError, ValueError):
        return 0


def _has_come(sock: Any) -> bool:
    if has_pending(sock):
        return True
    try:
        return is_readable(sock.fileno(), 0)
    except (OSError, ValueError):
        return False
