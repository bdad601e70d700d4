"""Commands to a device: each run once, and answered, over duplicates, cut links, kills and power cuts.

    command -> begun, on disk -> handler -> one transaction: done, its reply (queued), the end of the exchange

A command is known by its name and id. One that is known is not run again: it gets the reply that was kept, or that of
the one that is running. One that is begun on disk and runs in no process was cut into; what its handler declared says
what follows. Nothing here waits or has a thread: the store's thread goes on where a transaction was needed, and an
executor runs handlers.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from glec_fast.durable import command_log
from glec_fast.durable.command_log import Begun, Origin
from glec_fast.durable.extras import extras_with
from glec_fast.errors import GlecError, MessageError, ProtocolError, QueueClosedError, QueueStorageError
from glec_fast.fleet.command_request import (
    CONFLICT,
    DONE,
    DUPLICATE,
    EXPIRED,
    FAILED,
    OUTCOMES,
    REPLY_QOS,
    TEXT_MAX,
    UNKNOWN,
    RefusedCommandError,
    Request,
    cut_into,
    parse,
    parse_begun,
    problem_of_response_topic,
    response_topic,
)
from glec_fast.fleet.handlers import Call, Executor
from glec_fast.fleet.inbox import UNCLAIMED_S
from glec_fast.fleet.payload import as_payload
from glec_fast.mqtt.inbound_message import kept_message
from glec_fast.runtime._lock import Lock
from glec_fast.runtime.log import shown
from glec_fast.validation import packet_bytes

if TYPE_CHECKING:
    from glec_fast._paho import MQTTMessage
    from glec_fast.durable._table import QueueTable
    from glec_fast.durable.extras import Extras
    from glec_fast.durable.store import Store
    from glec_fast.fleet.inbox import Arrival, Inbox
    from glec_fast.mqtt.greeting import Accepted
    from glec_fast.mqtt.inbound_message import InboundMessage
    from glec_fast.runtime.summing_log import SummingLog

OnCrash: TypeAlias = Literal["retry", "fail"]
Handler: TypeAlias = Callable[[dict[str, Any], "CommandContext"], Any]

_NAMES_MAX = 5
# The store's thread has told by then which commands an earlier process had begun.
_TAKEN_UP_S = 1.0
_UNKNOWN_KIND = "commands that had begun and cannot be told any more"
_UNKNOWN = (
    "of %d commands that had begun name or id cannot be read any more: %s. Damage, or another program, has changed"
    " glec_command in the queue file; nobody can tell what they did, nor answer them: look at the device, and have them"
    " sent anew"
)


@dataclass(frozen=True)
class CommandContext:
    """What a handler is told beside its arguments.

    id: the command's, as text; that of Correlation Data that is no text in hexadecimal. is_retry: an earlier process
    began to run it, and came to its end before the command did. message: as it came.
    """

    name: str
    id: str
    is_retry: bool
    message: MQTTMessage


class _Declared(NamedTuple):
    handler: Handler
    on_crash: OnCrash


class Found(NamedTuple):
    """What is known of a command: why it is not run, or the reply that was kept; with neither it is run.

    is_repeated: the broker has not heard that this very message came. is_retry: it was begun before.
    """

    refused: RefusedCommandError | None
    reply: bytes | None = None
    is_repeated: bool = False
    is_retry: bool = False


@dataclass(eq=False)
class Running:
    """A command from its first arrival until its reply is on disk. Guarded by the lock of its owner.

    arrivals: those that wait for the reply. reply: once there is one.
    """

    request: Request
    origin: Origin
    arrivals: list[Arrival]
    reply: bytes | None = None
    is_retry: bool = False
    # On disk; and its handler was called.
    is_begun: bool = False
    is_started: bool = False
    # Of answers that are not on disk yet.
    ends: int = 0

    def is_repeated_by(self, arrival: Arrival) -> bool:
        """True for the very PUBLISH that it began with, which came after all: it has its answer."""
        return arrival.message.dup and arrival.message.mid == self.origin.packet_id


class Commands:
    """Of one manager. `take` and `on_connected` are for the network thread, the rest for any.

    topic: the level above the names. history_size: commands whose replies are kept, and history_max_bytes what they may
    take, 0 for any. reply_max_bytes: of a reply. packet_max_bytes: what the broker takes of a packet now.
    """

    def __init__(
        self,
        store: Store,
        inbox: Inbox,
        executor: Executor,
        log: SummingLog,
        *,
        topic: str,
        history_size: int,
        history_max_bytes: int,
        reply_max_bytes: int,
        packet_max_bytes: Callable[[], int],
    ) -> None:
        self._store = store
        self._inbox = inbox
        self._executor = executor
        self._log = log
        self._topic = topic
        self._history = history_size, history_max_bytes
        self._reply_max_bytes = reply_max_bytes
        self._packet_max_bytes = packet_max_bytes
        self._declared: dict[str, _Declared] = {}
        self._lock = Lock("Commands._lock")
        # By name and id.
        self._running: dict[tuple[str, bytes], Running] = {}
        # Answers that the disk did not take.
        self._unanswered: deque[Callable[[], None]] = deque()
        # No connection has lasted long enough yet to say what of an earlier process the broker sends again.
        self._is_settled = False
        self._settles_at_s = float("inf")
        self.counts = dict.fromkeys(OUTCOMES, 0)

    def declare(self, name: str, handler: Handler, on_crash: OnCrash) -> None:
        """Have `handler` run commands of this name."""
        self._declared[name] = _Declared(handler, on_crash)

    # ---- the way in

    def take(self, arrival: Arrival) -> None:
        """A route of the inbox."""
        message = arrival.message
        name = message.topic.rpartition("/")[2]
        expiry_s = getattr(message.properties, "MessageExpiryInterval", None)
        expires_ms = None if expiry_s is None else self._store.clock.unix_ms() + 1000 * expiry_s
        payload, properties = bytes(message.payload), message.packed_properties()
        origin = Origin(message.mid, message.qos, message.topic, payload, properties, expires_ms)
        try:
            request = parse(name, message, self._topic)
        except RefusedCommandError as refused:
            # Without an id nobody can tell it from its duplicate.
            self._answer(arrival, name, None, _error_reply("", refused), None)
            self._count(refused.outcome)
            return
        if request.problem is None and name not in self._declared:
            says = f"there is no command {name[:TEXT_MAX]!r}"
            request = request._replace(problem=RefusedCommandError(UNKNOWN, says))
        self._take(arrival, request, origin)

    def _take(self, arrival: Arrival, request: Request, origin: Origin) -> None:
        key = request.key
        with self._lock:
            running = self._running.get(key[:2])
            if running is None:
                running = self._running[key[:2]] = Running(request, origin, [arrival])
                is_first = True
            else:
                is_first, is_same = False, running.request.key == key
                if is_same and running.reply is None:
                    running.arrivals.append(arrival)
                    return
        if is_first:
            call = Call(self._begin, (running,), self._on_asked)
            self._executor.submit(self._lane(running), call)
        elif is_same and running.reply is not None:
            self._count(DUPLICATE)
            said = None if running.is_repeated_by(arrival) else running.reply
            self._answer(arrival, key.name, None, said, None)
        else:
            self._refuse_conflict(arrival, request)

    def _lane(self, running: Running) -> Hashable:
        """Commands of one name run one after another."""
        return "command", running.request.key.name

    def _refuse_conflict(self, arrival: Arrival, request: Request) -> None:
        self._count(CONFLICT)
        self._answer(arrival, request.key.name, None, _error_reply(request.id, _conflict()), None)

    # ---- is it known?

    def _begin(self, running: Running) -> None:
        """Its turn has come."""
        self._store.submit(lambda table: self._look(table, running), lambda found: self._on_found(running, found))

    def _on_asked(self, _result: object, error: BaseException | None) -> bool:
        if error is not None and not isinstance(error, QueueClosedError):
            self._executor.note_error(error)
        # Until `_on_found`. Closed, it is the next process's.
        return True

    def _look(self, table: QueueTable, running: Running) -> Found:
        """In a transaction."""
        request = running.request
        key, problem = request.key, request.problem
        known = command_log.find(table, key)
        if known is None:
            if problem is None and request.is_expired(self._store.clock.unix_ms()):
                problem = RefusedCommandError(EXPIRED, "the command came too late, and was not run")
            if problem is None:
                command_log.begin(table, key, running.origin)
            return Found(problem)
        if known.digest != key.digest:
            return Found(_conflict())
        if known.reply is not None:
            # The very PUBLISH that was answered, and whose acknowledgement was lost.
            is_repeated = running.arrivals[0].message.dup and running.origin.packet_id == known.packet_id
            return Found(None, known.reply, is_repeated=is_repeated)
        declared = self._declared.get(key.name)
        may_run = problem is None and declared is not None and declared.on_crash == "retry"
        if not may_run or request.is_expired(self._store.clock.unix_ms()):
            return Found(cut_into())
        return Found(None, is_retry=True)

    def _on_found(self, running: Running, found: Found) -> None:
        """In the store's thread."""
        lane = self._lane(running)
        if found.refused is None and found.reply is None:
            with self._lock:
                if running.is_begun:
                    return
                running.is_begun, running.is_retry = True, found.is_retry
            self._executor.go_on(lane, Call(self._call, (running,), lambda *came: self._on_done(running, *came)))
            return
        if found.refused is not None:
            self._finish(running, found.refused.outcome, _error_reply(running.request.id, found.refused))
        elif found.reply is not None:
            self._finish(running, DUPLICATE, found.reply, is_kept=True, is_repeated=found.is_repeated)
        self._executor.free(lane)

    # ---- run it

    def _call(self, running: Running) -> Any:
        request, running.is_started = running.request, True
        if request.is_expired(self._store.clock.unix_ms()):
            raise RefusedCommandError(EXPIRED, "the command waited for too long, and was not run")
        context = CommandContext(request.key.name, request.id, running.is_retry, running.arrivals[0].message)
        return self._declared[request.key.name].handler(request.arguments, context)

    def _on_done(self, running: Running, result: Any, error: BaseException | None) -> bool:
        request, outcome = running.request, DONE
        reply = b""
        if error is None:
            try:
                reply = _reply({"id": request.id, "status": DONE, "result": result})
                error = self._problem_of_reply(running, reply)
            except (GlecError, TypeError, ValueError, RecursionError) as odd:
                error = RefusedCommandError(FAILED, f"it ran, and its result cannot be JSON: {odd}"[:TEXT_MAX])
        elif not isinstance(error, RefusedCommandError):
            self._executor.note_error(error)
            error = RefusedCommandError(FAILED, _text_of(error))
        if isinstance(error, RefusedCommandError):
            outcome, reply = error.outcome, _error_reply(request.id, error)
        self._finish(running, outcome, reply)
        return False

    def _problem_of_reply(self, running: Running, reply: bytes) -> RefusedCommandError | None:
        """Why it cannot go as it is."""
        size_bytes, most_bytes = len(reply), self._reply_max_bytes
        if size_bytes <= most_bytes:
            message = running.arrivals[0].message
            topic, extras = self._way_back(message, running.request.key.name)
            packed = None if extras is None else extras.packed()
            size_bytes = packet_bytes(topic, reply, REPLY_QOS, packed)
            most_bytes = self._packet_max_bytes()
        if size_bytes <= most_bytes:
            return None
        return RefusedCommandError(FAILED, f"it ran, and its reply of {size_bytes} bytes is more than {most_bytes}")

    # ---- answer

    def _finish(
        self, running: Running, outcome: str, reply: bytes, *, is_kept: bool = False, is_repeated: bool = False
    ) -> None:
        """There is a reply for all that wait. is_kept: it is on disk already; is_repeated: the first has had it."""
        with self._lock:
            running.reply = reply
            arrivals, running.arrivals = running.arrivals, running.arrivals[:1]
            running.ends = len(arrivals)
            self.counts[outcome] += 1
            self.counts[DUPLICATE] += len(arrivals) - 1
        end = None if is_kept or outcome == CONFLICT else reply
        for place, arrival in enumerate(arrivals):
            is_said = is_repeated if place == 0 else running.is_repeated_by(arrival)
            said = None if is_said else reply
            self._answer(arrival, running.request.key.name, running, said, end)

    def _answer(
        self, arrival: Arrival, name: str, running: Running | None, reply: bytes | None, end: bytes | None
    ) -> None:
        """Queue the reply, in the transaction that ends the command and its exchange; see `_finish`."""
        is_told = is_recorded = False

        def statement(table: QueueTable) -> None:
            nonlocal is_recorded
            if running is not None and end is not None:
                command_log.end(table, running.request.key, running.origin, end, *self._history)
            is_recorded = self._inbox.record(table, arrival)

        def told(_result: object = None) -> None:
            nonlocal is_told
            if is_told:
                return
            is_told = True
            self._inbox.done_on_disk(arrival, is_recorded=is_recorded)
            if running is not None:
                self._on_ended(running)

        try:
            self._queue(arrival, name, reply, statement, told)
        except QueueStorageError:
            # The disk takes nothing now.
            self._unanswered.append(lambda: self._answer(arrival, name, running, reply, end))
        except QueueClosedError:
            # The broker sends it again to the next process.
            return

    def _queue(
        self,
        arrival: Arrival,
        name: str,
        reply: bytes | None,
        statement: Callable[[QueueTable], None],
        told: Callable[..., None],
    ) -> None:
        if reply is not None:
            topic, extras = self._way_back(arrival.message, name)
            try:
                self._store.append_with(topic, reply, REPLY_QOS, statement, told, extras)
            except MessageError as error:
                self._log.note(logging.ERROR, "commands that cannot be answered", shown(error), error=error)
            else:
                return
        self._store.submit(statement, told)

    def _way_back(self, message: InboundMessage, name: str) -> tuple[str, Extras | None]:
        """Topic and extras of the reply."""
        properties = message.properties
        topic = response_topic(properties)
        if topic is None or problem_of_response_topic(properties, self._topic) is not None:
            topic = f"{self._topic}/{name}/reply"
        correlation = getattr(properties, "CorrelationData", None)
        return topic, extras_with(retain=False, correlation_data=correlation)

    def _on_ended(self, running: Running) -> None:
        with self._lock:
            running.ends -= 1
            if running.ends <= 0:
                self._running.pop(running.request.key[:2], None)

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.counts[outcome] += 1

    # ---- now and then

    def tick(self) -> float:
        """What the disk did not take is tried again; what the broker has not sent again by now it will not.

        Returns the seconds until there is something to do, but for commands that the inbox holds.
        """
        self._answer_again()
        due_s = self._settles_at_s - time.monotonic()
        if due_s > 0:
            return due_s
        self._settles_at_s, self._is_settled = float("inf"), True
        self._take_up(lambda _name, _origin: True)
        # By then it holds them.
        return _TAKEN_UP_S

    def _answer_again(self) -> None:
        for _ in range(len(self._unanswered)):
            with suppress(IndexError):
                self._unanswered.popleft()()

    def on_connected(self, accepted: Accepted) -> None:
        """What an earlier process began is brought to its end, also where the broker does not send it again.

        That is so of QoS 0, of a session that is lost, and of what expired in the broker or was lost with its disk.
        Where the broker has the session, it is given time to.
        """
        self._is_settled = self._is_settled and accepted.is_continued
        if self._is_settled:
            return
        self._settles_at_s = time.monotonic() + UNCLAIMED_S
        if not accepted.session_present:
            self._store.submit(command_log.void_packet_ids, lambda _: None)
        self._take_up(lambda name, origin: name in self._declared and not (origin.qos and accepted.session_present))

    def on_disconnected(self) -> None:
        """The broker cannot send anything again."""
        self._settles_at_s = float("inf")

    def _take_up(self, is_due: Callable[[str, Origin], bool]) -> None:
        """Run, or answer, what is begun on disk, and in no process."""

        def told(kept: tuple[list[Begun], dict[int, str]]) -> None:
            found, unknown = kept
            if unknown:
                text = _UNKNOWN % (len(unknown), ", ".join(map(repr, list(unknown.values())[:_NAMES_MAX])))
                self._log.note(logging.ERROR, _UNKNOWN_KIND, text, count=len(unknown), text=text, later=True)
                # Once is enough, and nothing can come of them.
                self._store.submit(partial(command_log.forget, numbers=list(unknown)), lambda _: None)
            for each in found:
                with self._lock:
                    is_running = (each.name, each.id) in self._running
                if not is_running and is_due(each.name, each.origin):
                    self._inbox.take_again(self._message_of(each), partial(self._take_begun, each))

        self._store.submit(command_log.begun, told)

    def _message_of(self, begun: Begun) -> InboundMessage:
        origin = begun.origin
        topic = origin.topic or f"{self._topic}/{begun.name}"
        message = kept_message(topic, origin.payload, origin.properties)
        try:
            _ = message.properties
        except ProtocolError:
            # Damage.
            return kept_message(topic, origin.payload, None)
        return message

    def _take_begun(self, begun: Begun, arrival: Arrival) -> None:
        self._take(arrival, parse_begun(begun, arrival.message, self._topic), begun.origin)

    def close(self) -> None:
        """No handler begins any more: what has not begun is left to the next process, as if it had not come."""
        self._answer_again()
        try:
            # What is being begun is known behind that.
            self._store.run(lambda _table: None)
            with self._lock:
                waiting = [each for each in self._running.values() if each.is_begun and not each.is_started]
            for each in waiting:
                if not each.is_retry:
                    self._store.submit(partial(command_log.unbegin, key=each.request.key), lambda _: None)
        except (QueueStorageError, QueueClosedError):
            # The next process takes it for cut into.
            return


def _conflict() -> RefusedCommandError:
    return RefusedCommandError(CONFLICT, "the id was used for a command with other arguments: give each its own")


def _reply(content: dict[str, Any]) -> bytes:
    data = as_payload(content)
    return data.encode() if isinstance(data, str) else data


def _error_reply(identifier: str, refused: RefusedCommandError) -> bytes:
    error = {"code": refused.outcome, "message": str(refused)}
    return _reply({"id": identifier, "status": "error", "error": error})


def _text_of(error: BaseException) -> str:
    """For a reply, whatever a program's exception makes of it."""
    try:
        text = str(error)
    except Exception:
        text = "(it has no text)"
    return f"{type(error).__name__}: {text}"[:TEXT_MAX].encode(errors="replace").decode()
