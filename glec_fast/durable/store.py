"""The durable queue: who owns which thread, which row is where, and when something is on disk.

Two connections: a writer, used by the store's own thread alone, which commits in groups; and a reader, used by the
network thread alone, which pulls rows in order. Callers append to a list in memory and are told the message id at once.

    append ──► pending ──► [writer: one transaction] ──► disk ──► read ──► (session) ──► finished ──► deleted
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import apsw

from glec_fast.durable import in_doubt, quarantine, state_rows
from glec_fast.durable._table import QueueTable
from glec_fast.durable.caretaker import Caretaker
from glec_fast.durable.clock import Clocks
from glec_fast.durable.clock_steps import ClockSteps
from glec_fast.durable.committer import Committer
from glec_fast.durable.dropping import DROP_ROWS_MAX, Dropping
from glec_fast.durable.ending import Ending
from glec_fast.durable.extras import Extras
from glec_fast.durable.figures import Figures
from glec_fast.durable.file import QueueFile, Salvage
from glec_fast.durable.gathering import Batch, Company, Gathered, Gathering
from glec_fast.durable.in_doubt import Decision, InDoubt
from glec_fast.durable.inflight_log import log_of
from glec_fast.durable.intake import PENDING_BYTES_MAX, Intake
from glec_fast.durable.jobs import Job, Jobs
from glec_fast.durable.limits import ALERTS_FIRST, FIFO, OLDEST, Limits
from glec_fast.durable.outcomes import Dropped
from glec_fast.durable.outgoing import Outgoing
from glec_fast.durable.overflow import Overflow
from glec_fast.durable.quarantine import DEFAULT_QUARANTINE_DAYS, DEFAULT_QUARANTINE_SIZE, Quarantined
from glec_fast.durable.reader import Reader
from glec_fast.durable.schedule import Schedule
from glec_fast.durable.status import Status
from glec_fast.durable.supply import Supply
from glec_fast.durable.transaction import Outbox
from glec_fast.durable.writer import Writer
from glec_fast.errors import QueueStorageError
from glec_fast.runtime import green
from glec_fast.runtime._lock import Lock
from glec_fast.runtime.latency import Latency
from glec_fast.runtime.process import OfOneProcess
from glec_fast.runtime.summing_log import SummingLog
from glec_fast.validation import check_ids, check_timeout

__all__ = ["DEFAULT_MAX_QUEUE_SIZE", "DEFAULT_MAX_RETRY", "Store"]

T = TypeVar("T")

DEFAULT_MAX_QUEUE_SIZE = 10_000
DEFAULT_TTL_MS = 24 * 60 * 60 * 1000
DEFAULT_MAX_RETRY = 3
DEFAULT_QOS0_COMMIT_DELAY_S = 5.0
DEFAULT_CLEANUP_INTERVAL_S = 300.0


class Store(OfOneProcess):
    """Messages in a queue file, from `append` until the outbox has finished them.

    Thread-safe. It hands on to its parts, each of which says who may touch its state.

    supply: what the sending side asks for. clock: the queue's time.

    path: queue file, created 0600 where it is missing.
    max_queue_size: rows, above 0. max_queue_bytes: of the queue file without its log, 0 for no limit.
    queue_order: FIFO, or ALERTS_FIRST: what has QoS 2 is read by `read_alerts`, ahead of all else.
    overflow: what goes if it is full: with FIFO and OLDEST the oldest; else QoS 0 before QoS 1 before QoS 2, of each
    the oldest, but with THIN every second of the older half of QoS 0.
    ttl_ms: age of expiry. max_retry: refusals before a row goes into quarantine, which keeps quarantine_max_size
    messages for quarantine_days.
    qos0_commit_delay_s: how long a QoS 0 message may wait in memory for others to share its transaction.
    company: what `gather` makes of messages; None where nothing is gathered.
    cleanup_interval_s: between two clean-ups of expired and given-up rows, above 0.
    on_dropped: told of drops, by the store's thread, while no outbox is attached.
    clocks: the machine's where None. monotonic: seconds that waits are measured by. log: what an operator reads of it,
    its own where None.
    Raises QueueLockedError, QueueFormatError, QueueStorageError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_queue_size: int = DEFAULT_MAX_QUEUE_SIZE,
        max_queue_bytes: int = 0,
        ttl_ms: int = DEFAULT_TTL_MS,
        max_retry: int = DEFAULT_MAX_RETRY,
        queue_order: str = FIFO,
        overflow: str = OLDEST,
        qos0_commit_delay_s: float = DEFAULT_QOS0_COMMIT_DELAY_S,
        cleanup_interval_s: float = DEFAULT_CLEANUP_INTERVAL_S,
        quarantine_max_size: int = DEFAULT_QUARANTINE_SIZE,
        quarantine_days: float = DEFAULT_QUARANTINE_DAYS,
        company: Company | None = None,
        on_dropped: Callable[[list[Dropped]], None] | None = None,
        clocks: Clocks | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        log: SummingLog | None = None,
    ) -> None:
        green.notice()
        self.max_queue_size = max_queue_size
        self.max_retry = max_retry
        self.company = company
        self.log = log or SummingLog(monotonic)
        clocks = clocks or Clocks()
        # Milliseconds since boot, which never step. Any thread may call it.
        self.since_boot_ms = clocks.since_boot_ms
        bounds = quarantine.bounds_of(quarantine_max_size, quarantine_days, max_queue_bytes)
        self._file = file = QueueFile(path)
        self._status = status = Status(self.log)
        self._schedule = schedule = Schedule(status, monotonic, qos0_commit_delay_s, cleanup_interval_s)
        try:
            self._reader = reader = Reader(file, max_retry, alerts_first=queue_order == ALERTS_FIRST)
            table, is_salvaged = QueueTable(file.connection), file.salvage is not None
            self._intake = intake = Intake(status, schedule, table, ttl_ms, clocks, is_salvaged=is_salvaged)
            self._gathering = gathering = Gathering(status, schedule, intake, company, qos0_commit_delay_s, table)
            self._dropping = dropping = Dropping(status.lock, reader, intake.clock, max_retry, bounds)
            is_ranked = (queue_order, overflow) != (FIFO, OLDEST)
            intake.message_max_bytes = max_queue_bytes
            room = Overflow(Limits(max_queue_size, max_queue_bytes, overflow, is_ranked), reader, dropping)
            given = file.path, file.connection, reader, dropping, room, intake.adopt, self.log
            self._writer = writer = Writer(*given)
            writer.table.look_for_extras()
            if not reader.look_ahead(intake.committed):
                intake.last_alert_id = 0
        except apsw.Error as error:
            failure = file.failed(error)
            file.close()
            raise failure from error
        except BaseException:
            file.close()
            raise
        self.clock = intake.clock
        self._lock = status.lock
        status.locks += [writer.lock, reader.lock]
        self._jobs = jobs = Jobs(status, schedule)
        self._outgoing = outgoing = Outgoing(status, schedule, reader, writer)
        self._caretaker = caretaker = Caretaker(file, reader, writer, intake, dropping, status, schedule)
        self.supply = Supply(status, schedule, intake, jobs, outgoing, dropping, file, reader, writer)
        self._clock_steps = steps = ClockSteps(status, intake, reader, writer)
        ending = Ending(self, status, intake, gathering, jobs, file, reader, writer, caretaker)
        parts = status, schedule, intake, gathering, jobs, outgoing, dropping, writer, caretaker, steps, room
        self._committer = Committer(*parts, on_dropped, ending.leave)
        self._committer.start()
        ending.watch()

    # ---- callers

    @property
    def salvage(self) -> Salvage | None:
        """What was carried over from a damaged file when this one was opened."""
        return self._file.salvage

    @property
    def rows_lost(self) -> int:
        """Rows that the damaged files have lost, also of the one that was opened."""
        return self._caretaker.rows_lost

    @property
    def size(self) -> int:
        """Messages not yet finished: on disk, or on their way there."""
        intake = self._intake
        with self._lock:
            on_disk = max(intake.row_count - len(self._outgoing.finished), 0)
            return on_disk + len(intake.pending) + len(intake.writing) + self._gathering.is_waiting

    @property
    def drops(self) -> dict[str, int]:
        """Messages dropped since the file was opened, by `DropReason`."""
        with self._lock:
            counts = list(self._dropping.counts.items())
        # Of a reason, all QoS.
        by_reason: Counter[str] = Counter()
        for (reason, _qos), count in counts:
            by_reason[reason] += count
        return dict(by_reason)

    @property
    def is_written_to(self) -> bool:
        """True where another program has written to the file since `rewind`: there may be rows before the position."""
        return self._status.is_written_to

    @property
    def has_backlog(self) -> bool:
        """True where an accepted message may not have been read yet; what comes now must queue behind it."""
        return self._intake.next_id - 1 > self._reader.through_id or self.has_alerts

    @property
    def is_failing(self) -> bool:
        """True while the disk refuses what was accepted."""
        return self._status.failure is not None

    @property
    def is_damaged(self) -> bool:
        """True while the file is damaged, or has lost its name, and cannot be mended; or nothing more is written.

        Raises QueueReplacedError where it never will be, as another file has its name.
        """
        return self._status.is_damaged

    @property
    def is_ending(self) -> bool:
        """The process ends: what is accepted from here on is on disk when `append` returns."""
        return self._status.is_ending

    def append(
        self,
        topic: str,
        payload: str | bytes,
        qos: int,
        *,
        urgent: bool = True,
        ttl_ms: int | None = None,
        extras: Extras | None = None,
        register: Callable[[int], None] | None = None,
    ) -> int:
        """Accept a message; returns its id at once. `urgent` False lets it wait for others to share its transaction.

        QoS 0 waits up to `qos0_commit_delay_s`; QoS 1 and 2 up to 50 ms, and only where others came just before.
        It expires after `ttl_ms`, the store's own where None, or earlier by the interval in `extras`.
        `register` is told the id before any other thread can know of the message.
        Raises MessageError for what is larger than the whole queue may be, QueueStorageError while the disk fails,
        QueueClosedError after `close`; then nothing was accepted.
        """
        try:
            return self._intake.append(topic, payload, qos, urgent, ttl_ms, extras, register)
        except QueueStorageError:
            self._intake.let_mend()
            raise

    def check_size(self, topic: str, payload: str | bytes, extras: Extras | None) -> None:
        """Raises MessageError for what `append` would not take, as it is larger than the whole queue may be."""
        self._intake.check_size(topic, payload, extras)

    def gather(self, payload: bytes, bytes_max: int, begin: Callable[[Batch], None]) -> Any:
        """Accept a message that may wait for others, to be one with them; see `Gathering.add`."""
        return self._gathering.add(payload, bytes_max, begin)

    def close_batch(self) -> None:
        """Have what is gathered be a message of the queue now."""
        self._gathering.close()

    @property
    def gathered(self) -> Gathered:
        """What was gathered so far, and what became of it."""
        return self._gathering.totals

    def wait_batch_durable(self, batch: Batch, timeout_s: float | None = None) -> bool:
        """`wait_durable` for what is gathered in `batch` by now."""
        return self._gathering.wait_durable(batch, timeout_s)

    def append_many(self, messages: Iterable[tuple[str, str | bytes, int]], ttl_ms: int | None = None) -> list[int]:
        """`append` all of (topic, payload, qos), in one transaction; one that cannot be a row refuses all."""
        try:
            return self._intake.append_many(messages, ttl_ms)
        except QueueStorageError:
            self._intake.let_mend()
            raise

    def withdraw(self, *message_ids: int) -> bool:
        """Take back messages that were accepted together and that no disk has; False where it is too late.

        Where they are being written it waits for the outcome, so that the answer holds.
        """
        return self._intake.withdraw(*message_ids)

    def wait_durable(self, message_id: int, timeout_s: float | None = None) -> bool:
        """Wait until the message is on disk; False after the time-out.

        Raises QueueStorageError while the disk fails, QueueClosedError where the queue was closed without it.
        """
        return self._intake.wait_durable(message_id, timeout_s)

    def wait_empty(self, timeout_s: float | None = None) -> bool:
        """Wait until every message is finished, and the disk says so; False after the time-out.

        Also those that another program has put into the file until now.
        """
        check_timeout(timeout_s)
        started_s = time.monotonic()
        self._gathering.close()
        if self.size == 0:
            self._committer.look(timeout_s)
            timeout_s = None if timeout_s is None else timeout_s - (time.monotonic() - started_s)
        return self._intake.wait_empty(timeout_s)

    def watch(self, on_turn: Callable[[], None] | None) -> None:
        """Have `on_turn` called by the store's thread after each transaction, whatever came of it, and at its end.

        For who may not wait: `committed_id`, `is_empty` and `room` have changed by then.
        """
        self._committer.on_turn = on_turn

    @property
    def committed_id(self) -> int:
        """Every message that was accepted with an id up to this one is on disk, or was."""
        return self._intake.committed_id

    def is_crowded(self, rows_max: int) -> bool:
        """True where the next transaction takes so many messages, or as large ones as it should."""
        intake = self._intake
        return len(intake.pending) >= rows_max or intake.pending_bytes >= PENDING_BYTES_MAX

    def room(self, rows_max: int) -> int:
        """So many more the next transaction should take, where they are as large as those of the last."""
        intake = self._intake
        return min(rows_max, max(PENDING_BYTES_MAX // intake.taken_bytes_each, 1)) - len(intake.pending)

    def bound_pending(self, count: int) -> None:
        """Have `append` wait only where so many wait for the disk already, however large.

        For callers with a bound of their own, who hold what they publish in memory anyway.
        """
        self._intake.pending_max, self._intake.pending_bytes_max = count, sys.maxsize

    @property
    def is_empty(self) -> bool:
        """True where every message is finished, and the disk says so; see `wait_empty`."""
        return self._intake.is_empty

    @contextmanager
    def hastened(self) -> Iterator[None]:
        """Meanwhile what is finished is deleted without the usual delay, as somebody waits for that."""
        with self._lock:
            self._schedule.eager += 1
            self._schedule.request()
        try:
            yield
        finally:
            with self._lock:
                self._schedule.eager -= 1

    def leave_images_to_writer(self, is_left: bool) -> None:
        """Whether `commit_image` leaves all of it to the store's thread, so that its caller never waits for a disk."""
        with self._lock:
            self._outgoing.is_left_to_writer = is_left

    def run(self, statement: Callable[[QueueTable], T]) -> T:
        """Run `statement` on the writer's table inside a transaction and return its result, once that is on disk."""
        return self._committer.run(statement)

    def submit(self, statement: Callable[[QueueTable], T], told: Callable[[T], None]) -> None:
        """`run`, without waiting: `told` gets the result in the store's thread, once that is on disk; briefly.

        Where the disk fails it is tried again, for as long as the file is open; `told` may be called again with the
        same. Raises QueueClosedError.
        """
        with self._lock:
            self._status.refuse_if_closed()
            self._jobs.add(Job(statement, lasting=True, told=told))

    def append_with(
        self,
        topic: str,
        payload: str | bytes,
        qos: int,
        statement: Callable[[QueueTable], object],
        told: Callable[[], None],
        extras: Extras | None = None,
    ) -> int:
        """`append`, and `statement` in the very transaction that has the message; `told` as of `submit`."""
        message_id = 0

        def run(table: QueueTable) -> bool:
            # Not where the disk took no rows with this transaction.
            if not table.holds(message_id):
                return False
            statement(table)
            return True

        def on_told(is_done: bool) -> None:
            if is_done:
                told()
            else:
                # Before the next transaction is begun.
                self._jobs.add(job)

        job = Job(run, lasting=True, told=on_told)

        def register(given_id: int) -> None:
            nonlocal message_id
            message_id = given_id
            self._jobs.add(job)

        return self._intake.append(topic, payload, qos, True, None, extras, register)

    def request_commit(self) -> None:
        """Have the writer commit now."""
        with self._lock:
            self._schedule.request()

    @property
    def is_closed(self) -> bool:
        """True once nothing more is written."""
        return self._status.has_ended

    def refuse_if_closed(self) -> None:
        """Raises QueueClosedError after `close`."""
        self._status.refuse_if_closed()

    def close(self) -> None:
        """Commit what is pending, end the thread and let go of the file. Idempotent.

        From a drop callback it returns at once, and the store's thread does so when the callback has returned.
        Raises QueueStorageError where messages could not be written; it says how many are lost with it.
        """
        self._committer.close()

    def is_own_thread(self) -> bool:
        """True where the caller is the store's thread, which calls back for drops and must not wait for itself."""
        return self._status.is_own_thread()

    def disk_bytes(self) -> int:
        """Bytes that the file and its logs take."""
        path = self._file.path
        total = path.stat().st_size
        for log in (path.with_name(path.name + "-wal"), log_of(path)):
            with suppress(FileNotFoundError):
                total += log.stat().st_size
        return total

    def figures(self) -> Figures:
        """What it has counted. Any thread."""
        intake = self._intake
        with self._lock:
            counts = Counter(row[3] for row in (*intake.writing, *intake.pending))
            on_disk = intake.disk_times.counts
            size = intake.row_count
        accepted = (on_disk[0] + counts[0], on_disk[1] + counts[1], on_disk[2] + counts[2])
        oldest_ms = self.supply.oldest_ms() if size else None
        oldest_s = 0.0 if oldest_ms is None else max(intake.clock.now_ms() - oldest_ms, 0) / 1000
        writing = Latency.of(*intake.disk_times.writing)
        return Figures(accepted, on_disk, writing, oldest_s, self._writer.syncs, self._clock_steps.count)

    def holds(self, message_id: int) -> bool | None:
        """True where this message is still to be sent, False where that is over, None where no id is this."""
        intake = self._intake
        with self._lock:
            if not 0 < message_id < intake.next_id:
                return None
            if any(row[0] == message_id for row in (*intake.pending, *intake.writing)):
                return True
            if any(
                message_id in each for each in (self._dropping.marked, self._outgoing.finished, self._reader.skipped)
            ):
                return False
        return self.run(lambda table: table.holds(message_id))

    def in_doubt(self) -> list[InDoubt]:
        """The ledger of messages whose fate MQTT cannot tell, oldest first; at most LEDGER_ROWS_MAX."""
        return self.run(in_doubt.read_entries)

    def quarantined(self) -> list[Quarantined]:
        """What stands aside, oldest first."""
        return self.run(quarantine.read_entries)

    def retry_quarantined(self, number: int) -> int | None:
        """Accept the message of an entry anew, in the transaction that deletes the entry; returns its new id.

        None where there is no such entry. Raises MessageError where no message can be made of it.
        """
        found = self.run(lambda table: quarantine.read_entry(table, number))
        if found is None:
            return None
        topic, payload, qos, extras = found
        extras = None if extras is None else Extras(*extras)
        message_id = self.append_with(
            topic, payload, qos, lambda table: quarantine.delete_entries(table, [number]), lambda: None, extras
        )
        self.wait_durable(message_id)
        return message_id

    def delete_quarantined(self, numbers: Iterable[int]) -> int:
        """Delete these entries; returns how many there were."""
        checked = check_ids("numbers", numbers)
        return self.run(lambda table: quarantine.delete_entries(table, checked))

    def purge(self, ids: Iterable[int]) -> int:
        """Drop these messages, but for those that the server has or may have; returns how many there are in the queue.

        They go with the next transaction, and are told of as drops.
        """
        checked = check_ids("message_ids", ids)
        return self.run(lambda table: self.supply.purge(table, checked))

    def drop_expired(self) -> int:
        """Drop every row whose time is over; returns how many, but for those in flight, which go behind them."""
        return self._drop_all(self._dropping.choose_expired)

    def let_go_of_expired(self) -> None:
        """Have what is too old go, also of what was in flight, before it is sent again. Raises QueueStorageError."""
        self.drop_expired()
        if self._dropping.claimed:
            # What is claimed goes with the transaction after the one that claimed it.
            self.run(lambda _table: None)

    def drop_given_up(self) -> int:
        """Delete every row that was refused as often as it may be; returns how many."""
        return self._drop_all(lambda table: self._dropping.choose_given_up(table, keep=False))

    def _drop_all(self, choose: Callable[[QueueTable], int]) -> int:
        total = count = self.run(choose)
        while count == DROP_ROWS_MAX:
            count = self.run(choose)
            total += count
        return total

    # ---- the sending side

    def load_session(self) -> bytes:
        """The in-flight image on disk, of the client id and broker in `identity`; empty in a new file.

        Raises ConfigError where the store has an outbox: the image is its own, and so is the position of reading;
        UnreadableImageError, see `void_session`; QueueStorageError.
        """
        with self._lock:
            self._outgoing.refuse_second()
        image = self.run(self._writer.image.load)
        self.speak_next_for(*self.identity)
        return image

    def attach(self, outbox: Outbox, lock: Lock | None = None) -> None:
        """Name the side that sends, once it has made what `load_session` gave its own. Raises ConfigError for a second.

        lock: what it answers the store under, so that nothing is written before a thread that has it goes on.
        Its image is on disk when this returns.
        """
        with self._lock:
            self._outgoing.refuse_second()
            if lock is not None:
                self._outgoing.outbox_lock = lock
                self._status.locks.append(lock)
            self._outgoing.outbox = outbox
        self.run(lambda _table: self._writer.image.open_log())

    def void_session(self) -> int:
        """What is in flight cannot be read: forget it, and whose it is, so that no packet id of it is used again.

        Returns how many messages of QoS 2 may therefore arrive twice; they are in the ledger. Raises QueueStorageError.
        """

        def forget(table: QueueTable) -> int:
            self._writer.image.forget(table)
            return in_doubt.add_all(table, self.clock.unix_ms(), Decision.SENT_AGAIN)

        count = self.run(forget)
        self.speak_next_for("", "")
        return count

    @property
    def identity(self) -> tuple[str, str]:
        """(client id, broker) whose session is on disk; two empty texts where nobody has connected yet."""
        return self._writer.image.identity

    @property
    def next_identity(self) -> tuple[str, str]:
        """What `identity` is to be with the next image, see `speak_next_for`."""
        return self._outgoing.identity

    def speak_for(self, client_id: str, broker: str) -> None:
        """Have the outbox's image on disk under this name, before anything of it is sent in it."""
        self.speak_next_for(client_id, broker)
        self.run(lambda _table: None)

    def kept_sessions(self) -> dict[tuple[str, str], bytes]:
        """(client id, broker) -> exchanges of the sessions that `keep_session` was given, the oldest first."""
        return self.run(state_rows.read_kept_sessions)

    def keep_session(self, client_id: str, broker: str, exchanges: bytes | None) -> None:
        """Have on disk what is in flight with a broker that is left for another; None forgets that there is one."""
        self.run(lambda table: state_rows.keep_session(table, client_id, broker, exchanges))

    def speak_next_for(self, client_id: str, broker: str) -> None:
        """The name of the images that are taken from now on; on disk with the first of them."""
        with self._lock:
            self._outgoing.identity = (client_id, broker)

    def commit_image(self) -> int | None:
        """Have the outbox's image on disk; returns its version, or None where the writer will say `on_committed`.

        A disk that has proved quick is written at once, by the calling thread: two switches of threads would cost as
        much as the commit. What is finished is named in the image, and deleted by a later transaction.
        """
        return self._outgoing.commit_image()

    def on_finished(self, waiting: int, *, named: int, drained: bool) -> int:
        """`waiting` finished messages are ready for the writer to collect; it does so when that is worth its cost.

        named: so many of them are in the image on disk, so that no crash sends them again.
        drained: nothing else is in flight, so that no more will come by themselves.
        Returns from how many waiting on it is worth to be told again, drained or not.
        """
        with self._lock:
            return self._schedule.on_finished(waiting, named, drained)

    @property
    def has_alert_lane(self) -> bool:
        """True where alerts go first: what has QoS 2 is read by `read_alerts` alone."""
        return self._reader.has_alert_lane

    @property
    def has_alerts(self) -> bool:
        """True where alerts go first, and one may not have been read yet."""
        reader = self._reader
        return reader.has_alert_lane and reader.lanes[-1].through_id < self._intake.last_alert_id

    @property
    def is_handing_out(self) -> bool:
        """True from a `read` of rows to `on_rows_taken`: they are no backlog any more, nor at their reader's hand."""
        return self._reader.is_handing_out

    def on_rows_taken(self) -> None:
        """The rows of the last `read` are where `is_handing_out` need not stand for them."""
        self._reader.is_handing_out = False
