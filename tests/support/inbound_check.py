"""Every order in which messages that come in, a link, a disk, a crashing vehicle and its broker can take their steps.

The vehicle is the product's `Received` and `Incoming`, with its subscriptions, inbox and commands, over the product's
tables; a step writes to the disk, and another tells of it. The broker here keeps sessions, and sends as 4.3 and 4.4 of
MQTT say. A state is reached again by taking the same steps from the last crash on. Two states are one where everything
that can be reached from their objects is the same.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Hashable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any, NamedTuple, cast

import apsw

from glec_fast import MQTTConfig
from glec_fast.durable import database
from glec_fast.engine.takeover import Continuity
from glec_fast.fleet import command_request, commands, inbox, subscriptions
from glec_fast.fleet.handlers import Call
from glec_fast.fleet.incoming import Incoming
from glec_fast.mqtt.filters import Filters
from glec_fast.mqtt.greeting import Accepted
from glec_fast.mqtt.inbound_message import InboundMessage, kept_message
from glec_fast.outbox import received
from glec_fast.outbox.received import Received
from support.dict_store import QuietLog
from support.model_check import Found, SearchError
from support.wire_reference import PUBACK, PUBCOMP, PUBREC

DEVICE_ID, OWNER = "vehicle", "broker"
COMMANDS = f"glec/dtg/{DEVICE_ID}/commands"
PLAIN = "plain"
# As much time as anything waits for.
LONG_S = 1000.0
DUMPED = {
    "glec_received": "SELECT packet_id, mark FROM glec_received ORDER BY 1",
    "glec_command": "SELECT * FROM glec_command ORDER BY number",
    "replies": "SELECT * FROM replies",
}
# What is counted for figures, told to a log, or a time.
UNSEEN = {
    "counts", "received_count", "dropped_count", "refused_count", "error_count", "arrived_s", "_claim_by_s",
    "_connected_s", "_log", "_lock", "_changed", "_client", "_config", "_store", "_outbox", "lock", "_routes", "world",
    "_connection", "_last_connection", "session_number", "_greeting", "_executor", "_packet_max_bytes",
}  # fmt: skip
PLAIN_TYPES = {int, bool, str, bytes, type(None)}


class Bounds(NamedTuple):
    """What is searched.

    messages: what each is, and its QoS, as "plain 2", "fail 1", "retry 2"; a platform publishes one after another.
    cuts, crashes, lost_sessions: how often each may happen. tells_late: whatever happens between a transaction and the
    vehicle's hearing of it is searched too.
    """

    messages: tuple[str, ...] = ("plain 2", "plain 2")
    cuts: int = 1
    crashes: int = 1
    lost_sessions: int = 0
    tells_late: bool = False


class Clock:
    """The time of everything that is searched."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


CLOCK = Clock()


@dataclass
class Broker:
    """Its session of the vehicle, where it has one. in_flight: packet id -> [number of the message, QoS, how far]."""

    has_session: bool = False
    is_subscribed: bool = False
    in_flight: dict[int, list[Any]] = field(default_factory=dict)
    # Of sessions that were lost: these may be missing.
    lost: frozenset[int] = frozenset()

    def copied(self) -> Broker:
        return replace(self, in_flight={mid: list(entry) for mid, entry in self.in_flight.items()})

    def lose(self) -> None:
        self.lost |= {number for number, _, _ in self.in_flight.values()}
        self.has_session = self.is_subscribed = False
        self.in_flight.clear()

    def take(self, number: int, qos: int) -> int:
        mid = min({1, 2, 3, 4, 5, 6, 7, 8} - self.in_flight.keys())
        self.in_flight[mid] = [number, qos, "new"]
        return mid

    def next_packet(self, mid: int) -> tuple[Any, ...]:
        """What is due for this packet id on this connection."""
        number, qos, state = self.in_flight[mid]
        if state == "received":
            return ("pubrel", mid)
        self.in_flight[mid][2] = "sent"
        return ("publish", mid, qos, state == "sent", number)


class Disk(NamedTuple):
    """What is in the tables: name -> rows."""

    tables: tuple[tuple[str, tuple[Any, ...]], ...] = ()


