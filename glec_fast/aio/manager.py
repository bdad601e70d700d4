"""AsyncMQTTManager: the fleet API for a program that runs on asyncio."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import replace
from functools import partial, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from glec_fast.aio._waiting import Owed, Undurable, set_result
from glec_fast.aio.doorbell import Doorbell
from glec_fast.aio.executor import LoopExecutor
from glec_fast.aio.handle import DeliveryHandle
from glec_fast.aio.hosting import Hosting
from glec_fast.aio.messages import Messages, Stream
from glec_fast.durable.clock import Clocks
from glec_fast.durable.outcomes import Dropped
from glec_fast.errors import ConfigError, QueueClosedError, QueueStorageError, UnsupportedError
from glec_fast.fleet.config import MQTTConfig, check_config
from glec_fast.fleet.connection import CONNECTION_EVENTS, ConnectionCallback, check_connection_callback
from glec_fast.fleet.manager import MQTTManager
from glec_fast.fleet.metrics import Metrics
from glec_fast.outbox.handle import PublishHandle
from glec_fast.runtime.process import forbid, watch_forks
from glec_fast.runtime.thread import Thread
from glec_fast.validation import check_callback, check_command, check_timeout

if TYPE_CHECKING:
    from glec_fast._paho import MQTTMessage
    from glec_fast.errors import SubscriptionRefusedError
    from glec_fast.fleet.commands import CommandContext, OnCrash
    from glec_fast.fleet.handlers import Executor
    from glec_fast.fleet.subscriptions import Subscription

CommandHandler = TypeVar("CommandHandler", bound="Callable[[dict[str, Any], CommandContext], Any]")
F = TypeVar("F", bound="Callable[..., object]")
P = ParamSpec("P")
T = TypeVar("T")

# A transaction takes so many, so that none takes long; who publishes more waits for the next.
_PENDING_MAX = 1000
# Far from where the store has a caller's thread wait, here the loop's: others publish too.
_STORE_PENDING_MAX = 4 * _PENDING_MAX
_AWAITED = (
    "Awaited, it returns once the message is on disk; at once with QoS 0, or with `wait_for_disk=False`. It never\n"
    "waits for the network. Cancelled before the message was accepted, as many others are on their way to the\n"
    "disk, it publishes nothing; later, the message is sent."
)


class _HostedManager(MQTTManager):
    """A manager whose network is in the loop, and which never waits for the disk."""

    def __init__(
        self,
        config: MQTTConfig,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        clocks: Clocks | None,
        ring: Callable[[], None],
    ) -> None:
        super().__init__(replace(config, wait_for_disk=False), clocks=clocks)
        self.config = config
        self._outbox.handle_type = DeliveryHandle
        self.store = self._store
        self.store.bound_pending(_STORE_PENDING_MAX)
        self.outbox = self._outbox
        self.hosting = Hosting(self._client, self._store, self._policy, self._log, loop, ring)
        self.store.watch(ring)
        self._loop, self._context = loop, context
        # Filter -> what iterates over it.
        self.streams: dict[str, Stream] = {}
        self._executor: LoopExecutor | None = None

    def _begin_loop(self) -> None:
        self.hosting.begin()

    def _make_executor(self) -> Executor:
        self._executor = LoopExecutor(self._loop, self._context, self._log)
        return self._executor

    def end_streams(self) -> None:
        """What nobody has handled is the broker's still."""
        if self._executor is not None:
            self._executor.refuse()
        if self._loop.is_closed():
            # Nobody iterates any more.
            return
        for stream in self.streams.values():
            stream.close()

    def _on_subscription_refused(self, topic_filter: str, error: SubscriptionRefusedError) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._refuse, topic_filter, error)
        super()._on_subscription_refused(topic_filter, error)

    def _refuse(self, topic_filter: str, error: SubscriptionRefusedError) -> None:
        stream = self.streams.get(topic_filter)
        if stream is not None:
            stream.refuse(error)


