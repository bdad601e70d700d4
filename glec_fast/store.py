"""The durable queue: who owns which thread, which row is where, and when something is on disk.

Two connections: a writer, used by the store's own thread alone, which commits in groups; and a reader, used by the
network thread alone, which pulls rows in order. Callers append to a list in memory and are told the message id at once.

    append ──► pending ──► [writer: one transaction] ──► disk ──► read ──► (session) ──► outbox.collect ──► deleted
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import apsw

from glec_fast._store import QueueTable, accept, is_any_expired
from glec_fast.commit import Job, Outbox, Row
from glec_fast.committer import (
    DEFAULT_MAX_QUEUE_SIZE,
    DEFAULT_MAX_RETRY,
    DELETE_ROWS_MAX,
    DONE_COMMIT_DELAY_S,
    DONE_COMMIT_ROWS,
    Committer,
)
from glec_fast.drops import DropReason
from glec_fast.errors import ConfigError, QueueStorageError
from glec_fast.extras import ROW_COLUMNS, Extras, as_sent
from glec_fast.in_doubt import LEDGER_ROWS_MAX, Decision, InDoubt
from glec_fast.inflight_log import log_of
from glec_fast.process import EXIT_TIMEOUT_S
from glec_fast.queue_file import Salvage, is_damage
from glec_fast.writer import DROP_ROWS_MAX

__all__ = ["DEFAULT_MAX_QUEUE_SIZE", "DEFAULT_MAX_RETRY", "Store"]

# So many rows may wait for a slow disk before `append` waits for it too.
_PENDING_ROWS_MAX = 10_000

logger = logging.getLogger("glec_fast")


class Store(Committer):
    """See the module's text. Thread-safe, but `read` and `rewind` belong to one thread.

    path: queue file, created 0600 where it is missing.
    max_queue_size: rows, above 0; the oldest go first. ttl_ms: age of expiry. max_retry: refusals before a row goes.
    qos0_commit_delay_s: how long a QoS 0 message may wait in memory for others to share its transaction.
    cleanup_interval_s: between two clean-ups of expired and given-up rows, above 0.
    on_dropped: told of drops, by the store's thread, while no outbox is attached.
    clocks: the machine's where None. monotonic: seconds that waits are measured by.
    Raises QueueLockedError, QueueFormatError, QueueStorageError.
    """

    # ---- callers

    @property
    def salvage(self) -> Salvage | None:
        """What was carried over from a damaged file when this one was opened."""
        return self._file.salvage

    @property
    def size(self) -> int:
        """Messages not yet finished: on disk, or on their way there."""
        with self._lock:
            return self._size()

    def _size(self) -> int:
        return max(self._row_count - len(self._deleting), 0) + len(self._pending) + len(self._writing)

    @property
    def drops(self) -> dict[str, int]:
        """Messages dropped since the file was opened, by `DropReason`."""
        with self._lock:
            return dict(self._dropping.counts)

    @property
    def has_backlog(self) -> bool:
        """True where an accepted message may not have been read yet; what comes now must queue behind it."""
        return self._next_id - 1 > self._reader.through_id

    @property
    def is_failing(self) -> bool:
        """True while the disk refuses what was accepted."""
        return self._failure is not None

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
        Raises QueueStorageError while the disk fails, QueueClosedError after `close`; then nothing was accepted.
        """
        with self._lock:
            self._refuse_if_unusable()
            # A drop callback may publish too: its thread is the one that makes room.
            while len(self._pending) >= _PENDING_ROWS_MAX and not self._is_own_thread():
                self._request(0.0)
                self._progress.wait()
                self._refuse_if_unusable()
            message_id = self._add(topic, payload, qos, ttl_ms, extras, register)
            if urgent:
                self._request(0.0)
            else:
                self._request_company(qos)
            is_ending = self.is_ending
        if is_ending:
            self._write_through(message_id)
        return message_id

    def _write_through(self, message_id: int) -> None:
        """The process ends: nobody would write it later."""
        try:
            if not self.wait_durable(message_id, EXIT_TIMEOUT_S):
                logger.error("message %d may be lost, as the program ends: the disk is slow", message_id)
        except QueueStorageError:
            if self.withdraw(message_id):
                raise

    def append_many(self, messages: Iterable[tuple[str, str | bytes, int]], ttl_ms: int | None = None) -> list[int]:
        """`append` all of (topic, payload, qos), in one transaction; one that cannot be a row refuses all."""
        messages = list(messages)
        with self._lock:
            self._refuse_if_unusable()
            accepted = len(self._pending)
            try:
                ids = [self._add(topic, payload, qos, ttl_ms) for topic, payload, qos in messages]
            except BaseException:
                del self._pending[accepted:]
                raise
            self._request(0.0)
            return ids

    def _add(
        self,
        topic: str,
        payload: str | bytes,
        qos: int,
        ttl_ms: int | None,
        extras: Extras | None = None,
        register: Callable[[int], None] | None = None,
    ) -> int:
        now_ms = self._clock.now_ms()
        lasts_ms = self.ttl_ms if ttl_ms is None else ttl_ms
        if extras is not None and extras.expiry_interval_s is not None:
            lasts_ms = min(lasts_ms, extras.expiry_interval_s * 1000)
        return accept(self, topic, payload, qos, now_ms, now_ms + lasts_ms, extras, register)

    def withdraw(self, *message_ids: int) -> bool:
        """Take back messages that were accepted together and that no disk has; False where it is too late.

        Where they are being written it waits for the outcome, so that the answer holds.
        """
        wanted = frozenset(message_ids)
        with self._lock:
            while any(row[0] in wanted for row in self._writing) and not self._is_own_thread():
                self._progress.wait()
            kept = [row for row in self._pending if row[0] not in wanted]
            found = len(kept) < len(self._pending)
            self._pending = kept
            self._progress.notify_all()
            # `close` has given up what could not be written.
            return found or (self._ended and min(wanted, default=0) > self._committed_id)

    def wait_durable(self, message_id: int, timeout_s: float | None = None) -> bool:
        """Wait until the message is on disk; False after the time-out.

        Raises QueueStorageError while the disk fails, QueueClosedError where the queue was closed without it.
        """
        if self._is_own_thread():
            # A drop callback published: only this thread could write it, so waiting for it would be for ever.
            return False
        with self._lock:
            if message_id > self._committed_id:
                self._request(0.0)
            self._progress.wait_for(
                lambda: self._committed_id >= message_id or self._is_failing() or self._ended, timeout_s
            )
            if self._committed_id >= message_id:
                return True
            self._refuse_if_failing()
            if self._ended:
                self.refuse_if_closed()
            return False

    def wait_empty(self, timeout_s: float | None = None) -> bool:
        """Wait until every message is finished and its row deleted; False after the time-out."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            # Now what is finished already, and then what the network finishes last, without the usual delay.
            self._eager += 1
            self._request(0.0)
            try:
                while self._row_count or self._pending or self._writing or self._telling:
                    remaining_s = None if deadline_s is None else deadline_s - time.monotonic()
                    is_too_late = remaining_s is not None and remaining_s <= 0
                    if is_too_late or self._ended or self._is_own_thread():
                        return False
                    self._progress.wait(remaining_s)
                return True
            finally:
                self._eager -= 1

    def on_finished(self, waiting: int, *, named: int, drained: bool) -> int:
        """`waiting` finished messages are ready for the writer to collect; it does so when that is worth its cost.

        named: so many of them are in the image on disk, so that no crash sends them again.
        drained: nothing else is in flight, so that no more will come by themselves.
        Returns from how many waiting on it is worth to be told again, drained or not.
        """
        with self._lock:
            put_off_at = min(self._put_off_at, waiting)
            if waiting - put_off_at >= DONE_COMMIT_ROWS:
                put_off_at = waiting
                self._delete_due_s = None
            self._put_off_at = put_off_at
            self._request_delete()
            is_worth_it = waiting - named >= DONE_COMMIT_ROWS or waiting >= DELETE_ROWS_MAX
            if is_worth_it or (drained and self._eager > 0):
                self._request(0.0)
        return min(put_off_at, named) + DONE_COMMIT_ROWS

    def disk_bytes(self) -> int:
        """Bytes that the file and its logs take."""
        path = self._file.path
        total = path.stat().st_size
        for log in (path.with_name(path.name + "-wal"), log_of(path)):
            with suppress(FileNotFoundError):
                total += log.stat().st_size
        return total

    def unix_ms(self) -> int:
        """Unix time in milliseconds, as well as it is known."""
        return self._clock.unix_ms()

    # ---- the sending side

    def load_session(self) -> bytes:
        """The in-flight image on disk, of the client id and broker in `identity`; empty in a new file.

        Raises ConfigError where the store has an outbox: the image is its own, and so is the position of reading;
        UnreadableImageError, see `void_session`; QueueStorageError.
        """
        with self._lock:
            self._refuse_second_outbox()
        image = self.run(self._writer.image.load)
        with self._lock:
            self._identity = self._writer.image.identity
        return image

    def attach(self, outbox: Outbox) -> None:
        """Name the side that sends, once it has made what `load_session` gave its own. Raises ConfigError for a second.

        Its image is on disk when this returns.
        """
        with self._lock:
            self._refuse_second_outbox()
            self._outbox = outbox
        self.run(lambda _table: self._writer.image.open_log())

    def void_session(self) -> int:
        """What is in flight cannot be read: forget it, and whose it is, so that no packet id of it is used again.

        Returns how many messages of QoS 2 may therefore arrive twice; they are in the ledger. Raises QueueStorageError.
        """

        def forget(table: QueueTable) -> int:
            self._writer.image.forget(table)
            return table.add_all_in_doubt(self._clock.unix_ms(), Decision.SENT_AGAIN, LEDGER_ROWS_MAX)

        count = self.run(forget)
        with self._lock:
            self._identity = ("", "")
        return count

    def _refuse_second_outbox(self) -> None:
        if self._outbox is not None:
            raise ConfigError("this store has a client already: give each client a queue file of its own")

    @property
    def identity(self) -> tuple[str, str]:
        """(client id, broker) whose session is on disk; two empty texts where nobody has connected yet."""
        return self._writer.image.identity

    def speak_for(self, client_id: str, broker: str) -> None:
        """Have the outbox's image on disk under this name, before anything of it is sent in it."""
        self.speak_next_for(client_id, broker)
        self.run(lambda _table: None)

    def speak_next_for(self, client_id: str, broker: str) -> None:
        """The name of the images that are taken from now on; on disk with the first of them."""
        with self._lock:
            self._identity = (client_id, broker)

    def holds(self, message_id: int) -> bool | None:
        """True where this message is still to be sent, False where that is over, None where no id is this."""
        with self._lock:
            if not 0 < message_id < self._next_id:
                return None
            if any(row[0] == message_id for row in (*self._pending, *self._writing)):
                return True
            if any(message_id in over for over in (self._dropping.marked, self._deleting.ids, self._reader.skipped)):
                return False
        return self.run(lambda table: table.holds(message_id))

    def in_doubt(self) -> list[InDoubt]:
        """The ledger of messages whose fate MQTT cannot tell, oldest first; at most LEDGER_ROWS_MAX."""
        rows = self.run(lambda table: table.read_in_doubt())
        return [InDoubt(*row[:4], Decision(row[4])) for row in rows]

    def rewind(self, protected: Iterable[int], finished: Iterable[int]) -> None:
        """Read from the first row again. `protected` ids are in flight and never dropped; `finished` are not read."""
        with self._reader.lock, self._lock:
            self.is_written_to = False
            self._reader.rewind(frozenset(protected), frozenset(self._deleting.ids).union(finished))
            self._refused.clear()

    def protect(self, ids: Iterable[int]) -> None:
        """Keep these rows from being dropped until the next `rewind`."""
        self._reader.protected = frozenset(ids)

    def read(self, limit: int) -> tuple[list[Row], bool]:
        """The next rows that may be sent, at most `limit`, and whether they are the last for now.

        From then on they are the caller's: the store drops none of them. No rows where the disk fails, which is logged;
        `Outbox.on_committed` then calls for another attempt.
        """
        with self._reader.lock:
            try:
                if self._reader.is_new and self._dropping.choose_given_up(
                    self._reader.table, self.max_retry, self.max_queue_size
                ):
                    self.request_commit()
                with self._lock:
                    committed_id = self._committed_id
                    unsendable = self._unsendable()
                rows, is_last = self._reader.advance(
                    limit, committed_id, self._writer.table, lambda: self._committed_id
                )
            except apsw.Error as error:
                self._on_read_failure(error)
                return [], True
            self._read_reported = False
            if self._reader.met_unknown:
                with self._lock:
                    if not self._writing:
                        self._request(0.0)
            return self._as_sendable(rows, unsendable), is_last

    def read_again(self, ids: list[int]) -> tuple[list[Row], list[int]]:
        """Rows that were refused since the last `rewind`, as far as they may still be sent.

        And those ids of which nobody can say, as their refusal is not yet counted or the disk fails, which is logged;
        ask again later.
        """
        with self._reader.lock:
            with self._lock:
                uncounted = [message_id for message_id in ids if message_id in self._refused]
                unsendable = self._unsendable().union(uncounted)
            try:
                rows = self._reader.table.read_rows(ids, self._writer.table.may_have_extras)
            except apsw.Error as error:
                self._on_read_failure(error)
                return [], ids
            return self._as_sendable(rows, unsendable), uncounted

    @property
    def is_handing_out(self) -> bool:
        """True from a `read` of rows to `on_rows_taken`: they are no backlog any more, nor at their reader's hand."""
        return self._reader.is_handing_out

    def on_rows_taken(self) -> None:
        """The rows of the last `read` are where `is_handing_out` need not stand for them."""
        self._reader.is_handing_out = False

    def missing(self, ids: list[int]) -> list[int]:
        """Those of these messages, all once on disk, that have no row any more; none where the disk fails."""
        with self._reader.lock:
            try:
                return [message_id for message_id in ids if not self._reader.table.holds(message_id)]
            except apsw.Error as error:
                self._on_read_failure(error)
                return []

    def lost(self, ids: list[int]) -> list[int]:
        """Those of these messages, not finished, that a damaged file has lost."""
        with self._lock:
            committed_id = self._committed_id
        return self.missing([message_id for message_id in ids if message_id <= committed_id])

    def _unsendable(self) -> frozenset[int]:
        """As of before a read: the writer may delete them, and forget that, meanwhile. The caller holds both locks."""
        return self._reader.skipped.union(self._dropping.marked)

    def _as_sendable(self, rows: list[Row], unsendable: frozenset[int]) -> list[Row]:
        self.set_aside([row for row in self._reader.table.unsendable if row[0] not in unsendable])
        now_ms = self._clock.now_ms()
        if unsendable or is_any_expired(rows, now_ms):
            rows = [row for row in rows if row[0] not in unsendable and self._is_sendable(row, now_ms)]
        if rows and len(rows[0]) > ROW_COLUMNS:
            rows = [as_sent(row, now_ms) for row in rows]
        return rows

    def _is_sendable(self, row: Row, now_ms: int) -> bool:
        if row[5] < now_ms and row[0] not in self._reader.protected:
            self.drop(row, DropReason.EXPIRED)
            return False
        return True

    def set_aside(self, rows: list[tuple[int, str, int, str]]) -> None:
        """Take rows (id, topic, qos, reason) that nothing can be sent of out of the queue with the next transaction."""
        if rows:
            with self._lock:
                self._dropping.set_aside(rows)
                self._request(DONE_COMMIT_DELAY_S)

    def _on_read_failure(self, error: apsw.Error) -> None:
        if self._closing:
            return
        failure = self._file.failed(error)
        if not self._read_reported:
            self._read_reported = True
            logger.error("%s", failure)
        with self._lock:
            self._read_failed = True
            if is_damage(error) and self._damage is None:
                self._damage = error
                self._request(0.0)
            self._request_retry()

    def drop(self, row: Row, reason: DropReason) -> None:
        """Delete a row unsent, with the next transaction."""
        with self._lock:
            self._dropping.mark_row(row, reason)
            self._request(DONE_COMMIT_DELAY_S)

    def refuse(self, ids: list[int]) -> None:
        """The broker refused these messages: one more failed attempt each; see `read_again`."""

        def count(table: QueueTable) -> None:
            table.increment_retry_count(ids)
            with self._lock:
                # The others were read again since, and are in flight.
                idle = {message_id for message_id in ids if self._refused.get(message_id) is job}
            given_up = [head for head in table.heads_given_up(self.max_retry) if head[0] in idle]
            self._dropping.mark(given_up, DropReason.GIVEN_UP)
            with self._lock:
                for message_id in idle:
                    self._refused.pop(message_id, None)

        job = Job(count, lasting=True)
        with self._lock:
            self._refused.update(dict.fromkeys(ids, job))
            self._jobs.append(job)
            self._request(0.0)

    def drop_expired(self) -> int:
        """Drop every row whose time is over and that is not in flight; returns how many."""
        return self._drop_all(self._choose_expired)

    def drop_given_up(self) -> int:
        """Drop every row that was refused as often as it may be; returns how many."""
        return self._drop_all(self._choose_given_up)

    def _drop_all(self, choose: Callable[[QueueTable], int]) -> int:
        total = count = self.run(choose)
        while count == DROP_ROWS_MAX:
            count = self.run(choose)
            total += count
        return total