@dataclass(frozen=True)
class Root:
    """A state without a running vehicle: what is left after a crash. effects: (message, what its handler was told)."""

    disk: Disk
    broker: Broker
    cuts: int
    crashes: int
    lost_sessions: int
    published: int = 0
    effects: tuple[tuple[int, bool], ...] = ()
    # Message -> how often a crash found it handled, and not on disk.
    exposures: tuple[int, ...] = ()


class StepStore:
    """A store whose transactions happen, and are told of, when a step says so."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._table = SimpleNamespace(connection=connection, encoding="utf-8")
        self.jobs: list[tuple[Any, Any]] = []
        self.untold: list[tuple[Any, Any]] = []
        # The part of a store that has it.
        self.clock = self

    def unix_ms(self) -> int:
        return 0

    def submit(self, statement: Any, told: Any) -> None:
        self.jobs.append((statement, told))

    def append_with(self, topic: str, payload: bytes, _qos: int, statement: Any, told: Any, _extras: Any) -> None:
        self.jobs.append((partial(self._append, topic, payload, statement), lambda _: told()))

    @staticmethod
    def _append(topic: str, payload: bytes, statement: Any, table: Any) -> None:
        table.connection.execute("INSERT INTO replies VALUES (?, ?)", (topic, payload))
        statement(table)

    def run(self, statement: Any) -> Any:
        result: list[Any] = []
        self.submit(statement, result.append)
        while not result:
            self.commit()
            self.tell()
        return result[0]

    def commit(self) -> None:
        self.tell()
        jobs, self.jobs = self.jobs, []
        with self._table.connection:
            self.untold = [(statement(self._table), told) for statement, told in jobs]

    def tell(self) -> None:
        untold, self.untold = self.untold, []
        for result, told in untold:
            told(result)


class StepExecutor:
    """Runs the handler at the head of a lane in one step, and says so in another."""

    error_count = 0
    runs_coroutines = False

    def __init__(self) -> None:
        self.lanes: dict[Hashable, deque[Call]] = {}
        # Lane -> the result of its head; not of one that has yet to run, or keeps the lane.
        self.results: dict[Hashable, Any] = {}
        self.ready: set[Hashable] = set()

    def submit(self, lane: Hashable, call: Call) -> bool:
        self.lanes.setdefault(lane, deque()).append(call)
        if len(self.lanes[lane]) == 1:
            self._begin(lane)
        return True

    def _begin(self, lane: Hashable) -> None:
        call = self.lanes[lane][0]
        if getattr(call.handler, "__name__", "") == "_begin":
            # Not the program's.
            call.handler(*call.arguments)
            assert call.done(None, None)
        else:
            self.ready.add(lane)

    def go_on(self, lane: Hashable, call: Call) -> None:
        self.lanes[lane][0] = call
        self._begin(lane)

    def free(self, lane: Hashable) -> None:
        self.lanes[lane].popleft()
        if self.lanes[lane]:
            self._begin(lane)
        else:
            del self.lanes[lane]

    def handle(self, lane: Hashable) -> None:
        self.ready.discard(lane)
        call = self.lanes[lane][0]
        self.results[lane] = call.handler(*call.arguments)

    def end(self, lane: Hashable) -> None:
        result = self.results.pop(lane)
        if not self.lanes[lane][0].done(result, None):
            self.free(lane)

    def note_error(self, error: BaseException) -> None:
        raise AssertionError(f"a handler failed: {error!r}")

    def tick(self) -> None:
        """Nothing is put off here."""


class StepOutbox:
    """What `Received` needs of an outbox. It holds what it is told of against the disk."""

    def __init__(self, world: World, store: StepStore) -> None:
        self.world, self.store = world, store
        self.lock = nullcontext()
        self.is_linked = False
        # Nothing is put behind DISCONNECT here.
        self.session = SimpleNamespace(has_last=False)

    def put_ack(self, packet: bytes) -> None:
        kind, mid = packet[0] >> 4, int.from_bytes(packet[2:], "big")
        known = {each for each, _ in self.world.connection.execute("SELECT packet_id, mark FROM glec_received")}
        assert kind != PUBREC or mid in known, f"PUBREC {mid} leaves before the disk has it"
        assert kind != PUBCOMP or mid not in known, f"PUBCOMP {mid} leaves before the disk has let go of it"
        self.world.up.append((kind, mid))

    def put_acks(self) -> None:
        """They have left."""

    def wake(self) -> None:
        """Nobody sleeps."""


class StepClient:
    """What `Subscriptions` and `Incoming` need of a client."""

    def __init__(self, world: World, store: StepStore) -> None:
        self.world, self.store = world, store
        self.greeting = SimpleNamespace(accepted=Accepted())
        server = SimpleNamespace(limits=None)
        self._glec_parts = SimpleNamespace(greeting=self.greeting, outbox=SimpleNamespace(server=server))

    def is_connected(self) -> bool:
        return self.world.is_accepted

    def subscribe(self, filters: list[Any], properties: Any) -> tuple[int, int]:
        self.world.up.append(("subscribe", 1, len(filters)))
        return 0, 1

    def unsubscribe(self, filters: list[str]) -> tuple[int, int]:
        raise AssertionError(f"nobody unsubscribes from {filters}")


CONFIG = MQTTConfig("tcp://localhost", DEVICE_ID)
CONNECTION = apsw.Connection(":memory:")
CONNECTION.execute(database.SCHEMA)
CONNECTION.execute("CREATE TABLE replies (topic, payload)")


class World:
    """A running vehicle, its link and its broker. `do` takes one step of `steps`."""

    def __init__(self, root: Root, bounds: Bounds) -> None:
        self.root, self.bounds = root, bounds
        self.connection = CONNECTION
        self._lay_out(root.disk)
        CLOCK.now_s = 0.0
        self.broker = root.broker.copied()
        self.cuts, self.crashes, self.lost_sessions = root.cuts, root.crashes, root.lost_sessions
        self.published, self.effects, self.exposures = root.published, list(root.effects), list(root.exposures)
        self.kinds = [each.split()[0] for each in bounds.messages]
        self.qos = [int(each.split()[1]) for each in bounds.messages]
        # To the vehicle, and from it.
        self.down: deque[tuple[Any, ...]] = deque()
        self.up: deque[tuple[Any, ...]] = deque()
        self.is_linked = self.is_accepted = False
        self.store = StepStore(self.connection)
        self.outbox = StepOutbox(self, self.store)
        self.executor = StepExecutor()
        self.continuity = Continuity()
        self.received = Received(cast("Any", self.outbox))
        self.received.keeps_qos_1 = True
        self.client = StepClient(self, self.store)
        log: Any = QuietLog()
        self.incoming = Incoming(
            cast("Any", self.client), self.received, CONFIG, log, lambda *_: None, cast("Any", self.executor)
        )
        for kind in dict.fromkeys(self.kinds):
            if kind == PLAIN:
                self.incoming.subscribe("t", self._on_plain, 2)
            else:
                self.incoming.declare(kind, self._on_command, kind)

    # ---- the program

    def _on_plain(self, message: Any) -> None:
        self.effects.append((int(message.payload), message.dup))

    def _on_command(self, _arguments: Any, context: Any) -> int:
        self.effects.append((int(context.id), context.is_retry))
        return int(context.id)

    # ---- steps

    def steps(self) -> list[str]:
        """What may happen next; first what goes on without another fault."""
        found = []
        if not self.is_linked:
            found.append("connect")
        if self.down:
            found.append("packet arrives")
        if self.up:
            found.append("broker hears")
        if self.published < len(self.kinds) and self.broker.is_subscribed:
            found.append("publish")
        if self.store.jobs and not self.store.untold:
            found.append("commit")
        if self.store.untold:
            found.append("tell")
        found += [f"handle {lane}" for lane in self._lanes(self.executor.ready)]
        found += [f"end {lane}" for lane in self._lanes(self.executor.results)]
        if self.is_accepted and self._waits_for_time():
            found.append("time passes")
        self.is_stuck = not found
        if self.is_linked and self.cuts:
            found.append("cut")
        if self.broker.has_session and self.lost_sessions:
            found.append("broker loses its session")
        if self.crashes:
            found.append("crash")
            if self.store.jobs and not self.bounds.tells_late:
                found.append("crash behind the write")
        return found

    def _lanes(self, lanes: Iterable[Hashable]) -> list[str]:
        return sorted(map(str, lanes))

    def _waits_for_time(self) -> bool:
        runs = self.incoming._commands
        waits = runs is not None and runs._settles_at_s != float("inf")
        return waits or bool(self.incoming._subscriptions._unanswered)

    def do(self, step: str) -> None:
        name, _, lane = step.partition(" ")
        if name in ("handle", "end"):
            found = next(each for each in self.executor.lanes if str(each) == lane)
            getattr(self.executor, name)(found)
        else:
            getattr(self, "_" + step.replace(" ", "_"))()

    def _connect(self) -> None:
        self.is_linked = self.outbox.is_linked = True
        self.received.turn_to((DEVICE_ID, OWNER), ())
        self.received.begin()
        self.continuity.on_connect_sent()
        self.down.append(("connack", self.broker.has_session))
        self.broker.has_session = True
        self.down += [self.broker.next_packet(mid) for mid in self.broker.in_flight]

    def _packet_arrives(self) -> None:
        kind, *rest = self.down.popleft()
        if kind == "connack":
            self._on_connack(session_present=rest[0])
        elif kind == "publish":
            message = self._message(*rest)
            if self.received.is_new(message):
                self.incoming.take(message)
        elif kind == "pubrel":
            self.received.release(rest[0])
        else:
            self.incoming._subscriptions.on_answer(rest[0], [2] * rest[1])

    def _on_connack(self, *, session_present: bool) -> None:
        """As `Greeting.on_connack`, and then the manager's callback."""
        is_continued = self.continuity.on_accepted((DEVICE_ID, OWNER), session_present=session_present)
        self.client.greeting.accepted = Accepted(session_present, is_continued)
        if session_present:
            self.received.resume(is_continued=is_continued)
        else:
            self.received.forget()
        self.is_accepted = True
        self.incoming.on_connected()

    def _message(self, mid: int, qos: int, dup: bool, number: int) -> InboundMessage:
        kind = self.kinds[number]
        topic = "t" if kind == PLAIN else f"{COMMANDS}/{kind}"
        payload = str(number) if kind == PLAIN else json.dumps({"id": number})
        message = kept_message(topic, payload.encode(), None)
        message.mid, message.qos, message.dup = mid, qos, dup
        return message

    def _broker_hears(self) -> None:
        kind, mid, *rest = self.up.popleft()
        if kind == "subscribe":
            self.broker.is_subscribed = True
            self.down.append(("suback", mid, *rest))
            return
        entry = self.broker.in_flight.get(mid)
        if entry is None:
            return
        number, qos, state = entry
        if kind == (PUBACK if qos == 1 else PUBREC) and state == "sent":
            is_handled = any(each == number for each, _ in self.effects)
            assert is_handled or self.kinds[number] != PLAIN, f"{number} is acknowledged, and was never handled"
            assert is_handled or number in self._answers(), f"{number} is acknowledged, and was never answered"
        if kind == PUBREC and qos == 2 and state == "sent":
            entry[2] = "received"
            self.down.append(("pubrel", mid))
        elif (kind == PUBACK and qos == 1 and state == "sent") or (kind == PUBCOMP and state == "received"):
            del self.broker.in_flight[mid]

    def _publish(self) -> None:
        mid = self.broker.take(self.published, self.qos[self.published])
        self.published += 1
        if self.is_linked:
            self.down.append(self.broker.next_packet(mid))

    def _commit(self) -> None:
        self.store.commit()
        if not self.bounds.tells_late:
            self.store.tell()

    def _tell(self) -> None:
        self.store.tell()

    def _time_passes(self) -> None:
        CLOCK.now_s += LONG_S
        self.incoming.tick()

    def _cut(self) -> None:
        self.cuts -= 1
        self._unlink()

    def _broker_loses_its_session(self) -> None:
        self.lost_sessions -= 1
        self.broker.lose()
        if self.is_linked:
            self._unlink()

    def _unlink(self) -> None:
        self.is_linked = self.is_accepted = self.outbox.is_linked = False
        self.down.clear()
        self.up.clear()
        self.incoming.on_disconnected(by_peer=True)

    def after_crash(self, step: str) -> Root:
        """What is left when the process dies now. Spoils the world where it dies behind a write."""
        if step == "crash behind the write":
            self.store.commit()
        exposures = list(self.exposures)
        on_disk = dict(self.connection.execute("SELECT packet_id, mark FROM glec_received"))
        for mid, (number, qos, state) in self.broker.in_flight.items():
            is_known = on_disk.get(mid) == received._mark(self._message(mid, qos, False, number))
            comes_again = state == "sent" and (qos == 1 or not is_known)
            if comes_again and self._count(number):
                exposures.append(number)
        return Root(
            self._dump(), self.broker.copied(), self.cuts, self.crashes - 1, self.lost_sessions, self.published,
            tuple(self.effects), tuple(exposures),
        )  # fmt: skip

    # ---- the disk

    def _dump(self) -> Disk:
        return Disk(tuple((name, tuple(self.connection.execute(query))) for name, query in DUMPED.items()))

    def _lay_out(self, disk: Disk) -> None:
        tables = dict(disk.tables)
        with self.connection:
            # Numbers begin anew with each world.
            self.connection.execute("DELETE FROM sqlite_sequence")
            for name in DUMPED:
                self.connection.execute(f"DELETE FROM {name}")
                for row in tables.get(name, ()):
                    values = (DEVICE_ID, OWNER, *row) if name == "glec_received" else row
                    places = ", ".join("?" * len(values))
                    self.connection.execute(f"INSERT INTO {name} VALUES ({places})", values)

    def _answers(self) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = {}
        for _, payload in self.connection.execute("SELECT * FROM replies"):
            reply = json.loads(payload)
            found.setdefault(int(reply["id"]), []).append(reply)
        return found

    # ---- what must hold

    def _count(self, number: int) -> int:
        return sum(each == number for each, _ in self.effects)

    def check(self) -> None:
        """All that must hold at any moment."""
        counts, exposed = Counter(number for number, _ in self.effects), Counter(self.exposures)
        answers = self._answers()
        for number, count in counts.items():
            kind, qos = self.kinds[number], self.qos[number]
            told = [is_told for each, is_told in self.effects if each == number]
            if kind == PLAIN and qos == 2:
                assert count <= 1 + exposed[number], f"{number} came {count} times"
            if kind == "fail":
                assert count == 1, f"the command {number} was run {count} times"
            if kind != PLAIN or qos == 2:
                assert all(told[1:]), f"{number} came again, and nobody was told"
        for number, replies in answers.items():
            assert len(replies) == 1, f"{number} has {len(replies)} answers"
            if replies[0]["status"] == "done":
                assert counts[number], f"{number} is said to be done"
            else:
                assert replies[0]["error"]["code"] == "interrupted", replies

    def check_end(self) -> None:
        """Nothing can happen any more: all has come."""
        answers = self._answers()
        assert self.published == len(self.kinds)
        assert not self.broker.in_flight, f"the broker waits: {self.broker.in_flight}"
        assert self.incoming._inbox.held == 0
        for number, kind in enumerate(self.kinds):
            has_come = number in answers if kind != PLAIN else bool(self._count(number))
            assert has_come or number in self.broker.lost, f"{number} is lost"
        begun = list(self.connection.execute("SELECT id FROM glec_command WHERE reply IS NULL"))
        assert not begun, "a command is begun, and never answered"

    # ---- telling states apart

    def key(self) -> Hashable:
        """All that the future depends on."""
        roots = (
            self.received, self.incoming._inbox, self.incoming._commands, self.incoming._subscriptions,
            self.executor.lanes, self.executor.results, self.executor.ready, self.store.jobs, self.store.untold,
            self.continuity, self.client.greeting.accepted, self.broker, self.down, self.up,
        )  # fmt: skip
        plain = (
            self._dump(), self.cuts, self.crashes, self.lost_sessions, self.published, tuple(self.effects),
            tuple(self.exposures), self.is_linked, self.is_accepted,
        )  # fmt: skip
        return plain, shape(roots, {})