def _awaited(
    call: Callable[Concatenate[MQTTManager, P], PublishHandle],
) -> Callable[Concatenate[AsyncMQTTManager, P], Coroutine[Any, Any, DeliveryHandle]]:
    """The method of AsyncMQTTManager that awaits this one of MQTTManager: its arguments, errors and text are that's."""

    @wraps(call)
    async def publish(self: AsyncMQTTManager, /, *arguments: P.args, **settings: P.kwargs) -> DeliveryHandle:
        manager = self._opened
        if manager is None or asyncio._get_running_loop() is not self._loop:
            # It says what is wrong.
            manager = self._manager
        if self._crowd or manager.store.is_crowded(_PENDING_MAX):
            await self._wait_for_room()
        try:
            handle = call(manager, *arguments, **settings)
        finally:
            # Not for as long as it waits, by the thousand.
            del arguments, settings
            if self._crowd:
                # What makes room for them.
                manager.store.request_commit()
        if handle.qos and self._waits_for_disk:
            if not manager.outbox.is_open:
                # While there is a link, each message asks for it itself.
                manager.store.request_commit()
            while await self._undurable.wait_for(handle.mid):
                if await self._is_on_disk(handle.mid):
                    break
        return handle  # type: ignore[return-value]

    publish.__doc__ = f"{inspect.cleandoc(call.__doc__ or '')}\n\n{_AWAITED}"
    return _named(publish, call)


def _named(method: F, call: Callable[..., object]) -> F:
    """As asyncio's debug mode is to call it."""
    method.__module__, method.__qualname__ = __name__, f"AsyncMQTTManager.{call.__name__}"
    return method


def _beside_the_loop(
    call: Callable[Concatenate[MQTTManager, P], T],
) -> Callable[Concatenate[AsyncMQTTManager, P], Coroutine[Any, Any, T]]:
    """As `_awaited`, for a method that waits for the disk itself: a thread calls it."""

    @wraps(call)
    async def ask(self: AsyncMQTTManager, /, *arguments: P.args, **settings: P.kwargs) -> T:
        return await _aside(self._running_loop, partial(call, self._manager, *arguments, **settings))

    return _named(ask, call)


