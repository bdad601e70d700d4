"""Who turns the network loop of a client that lives in asyncio's.

The network thread of `glec_fast.engine.network_thread` makes a connection: names are looked up, hands are shaken,
CONNACK is answered and the first rows are read in it, which all may wait. Then it hands the connection over and ends.
From there on asyncio's loop calls the engine as the socket allows, a little at a time. Where the connection ends, is to
be left, or is to be moved, a thread takes it over again. So one or the other has the client's loop, never both.

A signal's handler may raise at any step of it. So each step that the loop calls is `Owed`: it looks at what there is to
do, does that, and is called once more where it was cut into.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from paho.mqtt.enums import MQTTErrorCode

from glec_fast._paho import Paho
from glec_fast.aio._waiting import Owed
from glec_fast.mqtt.client import Client, parts_of
from glec_fast.runtime.log import shown

if TYPE_CHECKING:
    from glec_fast.durable.store import Store
    from glec_fast.engine.policy import Policy
    from glec_fast.outbox.stored import DurableOutbox
    from glec_fast.runtime.summing_log import SummingLog

# What is due now and then: keep alive, the heartbeat, messages that were refused.
_MISC_INTERVAL_S = 0.25
# A timer that is late by so much was lost, where an exception cut into asyncio's own steps.
_LOST_S = 1.0
# A turn writes so often, each time what the socket takes and what a read of the queue brings.
_WRITES_A_TURN = 1
# And reads so much: some tens of messages, or a thousand acknowledgements.
_RECEIVE_BYTES = 4 * 1024
# Over TLS, where each acknowledgement is a record, and each read of one lets other threads have the interpreter.
_TLS_RECEIVE_BYTES = 1536
_NEVER_S = float("inf")


class Hosting:
    """Of one client. All but `_hand_over`, `is_anothers`, `_wake` and `_want_room` are for the loop's thread.

    ring: from any thread, has the loop call `look` before long.
    """

    def __init__(
        self,
        client: Client,
        store: Store,
        policy: Policy,
        log: SummingLog,
        loop: asyncio.AbstractEventLoop,
        ring: Callable[[], None],
    ) -> None:
        self._client = client
        self._store = store
        self._policy = policy
        self._log = log
        self._loop = loop
        self._paho = Paho(client)
        self._parts = parts = parts_of(client)
        self._outbox = cast("DurableOutbox", parts.outbox)
        self._is_leaving = False
        # From before the loop lets go of the connection until a thread has it.
        self._is_handing_back = False
        self._ring = ring
        # There may be rows to send.
        self._is_woken = False
        # What the loop watches: the connection's socket; None while a thread has it.
        self._sock: Any = None
        self._fd = -1
        self._is_waiting_for_room = False
        self._timer: asyncio.TimerHandle | None = None
        # The timer waits until something is due.
        self._is_resting = False
        self._pull_timer: asyncio.TimerHandle | None = None
        self._take, self._on_time = Owed(loop, self._take_over), Owed(loop, self._do_timely)
        self._on_readable, self._on_room = Owed(loop, self._read), Owed(loop, self._write)
        self._on_woken, self._on_pull_time = Owed(loop, self._look_for_rows), Owed(loop, self._pull_timely)
        parts.reader.receive_bytes = _TLS_RECEIVE_BYTES if self._paho.is_tls else _RECEIVE_BYTES
        parts.reader.reads_a_turn = 1
        parts.thread.hand_over = self._hand_over
        parts.loop.is_anothers = self.is_anothers

    def begin(self) -> None:
        """Have a thread connect."""
        self._client.loop_start()

    def is_anothers(self) -> bool:
        """See `glec_fast.engine.loop.Loop`: a connection that is open, and stays so as far as anybody knows.

        A narrow one is not yet: all of the queue may be gone through as it widens.
        """
        outbox = self._outbox
        return outbox.is_open and not (outbox.is_narrow or self._is_leaving or self._policy.is_moving)

    def give_back(self) -> None:
        """The connection is to be left: a thread does so in order, which may wait."""
        self._is_leaving = True
        if self._sock is not None or self._is_handing_back:
            self._hand_back()

    def look(self) -> None:
        """Somebody has rung: rows can be sent in the loop's next round, behind those who heard that theirs are on disk.

        They may publish more, which the store's thread then begins on.
        """
        if self._sock is None:
            if self._paho.thread is None:
                # Where nobody was told that it is the loop's, or was to hand it back.
                self._take_over()
            return
        if self._is_woken:
            self._loop.call_soon(self._on_woken)
        if self._timer is not None and self._loop.time() > self._timer.when() + _LOST_S:
            self._arm()

    def _wake(self) -> None:
        """By any thread."""
        self._is_woken = True
        self._ring()

    def _hand_over(self) -> None:
        # A loop that is closed by now has nobody who would close the manager, but the end of the process.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take)

    # ---- the loop's thread

    def _take_over(self) -> None:
        if self._is_handing_back:
            self._hand_back()
            return
        sock = self._paho.sock
        if self._is_leaving or self._paho.thread is not None:
            return
        if sock is None:
            self._hand_back()
            return
        self._sock, self._fd = sock, sock.fileno()
        self._parts.wakeup.ring = self._wake
        self._store.leave_images_to_writer(True)
        self._client.on_socket_close = self._on_close
        self._client.on_socket_register_write = self._want_room
        self._client.on_socket_unregister_write = _nothing
        self._loop.add_reader(self._fd, self._on_readable)
        self._arm()
        # What has come, or was accepted, while nobody had the loop; of TLS, what no poll of the socket tells of.
        self._do(self._client.loop_read)
        self._on_woken()

    def _hand_back(self) -> None:
        """A thread has the connection from here on, or makes the next."""
        self._is_handing_back = True
        self._let_go()
        try:
            self._client.loop_start()
        except (RuntimeError, OSError) as error:
            # No thread or descriptor is left.
            self._log.note(logging.ERROR, "failures of the network thread", shown(error), error=error)
            if self._is_leaving:
                # It is left without one.
                self._is_handing_back = False
            else:
                self._loop.call_later(_MISC_INTERVAL_S, self._take_over)
            return
        self._is_handing_back = False
        if self._is_woken:
            # What the loop has not looked for.
            self._is_woken = False
            self._parts.wakeup.wake()

    def _let_go(self) -> None:
        """Watch nothing any more; a thread may have the client's loop from here on."""
        for timer in (self._timer, self._pull_timer):
            if timer is not None:
                timer.cancel()
        self._stop_watching()
        self._parts.wakeup.ring = None
        self._client.on_socket_close = None
        self._client.on_socket_register_write = None
        self._client.on_socket_unregister_write = None
        self._paho.is_registered = False
        self._sock = self._timer = self._pull_timer = None
        self._store.leave_images_to_writer(False)

    def _stop_watching(self) -> None:
        # A loop that was closed watches nothing.
        if self._fd >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
        self._fd = -1
        self._is_waiting_for_room = False

    def _on_close(self, _client: Any, _userdata: Any, _sock: Any) -> None:
        # Before its number is another's.
        self._stop_watching()

    def _arm(self, delay_s: float = _MISC_INTERVAL_S) -> None:
        """One timer at a time, also where an exception has left one that nobody has noted."""
        if self._timer is not None:
            self._timer.cancel()
        # Until it is set: none, or one that rests, would else not be set anew by what there is to do.
        self._is_resting = True
        self._timer = self._loop.call_later(delay_s, self._on_time)
        self._is_resting = delay_s > _MISC_INTERVAL_S

    def _read(self) -> None:
        self._do(self._client.loop_read)

    def _look_for_rows(self) -> None:
        # First: whoever wakes from here on is either seen by this or wakes again.
        self._is_woken = False
        self._do(self._pull)

    def _write(self) -> None:
        self._do(_no_step)

    def _do_timely(self) -> None:
        if self._sock is not None:
            self._arm()
        if self._sock is not None and self._policy.is_moving:
            self._hand_back()
            return
        self._do(self._client.loop_misc)
        loop = self._parts.loop
        if self._sock is not None and not loop.is_busy():
            # Whatever there is to do before then calls a step.
            self._arm(max(loop.quiet_s(), _MISC_INTERVAL_S))

    def _pull(self) -> MQTTErrorCode:
        self._parts.dispatcher.link.do(self._outbox.pull)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _do(self, step: Callable[[], MQTTErrorCode]) -> None:
        """One step of the engine, and a write of what it made ready."""
        if self._is_handing_back:
            self._hand_back()
        if self._sock is None:
            return
        paho, session = self._paho, self._outbox.session
        try:
            rc = step()
            if not rc and paho.sock is self._sock and session.sendable_bytes:
                rc = self._parts.writer.write(_WRITES_A_TURN)
        except Exception as error:
            # As with a thread: nothing that fails here may end it while the manager lives.
            self._log.note(logging.ERROR, "failures of the network thread", shown(error), error=error)
            paho.close()
            rc = MQTTErrorCode.MQTT_ERR_CONN_LOST
        if rc or paho.sock is not self._sock:
            self._hand_back()
            return
        if self._is_resting:
            self._arm()
        self._watch_for_room(bool(session.sendable_bytes))
        pull_at_s = self._outbox.pull_at_s
        if pull_at_s < _NEVER_S and self._pull_timer is None:
            self._pull_timer = self._loop.call_later(max(pull_at_s - time.monotonic(), 0.0), self._on_pull_time)

    def _pull_timely(self) -> None:
        """A broker's quota has room."""
        self._pull_timer = None
        self._do(self._pull)

    def _watch_for_room(self, is_wanted: bool) -> None:
        if is_wanted and not self._is_waiting_for_room:
            self._loop.add_writer(self._fd, self._on_room)
        elif self._is_waiting_for_room and not is_wanted:
            self._loop.remove_writer(self._fd)
        self._is_waiting_for_room = is_wanted

    def _want_room(self, _client: Any, _userdata: Any, _sock: Any) -> None:
        """By any thread, see `glec_fast.engine.writing.Writer`; within a step of ours, which ends by looking."""
        if asyncio._get_running_loop() is not self._loop:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_room)


def _no_step() -> MQTTErrorCode:
    return MQTTErrorCode.MQTT_ERR_SUCCESS


def _nothing(_client: Any, _userdata: Any, _sock: Any) -> None:
    """Whether there is room to wait for is looked at behind each step."""
