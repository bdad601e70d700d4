"""Messages that wait in the store, and leave it once the broker has taken them over.

Here is what a client and the store see: how a message is taken, how a connection begins and ends, who is told. What
each turn of a flush goes through is in C, `cext/outbox/row_outbox.pxi`. The rest are parts, each of its own module:

    next_rows      which rows are read next, and which of them this server takes
    direct         what goes past the queue
    narrow         connections on which not all goes at once
    unanswered     PUBRELs that are not answered
    blame          messages that a broker ends connections over
    in_the_air     QoS 0 that nothing proves to have arrived
    server_limits  what the server takes
    owners         whose session it is
    uptime         whether the broker has gone back
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from paho.mqtt.enums import MQTTErrorCode

from glec_fast.durable.extras import Extras
from glec_fast.durable.gathering import Batch
from glec_fast.durable.outcomes import Dropped, DropReason
from glec_fast.durable.store import Store
from glec_fast.errors import ConfigError, MessageError, QueueClosedError, QueueStorageError
from glec_fast.outbox._outbox import Registration, RowOutbox
from glec_fast.outbox.blame import Blame
from glec_fast.outbox.direct import Direct
from glec_fast.outbox.handle import PublishHandle
from glec_fast.outbox.in_the_air import InTheAir
from glec_fast.outbox.narrow import Narrow
from glec_fast.outbox.next_rows import NextRows
from glec_fast.outbox.owners import OnOwnerAway, Owner, Owners
from glec_fast.outbox.quota import Quota
from glec_fast.outbox.server_limits import Server
from glec_fast.outbox.unanswered import Unanswered
from glec_fast.outbox.uptime import Uptime
from glec_fast.outbox.weaknesses import Weaknesses
from glec_fast.runtime import process
from glec_fast.runtime.log import logger
from glec_fast.validation import PACKET_MAX_BYTES, check_id, check_packet, packet_bytes

_MQTT_5 = 5
# What zlib may add to what it cannot make smaller, with what a longer packet's length takes.
_AROUND_BATCH_BYTES = 64


class DurableOutbox(RowOutbox):
    """Messages in the store. Given to it as its outbox; `glec_fast.durable.transaction.Outbox` says who calls what."""

    def __init__(
        self,
        store: Store,
        window: int,
        on_work: Callable[[], None],
        on_dropped: Callable[[list[Dropped]], None],
        *,
        wait_for_disk: bool = True,
        resend_in_doubt: bool = False,
        max_unreleased: int = 0,
        on_owner_away: OnOwnerAway = "move",
        resend_unproven: bool = False,
        max_qos: int = 2,
        max_packet_bytes: int = PACKET_MAX_BYTES,
    ) -> None:
        super().__init__(store, window, on_work, max_unreleased=max_unreleased, resend_in_doubt=resend_in_doubt)
        self._wait_for_disk = wait_for_disk
        self.server = Server(self, max_qos, max_packet_bytes)
        self._max_packet_bytes = max_packet_bytes
        self._tell_dropped = on_dropped
        self.refused_count = 0
        # Of `publish`; 0 where only the store bounds them.
        self._most_queued = 0
        # What was in the air is queued again; so no more of it is on its way than is known.
        self.session.bounds_unproven = resend_unproven
        self.in_the_air = InTheAir(self, resends=resend_unproven)
        self.weaknesses = Weaknesses()
        self.direct = Direct(self)
        self.next_rows = NextRows(self)
        self.unanswered = Unanswered(self)
        self.blame = Blame(self)
        self.narrow = Narrow(self)
        self.uptime = Uptime(self)
        try:
            ranges = self.session.load_image(store.load_session())
        except ConfigError:
            raise
        except ValueError as error:
            logger.error("what of QoS 2 is in flight cannot be read (%s): all of it is sent again", error)
            self.in_doubt_count += store.void_session()
            ranges = []
        for first, last in ranges:
            self._finish(list(range(first, last + 1)))
        if store.identity[1]:
            self.session.expect_stale(store.salvage is None)
        else:
            # Whose they are is among what is kept.
            self.session.resume(False)
        self.owners = Owners(self, on_owner_away)
        self.next_rows.rewind()
        store.attach(self, self.lock)

    def identify(self, client_id: str, owner: str, members: Collection[str] = (), apart: Collection[str] = ()) -> None:
        """Say whose session comes next, before each connection: that of another client id or owner is not this one.

        owner, members, apart: see `Owner`. It is on disk when this returns, also for the next process, which must not
        take the old packet ids for its own; of no broker, until that has a session which is. Raises QueueStorageError,
        QueueClosedError; then there must be no connection.
        """
        self.store.refuse_if_closed()
        self.blame.save()
        # The address is among the members.
        self.uptime.is_of_one = len(members) < 2
        self.uptime.on_connecting()
        self.owners.identify(client_id, Owner(owner, members, apart))

    def left_packet_ids(self) -> list[int]:
        """See `Outbox.left_packet_ids`."""
        return self.owners.left_packet_ids()

    def on_left_released(self) -> None:
        """See `Outbox.on_left_released`."""
        self.owners.on_left_released()

    def tell_all(self, wanted: bool) -> None:
        """Whether `settle` makes a handle for each message that nobody holds one of."""
        with self.lock:
            self._tells_all = self.session.keeps_all_reasons = wanted

    def bound_rate(self, most_per_s: int) -> None:
        """Send at most so many PUBLISH packets a second, see `Quota`; before the first connection."""
        with self.lock:
            self.quota = Quota(most_per_s)
            self.session.publish_quota = 0

    @property
    def stored_count(self) -> int:
        """Messages in the store that are not finished."""
        # It learns of what is finished once that is worth a transaction.
        return max(self.store.size - len(self._finished), 0)

    def __len__(self) -> int:
        return self.stored_count + len(self._direct)

    def publish(self, topic: str, payload: str | bytes, qos: int, extras: Extras | None = None) -> PublishHandle:
        """Take a message. QoS 2 waits for the disk, unless told not to.

        Raises MessageError for what is larger than the largest packet, or than the whole queue may be,
        QueueStorageError, QueueClosedError.
        """
        if extras is not None or self._max_packet_bytes < PACKET_MAX_BYTES:
            packed = b"" if self.session.protocol_version != _MQTT_5 else None if extras is None else extras.packed()
            check_packet(topic, payload, qos, packed, self._max_packet_bytes)
        if qos == 0 and self.is_open and not self.is_narrow:
            # Where the link ends it is queued.
            self.store.check_size(topic, payload, extras)
            # At the end of the process nobody would know whether it left.
            if not self.has_waiting_rows() and not self.store.is_ending:
                direct = self.direct.publish(topic, payload, extras)
                if direct is not None:
                    return direct
        handle = self.new_handle(qos)
        if 0 < self._most_queued <= len(self):
            handle.rc = MQTTErrorCode.MQTT_ERR_QUEUE_SIZE
            return handle
        if not self.is_open:
            self.is_awaited = self.is_linked
        register = Registration(handle, self._handles)
        self.store.append(topic, payload, qos, urgent=self.is_open, extras=extras, register=register)
        # The store asks for the image under our lock, which a signal's handler or a finaliser may have cut into.
        if qos == 2 and self._wait_for_disk and not self.lock.is_mine:
            try:
                self.store.wait_durable(handle.message_id)
            except QueueStorageError:
                if self.store.withdraw(handle.message_id):
                    raise
        return handle

    def gather(self, payload: bytes) -> PublishHandle:
        """Take a message that waits for others, to be one with them; returns the handle of what they will be.

        Its `message_id` is 0 until then. Raises as `publish`.
        """
        company = self.store.company
        assert company is not None
        packed = None if company.extras is None else company.extras.packed()
        around_bytes = packet_bytes(company.topic, b"", 0, packed) + _AROUND_BATCH_BYTES
        if len(payload) + around_bytes > self._max_packet_bytes:
            check_packet(company.topic, payload, 0, packed, self._max_packet_bytes - _AROUND_BATCH_BYTES)
        most_bytes = min(company.bytes_max, self.server.packet_max_bytes - around_bytes)
        handle: PublishHandle = self.store.gather(payload, most_bytes, self._begin_batch)
        return handle

    def _begin_batch(self, batch: Batch) -> None:
        wait_durable = self.store.wait_batch_durable
        handle = self.handle_type(0, self._published, 0, lambda _id, timeout_s: wait_durable(batch, timeout_s))
        batch.handle, batch.register = handle, Registration(handle, self._handles)

    def has_waiting_rows(self) -> bool:
        """True where rows are yet to go."""
        # In the order in which a row goes its way, so that none is missed between two of them.
        store = self.store
        return store.has_backlog or store.is_handing_out or not self._have_all_gone()

    def has_to_send(self) -> bool:
        """True where something accepted is yet to leave on this connection, and can before long.

        That is what waits for the disk, and what the window has room for; before the broker has accepted the
        connection, what was published since it was begun.
        """
        if not self.is_open:
            return self.is_awaited or (self.is_opening and not self.store.is_failing and self.has_waiting_rows())
        session = self.session
        if self.store.is_failing or session.publish_quota <= 0:
            return False
        if session.unsent_bytes > session.sendable_bytes:
            return True
        with self.lock:
            left = self._rows.left
            if left:
                # What fits and has not gone waits for answers alone, by the bounds of what is on its way.
                return session.fits(left[0])
        return self._have_all_gone() and session.room() > 0 and self.has_waiting_rows()

    def wait_direct(self, deadline_s: float) -> bool:
        """Wait until the socket has what went past the queue; False at the deadline, of `time.monotonic`."""
        with self._published:
            return bool(self._published.wait_for(lambda: not self._direct, max(deadline_s - time.monotonic(), 0.0)))

    def unfinished(self, stops_by_s: float | None) -> int:
        """See `MemoryOutbox.unfinished`: the file keeps them, so that the thread stays until `stops_by_s` at most."""
        if stops_by_s is None or time.monotonic() >= stops_by_s:
            return 0
        return int(self.session.in_flight) or int(self.has_to_send())

    @property
    def max_queued(self) -> int:
        """Most messages in the queue."""
        return self._most_queued or self.store.max_queue_size

    def set_max_queued(self, value: int) -> None:
        """See `Outbox.set_max_queued`: below the store's bound, at which it drops what is oldest."""
        self._most_queued = value

    def has_message(self, message_id: int) -> bool:
        """See `Outbox.has_message`."""
        try:
            return self.handle_for(message_id) is not None
        except MessageError:
            return False

    def hasten(self) -> None:
        """See `Outbox.hasten`."""
        self.store.request_commit()

    def is_own_thread(self) -> bool:
        """See `Outbox.is_own_thread`: the store's thread, in which drop callbacks run."""
        return self.store.is_own_thread()

    def forbid(self, pid: int) -> None:
        """See `Outbox.forbid`."""
        super().forbid(pid)
        process.forbid(self, pid, {})

    @property
    def is_due(self) -> bool:
        """True where `pull` has something to do that nothing wakes it for."""
        is_way_over = self.makes_way and self.store.since_boot_ms() >= self.narrow.way_ends_ms
        return is_way_over or (bool(self._again) and time.monotonic() >= self._again_at_s)

    @property
    def has_timers(self) -> bool:
        """See `Outbox.has_timers`."""
        unproven = self.unanswered.suspects or self.blame.suspicion.aside or self.in_the_air.rows
        return bool(not self.is_open or self.is_narrow or self._again or unproven or self.has_waiting_rows())

    def park(self) -> None:
        """The connection is gone. QoS 0 that had not left goes to the store; the rest is there already."""
        in_order, has_left = self.is_left, self.session.unsent_bytes == 0
        self.uptime.end()
        self.blame.end()
        stranded, unproven, unproven_count = self._end_connection()
        self.next_rows.rewind()
        if unproven_count:
            self.in_the_air.end(unproven, unproven_count, by_peer=self.blame.is_by_peer)
        self._requeue(stranded, self.direct.queue)
        self.unanswered.end(has_left=has_left, in_order=in_order)

    def begin_close(self) -> None:
        """See `Outbox.begin_close`: what waits for the broker to accept the connection is in the file."""
        self.is_awaited = False

    def close(self) -> None:
        """Write what is pending and let go of the file; who waits for a message hears that it stays there.

        Raises QueueStorageError where something could not be written.
        """
        self.park()
        try:
            self.store.close()
        finally:
            with self.lock:
                published, self.untold = self.untold, []
                left = list(self._handles.values())
            for handle in published:
                handle._set_as_published()
            for handle in left:
                handle._set_as_left()

    def resume(self, session_present: bool, receive_maximum: int) -> None:
        """The broker accepted the connection: read from the first row again, resends first as they are the oldest.

        What is left to the broker, see `Doubt.void_session`, is handed out by `settle`.
        """
        self.owners.begin(session_present)
        self.uptime.begin(session_present)
        if self.session.parked_ids():
            with suppress(QueueStorageError, QueueClosedError):
                self.store.let_go_of_expired()
        # What was refused as the last connection ended is counted, and read with all others.
        self.after_settle()
        with self.lock:
            self.is_left = self.is_broken_off = self.is_violated = self.is_silent = False
            self.has_progress = self.has_refusals = False
            self.left_reason = 0
            self.blame.note_start()
            self.probes = 0
            self.server.receive_maximum = receive_maximum
        self.unanswered.begin()
        if not self.unanswered.is_proving:
            self._open()

    def _open(self) -> None:
        """Begin to send on a connection that was accepted."""
        self.unanswered.is_proving = False
        with self._pulling:
            with self.lock:
                has_suspects = self.blame.begin()
                self.in_the_air.one_by_one.begin()
            self.narrow.begin(has_suspects=has_suspects)
            self.next_rows.has_held_back = False
            verdicts = self.blame.judge()
            self._begin_connection(1 if self.is_narrow else self.server.receive_maximum)
            if not self.is_narrow:
                self.server.allow_aliases()
            self._again.clear()
            self.next_rows.rewind()
            self.is_open, self.is_opening = True, False
            # QoS 0 messages may still wait in memory for company; now they can go.
            self.store.request_commit()
            self._pull()
        self.blame.tell_passed_over()
        self.blame.quarantine(verdicts)

    def meet(self, connack: dict[str, Any], asked_s: int) -> None:
        """See `Outbox.meet`; before `resume`."""
        self.owners.asks_to_keep = asked_s > 0
        self.server.meet(connack, asked_s)

    def look_for_answers(self) -> None:
        """Now and then, on a connection that lasts: ask about PUBRELs that were sent again, see `Unanswered`."""
        self.uptime.look()
        self.in_the_air.one_by_one.look()
        if self.is_open and not self.unanswered.asked:
            self.blame.probe()
        if self.is_narrow and self.blame.is_ignored():
            self.narrow.put_off_last()
            self.wake()
        if self.is_open and not self.probes:
            self.unanswered.look()

    def on_pingresp(self) -> None:
        """See `Outbox.on_pingresp`: messages may be given up for it, and left to the broker."""
        super().on_pingresp()
        goes_on = self.unanswered.on_pingresp()
        self.blame.on_pong()
        if not goes_on:
            return
        self.after_settle()
        if self.is_open:
            self.pull()
        else:
            self._open()

    def handle_for(self, message_id: int) -> PublishHandle | None:
        """The handle of a message accepted before, by whichever process; None where it is not in the queue any more.

        Raises MessageError where no message can have this id.
        """
        check_id(message_id)
        with self.lock:
            handle = self._handles.get(message_id)
            if handle is not None:
                return handle
            # Before it is looked for: what finishes meanwhile is told to the handle.
            # Of what QoS does not matter: nothing that asks for it is called for a message of the queue.
            handle = self.handle_type(message_id, self._published, 1, self.store.wait_durable)
            self._handles[message_id] = handle
        held = self.store.holds(message_id)
        if held or handle.is_published():
            return handle
        self._handles.pop(message_id, None)
        if held is None:
            raise MessageError(f"no message has the id {message_id}: it must be the message_id of a handle")
        return None

    # ---- called by the store's thread

    def on_committed(self, version: int, new_rows: int) -> None:
        """See `glec_fast.durable.transaction.Outbox`."""
        with self.lock:
            sendable = self.session.sendable_bytes
            self.session.on_committed(version)
            opened = self.session.sendable_bytes > sendable
        if new_rows:
            self._more_to_read = True
        if new_rows or opened:
            self.wake()

    def on_salvaged(self) -> None:
        """See `glec_fast.durable.transaction.Outbox`: nobody must wait for what is lost. What is in flight goes on."""
        with self.lock:
            waiting = {mid: handle for mid, handle in self._handles.items() if not self.session.holds(mid)}
        lost = self.store.supply.lost(list(waiting))
        if lost:
            self.on_dropped([Dropped(mid, "", waiting[mid].qos, DropReason.DAMAGED_FILE) for mid in lost])

    def abandon(self, ids: list[int]) -> list[int] | None:
        """See `glec_fast.durable.transaction.Outbox`; what waits for a broker that is away stays."""
        withheld = self.owners.withheld
        staying = super().abandon([message_id for message_id in ids if message_id not in withheld])
        if staying is None:
            return None
        staying += [message_id for message_id in ids if message_id in withheld]
        with self.lock:
            # Nothing else lets them be sent again.
            self.blame.let_go(staying)
        return staying

    def on_dropped(self, dropped: list[Dropped]) -> None:
        """See `glec_fast.durable.transaction.Outbox`."""
        with self.lock:
            self.blame.on_gone([each.message_id for each in dropped])
        # As with on_publish: the callback first, then those who wait.
        self._tell_dropped(dropped)
        for each in dropped:
            handle = self._handles.pop(each.message_id, None)
            if handle is not None:
                handle._set_as_dropped(each.reason)