def shape(value: Any, seen: dict[int, int]) -> Hashable:
    """What a value is, and all that it refers to; of what was seen before, which one it is."""
    if isinstance(value, (int, str, bytes, type(None), type)):
        return cast("Hashable", value)
    if isinstance(value, float):
        return value == float("inf")
    if isinstance(value, (World, apsw.Connection, SimpleNamespace, Filters)):
        return type(value).__name__
    if isinstance(value, (set, frozenset)):
        return frozenset(shapes(value, seen))
    if id(value) in seen:
        return "seen", seen[id(value)]
    seen[id(value)] = len(seen)
    if isinstance(value, (tuple, list, deque)):
        return tuple(shapes(value, seen))
    if isinstance(value, dict):
        return tuple(shapes((part for item in value.items() for part in item), seen))
    return type(value).__name__, shape_of_object(value, seen)


def shapes(values: Iterable[Any], seen: dict[int, int]) -> list[Hashable]:
    # Most are plain, and hundreds of thousands: not one call for each.
    return [each if type(each) in PLAIN_TYPES else shape(each, seen) for each in values]


def shape_of_object(value: Any, seen: dict[int, int]) -> Hashable:
    if isinstance(value, InboundMessage):
        return value.mid, value.qos, value.dup, value.payload
    if isinstance(value, partial):
        return shape((value.func, value.args), seen)
    if isinstance(value, MethodType):
        return value.__func__.__qualname__, shape(value.__self__, seen)
    if isinstance(value, FunctionType):
        return value.__qualname__, tuple(shapes([cell.cell_contents for cell in value.__closure__ or ()], seen))
    names = [name for name in getattr(value, "__slots__", None) or getattr(value, "__dict__", {}) if name not in UNSEEN]
    return tuple(names), tuple(shapes([getattr(value, name) for name in names], seen))


