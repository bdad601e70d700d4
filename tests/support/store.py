"""A store's tests: an outbox that records, a disk that can be held or made to fail, what another connection sees."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import apsw

from glec_fast.durable._steps import merged, ranges_of
from glec_fast.durable._table import QueueTable
from glec_fast.durable.in_doubt import Decision
from glec_fast.durable.inflight_log import from_row, latest
from glec_fast.durable.outcomes import Dropped
from glec_fast.durable.store import Store
from glec_fast.durable.transaction import Row

WAIT_S = 20


def image_on_disk(path: Path) -> bytes:
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as database:
        stored: bytes = database.execute("SELECT in_flight FROM glec_session").get
    return latest(path, from_row(stored)).image


def ids_on_disk(path: Path) -> list[int]:
    """What another connection sees in the file."""
    # Through the same library: SQLite twice in one process would let go of the locks of the other.
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as database:
        return [number for (number,) in database.execute("SELECT id FROM mqtt_offline_queue ORDER BY timestamp, id")]


def payloads_on_disk(directory: Path) -> list[str]:
    """In its `queue.db`. Not by another SQLite: two in a process undo each other's locks."""
    with closing(apsw.Connection(str(directory / "queue.db"), flags=apsw.SQLITE_OPEN_READONLY, vfs="unix")) as db:
        return [row[0] for row in db.execute("SELECT payload FROM mqtt_offline_queue ORDER BY id")]


def last_id_on_disk(path: Path) -> int:
    """Up to which SQLite has noted ids as given."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as database:
        noted: int = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'mqtt_offline_queue'").get
    return noted


class RecordingOutbox:
    """An outbox without a network: it takes what is read, finishes what it is told to, and records what it hears."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sent: list[Row] = []
        self.dropped: list[Dropped] = []
        self.commits: list[tuple[int, int]] = []
        self._finished: list[int] = []
        self.in_doubt: list[tuple[int, Decision]] = []
        self._heard = threading.Condition()
        self._heard_count = 0
        self.in_flight = b""
        self.version = 0
        # What it lets go of though it has read it, where it was asked.
        self.lets_go: set[int] = set()
        store.load_session()
        store.attach(self)
        store.speak_for("client", "host:1883")

    def take_finished(self) -> list[int]:
        with self._heard:
            finished, self._finished = self._finished, []
            return finished

    def abandon(self, ids: list[int]) -> list[int] | None:
        with self._heard:
            return [message_id for message_id in ids if message_id not in self.lets_go]

    def take_image(self, kept: list[tuple[int, int]]) -> tuple[int, bytes, list[tuple[int, Decision]]]:
        with self._heard:
            named = "".join(f" {first}-{last}" for first, last in merged(kept + ranges_of(self._finished.copy())))
            in_doubt, self.in_doubt = self.in_doubt, []
            return self.version, self.in_flight + named.encode(), in_doubt

    def on_committed(self, version: int, new_rows: int) -> None:
        with self._heard:
            self.commits.append((version, new_rows))
            self._hear()

    def on_dropped(self, dropped: list[Dropped]) -> None:
        with self._heard:
            self.dropped += dropped
            self._hear()

    def _hear(self) -> None:
        self._heard_count += 1
        self._heard.notify_all()

    def on_salvaged(self) -> None:
        """What is lost was in nobody's hands."""

    def wait(self, condition: Callable[[RecordingOutbox], object]) -> None:
        """Until it is so. Not under our lock: it may ask the store, whose thread may be asking us."""
        while True:
            heard = self._heard_count
            if condition(self):
                return
            with self._heard:
                assert self._heard.wait_for(lambda heard=heard: self._heard_count != heard, WAIT_S)

    def read(self, limit: int = 100) -> list[int]:
        """Take the next rows; returns their ids."""
        rows, _ = self.store.supply.read(limit)
        self.sent += rows
        return [row[0] for row in rows]

    def read_all(self, limit: int = 100) -> list[int]:
        ids: list[int] = []
        is_last = False
        while not is_last:
            rows, is_last = self.store.supply.read(limit)
            self.sent += rows
            ids += [row[0] for row in rows]
        return ids

    def finish(self, ids: Iterable[int], *, named: int = 0, drained: bool = False) -> int:
        with self._heard:
            self._finished += ids
            waiting = len(self._finished)
        return self.store.on_finished(waiting, named=named, drained=drained)

    def park(self) -> None:
        """A lost connection: nothing is kept in flight, what was finished is named."""
        with self._heard:
            finished = list(self._finished)
        self.store.supply.rewind((), finished)

    @property
    def new_rows(self) -> int:
        return sum(count for _, count in self.commits)


class Disk:
    """What the store's transactions are written to: they can be held once they have begun, or made to fail there."""

    def __init__(self, store: Store) -> None:
        self.error: BaseException | None = None
        self.entered = threading.Event()
        self.released = threading.Event()
        self.released.set()
        self._has_begun = False
        with store._writer.lock:
            store._writer.connection.set_exec_trace(self._before_statement)

    def _before_statement(self, _cursor: apsw.Cursor, statement: str, _bindings: object) -> bool:
        is_first, self._has_begun = self._has_begun, statement.startswith("BEGIN")
        if is_first:
            self.entered.set()
            assert self.released.wait(WAIT_S)
            if self.error is not None:
                raise self.error
        return True

    def hold(self) -> None:
        self.entered.clear()
        self.released.clear()


def statements_of(store: Store, work: Callable[[], object]) -> list[str]:
    """What the store has SQLite run around its transactions while `work` runs."""
    found: list[str] = []

    def note(_cursor: apsw.Cursor, statement: str, _bindings: object) -> bool:
        found.append(statement)
        return True

    with store._writer.lock:
        store._writer.connection.set_exec_trace(note)
    work()
    with store._writer.lock:
        store._writer.connection.set_exec_trace(None)
    return found


@contextmanager
def held_writer(store: Store, pool: ThreadPoolExecutor) -> Iterator[None]:
    """The writer is busy with one transaction; what is appended meanwhile waits for the next."""
    entered, leave = threading.Event(), threading.Event()

    def hold(_table: QueueTable) -> None:
        entered.set()
        assert leave.wait(WAIT_S)

    held = pool.submit(store.run, hold)
    assert entered.wait(WAIT_S)
    try:
        yield
    finally:
        leave.set()
        held.result(WAIT_S)


def append(store: Store, count: int, qos: int = 1, **settings: Any) -> list[int]:
    ids = store.append_many([("t", f"payload {n}", qos) for n in range(count)], **settings)
    assert store.wait_durable(ids[-1], WAIT_S)
    return ids


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_arguments: object) -> Any:
        raise error

    return fail


def wait_for(condition: Callable[[], bool]) -> bool:
    """Ask again until it is so, for facts that nobody announces."""
    deadline_s = time.monotonic() + WAIT_S
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        pause.wait(0.002)
    return True
