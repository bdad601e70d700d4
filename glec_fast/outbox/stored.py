"""Messages that wait in the store, and leave it once the broker has taken them over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from paho.mqtt.enums import MQTTErrorCode

from glec_fast.durable.extras import Extras
from glec_fast.durable.gathering import Batch
from glec_fast.durable.inflight_log import UnreadableImageError
from glec_fast.durable.outcomes import Dropped, DropReason
from glec_fast.durable.store import Store
from glec_fast.durable.transaction import ALERT_QOS, Row
from glec_fast.errors import MessageError, QueueClosedError, QueueStorageError
from glec_fast.outbox._outbox import UNSENT_BYTES_MAX, Registration, RowOutbox
from glec_fast.outbox.blame import Blame
from glec_fast.outbox.handle import PublishHandle
from glec_fast.outbox.in_the_air import SAID, InTheAir
from glec_fast.outbox.owners import OnOwnerAway, Owner, Owners
from glec_fast.outbox.quota import Quota
from glec_fast.outbox.server_limits import ServerLimits, limits_of
from glec_fast.outbox.unanswered import Unanswered
from glec_fast.outbox.uptime import Uptime
from glec_fast.outbox.weaknesses import Weakness, Weaknesses
from glec_fast.runtime import process
from glec_fast.runtime.log import logger
from glec_fast.validation import PACKET_MAX_BYTES, check_id, check_packet, packet_bytes

# The broker begins on these while the next are read.
_PULL_ROWS_MAX = 250
# What a broker refuses for want of rights or quota it may take a while later; each refusal counts as an attempt.
_REFUSED_PAUSE_S = 30.0
# What goes last waits for so long while there is more to be sent; then all else makes way for it for so long at most.
# A broker that has not answered by then may never answer, and it is tried again when that has cost little of the time.
_LAST_WAITS_MS = 30_000
_MAKES_WAY_MS = 30_000
_LAST_WAITS_AGAIN_MS = 10 * _MAKES_WAY_MS
_MQTT_5 = 5
_PINGREQ = b"\xc0\x00"
# Of QoS 0 that goes past the queue the broker is asked to answer as often: once in half a minute of telemetry.
_UNASKED_BYTES_MAX = 16_000
# What zlib may add to what it cannot make smaller, with what a longer packet's length takes.
_AROUND_BATCH_BYTES = 64
# Aliases are ours, not a message's.
_TOPIC_ALIAS_INVALID = 0x94


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
        # (client id, owner of the session) of the connection that is or comes next.
        self._identity = ("", "")
        # A broker of that owner has accepted a connection of this process: its session is ours.
        self._has_session = False
        self._wait_for_disk = wait_for_disk
        self._max_qos = max_qos
        self._max_packet_bytes = max_packet_bytes
        self._tell_dropped = on_dropped
        self.refused_count = 0
        # Of `publish`; 0 where only the store bounds them.
        self._most_queued = 0
        # When what was refused is sent again.
        self._again_at_s = 0.0
        self._direct_id = 0
        # Of the ids that went past the store: what was said, and what was queued after all.
        self._uncounted = 0
        # What was in the air is queued again; so no more of it is on its way than is known.
        self.session.bounds_unproven = resend_unproven
        self._unproven = InTheAir(self, resends=resend_unproven)
        # Of this connection's server.
        self.limits: ServerLimits | None = None
        self.weaknesses = Weaknesses()
        # Whether this connection asks the broker to keep the session.
        self.asks_to_keep = True
        self._unanswered = Unanswered()
        # The number of the PINGREQ that asks for it.
        self._asked_at = 0
        # A connection that was accepted begins with PINGREQ alone; and what it will go on with.
        self.is_proving = False
        self._blame = Blame(self)
        # As `Store.since_boot_ms`: when what goes last is due on this connection, though there is more to be sent; and
        # until when all else makes way for it.
        self._last_at_ms = self._way_ends_ms = 0
        self.uptime = Uptime(self)
        # Messages that went with a lower QoS, as far as they were not noted.
        self._lowered_count = 0
        # Rows of QoS 0 were passed over on this connection, until it is not narrow any more.
        self._has_held_back = False
        # Where the queue is read anew on a connection that goes on: what is in flight, or for `_read_again`.
        self._on_its_way: frozenset[int] = frozenset()
        self._receive_maximum = 65_535
        # What it takes (MQTT 5, 3.2.2.3.8).
        self._topic_alias_maximum = 0
        try:
            ranges = self._load_image()
        except UnreadableImageError as error:
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
        self._owners = Owners(self, on_owner_away)
        self.rewind()
        store.attach(self, self.lock)

    def _load_image(self) -> list[tuple[int, int]]:
        image = self.store.load_session()
        try:
            return self.session.load_image(image)
        except ValueError as error:
            raise UnreadableImageError(str(error)) from error

    def identify(self, client_id: str, owner: str, members: Collection[str] = (), apart: Collection[str] = ()) -> None:
        """Say whose session comes next, before each connection: that of another client id or owner is not this one.

        owner, members, apart: see `Owner`. It is on disk when this returns, also for the next process, which must not
        take the old packet ids for its own; of no broker, until that has a session which is. Raises QueueStorageError,
        QueueClosedError; then there must be no connection.
        """
        self.store.refuse_if_closed()
        self._blame.save()
        identity = client_id, owner
        # The address is among the members.
        self.uptime.is_of_one = len(members) < 2
        self.uptime.on_connecting()
        if self._identity != identity:
            known = self.store.identity
            is_first = not any(self._identity) and known[0] == client_id and known[1] in (owner, *members)
            self._blame.turn_to(self.session.notes if is_first else [])
            doubt = self.doubt
            doubt.is_downgrade_recorded = doubt.is_downgrade_recorded and owner == self._identity[1]
            self._identity = identity
            self._has_session = False
            self.weaknesses.begin(owner)
        if self._has_session:
            # Also where nothing was written since, so that the file does not name it.
            self.is_session_foreign = False
            return
        self.is_session_foreign = not self._owners.turn_to(client_id, Owner(owner, members, apart))

    def rewind(self, on_its_way: frozenset[int] = frozenset()) -> None:
        """Read from the first row again: not what is finished or on its way, nor waits for a broker that is away."""
        with self.lock:
            parked, finished = self.session.parked_ids(), self._finished.ids
        self._on_its_way = on_its_way
        # Their rows are met again.
        self._blame.last = []
        withheld = self._owners.withheld
        self.store.supply.rewind(withheld.union(parked) if withheld else parked, finished, withheld)

    def wake(self) -> None:
        """Have what is ready leave before long. From any thread."""
        self._on_work()

    def left_packet_ids(self) -> list[int]:
        """See `Outbox.left_packet_ids`."""
        return self._owners.left_packet_ids(self._identity)

    def on_left_released(self) -> None:
        """See `Outbox.on_left_released`."""
        self._owners.on_left_released(self._identity)

    def tell_all(self, wanted: bool) -> None:
        """Whether `settle` makes a handle for each message that nobody holds one of."""
        with self.lock:
            self._tells_all = self.session.keeps_all_reasons = wanted

    def bound_rate(self, most_per_s: int) -> None:
        """Send at most so many PUBLISH packets a second, see `Quota`; before the first connection."""
        with self.lock:
            self.quota = Quota(most_per_s)
            self._granted = self.session.publish_quota = 0

    @property
    def stored_count(self) -> int:
        """Messages in the store that are not finished."""
        # It learns of what is finished once that is worth a transaction.
        return max(self.store.size - len(self._finished), 0)

    def accepted_counts(self, stored: tuple[int, int, int]) -> tuple[int, int, int]:
        """Messages that `publish` has taken, by QoS. stored: those that the store was given."""
        return stored[0] - self._direct_id - self._uncounted, stored[1], stored[2]

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
            if not self._has_waiting_rows() and not self.store.is_ending:
                direct = self._publish_direct(topic, payload, extras)
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
            self._wait_until_durable(handle)
        return handle

    def gather(self, payload: bytes) -> PublishHandle:
        """Take a message that waits for others, to be one with them; returns the handle of what they will be.

        Its `message_id` is 0 until then. Raises as `publish`.
        """
        company, limits = self.store.company, self.limits
        assert company is not None
        packed = None if company.extras is None else company.extras.packed()
        around_bytes = packet_bytes(company.topic, b"", 0, packed) + _AROUND_BATCH_BYTES
        if len(payload) + around_bytes > self._max_packet_bytes:
            check_packet(company.topic, payload, 0, packed, self._max_packet_bytes - _AROUND_BATCH_BYTES)
        most_bytes = self._max_packet_bytes if limits is None else min(self._max_packet_bytes, limits.packet_max_bytes)
        handle: PublishHandle = self.store.gather(
            payload, min(company.bytes_max, most_bytes - around_bytes), self._begin_batch
        )
        return handle

    def _begin_batch(self, batch: Batch) -> None:
        wait_durable = self.store.wait_batch_durable
        handle = self.handle_type(0, self._published, 0, lambda _id, timeout_s: wait_durable(batch, timeout_s))
        batch.handle, batch.register = handle, Registration(handle, self._handles)

    def _has_waiting_rows(self) -> bool:
        # In the order in which a row goes its way, so that none is missed between two of them.
        store = self.store
        return store.has_backlog or store.is_handing_out or not self._have_all_gone()

    def has_to_send(self) -> bool:
        """True where something accepted is yet to leave on this connection, and can before long.

        That is what waits for the disk, and what the window has room for; before the broker has accepted the
        connection, what was published since it was begun.
        """
        if not self.is_open:
            return self.is_awaited or (self.is_opening and not self.store.is_failing and self._has_waiting_rows())
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
        return self._have_all_gone() and session.room() > 0 and self._has_waiting_rows()

    def _publish_direct(self, topic: str, payload: str | bytes, extras: Extras | None) -> PublishHandle | None:
        limits = self.limits
        columns = () if extras is None else (extras.retain, extras.packed())
        if limits is not None and not limits.allow((0, topic, payload, 0, 0, 0, *columns)):
            # The queue refuses it, and tells of it.
            return None
        with self.lock:
            session = self.session
            if not self.is_open or session.unsent_bytes > UNSENT_BYTES_MAX or self._is_link_full():
                return None
            if (session.bounds_unproven and not session.has_room_unproven) or not self._fill_quota():
                return None
            self._direct_id -= 1
            handle = self.handle_type(self._direct_id, self._published, 0)
            self._direct[self._direct_id] = (topic, payload, extras, handle)
            self._admit_direct((self._direct_id, topic, payload, 0, 0, 0, *columns))
            if session.unasked_bytes > max(session.byte_window // 4, _UNASKED_BYTES_MAX):
                session.put_packet(_PINGREQ)
        self._on_work()
        return handle

    def say(self, topic: str, payload: str | bytes, *, retain: bool = False) -> bool:
        """Send a message on this connection alone, ahead of all that waits; False where there is none.

        It has QoS 1, or 0 while the window is full or where the server takes no more. Nothing of it is kept: it is
        neither queued nor sent again.
        """
        limits = self.limits
        with self.lock:
            session = self.session
            if not self.is_linked or session.has_last:
                return False
            is_kept = retain and (limits is None or limits.retain_available)
            self._direct_id -= 1
            self._uncounted += 1
            qos = min(session.room(), 1 if limits is None else limits.qos_max, 1)
            if qos:
                self._said.add(self._direct_id)
                session.admit(self._direct_id, topic, payload, qos, is_kept, None)
            else:
                self._admit_direct((self._direct_id, topic, payload, SAID, 0, 0, is_kept, None))
        self._on_work()
        return True

    def _is_link_full(self) -> bool:
        """What goes to the queue now is there in order, and an alert can overtake it. The caller holds the lock."""
        return self.pace.is_measured and self.session.unanswered_bytes > self.session.byte_window

    def wait_direct(self, deadline_s: float) -> bool:
        """Wait until the socket has what went past the queue; False at the deadline, of `time.monotonic`."""
        with self._published:
            return bool(self._published.wait_for(lambda: not self._direct, max(deadline_s - time.monotonic(), 0.0)))

    def _wait_until_durable(self, handle: PublishHandle) -> None:
        try:
            self.store.wait_durable(handle.message_id)
        except QueueStorageError:
            if self.store.withdraw(handle.message_id):
                raise

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
        is_way_over = self.makes_way and self.store.since_boot_ms() >= self._way_ends_ms
        return is_way_over or (bool(self._again) and time.monotonic() >= self._again_at_s)

    @property
    def has_timers(self) -> bool:
        """See `Outbox.has_timers`."""
        blame = self._blame
        unproven = self._unanswered.suspects or blame.suspicion.aside or self._unproven.rows
        return bool(not self.is_open or self.is_narrow or self._again or unproven or self._has_waiting_rows())

    def _end_orphans(self) -> None:
        """All rows were read: what is still parked may have lost its row, to damage or another use of the file."""
        self._may_have_orphans = False
        with self.lock:
            parked = self.session.parked_ids()
        gone = self.store.supply.missing(parked) if parked else []
        with self.lock:
            self._blame.on_gone(gone)
            # Another thread may have ended the connection.
            for message_id in gone if self.is_open else ():
                self.session.release_parked(message_id)
                self._unanswered.suspects.append(message_id)

    def _read_again(self) -> None:
        with self.lock:
            ids, self._again = self._again, []
        self._read_ids(ids)

    def _read_ids(self, ids: list[int]) -> None:
        with self.lock:
            has_gone = frozenset(self.session.in_flight_ids()).union(self._finished.ids)
            ids = [each for each in ids if each not in has_gone]
            self.is_reading = True
        try:
            rows, unknown = self.store.supply.read_again(ids)
            with self.lock:
                # Others may have come meanwhile.
                self._again += unknown
            rows = self._allowed(rows)
            is_alert = ALERT_QOS if self.store.has_alert_lane else None
            alerts = [row for row in rows if row[3] == is_alert]
            others = [row for row in rows if row[3] != is_alert]
            with self.lock:
                self._rows.put(others + self._rows.left)
                self._alerts.put(alerts + self._alerts.left)
        finally:
            self.is_reading = False

    def _read_alerts(self) -> bool:
        """True where there were alerts to read."""
        self.is_reading = True
        with self.lock:
            # They have gone, and would be in memory beside those that are read now.
            self._alerts.put([])
        try:
            rows, is_last = self.store.supply.read(_PULL_ROWS_MAX, alerts=True)
            rows = self._allowed(self._not_on_its_way(rows))
            with self.lock:
                self._alerts.put(rows)
        finally:
            self.is_reading = False
        self.store.on_rows_taken()
        return bool(rows) or not is_last

    def _read_rows(self) -> bool:
        """True where there were rows to read."""
        if not self._more_to_read and not self._begins_anew():
            return False
        # Cleared before the read: a commit meanwhile sets it again.
        self._more_to_read = False
        self.is_reading = True
        with self.lock:
            self._rows.put([])
        try:
            rows, is_last = self.store.supply.read(_PULL_ROWS_MAX)
            if not is_last:
                self._more_to_read = True
            rows = self._allowed(self._not_on_its_way(rows))
            with self.lock:
                self._rows.put(rows)
        finally:
            self.is_reading = False
        self.store.on_rows_taken()
        return True

    def _begins_anew(self) -> bool:
        """True where another program has put rows anywhere in the file, and nothing of ours is on its way."""
        if not self.store.is_written_to:
            return False
        session = self.session
        with self.lock:
            if session.in_flight or session.unsent_bytes or session.has_finished or self._again or self._refused:
                return False
        self.rewind()
        return True

    def _not_on_its_way(self, rows: list[Row]) -> list[Row]:
        on_its_way = self._on_its_way
        return [row for row in rows if row[0] not in on_its_way] if on_its_way else rows

    def _allowed(self, rows: list[Row]) -> list[Row]:
        """What this server takes; it counts as refused where it would end the connection over a message instead."""
        if self.is_narrow or self.has_suspects or self._blame.leaving:
            all_rows, rows = rows, self._blame.beside(rows)
            self._has_held_back = self._has_held_back or len(rows) < len(all_rows)
        limits = self.limits
        if limits is None:
            return rows
        with self.lock:
            # Their exchange has begun.
            parked = frozenset(self.session.parked_ids())
            lowered = sum(row[3] > limits.qos_max and row[0] not in parked for row in rows)
            rows = [row if row[0] in parked else limits.lowered(row) for row in rows] if lowered else rows
            over = {row[0] for row in rows if row[0] not in parked and not limits.allow(row)}
            self._refused += over
            self._lowered_count += lowered
            self.has_remarks = self.has_remarks or lowered > 0
        if over:
            text = f"{len(over)} messages are more than this server takes ({limits})"
            kind = "messages that are more than this server takes"
            self.store.log.note(logging.WARNING, kind, str(limits), count=len(over), text=text, later=True)
            self._pass_on_refused()
        return [row for row in rows if row[0] not in over]

    def _pass_on_refused(self) -> None:
        with self.lock:
            refused, self._refused = self._refused, []
        self.refused_count += len(refused)
        # First, as `read_again` must know them.
        self.store.supply.refuse(refused)
        with self.lock:
            if not self._again:
                self._again_at_s = time.monotonic() + _REFUSED_PAUSE_S
            self._again += refused

    def park(self) -> None:
        """The connection is gone. QoS 0 that had not left goes to the store; the rest is there already."""
        in_order, has_left = self.is_left, self.session.unsent_bytes == 0
        self.uptime.end()
        self._blame.end()
        stranded, unproven, unproven_count = self._end_connection()
        self.rewind()
        if unproven_count:
            self._unproven.end(unproven, unproven_count, by_peer=self._blame.is_by_peer)
        self._requeue(stranded, self._append_stranded)
        self._note_end(has_left=has_left, in_order=in_order)

    def _note_end(self, *, has_left: bool, in_order: bool) -> None:
        """See `Unanswered.end`."""
        with self.lock:
            oldest = self._unanswered.suspects[:1]
            if self.has_progress:
                self._unanswered.on_finished()
            tries = 0 if self.has_progress else self._unanswered.end(has_left=has_left, in_order=in_order)
        if tries:
            logger.warning("the broker ended the connection over the PUBREL of message %d, try %d", oldest[0], tries)

    def _may_widen(self) -> bool:
        """Whether a narrow connection has no reason to be so any more."""
        if self.makes_way:
            return False
        if self._blame.suspicion.suspects:
            # Those that have no row any more answer to nobody.
            return self._is_drained()
        return self.has_progress or not self._unanswered.is_careful

    def _is_drained(self) -> bool:
        """Nothing is on its way on this connection, nor can go next."""
        are_all_read = not (self._more_to_read or self.store.has_alerts) and self._have_all_gone()
        return are_all_read and not (self.session.in_flight or self.session.unsent_bytes)

    def _try_last(self) -> bool:
        """Once it is due: have the next of what goes last at hand, for it to go alone. True where it is."""
        session, blame = self.session, self._blame
        if not (blame.last and self.is_open) or blame.suspicion.suspects:
            # It may have gone while all else made way for it.
            self.makes_way = False
            return False
        now_ms = self.store.since_boot_ms()
        if not self.makes_way:
            if not self._is_drained() and (self.is_narrow or now_ms < self._last_at_ms):
                return False
            self.makes_way = self.is_narrow = True
            self._way_ends_ms = now_ms + _MAKES_WAY_MS
        is_answered = not (session.in_flight or session.unsent_bytes)
        if not is_answered or session.proven_count < session.unacknowledged_count:
            # The broker may end the connection over QoS 0 that it is still to read.
            if is_answered and not session.pinged_to:
                self.put_packet(_PINGREQ)
            if now_ms >= self._way_ends_ms:
                self.makes_way = False
                self._last_at_ms = now_ms + _LAST_WAITS_AGAIN_MS
            return False
        with self.lock:
            self.makes_way = False
            if not self._have_all_gone():
                self._forget_rows()
            ids = blame.try_last()
            session.resume(True, 1)
        self._read_ids(ids)
        return bool(ids)

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

    def _append_stranded(self, topic: str, payload: str | bytes, extras: Extras | None, handle: PublishHandle) -> None:
        handle._wait_durable = self.store.wait_durable
        register = Registration(handle, self._handles)
        try:
            self.store.append(topic, payload, 0, urgent=False, extras=extras, register=register)
            self._uncounted += 1
        except (QueueStorageError, QueueClosedError):
            handle._set_as_dropped(DropReason.LINK_LOST)
            self._tell_dropped([Dropped(handle.message_id, topic, 0, DropReason.LINK_LOST)])

    def resume(self, session_present: bool, receive_maximum: int) -> None:
        """The broker accepted the connection: read from the first row again, resends first as they are the oldest.

        What is left to the broker, see `Doubt.void_session`, is handed out by `settle`.
        """
        if not session_present:
            if self.asks_to_keep and not self.is_session_foreign:
                self.weaknesses.note(Weakness.SESSION_FORGOTTEN)
            self.doubt.void_session()
        elif not self.is_session_foreign:
            self.weaknesses.note_session()
        self.weaknesses.tell()
        if self.is_session_foreign:
            self._owners.on_discarded(self._identity)
            # On disk with the first QoS 2 message, before it leaves.
            self.store.speak_next_for(*self._identity)
            self.is_session_foreign = False
        self._has_session = True
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
            self._blame.note_start()
            self.probes = 0
            self._receive_maximum = receive_maximum
            must_wait = self._unanswered.begin(self.session.released_ids(), time.monotonic())
        self.is_proving = must_wait
        if must_wait:
            self.is_opening = False
            self._ask_for_answers()
        else:
            self._open()

    def _ask_for_answers(self) -> None:
        """PINGRESP will say that what was asked before has no answer."""
        with self.lock:
            self.put_packet(_PINGREQ)
            self._asked_at = self.session.pings_put

    def _open(self) -> None:
        """Begin to send on a connection that was accepted."""
        self.is_proving = False
        with self._pulling:
            with self.lock:
                has_suspects = self._blame.begin()
                self._unproven.one_by_one.begin()
            self.is_narrow = self._unanswered.is_careful or has_suspects
            self._has_held_back = self.makes_way = False
            waits_ms = 0 if self._blame.suspicion.is_overdue else _LAST_WAITS_MS
            self._last_at_ms = self.store.since_boot_ms() + waits_ms
            verdicts = self._blame.judge()
            self._begin_connection(1 if self.is_narrow else self._receive_maximum)
            if not self.is_narrow:
                self._allow_aliases()
            self._again.clear()
            self.rewind()
            self.is_open, self.is_opening = True, False
            # QoS 0 messages may still wait in memory for company; now they can go.
            self.store.request_commit()
            self._pull()
        self._blame.tell_passed_over()
        self._blame.quarantine(verdicts)

    def _allow_aliases(self) -> None:
        """Not while it is narrow: what ends connections may be the aliases themselves."""
        limits = self.limits
        server_max_bytes = PACKET_MAX_BYTES if limits is None else limits.packet_max_bytes
        with self.lock:
            self.session.allow_aliases(self._topic_alias_maximum, min(server_max_bytes, self._max_packet_bytes))

    def meet(self, connack: dict[str, Any], asked_s: int) -> None:
        """See `Outbox.meet`; before `resume`."""
        if self.left_reason == _TOPIC_ALIAS_INVALID:
            text = "the broker refused a topic alias, so that none is used from now on"
            self.store.log.note(logging.WARNING, "topic aliases that were refused", text, text=text)
            with self.lock:
                self.session.use_aliases(None)
        self._topic_alias_maximum = connack.get("TopicAliasMaximum", 0)
        self.limits = limits_of(connack, self._max_qos)
        self.note_session(asked_s, connack.get("SessionExpiryInterval", asked_s))

    def note_session(self, asked_s: int, granted_s: int) -> None:
        """For how long the broker was asked to keep the session after this connection, and will; before `resume`."""
        self.asks_to_keep = asked_s > 0
        if granted_s < asked_s:
            self.weaknesses.note(Weakness.SESSION_SHORTENED, detail=f" (it keeps it for {granted_s} s)")
            self.weaknesses.tell()

    def _widen(self) -> None:
        """Something was acknowledged: no PUBREL stands in the way, nor any message."""
        with self.lock:
            self.is_narrow = False
            self._blame.suspicion.suspects.clear()
            self._unanswered.on_finished()
            self.session.resume(True, self._receive_maximum)
            if not self._has_held_back:
                return
            self._has_held_back = False
            session = self.session
            on_its_way = frozenset(session.in_flight_ids()).union(session.refused_ids, self._refused, self._again)
            self._forget_rows()
        self.rewind(on_its_way)

    def look_for_answers(self) -> None:
        """Now and then, on a connection that lasts: ask about PUBRELs that were sent again, see `Unanswered`."""
        unanswered = self._unanswered
        self.uptime.look()
        self._unproven.one_by_one.look()
        if self.is_open and not unanswered.asked:
            self._blame.probe()
        if self.is_narrow and self._blame.is_ignored():
            self._last_at_ms = self.store.since_boot_ms() + _LAST_WAITS_AGAIN_MS
            self.wake()
        if self.probes or not (self.is_open and unanswered.are_overdue(time.monotonic())):
            return
        with self.lock:
            waiting = frozenset(self.session.unanswered_ids())
            unanswered.asked = [message_id for message_id in unanswered.suspects if message_id in waiting]
        if unanswered.asked:
            self._ask_for_answers()

    def on_pingresp(self) -> None:
        """See `Outbox.on_pingresp`: messages may be given up for it, and left to the broker."""
        super().on_pingresp()
        with self.lock:
            # Others may have been put before.
            is_answer = self.session.pings_answered >= self._asked_at
            asked = self._unanswered.on_pingresp() if is_answer else []
        self._blame.on_pong()
        if not asked:
            if self.is_proving and is_answer:
                self._open()
            return
        if count := self.doubt.give_up(asked):
            self.weaknesses.note(Weakness.PUBREL_UNANSWERED, count)
            self.weaknesses.tell()
        self.after_settle()
        if self.is_open:
            self.pull()
        else:
            self._open()

    def _note_remarks(self, downgraded_count: int) -> None:
        """So many more messages of QoS 2 ended with PUBACK. What went with a lower QoS is noted too."""
        with self.lock:
            lowered_count, self._lowered_count = self._lowered_count, 0
        if lowered_count:
            highest = "" if self.limits is None else f" (the highest is {self.limits.qos_max})"
            self.weaknesses.note(Weakness.QOS_LOWERED, lowered_count, highest)
        if downgraded_count:
            self.weaknesses.note(Weakness.QOS_2_AS_QOS_1, downgraded_count)
        self.weaknesses.tell()

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
            self._on_work()

    def on_salvaged(self) -> None:
        """See `glec_fast.durable.transaction.Outbox`: nobody must wait for what is lost. What is in flight goes on."""
        with self.lock:
            waiting = {mid: handle for mid, handle in self._handles.items() if not self.session.holds(mid)}
        lost = self.store.supply.lost(list(waiting))
        if lost:
            self.on_dropped([Dropped(mid, "", waiting[mid].qos, DropReason.DAMAGED_FILE) for mid in lost])

    def abandon(self, ids: list[int]) -> list[int] | None:
        """See `glec_fast.durable.transaction.Outbox`; what waits for a broker that is away stays."""
        withheld = self._owners.withheld
        staying = super().abandon([message_id for message_id in ids if message_id not in withheld])
        if staying is None:
            return None
        staying += [message_id for message_id in ids if message_id in withheld]
        with self.lock:
            # Nothing else lets them be sent again.
            self._blame.let_go(staying)
        return staying

    def on_dropped(self, dropped: list[Dropped]) -> None:
        """See `glec_fast.durable.transaction.Outbox`."""
        with self.lock:
            ids = [each.message_id for each in dropped]
            self._blame.on_gone(ids)
        # As with on_publish: the callback first, then those who wait.
        self._tell_dropped(dropped)
        for each in dropped:
            handle = self._handles.pop(each.message_id, None)
            if handle is not None:
                handle._set_as_dropped(each.reason)