def search(bounds: Bounds, states_max: int) -> Found:
    """Visit every state within `bounds`; stops at `states_max`. Raises SearchError."""
    times = [(module, module.time) for module in (command_request, commands, inbox, subscriptions)]
    for module, _ in times:
        module.time = CLOCK  # type: ignore[assignment]
    try:
        return _search(bounds, states_max)
    finally:
        for module, time in times:
            module.time = time  # type: ignore[assignment]


def _search(bounds: Bounds, states_max: int) -> Found:
    first = Root(Disk(), Broker(), bounds.cuts, bounds.crashes, bounds.lost_sessions)
    stack: list[tuple[Root, tuple[str, ...], tuple[str, ...]]] = [(first, (), ())]
    seen: set[int] = set()
    steps_taken = ends = 0

    def reach(root: Root, path: tuple[str, ...]) -> World:
        world = World(root, bounds)
        for step in path:
            world.do(step)
        return world

    while stack and len(seen) < states_max:
        root, path, history = stack.pop()
        try:
            world = reach(root, path)
            # All before the last step was checked when it was reached first.
            world.check()
            # On, in the same world, for as long as there is something new.
            while (key := hash(world.key())) not in seen:
                seen.add(key)
                steps = world.steps()
                if world.is_stuck:
                    ends += 1
                    world.check_end()
                steps_taken += len(steps)
                stack += [(root, (*path, step), history) for step in steps[1:] if not step.startswith("crash")]
                for step in steps:
                    if step == "crash":
                        stack.append((world.after_crash(step), (), (*history, *path, step)))
                if "crash behind the write" in steps:
                    spoilt = reach(root, path)
                    stack.append((spoilt.after_crash(steps[-1]), (), (*history, *path, steps[-1])))
                    world = reach(root, path)
                if not steps or steps[0].startswith("crash"):
                    break
                path = (*path, steps[0])
                world.do(steps[0])
                world.check()
        except AssertionError as error:
            raise SearchError(f"{error}, after: {', '.join((*history, *path))}") from error
    return Found(len(seen), steps_taken, ends, not stack)
