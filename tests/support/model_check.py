"""Every order in which a few messages, a link, a disk, a crashing client and a broker can take their steps.

The client is the product's outbox and session over a `DictStore`; the broker is a `ScriptedBroker`. A state is reached
again by taking the same steps from the last crash on. Two states are one where everything plain about them is equal and
the client would answer a probe in the same way.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from glec_fast import Decision, DropReason
from glec_fast.outbox.stored import DurableOutbox
from support.dict_store import DictDisk, DictStore
from support.scripted_broker import PINGRESP, ScriptedBroker
from support.session_model import decode_image
from support.wire_reference import PUBLISH, PUBREL, ack, parse

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

ALL_BYTES = 1 << 20
ACK_BYTES = 4
PACKET_ID_MAX = 65_535
PINGREQ = b"\xc0\x00"
# More than any search has.
ALL_STATES = 10_000_000
# Something can go on without another fault.
PROGRESS = {"send", "broker handles", "answer arrives", "connect", "begin commit", "end commit", "look"}


class Bounds(NamedTuple):
    """What is searched. `qos`: one message each, all on disk at the start. ids: packet ids there are, 0 for all.

    cuts, crashes, lost_sessions, older_sessions: how often each may happen; with the last, a session comes back as it
    was at an earlier time. owners: brokers there are, of an owner each; on_owner_away: what is then done. moves: how
    often another one is turned to. refuses: the number of a message that the broker ends the connection over, 0 for
    none. expiries: messages that may become too old. max_unreleased: places of each broker, 0 for any number.
    """

    qos: tuple[int, ...] = (2, 2)
    cuts: int = 1
    crashes: int = 1
    lost_sessions: int = 0
    older_sessions: int = 0
    owners: int = 1
    on_owner_away: Literal["wait", "move"] = "move"
    moves: int = 0
    refuses: int = 0
    expiries: int = 0
    max_unreleased: int = 0
    window: int = 10
    protocol_version: int = 4
    hands_on_at_release: bool = False
    knows_qos_2: bool = True
    ids: int = 0
    alerts_first: bool = False


@dataclass(frozen=True)
class Root:
    """A state without a running client: what is left after a crash."""

    disk: DictDisk
    # Of each, its broker, and whether that has a session.
    brokers: tuple[ScriptedBroker, ...]
    present: tuple[bool, ...]
    at: int
    cuts: int
    crashes: int
    lost_sessions: int
    older_sessions: int
    moves: int
    expiries: int
    # What the broker will come back with.
    saved: tuple[tuple[int, str], ...] | None
    # Messages whose PUBREC a broker had sent that then lost its session: MQTT cannot tell their fate.
    in_doubt: frozenset[str]


class World:
    """A running client, its link and its broker. `do` takes one step of `steps`."""

    def __init__(self, root: Root, bounds: Bounds) -> None:
        self.root = root
        self.disk = root.disk.copied()
        self.brokers = [broker.copied() for broker in root.brokers]
        self.present = list(root.present)
        self.at = root.at
        self.cuts, self.crashes, self.lost_sessions = root.cuts, root.crashes, root.lost_sessions
        self.older_sessions, self.moves, self.saved = root.older_sessions, root.moves, root.saved
        self.expiries = root.expiries
        self.in_doubt = root.in_doubt
        self.answers = b""
        self.linked = False
        self.store = DictStore(self.disk, alerts_first=bounds.alerts_first)
        self.outbox = DurableOutbox(
            self.store,  # type: ignore[arg-type]
            bounds.window,
            lambda: None,
            lambda _dropped: None,
            max_unreleased=bounds.max_unreleased,
            on_owner_away=bounds.on_owner_away,
        )
        self._bounds = bounds
        self._identify()
        self.session = self.outbox.session
        self.session.protocol_version = bounds.protocol_version
        if bounds.ids:
            # At C's pace, as each world begins so.
            deque(map(self.session.take_packet_id, range(1, PACKET_ID_MAX - bounds.ids + 1)), maxlen=0)
        self._payload_of = _payloads_of(bounds)
        self._refused = self._payload_of[bounds.refuses].encode() if bounds.refuses else b"none"

    @property
    def broker(self) -> ScriptedBroker:
        return self.brokers[self.at]

    @property
    def session_present(self) -> bool:
        return self.present[self.at]

    def _identify(self) -> None:
        if self._bounds.owners > 1:
            names = [f"broker {number}" for number in range(self._bounds.owners)]
            mine = names.pop(self.at)
            self.outbox.identify("client", mine, (), names)
        elif self._bounds.refuses:
            self.outbox.identify(*self.disk.identity)

    # ---- steps

    def steps(self) -> list[str]:
        """What may happen next."""
        found = []
        if self.linked:
            if self.session.sendable_bytes:
                found.append("send")
            if self.broker.inbox:
                found.append("broker handles")
            if self.answers:
                found.append("answer arrives")
            if self.outbox.blame.suspicion.aside and not self.outbox.probes:
                found.append("look")
            if self.cuts:
                found.append("cut")
            if self.lost_sessions:
                found.append("broker loses its session")
            if self.older_sessions and self.saved is None:
                found.append("broker saves")
            if self.older_sessions and self.saved is not None:
                found.append("session comes back older")
        else:
            found.append("connect")
            if self.moves:
                found.append("turn to another owner")
        if self.store.pending is not None:
            found.append("end commit")
        elif self.store.wants_commit:
            found.append("begin commit")
        if self.expiries:
            going = {*self.store.claimed, *self.store.marked}
            found += [f"message {each} expires" for each in self.disk.rows if each not in going]
        if self.crashes:
            found.append("crash")
            if self.store.pending is not None:
                found.append("crash behind the write")
        return found

    def do(self, step: str) -> None:
        if step.startswith("message"):
            self._expires(int(step.split()[1]))
        else:
            getattr(self, _method_of(step))()

    def after_crash(self, step: str) -> Root:
        """What is left when the process dies now."""
        disk, brokers = self.disk.copied(), [broker.copied() for broker in self.brokers]
        if step == "crash behind the write":
            assert self.store.pending is not None
            disk.write(self.store.pending)
        for broker in brokers:
            broker.inbox = b""
        return Root(
            disk, tuple(brokers), tuple(self.present), self.at, self.cuts, self.crashes - 1, self.lost_sessions,
            self.older_sessions, self.moves, self.expiries, self.saved, self.in_doubt,
        )  # fmt: skip

    def _send(self) -> None:
        waiting = self.session.peek(ALL_BYTES)
        size = _first_packet_bytes(waiting)
        while waiting[:size].endswith(PINGREQ) and waiting[size:].startswith(PINGREQ):
            size += len(PINGREQ)
        self.session.on_sent(size)
        self.broker.feed(waiting[:size])
        self._settle()

    def _broker_handles(self) -> None:
        packet = parse(self.broker.inbox)[0][0]
        if packet.kind == PUBLISH and packet.body.endswith(self._refused):
            self.outbox.is_broken_off = True
            self._unlink()
            return
        self.answers += self.broker.handle(1)
        while self.answers.endswith(PINGRESP) and self.broker.inbox.startswith(PINGREQ):
            self.answers += self.broker.handle(1)

    def _look(self) -> None:
        self.outbox.look_for_answers()

    def _expires(self, message_id: int) -> None:
        self.expiries -= 1
        self.store.expire(message_id)

    def _answer_arrives(self) -> None:
        if self.answers.startswith(PINGRESP):
            while self.answers.startswith(PINGRESP):
                self.answers = self.answers[len(PINGRESP) :]
                self.outbox.on_pingresp()
            return
        answer, self.answers = self.answers[:ACK_BYTES], self.answers[ACK_BYTES:]
        self.session.on_acks(answer)
        self._settle()

    def _settle(self) -> None:
        self.outbox.settle()
        self.outbox.after_settle()
        self.outbox.pull()

    def _cut(self) -> None:
        self.cuts -= 1
        self._unlink()

    def _broker_loses_its_session(self) -> None:
        self.lost_sessions -= 1
        self.in_doubt |= set(self.broker.held.values())
        self.broker.lose_session()
        self.present[self.at] = False
        self._unlink()

    def _broker_saves(self) -> None:
        self.saved = tuple(sorted(self.broker.held.items()))

    def _session_comes_back_older(self) -> None:
        self.older_sessions -= 1
        assert self.saved is not None
        # What it had acknowledged since is its own loss.
        self.in_doubt |= set(self.broker.held.values()) - {payload for _, payload in self.saved}
        self.broker.held = dict(self.saved)
        self.broker.stale = True
        self._unlink()

    def _turn_to_another_owner(self) -> None:
        self.moves -= 1
        self.at = (self.at + 1) % self._bounds.owners
        self._identify()

    def _unlink(self) -> None:
        self.linked = False
        self.broker.inbox = self.answers = b""
        self.outbox.park()

    def _connect(self) -> None:
        self.linked = True
        if self.outbox.is_session_foreign and self.session_present:
            # As the client does: PUBRELs for what was left, and then a clean CONNECT.
            for packet_id in self.outbox.left_packet_ids():
                self.broker.answer(parse(ack(PUBREL, packet_id))[0][0])
            self.outbox.on_left_released()
            self.broker.lose_session()
            self.present[self.at] = False
        # For CONNECT: control packets go behind it.
        self.outbox.put_packet(b"", first=True)
        self.outbox.resume(self.session_present, 65_535)
        # The broker has a session of this client from now on.
        self.present[self.at] = True

    def _begin_commit(self) -> None:
        self.store.begin_commit()

    def _end_commit(self) -> None:
        self.store.end_commit()
        self.outbox.pull()

    # ---- what must hold

    def check(self) -> None:
        kept_all = not self.broken_sessions and self.broker.knows_qos_2
        counts = Counter(chain.from_iterable(broker.delivered for broker in self.brokers))
        again = {self._payload_of[each] for each, decision in self._ledger() if decision is Decision.SENT_AGAIN}
        for payload, count in counts.items():
            is_told = payload in again or payload[0] != "2" or not kept_all
            assert count == 1 or is_told, f"{payload} came {count} times"
        rows = {row[2] for row in self.disk.rows.values()} | {self._payload_of[each] for each in self.disk.dropped}
        for message_id, reason in self.disk.dropped.items():
            assert reason is DropReason.EXPIRED or message_id == self._bounds.refuses, f"{message_id} is not to blame"
        held = {payload for broker in self.brokers for payload in broker.held.values()}
        for payload in self._payload_of.values():
            is_somewhere = payload in rows or payload in counts or payload in held
            assert is_somewhere or payload in self.in_doubt, f"{payload} is lost"
        if kept_all and len(self.brokers) == 1:
            firsts = [payload for payload in dict.fromkeys(self.broker.delivered) if payload[0] == "2"]
            assert firsts == sorted(firsts, key=lambda payload: int(payload[2:])), "out of order"

    def _ledger(self) -> list[tuple[int, Decision]]:
        pending = [] if self.store.pending is None else self.store.pending.in_doubt
        return [*self.disk.in_doubt, *pending, *self.outbox.doubt.decisions]

    @property
    def broken_sessions(self) -> bool:
        is_older = any(broker.stale for broker in self.brokers)
        return bool(self.in_doubt) or is_older or (len(self.brokers) == 1 and not self.session_present)

    def is_done(self) -> bool:
        waiting = {each for each in self.disk.rows if each not in self.outbox.owners.withheld}
        return not waiting and not self.broker.inbox and not self.answers

    # ---- telling states apart

    def plain(self) -> Hashable:
        """All of the state that can be looked at without a change to it."""
        pending = self.store.pending
        outbox = self.outbox
        return (
            tuple(self.disk.rows), _image(self.disk.image), tuple(map(_broker_key, self.brokers)),
            self.answers, self.linked, tuple(self.present), self.at, self.cuts, self.crashes, self.lost_sessions,
            self.older_sessions, self.moves, self.expiries, self.saved, self.in_doubt, self.disk.identity,
            tuple(self.disk.dropped.items()), self._suspicion_key(),
            tuple(self.disk.kept.items()), self.outbox.is_session_foreign, self.session.stale,
            None if pending is None else (tuple(pending.done), _image(pending.image)),
            self.store.fingerprint(), tuple(outbox._finished.ids), tuple(row[0] for row in outbox._rows.left),
            tuple(row[0] for row in outbox._alerts.left), outbox._more_to_read,
            self.session.in_flight, self.session.unreleased,
        )  # fmt: skip

    def _suspicion_key(self) -> Hashable:
        outbox, suspicion = self.outbox, self.outbox.blame.suspicion
        return (
            tuple(sorted(suspicion._exposures.items())), tuple(sorted(suspicion._tries.items())),
            frozenset(suspicion.suspects), frozenset(suspicion.aside), suspicion.control_bytes, outbox.probes,
            outbox.is_narrow, outbox.next_rows.has_held_back, frozenset(outbox.blame.leaving), suspicion.passed_over,
            tuple(suspicion.notes()), suspicion._is_none_the_wiser, suspicion.is_overdue, tuple(outbox.blame.last),
            outbox.makes_way, outbox.narrow.last_at_ms <= outbox.store.since_boot_ms(),
        )  # fmt: skip

    def probe_kept(self) -> Hashable:
        """What the client would do if all went well from here, and then after a cut. Spoils the world."""
        found: list[Hashable] = [self.session.peek(ALL_BYTES)]
        if self.store.pending is not None:
            self.store.end_commit()
            found.append(self.session.peek(ALL_BYTES))
        found += self._probe_commit()
        self.outbox.park()
        self.outbox.resume(True, 65_535)
        found += self._probe_commit()
        found.append(self.session.next_packet_id())
        return tuple(found)

    def probe_cut(self) -> Hashable:
        """What it would do after a cut right now. Spoils the world."""
        found: list[Hashable] = []
        self.outbox.park()
        self.outbox.resume(True, 65_535)
        found.append(self.session.peek(ALL_BYTES))
        if self.store.pending is not None:
            self.store.end_commit()
            found.append(self.session.peek(ALL_BYTES))
        found += self._probe_commit()
        return tuple(found)

    def _probe_commit(self) -> Iterator[Hashable]:
        self.store.begin_commit()
        assert self.store.pending is not None
        yield _image(self.store.pending.image)
        yield self.session.wants_commit
        yield self.session.peek(ALL_BYTES)
        self.store.end_commit()
        yield self.session.peek(ALL_BYTES)


@cache
def _payloads_of(bounds: Bounds) -> dict[int, str]:
    return {number + 1: f"{qos}-{number + 1}" for number, qos in enumerate(bounds.qos)}


@cache
def _method_of(step: str) -> str:
    return "_" + step.replace(" ", "_")


@lru_cache
def _first_packet_bytes(data: bytes) -> int:
    packets = parse(data)[0]
    # None here is so long that its length has a second byte.
    return 2 + len(packets[0].body) if packets else len(data)


@lru_cache
def _image(image: bytes) -> frozenset[tuple[int, int, int]]:
    return frozenset(decode_image(image) if image else ())


def _broker_key(broker: ScriptedBroker) -> Hashable:
    return broker.inbox, tuple(sorted(broker.held.items())), tuple(broker.delivered)


class Found(NamedTuple):
    """How much was searched."""

    states: int
    steps: int
    ends: int
    # False where it stopped with states left to visit.
    is_all: bool


class SearchError(AssertionError):
    """A state that must not be reachable, with the steps that reach it."""


def first_root(bounds: Bounds) -> Root:
    """Where every search begins."""
    payloads = [f"{qos}-{number + 1}" for number, qos in enumerate(bounds.qos)]
    rows: dict[int, Any] = {
        number + 1: (number + 1, "t", payload, bounds.qos[number], 0, 1 << 60)
        for number, payload in enumerate(payloads)
    }
    broker = ScriptedBroker(
        bounds.protocol_version,
        bounds.max_unreleased,
        hands_on_at_release=bounds.hands_on_at_release,
        knows_qos_2=bounds.knows_qos_2,
    )
    present = (bounds.owners == 1,) * bounds.owners
    disk = DictDisk(rows) if bounds.owners == 1 else DictDisk(rows, identity=("", ""))
    return Root(
        disk, tuple(broker.copied() for _ in present), present, 0, bounds.cuts, bounds.crashes, bounds.lost_sessions,
        bounds.older_sessions, bounds.moves, bounds.expiries, None, frozenset(),
    )  # fmt: skip


def follow(bounds: Bounds, steps: list[str]) -> World:
    """Take these steps, of `steps`, as far as each is one. Raises AssertionError where something does not hold."""
    world = World(first_root(bounds), bounds)
    for step in steps:
        if step.startswith("crash"):
            world = World(world.after_crash(step), bounds)
        elif step in world.steps():
            world.do(step)
        world.check()
    return world


def search(bounds: Bounds, states_max: int, seed: int = 1) -> Found:
    """Visit every state within `bounds`, or `states_max` of them: then each is picked by `seed` among all that a step
    leads to from those before, so that no corner is all there is of it. Raises SearchError.
    """
    rnd = random.Random(seed)
    first = first_root(bounds)
    stack: list[tuple[Root, tuple[str, ...], tuple[str, ...]]] = [(first, (), ())]
    roots: set[int] = set()
    # Of states that are one by all but the probe of a cut, what that gave. It is not asked of the first of them until
    # there is a second; meanwhile, the way to it.
    seen: dict[int, set[int]] = {}
    ways: dict[int, tuple[Root, tuple[str, ...]]] = {}
    states = steps_taken = ends = 0

    def reach(root: Root, path: tuple[str, ...]) -> World:
        world = World(root, bounds)
        for step in path:
            world.do(step)
        return world

    def is_new(world: World, way: tuple[Root, tuple[str, ...]]) -> bool:
        key = hash((world.plain(), world.probe_kept()))
        if key not in seen:
            seen[key] = set()
            ways[key] = way
            return True
        if key in ways:
            seen[key].add(hash(reach(*ways.pop(key)).probe_cut()))
        known = len(seen[key])
        seen[key].add(hash(reach(*way).probe_cut()))
        return len(seen[key]) > known

    while stack and states < states_max:
        if states_max < ALL_STATES:
            at = rnd.randrange(len(stack))
            stack[at], stack[-1] = stack[-1], stack[at]
        root, path, history = stack.pop()
        try:
            world = reach(root, path)
            # All before the last step was checked when it was reached first.
            world.check()
            steps, is_done = world.steps(), world.is_done()
            left = {step: world.after_crash(step) for step in steps if step.startswith("crash")}
            if not is_new(world, (root, path)):
                continue
            states += 1
            if not set(steps) & PROGRESS:
                ends += 1
                assert is_done, "nothing can happen any more, and messages are left"
            steps_taken += len(steps)
            for step in steps:
                if step not in left:
                    stack.append((root, (*path, step), history))
                elif (what_is_left := hash(repr(left[step]))) not in roots:
                    roots.add(what_is_left)
                    stack.append((left[step], (), (*history, *path, step)))
        except AssertionError as error:
            raise SearchError(f"{error}, after: {', '.join((*history, *path))}") from error
    return Found(states, steps_taken, ends, not stack)
