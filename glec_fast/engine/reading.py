"""From the socket to the parser, and on to whoever handles what it finds."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from paho.mqtt import client as paho_client
from paho.mqtt.enums import LogLevel, MQTTErrorCode

from glec_fast._paho import ConnectionState
from glec_fast.engine.writing import note_broken_off
from glec_fast.transport.dial import acknowledge_at_once
from glec_fast.transport.poller import has_pending

if TYPE_CHECKING:
    from glec_fast._paho import Paho
    from glec_fast.engine.arrivals import Arrivals
    from glec_fast.engine.connecting import Connecting
    from glec_fast.engine.ending import Ending
    from glec_fast.engine.farewell import Farewell
    from glec_fast.engine.writing import Writer
    from glec_fast.outbox._outbox import Outbox

_RECEIVE_BYTES = 64 * 1024
# Reads in one turn, so that a peer that never stops cannot keep the loop from its other duties.
_READS_A_TURN = 16
# More of them where TLS has decrypted what no poll of the socket tells of: a record of WebSocket frames of two bytes.
_PENDING_READS_A_TURN = 8192
# A read of so many bytes means that acknowledgements come in a stream.
_STREAM_READ_BYTES = 64
_LEFT = "the broker closed the connection"
_LEFT_EARLY = (
    "what answers closed it before it took the login: see the broker's log, whether the port is right, and whether it "
    "takes a will that is retained (status_retained) with QoS 1 (max_qos)"
)
# An enum's members are looked up at some cost.
_SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS
_AGAIN = MQTTErrorCode.MQTT_ERR_AGAIN
_CONN_LOST = MQTTErrorCode.MQTT_ERR_CONN_LOST


class Reader:
    """Of one client, for whoever has its loop: one thread reads at a time."""

    def __init__(
        self,
        paho: Paho,
        outbox: Outbox,
        arrivals: Arrivals,
        connecting: Connecting,
        writer: Writer,
        farewell: Farewell,
        ending: Ending,
    ) -> None:
        self._paho = paho
        self._outbox = outbox
        self._arrivals = arrivals
        self._link = arrivals.link
        self._connecting = connecting
        self._writer = writer
        self._farewell = farewell
        self._ending = ending
        # Acknowledgements come in a stream: more is there as a rule.
        self.is_stream = False
        # Of one read, and so many of them at most where there is more.
        self.receive_bytes = _RECEIVE_BYTES
        self.reads_a_turn = _READS_A_TURN

    def read(self) -> MQTTErrorCode:
        """What has come: one read may bring many packets."""
        paho = self._paho
        rc = self.catch_up()
        if rc:
            return rc
        for number in range(_PENDING_READS_A_TURN):
            sock = paho.sock
            if sock is None:
                return MQTTErrorCode.MQTT_ERR_NO_CONN
            received_bytes, ended, failure = self._feed(sock)
            if ended is _AGAIN:
                self.is_stream = False
                self._hasten_connack(sock)
                break
            if failure is not None:
                self._note_failure(failure)
            if ended:
                return paho.lose(ended)
            rc = self._handle(sock)
            if rc:
                return paho.lose(rc)
            self._hasten_acks(sock, received_bytes)
            if paho.sock is not sock:
                break
            may_be_more = received_bytes >= self.receive_bytes and number + 1 < self.reads_a_turn
            if not may_be_more and not has_pending(sock):
                break
        return _SUCCESS

    def catch_up(self) -> MQTTErrorCode:
        """Whole packets that a callback's exception left behind: the socket has no more to say about them."""
        sock = self._paho.sock
        if sock is None:
            return _SUCCESS
        if self.is_torn:
            return self.end_torn()
        if self._arrivals.is_behind():
            rc = self._handle(sock)
            if rc:
                return self._paho.lose(rc)
        return _SUCCESS

    @property
    def is_torn(self) -> bool:
        """True where an exception has left a connection of no use: one whose bytes nobody knows, or without CONNECT."""
        return self._link.is_torn or (self._link.lacks_connect and not self._connecting.is_under_way)

    def end_torn(self) -> MQTTErrorCode:
        """An exception has cut a write or a read short: what was in flight goes again on the next connection."""
        text = "closing the connection: an exception cut into its making, a write or a read"
        self._ending.note("an exception cut into its making, a write or a read")
        self._paho.log(LogLevel.MQTT_LOG_ERR, text)
        return self._paho.lose(_CONN_LOST)

    def _handle(self, sock: Any) -> MQTTErrorCode:
        """What the parser has, and see to it that the answers leave."""
        outbox, link = self._outbox, self._link
        rc = self._arrivals.handle(sock)
        if link.left_s:
            self._paho.note_sent(link.left_s)
            link.left_s = 0.0
        if link.came_s:
            self._paho.note_received(link.came_s)
            link.came_s = 0.0
        if link.failure is not None and not rc and self._paho.sock is sock:
            failure, link.failure = link.failure, None
            self._note_failure(failure)
            return _CONN_LOST
        if rc or self._paho.sock is not sock:
            if rc is MQTTErrorCode.MQTT_ERR_PROTOCOL and outbox.session.has_last:
                self._writer.write_out()
            return rc
        if outbox.is_to_settle:
            self._arrivals.settle_sent()
        if outbox.has_trace:
            self._writer.log_sent()
        self._farewell.leave_when_due()
        if outbox.session.sendable_bytes:
            return self._writer.after_queueing(wake=False)
        return _SUCCESS

    def _feed(self, sock: Any) -> tuple[int, MQTTErrorCode, OSError | None]:
        """Give the parser what one read brings: (its size, MQTT_ERR_AGAIN where nothing is there, what failed)."""
        paho = self._paho
        now_s = paho_client.time_func()
        try:
            size = self._link.read(paho.through(sock), self.receive_bytes, now_s)
        except ssl.SSLWantWriteError:
            # A handshake within the connection.
            paho.register_write()
            return 0, _AGAIN, None
        except (BlockingIOError, ssl.SSLWantReadError):
            return 0, _AGAIN, None
        except OSError as error:
            return 0, _CONN_LOST, error
        if not size:
            self._outbox.is_left = True
            self._ending.note(_LEFT if self._is_accepted() else _LEFT_EARLY)
            return 0, _CONN_LOST, None
        paho.note_received(now_s)
        return size, _SUCCESS, None

    def _note_failure(self, failure: OSError) -> None:
        note_broken_off(self._outbox, failure)
        self._ending.note(str(failure) if self._is_accepted() else f"{_LEFT_EARLY} ({failure})")
        self._paho.log(LogLevel.MQTT_LOG_ERR, "failed to receive on socket: %s", failure)

    def _is_accepted(self) -> bool:
        return bool(self._paho.state == ConnectionState.MQTT_CS_CONNECTED)

    def _hasten_acks(self, sock: Any, received_bytes: int) -> None:
        """A broker with Nagle's algorithm holds acks back until our kernel acknowledges the last, 40 ms later."""
        self.is_stream = received_bytes >= _STREAM_READ_BYTES
        session = self._outbox.session
        is_waiting = session.in_flight and not session.sendable_bytes
        # What is sent next acknowledges as well.
        if is_waiting and self._paho.sock is sock and self._paho.is_tcp:
            acknowledge_at_once(sock)

    def _hasten_connack(self, sock: Any) -> None:
        """TLS session tickets have come: with Nagle's algorithm CONNACK follows once our kernel acknowledges them."""
        paho = self._paho
        if paho.is_tls and paho.is_tcp and paho.state != ConnectionState.MQTT_CS_CONNECTED:
            acknowledge_at_once(sock)
