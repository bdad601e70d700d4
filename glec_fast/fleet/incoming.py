"""What comes to a gateway, put together: subscriptions, the inbox that takes messages in, the threads that handle them.

Made when a program first subscribes, so that one that only publishes pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from glec_fast.errors import ConfigError, MessageError, QueueClosedError
from glec_fast.fleet.handlers import Call, Executor
from glec_fast.fleet.inbox import Arrival, Inbox
from glec_fast.fleet.subscriptions import Subscription, Subscriptions
from glec_fast.mqtt.client import parts_of
from glec_fast.runtime import process
from glec_fast.runtime._lock import Lock
from glec_fast.validation import check_callback

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

    from glec_fast.errors import SubscriptionRefusedError
    from glec_fast.fleet.commands import Commands
    from glec_fast.fleet.config import MQTTConfig
    from glec_fast.mqtt.client import Client
    from glec_fast.mqtt.greeting import Accepted
    from glec_fast.mqtt.inbound_message import InboundMessage
    from glec_fast.outbox.received import Received
    from glec_fast.outbox.stored import DurableOutbox
    from glec_fast.runtime.summing_log import SummingLog

# How long `close` waits for handlers that run.
_HANDLERS_S = 5.0
# Whoever sends a command says with which.
_COMMANDS_QOS = 2
# While something is held; else nothing wakes an idle connection but what comes.
_TICK_S = 1.0
# Of the queue's bytes, this part at most is for replies that are kept.
_HISTORY_SHARE = 4
# Flags of code objects (`inspect`, which takes a megabyte): a call only makes a generator, a coroutine, or both.
_CO_GENERATOR, _CO_COROUTINE, _CO_ASYNC_GENERATOR = 0x20, 0x80, 0x200
_CO_DEFERRED = _CO_GENERATOR | _CO_ASYNC_GENERATOR
_CO_ANY = _CO_DEFERRED | _CO_COROUTINE


class Incoming:
    """Of one manager. `on_...`, `take` and `tick` are for the network thread, the rest for any."""

    def __init__(
        self,
        client: Client,
        received: Received,
        config: MQTTConfig,
        log: SummingLog,
        on_refused: Callable[[str, SubscriptionRefusedError], None],
        executor: Executor,
    ) -> None:
        self._executor = executor
        self._inbox = Inbox(received, log, config.inbox_max_size, config.inbox_max_bytes)
        self._subscriptions = Subscriptions(client, log, on_refused)
        self._commands: Commands | None = None
        # To commands: from the first declaration that holds.
        self._listens = False
        self._commands_topic = f"glec/dtg/{config.client_id}/commands"
        self._config, self._log, self._lock = config, log, Lock("Incoming._lock")
        self._client, self._parts = client, parts_of(client)
        self._has_begun = False
        # The connection that commands know of.
        self._told_of: Accepted | None = None

    def begin(self) -> None:
        """Made behind `connect`, it has not heard of the connection. Not under a lock."""
        if not self._has_begun:
            if self._client.is_connected():
                accepted = self._parts.greeting.accepted
                self._inbox.on_connected(session_present=accepted.session_present, is_continued=False)
                self._subscriptions.on_connected(accepted)
            # Cut into, it begins again.
            self._has_begun = True

    def declare(self, name: str, handler: Any, on_crash: Any) -> None:
        """See `MQTTManager.command`."""
        self._check_handler(handler)
        with self._lock:
            if self._commands is None:
                # Not for programs that have none.
                from glec_fast.fleet.commands import Commands

                self._commands = Commands(
                    self._client.store,
                    self._inbox,
                    self._executor,
                    self._log,
                    topic=self._commands_topic,
                    history_size=self._config.command_history_size,
                    history_max_bytes=self._config.queue_max_bytes // _HISTORY_SHARE,
                    reply_max_bytes=self._config.command_reply_max_bytes,
                    packet_max_bytes=self._packet_max_bytes,
                )
            commands = self._commands
        commands.declare(name, handler, on_crash)
        if not self._listens:
            if self._client.is_connected():
                self._tell_commands(commands)
            commands_filter = f"{self._commands_topic}/+"
            self._inbox.add_route(commands_filter, commands.take)
            self._subscriptions.want(commands_filter, _COMMANDS_QOS)
            # Cut into, the next declaration does it again.
            self._listens = True

    def _tell_commands(self, commands: Commands) -> None:
        """Once of each connection, whichever thread is first."""
        accepted = self._parts.greeting.accepted
        with self._lock:
            is_told, self._told_of = accepted is self._told_of, accepted
        if is_told:
            return
        try:
            commands.on_connected(accepted)
        except BaseException:
            # Cut into, it is told again.
            self._told_of = None
            raise

    def _packet_max_bytes(self) -> int:
        """What the broker takes, as far as that is known."""
        limits = cast("DurableOutbox", self._parts.outbox).server.limits
        configured = self._config.max_packet_bytes
        return configured if limits is None else min(configured, limits.packet_max_bytes)

    def _check_handler(self, handler: Any) -> None:
        """Raises ConfigError also for one whose call would run nothing of it, and count as handled."""
        check_callback("handler", handler)
        while isinstance(handler, partial):
            handler = handler.func
        called = handler if hasattr(handler, "__code__") else type(handler).__call__
        flags = getattr(getattr(called, "__code__", None), "co_flags", 0)
        if flags & (_CO_DEFERRED if self._executor.runs_coroutines else _CO_ANY):
            raise ConfigError(
                "handler is a coroutine function or a generator: make it a plain function, or, on asyncio, use"
                " glec_fast.aio.AsyncMQTTManager, which runs coroutine functions",
                field="handler",
            )

    def subscribe(self, topic_filter: str, handler: Callable[[Any], object], qos: int) -> Subscription:
        """See `MQTTManager.subscribe`."""
        self._refuse_commands(topic_filter)
        self._check_handler(handler)
        self._inbox.add_route(topic_filter, partial(self._handle, topic_filter, handler))
        return self._subscriptions.want(topic_filter, qos)

    def unsubscribe(self, topic_filter: str) -> None:
        """See `MQTTManager.unsubscribe`."""
        self._refuse_commands(topic_filter)
        self._subscriptions.unwant(topic_filter)
        self._inbox.remove_route(topic_filter)

    def _refuse_commands(self, topic_filter: str) -> None:
        if topic_filter == f"{self._commands_topic}/+":
            raise MessageError(f"{topic_filter!r} is that of commands: give each its handler with `command`")

    def _handle(self, topic_filter: str, handler: Callable[[Any], object], arrival: Arrival) -> None:
        """A route to the executor, which has a lane for each filter."""

        def done(_result: object, error: BaseException | None) -> bool:
            if error is not None:
                self._executor.note_error(error)
            try:
                # Also where it raised: what its handler cannot handle now it cannot handle a second time. The next is
                # handled once this one is on disk, so that a crash makes no more than one come again.
                return self._inbox.done(arrival, partial(self._executor.free, topic_filter))
            except QueueClosedError:
                # It took longer than `close` waits: the broker sends it again to the next process.
                return False

        self._executor.submit(topic_filter, Call(handler, (arrival.message,), done))

    # ---- the network thread

    def take(self, message: InboundMessage) -> None:
        """A message has come."""
        self._inbox.take(message)

    def tick(self) -> float:
        """Do what is due; returns the seconds until something may be that does not wake the loop."""
        self._inbox.tick()
        self._subscriptions.tick()
        self._executor.tick()
        due_s = float("inf") if self._commands is None else self._commands.tick()
        # What is held may wait for a thread, for the disk, or for whoever subscribes to it.
        is_idle = self._inbox.is_idle and self._subscriptions.is_answered
        return due_s if is_idle else min(due_s, _TICK_S)

    def must_ask_again(self) -> bool:
        """See `Inbox`."""
        return self._inbox.must_ask_again()

    def on_connected(self) -> None:
        """CONNACK has come."""
        accepted = self._parts.greeting.accepted
        self._inbox.on_connected(session_present=accepted.session_present, is_continued=accepted.is_continued)
        if self._commands is not None:
            self._tell_commands(self._commands)
        self._subscriptions.on_connected(accepted)

    def on_disconnected(self, *, by_peer: bool) -> None:
        """The connection is gone. by_peer: the broker ended it."""
        self._inbox.on_disconnected()
        self._subscriptions.on_disconnected(by_peer=by_peer)
        if self._commands is not None:
            self._commands.on_disconnected()

    def on_answer(self, packet_id: int, reasons: list[ReasonCode]) -> None:
        """SUBACK or UNSUBACK has come."""
        self._subscriptions.on_answer(packet_id, [reason.value for reason in reasons])

    def forbid(self, pid: int) -> None:
        """In a forked child: what a program kept of this is of use in the parent alone."""
        process.forbid(self._subscriptions, pid, {})

    # ---- figures, and the end

    def figures(self) -> dict[str, Any]:
        """Fields of `Metrics`."""
        return {
            "commands": {} if self._commands is None else dict(self._commands.counts),
            "messages_received": self._inbox.received_count,
            "messages_unhandled": self._inbox.dropped_count,
            "inbox_size": self._inbox.held,
            "handler_errors": self._executor.error_count,
            "subscriptions_refused": self._subscriptions.refused_count,
        }

    def close(self) -> None:
        """Begin no handler any more, and wait for those that run, 5 s at most."""
        self._executor.close(_HANDLERS_S)
        if self._commands is not None:
            self._commands.close()
