"""The power is cut at every write and sync of a gateway that receives: what it answered is on disk, and no more.

POWER_CUT_ACTIONS says how long a life is, POWER_CUT_LIVES how many (`make torture`).
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from glec_fast.durable import command_log
from glec_fast.durable.command_log import Key, Origin
from glec_fast.outbox import received
from glec_fast.outbox.received import Received
from support.faulty_disk import Event, FaultyDisk, Note, Sync, Write
from support.places import scratch
from support.power_cut import Files, Medium, lay_out
from support.scripted_gateway import BROKER_NAME, CLIENT_ID, ScriptedGateway
from support.wire_reference import PUBLISH, PUBREC, PUBREL, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

ACTIONS = int(os.environ.get("POWER_CUT_ACTIONS", "60"))
LIVES = int(os.environ.get("POWER_CUT_LIVES", "1"))
PACKET_IDS = 6
QUEUE = "queue.db"


def message_of(mid: int, number: int, *, dup: bool = False) -> Any:
    return SimpleNamespace(mid=mid, qos=2, dup=dup, topic="t", payload=str(number).encode())


class Passed(NamedTuple):
    """PUBREC or PUBCOMP has left, or PUBLISH or PUBREL has come. number: of the message of this packet id."""

    kind: int
    packet_id: int
    number: int


class Ran(NamedTuple):
    """The handler of a command was called."""

    number: int


class Lost(NamedTuple):
    """The server has no session; and then, the client goes on with the new one."""

    has_gone_on: bool


class Life:
    """Messages come, of which every other is a command; they are handled and released, in any order.

    Now and then the server loses its session, and says so, or does not.
    """

    def __init__(self, disk: FaultyDisk, seed: int) -> None:
        self._disk = disk
        self._chance = random.Random(seed)
        self._gateway = ScriptedGateway(disk.folder / QUEUE)
        self._received = Received(self._gateway.outbox)
        self._received.turn_to((CLIENT_ID, BROKER_NAME), ())
        self._gateway.outbox.put_packet(b"\x10\x00", first=True)
        self._leaving()
        self._count = 0
        # Packet id -> number of its message; by how far it is.
        self._numbers: dict[int, int] = {}
        self._handed: dict[int, Any] = {}
        self._recorded: set[int] = set()

    def run(self, actions: int) -> None:
        for _ in range(actions):
            actions_of_many = (self._arrive, self._handle, self._handle, self._release, self._commit, self._send)
            rare = self._chance.random() < 0.05
            self._chance.choice((self._lose_session, self._begin_unseen) if rare else actions_of_many)()
        self._commit()
        self._gateway.close()

    def _arrive(self) -> None:
        free = [each for each in range(1, PACKET_IDS) if each not in self._numbers]
        if not free:
            return
        self._publish(self._chance.choice(free))

    def _publish(self, mid: int, *, dup: bool = False) -> None:
        message = message_of(mid, self._count, dup=dup)
        self._numbers[message.mid] = self._count
        self._count += 1
        self._disk.note(Passed(PUBLISH, message.mid, self._numbers[message.mid]))
        assert self._received.is_new(message)
        self._handed[message.mid] = message

    def _handle(self) -> None:
        if not self._handed:
            return
        mid, message = self._handed.popitem()
        number = self._numbers[mid]
        if number % 2:
            self._received.acknowledge(mid)
            self._send()
            return
        key, origin = Key("c", b"%d" % number, b""), Origin(mid, 2, "t", b"", None)
        begin = partial(command_log.begin, key=key, origin=origin)
        self._gateway.store.submit(begin, lambda _: self._run_command(message, number, key, origin))

    def _run_command(self, message: Any, number: int, key: Key, origin: Origin) -> None:
        """As `Commands` does, once it is begun on disk."""
        self._disk.note(Ran(number))

        def end(table: Any) -> None:
            command_log.end(table, key, origin, b"reply", 1000)
            self._received.record(table, message)

        self._gateway.store.append_with("r", f"{number}", 2, end, lambda: self._received.on_recorded(message))

    def _lose_session(self) -> None:
        self._disk.note(Lost(has_gone_on=False))
        self._received.forget()
        self._disk.note(Lost(has_gone_on=True))
        self._numbers.clear()
        self._handed.clear()
        self._recorded.clear()
        # Answers that wait in the buffer are for the session before.
        self._leaving()

    def _begin_unseen(self) -> None:
        """The server has another session behind a CONNACK that was lost; the client takes it for the one before."""
        self._commit()
        self._received.begin()
        self._received.resume(is_continued=False)
        before = sorted(self._recorded)
        for each in (self._numbers, self._handed, self._recorded):
            each.clear()  # type: ignore[attr-defined]
        if before:
            # Its first message has an id of the one before, and comes again already.
            self._publish(before[0], dup=self._chance.random() < 0.5)

    def _release(self) -> None:
        if self._recorded:
            mid = self._recorded.pop()
            self._disk.note(Passed(PUBREL, mid, self._numbers[mid]))
            self._received.release(mid)
            self._send()

    def _commit(self) -> None:
        self._gateway.store.run(lambda _table: None)
        self._send()

    def _send(self) -> None:
        for packet in parse(self._leaving())[0]:
            mid = packet.packet_id
            self._disk.note(Passed(packet.kind, mid, self._numbers[mid]))
            if packet.kind == PUBREC:
                self._recorded.add(mid)
            else:
                del self._numbers[mid]

    def _leaving(self) -> bytes:
        with self._gateway.outbox.lock:
            chunk = self._gateway.session.peek(1 << 16)
            self._gateway.session.on_sent(len(chunk))
        return bytes(chunk)


@dataclass
class Promise:
    """What is to be on disk. released: ids that a message to come may have."""

    received: dict[int, int] = field(default_factory=dict)
    released: set[int] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)
    ran: set[int] = field(default_factory=set)

    def take(self, passed: Passed | Ran | Lost) -> None:
        if isinstance(passed, Lost):
            self.received.clear()
            self.released = set(range(1, PACKET_IDS)) if passed.has_gone_on else set()
        elif isinstance(passed, Ran):
            self.ran.add(passed.number)
        elif passed.kind == PUBREC:
            self.received[passed.packet_id] = passed.number
            self.answered.add(passed.number)
        elif passed.kind == PUBLISH:
            self.released.discard(passed.packet_id)
            # Where it is another session that sends it, the one before is over.
            self.received.pop(passed.packet_id, None)
        elif passed.kind == PUBREL:
            # From here on the server sends no PUBLISH of it any more.
            del self.received[passed.packet_id]
        else:
            self.released.add(passed.packet_id)

    def check(self, folder: Path) -> None:
        with closing(sqlite3.connect(folder / QUEUE)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
            if "glec_command" not in tables:
                assert not self.answered
                assert not self.ran
                return
            known = dict(connection.execute("SELECT packet_id, mark FROM glec_received"))
            begun = {int(each) for (each,) in connection.execute("SELECT id FROM glec_command")}
            replies = connection.execute("SELECT id FROM glec_command WHERE reply IS NOT NULL")
            replied = {int(each) for (each,) in replies}
            queued = {int(each) for (each,) in connection.execute("SELECT payload FROM mqtt_offline_queue")}
        for mid, number in self.received.items():
            assert known.get(mid) == received._mark(message_of(mid, number)), "it would come twice"
        assert not known.keys() & self.released, "the next with its packet id would be lost"
        assert begun >= self.ran, "the next process would run it as new"
        assert replied == queued, "a command is done without its reply, or the other way round"
        assert replied >= {number for number in self.answered if number % 2 == 0}


def states(log: list[Event], chance: random.Random) -> Iterator[tuple[Files, Promise]]:
    """Each state of the disk that differs, and what is promised of it, which is good until the next."""
    medium, promise, seen, version = Medium(), Promise(), set(), 0
    for event in log:
        if isinstance(event, Note):
            promise.take(event.what)
            version += 1
        else:
            medium.on_event(event)
        for files in (medium.none_kept(), medium.all_kept(), medium.some_kept(chance)):
            key = hash(frozenset(files.items())), version
            if key not in seen:
                seen.add(key)
                yield files, promise


@pytest.mark.parametrize("life", range(LIVES))
def test_what_was_answered_is_on_disk_and_what_was_released_is_not(life: int) -> None:
    with tempfile.TemporaryDirectory(dir=scratch()) as name:
        lived_in, cut = Path(name) / "life", Path(name) / "cut"
        lived_in.mkdir()
        with FaultyDisk(lived_in) as disk:
            Life(disk, seed=life).run(ACTIONS)
            log = list(disk.log)
        assert {type(event) for event in log} >= {Write, Sync, Note}
        count = 0
        for files, promise in states(log, random.Random(life)):
            lay_out(files, cut)
            if QUEUE in files:
                promise.check(cut)
            shutil.rmtree(cut)
            count += 1
        assert count > 100
        assert promise.answered