class AsyncMQTTManager:
    """Publishes from a vehicle gateway to the fleet platform, as `MQTTManager` does, on the loop of the program.

        async with AsyncMQTTManager(config) as manager:
            handle = await manager.publish_alert(alert)   # it is on disk
            await handle                                  # the broker has it

    It is the same engine, queue and session: a file of one can be used by the other. The network runs on the loop, a
    thread writes to the disk, and another makes connections, so that nothing holds the loop up. For asyncio and uvloop.

    What is awaited, what subscribes and what takes a callback is for the loop that entered it, and raises
    UnsupportedError elsewhere; the figures are for any thread. Cancelled at any point, it loses and doubles nothing:
    what `publish` has accepted is sent once, also where its wait for the disk was cancelled.
    Handlers run in the context (`contextvars`) that entered it, callbacks in that which set them.
    Raises, when it is entered, ConfigError and the errors of `glec_fast.durable.store.Store`.

    config: its settings; they do not change any more. clocks: the machine's where None.
    """

    def __init__(self, config: MQTTConfig, *, clocks: Clocks | None = None) -> None:
        self.config = config
        self._clocks = clocks
        self._opened: _HostedManager | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Who waits for room to publish, the first first; and for the next transaction.
        self._crowd: deque[asyncio.Future[None]] = deque()
        self._next_turn: asyncio.Future[None] | None = None
        self._leaving: asyncio.Future[None] | None = None
        check_config(config)
        self._waits_for_disk = config.wait_for_disk
        # Declared before it is entered.
        self._declared: list[tuple[str, OnCrash, Any]] = []

    # ---- beginning and end

    async def __aenter__(self) -> AsyncMQTTManager:
        """Open the queue and begin to connect; returns once the queue is open. Connects for ever (`auto_reconnect`)."""
        if self._loop is not None:
            raise QueueClosedError("a manager is entered once: make another one to go on")
        self._loop = loop = asyncio.get_running_loop()
        # Who waits until a message is on disk.
        self._undurable = Undurable(loop)
        ring = Doorbell(loop, self._look).ring
        made: list[_HostedManager] = []
        given_up: list[bool] = []
        context = copy_context()
        try:
            manager = await _to_the_end(_aside(loop, partial(self._open, loop, context, ring, made, given_up)))
            self._opened = manager
            watch_forks(self)
            manager.connect()
        except BaseException as error:
            # Nobody else would let go of the file: also where an exception cuts in while it is opened.
            given_up.append(True)
            leaving = _aside(loop, partial(_leave, made))
            if isinstance(error, asyncio.CancelledError):
                await _to_the_end(leaving)
            raise
        return self

    def _open(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        ring: Callable[[], None],
        made: list[_HostedManager],
        given_up: list[bool],
    ) -> _HostedManager:
        """In a thread: it waits for the disk, and loads what only programs with commands need."""
        manager = _HostedManager(self.config, loop, context, self._clocks, ring)
        made.append(manager)
        try:
            for name, on_crash, handler in self._declared:
                manager.command(name, on_crash=on_crash)(handler)
        except BaseException:
            manager.disconnect()
            raise
        if given_up:
            manager.disconnect()
        return manager

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.disconnect()

    async def disconnect(self) -> None:
        """Leave the broker, write what is pending and let go of the queue file. Idempotent.

        What was not sent stays in the file. It takes 5 s at most where the link is dead. Cancelled, it ends no sooner,
        so that the file is free afterwards. In a handler it waits for no other one. Where its loop was closed under it,
        for any other loop.
        Raises QueueStorageError where something could not be written.
        """
        is_orphan = self._running_loop.is_closed()
        manager = self._of_any_thread if is_orphan else self._manager
        manager.hosting.give_back()
        manager.end_streams()
        loop, leaving = asyncio.get_running_loop(), self._leaving
        if leaving is None or leaving.done() or leaving.get_loop() is not loop:
            self._leaving = leaving = _aside(loop, manager.disconnect)
        try:
            # Also where another task has begun it: the file is free for each.
            await _to_the_end(leaving)
        finally:
            if not is_orphan:
                # Those who waited for it hear that it is closed.
                self._look()

    def _process_forked(self, pid: int) -> None:
        forbid(self, pid, {"is_connected": False})
        vars(self)["disconnect"] = _nothing_to_leave

    @property
    def _manager(self) -> _HostedManager:
        """For the loop that entered it alone."""
        manager = self._of_any_thread
        if asyncio._get_running_loop() is not self._loop:
            if self._running_loop.is_closed():
                raise UnsupportedError(
                    "the loop that entered this AsyncMQTTManager was closed without leaving it: await its disconnect() "
                    "in another loop, and make another manager there; nothing that it accepted is lost"
                )
            raise UnsupportedError(
                "an AsyncMQTTManager is for the loop that entered it: from another thread or loop, give that loop what "
                "is to be done, as asyncio.run_coroutine_threadsafe(manager.publish(...), loop), or "
                "loop.call_soon_threadsafe(manager.unsubscribe, ...)"
            )
        return manager

    @property
    def _of_any_thread(self) -> _HostedManager:
        if self._opened is None:
            raise QueueClosedError("use it within `async with`")
        return self._opened

    @property
    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise QueueClosedError("use it within `async with`")
        return self._loop

    # ---- publishing

    publish = _awaited(MQTTManager.publish)
    publish_telemetry = _awaited(MQTTManager.publish_telemetry)
    publish_inference = _awaited(MQTTManager.publish_inference)
    publish_alert = _awaited(MQTTManager.publish_alert)
    publish_status = _awaited(MQTTManager.publish_status)

    async def _is_on_disk(self, message_id: int) -> bool:
        """Raises what keeps a message from the disk, which it is not waiting for any more then."""
        store = self._manager.store
        try:
            # It does not wait.
            return store.wait_durable(message_id, 0.0)
        except QueueStorageError:
            if await _aside(self._running_loop, partial(store.withdraw, message_id)):
                raise
        return store.committed_id >= message_id

    async def _wait_for_room(self) -> None:
        future = self._running_loop.create_future()
        self._crowd.append(future)
        self._manager.store.request_commit()
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                # It was this one's turn.
                self._let_in(1)
            raise

    def _let_in(self, count: int) -> None:
        while self._crowd and count > 0:
            future = self._crowd[0]
            if not future.done():
                future.set_result(None)
                count -= 1
            # Last: cut into, it is found again.
            self._crowd.popleft()

    async def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every accepted message is finished; False after `timeout_s` seconds; see `MQTTManager.flush`."""
        check_timeout(timeout_s)
        store, loop = self._manager.store, self._running_loop
        deadline_s = None if timeout_s is None else loop.time() + timeout_s
        store.close_batch()
        if store.size == 0:
            # What another program has put into the file is found by a transaction.
            await _aside(loop, partial(store.run, _look_at_file))
        with store.hastened():
            while not store.is_empty:
                remaining_s = None if deadline_s is None else deadline_s - loop.time()
                if remaining_s is not None and remaining_s <= 0:
                    return False
                if self._next_turn is None:
                    self._next_turn = loop.create_future()
                await asyncio.wait([self._next_turn], timeout=remaining_s)
                store.refuse_if_closed()
        return True

    # ---- receiving

    def messages(self, topic_filter: str, qos: int = 1) -> Messages:
        """Iterate over what comes for `topic_filter`, from now on, over reconnects; see `MQTTManager.subscribe`.

            async for message in manager.messages("fleet/config", qos=2):
                apply(json.loads(message.payload))

        The broker hears that a message of QoS 1 or 2 has arrived once the next one is asked for, or the loop is left.
        What comes while nobody asks waits in the inbox, and beyond it at the broker: also after `break`, until it is
        gone on with or `unsubscribe` is called. It ends with the manager; what was not handled comes again then.
        Raises MessageError for a filter that MQTT does not know; while it waits, SubscriptionRefusedError.
        """
        manager = self._manager
        stream = manager.streams.get(topic_filter)
        if stream is None:
            stream = Stream()
            manager.subscribe(topic_filter, stream.handle, qos)
            manager.streams[topic_filter] = stream
        return Messages(stream)

    def subscribe(self, topic_filter: str, handler: Callable[[MQTTMessage], object], qos: int = 1) -> Subscription:
        """Have `handler`, a function or a coroutine function, called on the loop for what comes for `topic_filter`.

        qos: the highest that the broker is to send with. Raises as `MQTTManager.subscribe`, which says the rest.
        """
        subscription = self._manager.subscribe(topic_filter, handler, qos)
        self._forget_stream(topic_filter)
        return subscription

    def unsubscribe(self, topic_filter: str) -> None:
        """Have the broker send no more for `topic_filter`; see `MQTTManager.unsubscribe`."""
        self._manager.unsubscribe(topic_filter)
        self._forget_stream(topic_filter)

    def _forget_stream(self, topic_filter: str) -> None:
        stream = self._manager.streams.pop(topic_filter, None)
        if stream is not None:
            stream.end()

    def command(self, name: str, *, on_crash: OnCrash = "fail") -> Callable[[CommandHandler], CommandHandler]:
        """Have the function below, or coroutine function, handle commands of this name; see `MQTTManager.command`.

            manager = AsyncMQTTManager(config)

            @manager.command("unlock_doors")
            async def unlock_doors(arguments, context):
                return {"unlocked": await doors.unlock(arguments["doors"])}

        on_crash: as there. Declare them before `async with`. They run on the loop, those of one name one after another.
        Raises ConfigError.
        """
        check_command(name, on_crash)

        def declare(handler: CommandHandler) -> CommandHandler:
            if self._opened is None:
                self._declared.append((name, on_crash, handler))
            else:
                self._manager.command(name, on_crash=on_crash)(handler)
            return handler

        return declare

    # ---- told by other threads

    def _look(self) -> None:
        """A transaction is over, or there is something to send: let those go on who waited for it."""
        manager = self._opened
        if manager is None:
            return
        store = manager.store
        self._undurable.let_go(store.committed_id)
        if store.is_failing or store.is_closed:
            # They ask themselves what became of it, or are refused.
            self._undurable.let_all_go()
            self._let_in(len(self._crowd))
        elif self._crowd:
            room = store.room(_PENDING_MAX)
            self._let_in(room)
            if room <= 0:
                store.request_commit()
        if self._next_turn is not None:
            set_result(self._next_turn)
            self._next_turn = None
        manager.hosting.look()

    # ---- the rest of the manager

    @property
    def device_id(self) -> str:
        """The device's name in topics and payloads: the client id."""
        return self.config.client_id

    @property
    def broker_url(self) -> str:
        """The URL that the connection leads to, or the next is to."""
        return self._of_any_thread.broker_url

    def is_connected(self) -> bool:
        """True from the broker's acceptance until the connection is lost."""
        return self._opened is not None and self._opened.is_connected()

    def set_connection_callback(self, callback: ConnectionCallback) -> None:
        """Tell `callback` of connections made and lost, on the loop. An exception in it goes to the loop's handler.

        Raises ConfigError for what is no ConnectionCallback, or has a coroutine function.
        """
        check_connection_callback(callback)
        self._manager.set_connection_callback(_ConnectionOnLoop(callback, self._running_loop))

    def set_drop_callback(self, callback: Callable[[Dropped], None] | None) -> None:
        """Tell `callback` of each message that is dropped, on the loop. Raises ConfigError for no plain function."""
        if callback is not None:
            check_callback("callback", callback)
            callback = _OnLoop("callback", callback, self._running_loop)
        self._manager.set_drop_callback(callback)

    async def handle_for(self, message_id: int) -> DeliveryHandle | None:
        """The handle of a message published before, of that `message_id`. Raises as `MQTTManager.handle_for`."""
        found = await _aside(self._running_loop, partial(self._manager.handle_for, message_id))
        return cast("DeliveryHandle | None", found)

    in_doubt = _beside_the_loop(MQTTManager.in_doubt)
    quarantined = _beside_the_loop(MQTTManager.quarantined)
    retry_quarantined = _beside_the_loop(MQTTManager.retry_quarantined)
    delete_quarantined = _beside_the_loop(MQTTManager.delete_quarantined)
    purge = _beside_the_loop(MQTTManager.purge)

    def is_queue_damaged(self) -> bool:
        """See `MQTTManager.is_queue_damaged`."""
        return self._of_any_thread.is_queue_damaged()

    def get_metrics(self) -> Metrics:
        """A snapshot of the counters. From any thread."""
        return self._of_any_thread.get_metrics()

    def report_vehicle(self, *, can_messages_received: int | None = None, battery_voltage: float | None = None) -> None:
        """can_messages_received, battery_voltage: see `MQTTManager.report_vehicle`. From any thread."""
        self._of_any_thread.report_vehicle(can_messages_received=can_messages_received, battery_voltage=battery_voltage)

    def enable_debug_logging(self, enabled: bool = True) -> None:
        """Log every packet to the logger "glec_fast" at DEBUG; enabled False ends it. From any thread."""
        self._of_any_thread.enable_debug_logging(enabled)


