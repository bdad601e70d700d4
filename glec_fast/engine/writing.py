"""From the outbox to the socket."""

from __future__ import annotations

import ssl
import threading
from typing import TYPE_CHECKING

from paho.mqtt import client as paho_client
from paho.mqtt.enums import LogLevel, MQTTErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast._paho import Paho
    from glec_fast.engine.arrivals import Arrivals
    from glec_fast.engine.farewell import Farewell
    from glec_fast.engine.wakeup import Wakeup
    from glec_fast.outbox._outbox import Outbox

_SEND_BYTES = 256 * 1024
_CONNECT = 0x10
_DISCONNECT = 0xE0
_DISCONNECT_PACKET = b"\xe0\x00"
# An enum's members are looked up at some cost.
_SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS


class Writer:
    """Of one client. `put`, `after_queueing`, `after_publish` and `write_some` are for any thread: `Link.lock` lets one
    write at a time. The rest is for whoever has the loop.

    log_sent: logs what the outbox has encoded since.
    """

    def __init__(
        self,
        paho: Paho,
        outbox: Outbox,
        arrivals: Arrivals,
        wakeup: Wakeup,
        farewell: Farewell,
        log_sent: Callable[[], None],
    ) -> None:
        self._paho = paho
        self._outbox = outbox
        self._arrivals = arrivals
        self._link = arrivals.link
        self._callback_mark = paho.callback_mark
        self._wakeup = wakeup
        self._farewell = farewell
        self.log_sent = log_sent

    # ---- what is queued

    def put(self, command: int, packet: bytes | bytearray) -> MQTTErrorCode:
        """A control packet."""
        kind = command & 0xF0
        taken = self._outbox.put_packet(packet, first=kind == _CONNECT, last=kind == _DISCONNECT)
        if not taken and self._paho.sock is not None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        if kind == _CONNECT:
            self._link.lacks_connect = False
        return self.after_queueing()

    def after_publish(self, is_worth_writing: bool) -> MQTTErrorCode:
        """For `publish`, where something is to be sent."""
        if is_worth_writing and self._paho.thread is not None:
            self._write_for_thread()
        return self.after_queueing()

    def after_queueing(self, *, wake: bool = True) -> MQTTErrorCode:
        """See to it that what was queued leaves: by the thread, by the program's own loop, or at once."""
        paho = self._paho
        thread = paho.thread
        if thread is not None:
            if wake and not self._outbox.is_woken and threading.get_ident() != thread.ident:
                self._wakeup.wake()
            if paho.on_socket_register_write is None and paho.on_socket_unregister_write is None:
                # The thread itself looks for something to send at every turn.
                return _SUCCESS
        else:
            if wake:
                self._wakeup.wake()
                # The next message is written at once too, whether `loop` was called meanwhile or not.
                self._outbox.is_woken = False
            if paho.on_socket_register_write is None and self._callback_mark.acquire(False):
                return paho.client.loop_write()
        if not paho.is_registered:
            self.ask_for_room()
        return _SUCCESS

    def ask_for_room(self) -> None:
        """Have the program's own loop call `loop_write`."""
        paho = self._paho
        if paho.on_socket_register_write is None and paho.sock is not None:
            paho.is_registered = True
        else:
            paho.register_write()

    def pull_for_own_loop(self) -> None:
        """Nobody else would: the program's own loop knows of sockets only."""
        self._link.do(self._outbox.pull)
        if self._outbox.session.sendable_bytes:
            self._paho.register_write()

    # ---- what leaves

    def write(self, rounds_max: int = 0) -> MQTTErrorCode:
        """All that the socket takes, in at most `rounds_max` writes; 0 for any number."""
        paho = self._paho
        if paho.sock is None:
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        try:
            rc = self._write_all(rounds_max)
            # MQTT_ERR_AGAIN is below it.
            return paho.lose(rc) if rc > _SUCCESS else _SUCCESS
        finally:
            if self._outbox.session.sendable_bytes:
                self.ask_for_room()
            elif paho.is_registered:
                if paho.on_socket_unregister_write is None:
                    paho.is_registered = False
                else:
                    paho.unregister_write()

    def _write_all(self, rounds_max: int) -> MQTTErrorCode:
        outbox = self._outbox
        rounds = 0
        while True:
            rounds += 1
            try:
                sent, is_last = self._link.write(self._paho.holder, _SEND_BYTES)
            except BlockingIOError:
                return MQTTErrorCode.MQTT_ERR_AGAIN
            except OSError as error:
                note_broken_off(outbox, error)
                self._paho.log(LogLevel.MQTT_LOG_ERR, "failed to receive on socket: %s", error)
                return MQTTErrorCode.MQTT_ERR_CONN_LOST
            if outbox.is_to_settle:
                self._arrivals.settle_sent()
            if sent:
                self._paho.note_sent(paho_client.time_func())
            if is_last:
                self._farewell.on_sent()
                return _SUCCESS
            if not sent:
                return _SUCCESS
            self._link.do(outbox.pull)
            if outbox.has_trace:
                self.log_sent()
            if not outbox.session.sendable_bytes or rounds == rounds_max:
                return _SUCCESS

    def write_some(self) -> tuple[int, bool]:
        """(bytes that the socket took, whether DISCONNECT was among them). Raises BlockingIOError, OSError."""
        return self._link.write(self._paho.holder, _SEND_BYTES)

    def _write_for_thread(self) -> None:
        """Under load the network thread waits long for the GIL. What follows from the writing stays its business."""
        if self._paho.is_tls or not self._paho.is_tcp:
            return
        try:
            with self._link.lock.attempt() as is_free:
                if is_free and not self._outbox.session.has_last:
                    self.write_some()
        except BlockingIOError:
            # The network thread goes on once the socket has room.
            return
        except OSError as error:
            self._paho.log(LogLevel.MQTT_LOG_DEBUG, "the network thread is to end the connection: %s", error)

    def write_disconnect(self) -> None:
        """Leave in order, so that no will is published; the connection is closed next."""
        self._outbox.put_packet(_DISCONNECT_PACKET, last=True)
        self.write_out()

    def write_out(self) -> None:
        """As much of what was put as the socket takes now."""
        try:
            while self.write_some()[0]:
                pass
        except OSError as error:
            self._paho.log(LogLevel.MQTT_LOG_DEBUG, "the server did not hear why: %s", error)


def note_broken_off(outbox: Outbox, error: OSError) -> None:
    """A reset, and TLS that ends in no order, are the peer's doing as well; a time-out is nobody's."""
    if isinstance(error, (ConnectionError, ssl.SSLEOFError)):
        outbox.is_broken_off = True
    elif isinstance(error, TimeoutError):
        outbox.is_silent = True