def _is_coroutine_function(call: object) -> bool:
    """Also what has one for its `__call__`."""
    while isinstance(call, partial):
        call = call.func
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(type(call).__call__)


class _OnLoop:
    """Has the loop call what the program gave it for that, in the context it was given in. From any thread.

    Raises ConfigError for a coroutine function, which would be begun and never awaited.
    """

    def __init__(self, name: str, call: Callable[..., object], loop: asyncio.AbstractEventLoop) -> None:
        if _is_coroutine_function(call):
            raise ConfigError(
                f"{name} is a coroutine function, and nobody would await it: make it a plain function, which the loop "
                "calls, and begin a task in it where it has to wait",
                field="callback",
            )
        self._call = call
        self._loop = loop
        self._context = copy_context()

    def __call__(self, *arguments: object) -> None:
        # A program may end its loop without leaving: nobody listens then.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._call, *arguments, context=self._context.copy())


class _ConnectionOnLoop(ConnectionCallback):
    """Hands on to the loop what the thread that connects has to tell."""

    def __init__(self, callback: ConnectionCallback, loop: asyncio.AbstractEventLoop) -> None:
        for event in CONNECTION_EVENTS:
            setattr(self, event, _OnLoop(event, getattr(callback, event), loop))


async def _nothing_to_leave() -> None:
    """In a forked child: all of it is the parent's."""


def _look_at_file(_table: object) -> None:
    """A transaction that does nothing looks."""


def _leave(made: list[_HostedManager]) -> None:
    for manager in made:
        manager.disconnect()


def _aside(loop: asyncio.AbstractEventLoop, call: Callable[[], T]) -> asyncio.Future[T]:
    """What `call` returns or raises, in a thread, as it may wait for the disk.

    Not one of the loop's executor, which a program may fill with work of its own, or have shut down.
    """
    future: asyncio.Future[T] = loop.create_future()

    def end(settle: Callable[[], None]) -> None:
        if not future.done():
            settle()

    def run() -> None:
        try:
            settle = partial(future.set_result, call())
        except BaseException as error:
            settle = partial(future.set_exception, error)
        # A loop that is closed by now has nobody who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(Owed(loop, end), settle)

    Thread(target=run, name="glec-fast-aside").start()
    return future


async def _to_the_end(future: asyncio.Future[T]) -> T:
    """Its result. Cancelled meanwhile, it is waited for all the same, and then CancelledError is raised."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:  # noqa: PERF203 - each cancellation is one
            cancelled = error
    if cancelled is not None:
        # Told to nobody else.
        future.exception()
        raise cancelled
    return future.result()
