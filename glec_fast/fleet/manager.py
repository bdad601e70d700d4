"""MQTTManager: the fleet API over one durable Client (specification, "MQTTManager Integration")."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from glec_fast._paho import MQTTMessage
from glec_fast.durable.clock import Clocks
from glec_fast.durable.extras import UserProperties, extras_with
from glec_fast.durable.in_doubt import InDoubt
from glec_fast.durable.outcomes import Dropped, DropReason
from glec_fast.durable.quarantine import Quarantined
from glec_fast.durable.store import Store
from glec_fast.engine.backoff import Backoff
from glec_fast.engine.connector import CertificateExpiry, SecureConnector
from glec_fast.engine.policy import Failed, Policy
from glec_fast.engine.probe import probe
from glec_fast.engine.proof import SHORT_LIFE_S, SHORT_LIVES, Proof
from glec_fast.engine.refusal import refusal
from glec_fast.engine.routes import Routes
from glec_fast.errors import (
    ConfigError,
    ConnectionLostError,
    MessageError,
    PinningError,
    QueueClosedError,
    QueueStorageError,
    SubscriptionRefusedError,
)
from glec_fast.fleet._payload import encode_message
from glec_fast.fleet.batches import company_of, saved_bytes
from glec_fast.fleet.config import MQTTConfig, Target
from glec_fast.fleet.device import available_storage_mb, disk_written_bytes, memory_usage_mb
from glec_fast.fleet.messages import Alert, Inference, Status, Telemetry
from glec_fast.fleet.metrics import LinkState, Metrics
from glec_fast.fleet.payload import as_payload, check_kind
from glec_fast.mqtt.client import Client, parts_of
from glec_fast.outbox.handle import PublishHandle
from glec_fast.runtime import process
from glec_fast.runtime._lock import Lock
from glec_fast.runtime.latency import Latency
from glec_fast.runtime.summing_log import SummingLog
from glec_fast.tls.config import TLSConfig
from glec_fast.transport.way_out import parse_proxy, proxy_arguments
from glec_fast.validation import check_filter, check_publish

if TYPE_CHECKING:
    from glec_fast.fleet.commands import CommandContext, OnCrash
    from glec_fast.fleet.handlers import Executor
    from glec_fast.fleet.incoming import Incoming
    from glec_fast.fleet.questions import Answering
    from glec_fast.fleet.subscriptions import Subscription
    from glec_fast.mqtt.inbound_message import InboundMessage
    from glec_fast.outbox.received import Received
    from glec_fast.outbox.stored import DurableOutbox

CommandHandler = TypeVar("CommandHandler", bound="Callable[[dict[str, Any], CommandContext], Any]")
TypedMessage: TypeAlias = Telemetry | Inference | Alert | Status

_HOUR_MS = 60 * 60 * 1000
_MQTT_5 = MQTTProtocolVersion.MQTTv5
# MQTT 5, 3.2.2.2: of the will.
_RETAIN_NOT_SUPPORTED = 0x9A

logger = logging.getLogger("glec_fast")


class ConnectionCallback:
    """Derive from this and override what you need. Called from the network thread; no lock is held."""

    def on_connected(self) -> None:
        """The broker accepted the connection; what was queued is now sent."""

    def on_connection_lost(self, cause: Exception | None) -> None:
        """The connection ended. `cause` is None where `disconnect` ended it."""

    def on_reconnecting(self) -> None:
        """An attempt to connect again begins."""

    def on_subscription_refused(self, topic_filter: str, cause: SubscriptionRefusedError) -> None:
        """The broker refuses a filter of `subscribe`. It is asked again on the next connection."""

    def on_connect_failed(self, cause: Exception) -> None:
        """An attempt failed: PinningError, TLSError, TLSFileError, BrokerRefusalError, or the network's OSError.

        ConnectionLostError where what answered did not speak MQTT, or closed the connection before it took the login.
        """


class FleetPolicy(Policy):
    """Waits as the specification says, ticks for its manager's timers also while it waits, and goes on for ever."""

    def __init__(
        self,
        config: MQTTConfig,
        tick: Callable[[], float],
        on_dropped: Callable[[list[Dropped]], None],
        log: SummingLog,
        routes: Routes,
    ) -> None:
        self.backoff = Backoff(
            config.retry_initial_delay_ms / 1000,
            config.retry_max_delay_ms / 1000,
            config.retry_max_attempts,
            config.retry_jitter,
        )
        self.retries_first = config.auto_reconnect
        self._proof = Proof()
        self.pin_failures = 0
        self.on_dropped = on_dropped
        self._tick = tick
        self._log = log
        self._routes = routes
        self._initial_delay_s = config.retry_initial_delay_ms / 1000
        # True where the broker has messages that it sends again on a new connection alone.
        self.must_ask_again: Callable[[], bool] = _never
        # Has the client connect to the current route.
        self.aim: Callable[[], None] = _nowhere

    @property
    def is_moving(self) -> bool:  # type: ignore[override]
        """See `Policy`."""
        return self._routes.is_returning or self.must_ask_again()

    def begin_attempt(self) -> None:
        """See `Policy`."""
        super().begin_attempt()
        self.aim()

    def tick(self) -> float:
        """See `Policy`."""
        self._log.tick()
        self._routes.tick()
        return max(min(self._tick(), self._log.due_in_s(), self._routes.due_in_s()), 0.0)

    def next_delay_s(self) -> float:
        """See `Policy`."""
        if self._routes.turn():
            return self._routes.spread_s(self._initial_delay_s)
        if isinstance(self.connect_error, PinningError):
            # No fault of the network, which might pass in a moment.
            return self.backoff.longest_delay_s()
        return self.backoff.next_delay_s()

    def on_accepted(self, answered_count: int) -> None:
        """The broker accepts a connection; so many acknowledgements came before it. It may yet end it at once."""
        self._proof.begin(time.monotonic(), answered_count)

    def look_for_proof(self, answered_count: int) -> None:
        """A connection that has proved itself lets the waits begin anew."""
        if self._proof.look(time.monotonic(), answered_count):
            self.backoff.reset()

    def on_ended(self, answered_count: int, *, in_order: bool) -> None:
        """A connection that was accepted has ended, in order by the broker or otherwise."""
        self.look_for_proof(answered_count)
        if self._proof.end(time.monotonic(), in_order=in_order):
            cause = f"the broker ended {SHORT_LIVES} in a row within {SHORT_LIFE_S:g} s of accepting them"
            hint = "is there another client with this client id? The waits before the next grow"
            self._log.note(logging.WARNING, "connections that do not last", cause, text=f"{cause}: {hint}")

    def fail_attempt(self, error: OSError) -> bool:
        """See `Policy`."""
        super().fail_attempt(error)
        self.pin_failures += isinstance(error, PinningError)
        return True

    def goes_on(self, failed: Failed, error: Exception) -> bool:
        """See `Policy`. Nothing that fails in the network thread may end it while the manager lives."""
        if isinstance(error, OSError):
            # The first attempt failed, and none is to follow.
            logger.error("no connection is made again: %s", error)
            return False
        self._log.note(logging.ERROR, "failures of the network thread", repr(error), error=error)
        return failed.begins_anew()


def _nowhere() -> None:
    """Until there is a client."""


def _never() -> bool:
    """Until something comes."""
    return False


def _client_of(config: MQTTConfig, store: Store, policy: Policy, connector: SecureConnector, target: Target) -> Client:
    broker = target.broker
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=config.client_id,
        clean_session=None if config.protocol_version == _MQTT_5 else config.clean_session,
        protocol=MQTTProtocolVersion(config.protocol_version),
        transport=broker.transport,
        reconnect_on_failure=config.auto_reconnect,
        store=store,
        wait_for_disk=config.wait_for_disk,
        resend_in_doubt=config.resend_in_doubt,
        max_unreleased=config.max_unreleased,
        max_qos=config.max_qos,
        max_packet_bytes=config.max_packet_bytes,
        on_owner_away=config.on_owner_away,  # type: ignore[arg-type]
        resend_unproven=config.resend_unproven,
        answer_timeout_s=config.answer_timeout_s,
        ack_timeout_s=config.ack_timeout_s,
        connector=connector,
        policy=policy,
    )
    client.max_inflight_messages = config.max_in_flight
    _aim(client, target)
    # Now, so that what another broker leaves in doubt is known at once.
    parts_of(client).greeting.identify()
    client.connect_timeout = config.connection_timeout_s
    client.suppress_exceptions = True
    if broker.tls:
        client.tls_set_context(connector.context())
    if config.websocket_headers:
        client.ws_set_options(broker.path, config.headers)
    if config.proxy_url is not None:
        try:
            client.proxy_set(**proxy_arguments(parse_proxy(config.proxy_url), config.options))
        except ImportError as error:
            says = "proxy_url needs PySocks: pip install glec-fast[proxy]"
            raise ConfigError(says, field="proxy_url") from error
    connector.options = config.options
    if config.username is not None:
        client.username_pw_set(config.username, config.password)
    return client


def _aim(client: Client, target: Target) -> None:
    broker = target.broker
    parts_of(client).greeting.aim(broker.host, broker.port, broker.transport, broker.path, target.owner)


def _session_of(config: MQTTConfig) -> dict[str, Any]:
    """What MQTT 5 is told: how much may come at once (3.1.2.11), and if the session ends with the connection."""
    if config.protocol_version != _MQTT_5:
        return {}
    properties = Properties(PacketTypes.CONNECT)
    properties.ReceiveMaximum = config.inbox_max_size
    properties.MaximumPacketSize = config.inbox_max_bytes
    if not config.clean_session:
        return {"properties": properties}
    properties.SessionExpiryInterval = 0
    return {"clean_start": True, "properties": properties}


class MQTTManager(process.OfOneProcess):
    """Publishes from a vehicle gateway to the fleet platform, over any loss of link, process or power.

    Every accepted QoS 1 and 2 message is on disk until the broker has taken it over. Thread-safe; every method may be
    called from a callback. Opens the queue file at once. Raises ConfigError and the errors of
    `glec_fast.durable.store.Store`.

    clocks: the machine's where None.
    """

    def __init__(self, config: MQTTConfig, *, clocks: Clocks | None = None) -> None:
        self.config = config
        self._clocks = clocks or Clocks()
        self._queue_directory = Path(config.queue_path).absolute().parent
        self._started_s = time.monotonic()
        self._callback = ConnectionCallback()
        self._on_drop: Callable[[Dropped], None] | None = None
        self._drops: Counter[tuple[str, int]] = Counter()
        self._expiry_told: set[CertificateExpiry] = set()
        self._reconnect_count = 0
        self._attempts = self._connects = 0
        self._state: LinkState = "idle"
        self._state_since_s = self._started_s
        self._last_failure: str | None = None
        self._was_connected = self._connected_once = self._is_failure_told = False
        self._can_frames = 0
        self._battery_voltage: float | None = None
        self._next_status_s = self._started_s + (config.status_interval_s or float("inf"))
        # A will that is never followed by another status would be kept for ever.
        self._retains_status = config.status_retained and config.status_interval_s > 0
        self._lock = Lock("MQTTManager._lock")
        self._closed = False
        self._targets = config.targets
        self._routes = Routes(len(self._targets), self._look_for_first)
        tls_config = (config.tls_config or TLSConfig()) if config.broker.tls else None
        self._log = SummingLog()
        self._connector = SecureConnector(tls_config, config.broker.host, self._log)
        # For its errors, before the queue is opened.
        self._connector.context()
        self._store = Store(
            config.queue_path,
            max_queue_size=config.queue_max_size,
            max_queue_bytes=config.queue_max_bytes,
            queue_order=config.queue_order,
            overflow=config.overflow,
            ttl_ms=int(config.queue_ttl_hours * _HOUR_MS),
            max_retry=config.queue_max_retry,
            quarantine_max_size=config.quarantine_max_size,
            quarantine_days=config.quarantine_days,
            qos0_commit_delay_s=config.qos0_commit_delay_s,
            company=company_of(config),
            clocks=clocks,
            log=self._log,
        )
        try:
            self._policy = FleetPolicy(config, self._tick, self._on_dropped, self._log, self._routes)
            self._client = _client_of(config, self._store, self._policy, self._connector, self._target)
        except BaseException:
            self._store.close()
            raise
        self._outbox = cast("DurableOutbox", parts_of(self._client).outbox)
        self._outbox.session.use_aliases([self._topic(each.SUFFIX) for each in (Telemetry, Inference, Alert, Status)])
        if config.flush_max_msg_s:
            self._outbox.bound_rate(config.flush_max_msg_s)
        self._policy.aim = lambda: _aim(self._client, self._target)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_pre_connect = self._on_pre_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_message = self._on_message  # type: ignore[assignment]
        self._client.on_subscribe = self._client.on_unsubscribe = self._on_subscription_answer
        self._client.manual_ack_set(True)
        self._received = cast("Received", parts_of(self._client).dispatcher.received)
        self._received.keeps_qos_1 = True
        # Once something is subscribed to, or comes.
        self._incoming_or_none: Incoming | None = None
        self._answering: Answering | None = None
        if config.metrics_socket is not None:
            from glec_fast.fleet.questions import Answering

            try:
                self._answering = Answering(self, Path(config.metrics_socket))
            except BaseException:
                self._client.close()
                raise
        process.watch_forks(self)

    @property
    def _target(self) -> Target:
        """Where the connection leads, or the next is to."""
        return self._targets[self._routes.current]

    def _look_for_first(self) -> None:
        broker = self._targets[0].broker
        probe(broker.host, broker.port, self.config.connection_timeout_s, self._on_probed)

    def _on_probed(self, answers: bool) -> None:
        self._routes.on_probed(answers)
        # Nothing else would have it looked at before the keep alive.
        self._client._wake()

    def _in_child(self, pid: int) -> None:
        if self._answering is not None:
            self._answering.let_go_in_child()
        process.forbid(self, pid, {"disconnect": None, "is_connected": False})

    # ---- connection

    @property
    def device_id(self) -> str:
        """The device's name in topics and payloads: the client id."""
        return self.config.client_id

    def set_connection_callback(self, callback: ConnectionCallback) -> None:
        """Tell `callback` of connections made and lost. An exception in it is logged and changes nothing."""
        self._callback = callback

    def set_drop_callback(self, callback: Callable[[Dropped], None] | None) -> None:
        """Tell `callback` of each message that is dropped. Keep it short: it is called from the store's thread.

        Of what was lost in the air, see `Metrics`, it is told by the network thread, as far as that knows which it was.
        """
        self._on_drop = callback

    def connect(self) -> None:
        """Begin to connect; returns at once. Goes on for ever where `auto_reconnect` is set. Idempotent.

        Raises QueueClosedError after `disconnect`.
        """
        broker = self._target.broker
        with self._lock:
            if self._closed:
                raise QueueClosedError("the manager has disconnected: make another one to go on")
            if parts_of(self._client).thread.is_running:
                return
            self._set_will()
            address = self.config.local_address or ""
            self._client.connect_async(
                broker.host, broker.port, self.config.keepalive_s, address, **_session_of(self.config)
            )
            self._enter("connecting")
            self._begin_loop()

    def _begin_loop(self) -> None:
        self._client.loop_start()

    def is_connected(self) -> bool:
        """True from the broker's acceptance until the connection is lost."""
        return self._client.is_connected() and self._client.socket() is not None

    def disconnect(self) -> None:
        """Leave the broker, write what is pending and let go of the queue file. Idempotent.

        What was not sent stays in the file. Raises QueueStorageError where something could not be written.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._enter("closed")
        if self._incoming_or_none is not None:
            self._incoming_or_none.close()
        if self._answering is not None:
            self._answering.close()
        if self.is_connected():
            if not self._store.is_own_thread():
                # Sent before DISCONNECT, which waits for it; else it is written as the queue is closed.
                self._store.close_batch()
            self._say("OFFLINE")
        self._client.close()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every accepted message is finished; False after the time-out, with nothing lost."""
        return self._store.wait_empty(timeout_s)

    # ---- receiving

    def subscribe(self, topic_filter: str, handler: Callable[[MQTTMessage], object], qos: int = 1) -> Subscription:
        """Have `handler` called with each message that matches, from now on, over reconnects and sessions.

        Before `connect` or behind it. topic_filter: with wildcards + and #, or $share/group/filter; a second handler
        for the same filter takes the first one's place. qos: the highest that the broker is to send with, 0 to 2.

        The handler runs in a thread of a pool (`handler_threads`), never the network's, one message of a filter after
        another in their order; a message that matches several filters goes to the handler of each. The broker hears
        that a message of QoS 1 or 2 has arrived once its handlers have returned: one that a crash cut into comes again,
        with `message.dup`. QoS 2 comes once otherwise, also over crashes and cut links. A handler that raises is logged
        and counted, and its message does not come again.

            manager.subscribe("fleet/config", lambda message: apply(json.loads(message.payload)), qos=2)

        Raises MessageError for a filter that MQTT does not know, ConfigError for a handler that is no function,
        QueueClosedError after `disconnect`.
        """
        check_filter(topic_filter, qos)
        return self._incoming.subscribe(topic_filter, handler, qos)

    def unsubscribe(self, topic_filter: str) -> None:
        """Have the broker send it no more, also where an earlier process subscribed to it.

        What has come already is still handled. Raises MessageError, QueueClosedError.
        """
        check_filter(topic_filter, 0)
        self._incoming.unsubscribe(topic_filter)

    def command(self, name: str, *, on_crash: OnCrash = "fail") -> Callable[[CommandHandler], CommandHandler]:
        """Have the function below handle commands of this name: glec/dtg/{device_id}/commands/{name}.

            @manager.command("unlock_doors", on_crash="retry")
            def unlock_doors(arguments, context):
                return {"unlocked": doors.unlock(arguments["doors"])}

        A command is a JSON object: its arguments, with "id" unless it has Correlation Data (MQTT 5), and "expires_at"
        in Unix milliseconds if it has no Message Expiry. Each id is run once: a duplicate gets the reply that was kept.
        What the handler returns is the result, as JSON; the reply goes through the queue to {name}/reply, or to the
        command's Response Topic with its Correlation Data (MQTT 5), as {"id", "status": "done", "result"}. Where it
        raises, or is not run, the status is "error", and "error" has a code and a message.

        on_crash: what becomes of a command that the end of the process cut into. "fail" answers that it was
        interrupted, and runs it at most once; "retry" runs it again, with `context.is_retry`, so at least once.
        Commands of one name run one after another, in the threads of `subscribe`. Declare them before `connect`.
        Raises ConfigError, QueueClosedError after `disconnect`.
        """

        def declare(handler: CommandHandler) -> CommandHandler:
            self._incoming.declare(name, handler, on_crash)
            return handler

        return declare

    @property
    def _incoming(self) -> Incoming:
        with self._lock:
            if self._closed:
                raise QueueClosedError("the manager has disconnected: make another one to go on")
            if self._incoming_or_none is None:
                # Not for programs that only publish.
                from glec_fast.fleet.incoming import Incoming

                told = partial(self._tell, "on_subscription_refused")
                given = self._client, self._received, self.config, self._log, told
                self._incoming_or_none = Incoming(*given, self._make_executor())
                self._policy.must_ask_again = self._incoming_or_none.must_ask_again
            incoming = self._incoming_or_none
        incoming.begin()
        return incoming

    def _make_executor(self) -> Executor:
        """What runs handlers."""
        from glec_fast.fleet.handlers import HandlerPool

        return HandlerPool(self.config.handler_threads, self._log)

    def _on_message(self, _client: paho.Client, _userdata: Any, message: InboundMessage) -> None:
        try:
            self._incoming.take(message)
        except QueueClosedError:
            # The broker keeps it.
            return

    def _on_subscription_answer(
        self, _client: paho.Client, _userdata: Any, packet_id: int, reasons: list[ReasonCode], _properties: Any
    ) -> None:
        if self._incoming_or_none is not None:
            self._incoming_or_none.on_answer(packet_id, reasons)

    # ---- publishing

    def publish(
        self,
        topic: str,
        payload: object,
        qos: int = 1,
        *,
        retain: bool = False,
        user_properties: UserProperties | None = None,
        content_type: str | None = None,
        response_topic: str | None = None,
        correlation_data: bytes | None = None,
    ) -> PublishHandle:
        """Accept a message and return its handle. Never waits for the network.

            manager.publish("fleet/7/trip", trip, content_type="application/json", user_properties={"schema": "3"})

        payload: str, bytes, a dict (sent as JSON) or a typed message. qos: 0, 1 or 2; 2 returns once it is on disk.
        retain: the broker keeps it for subscribers that come later (MQTT 3.1.1, 3.3.1.3).

        For MQTT 5 (`protocol_version=5`), kept with the message on disk, up to 65,535 bytes each:
        user_properties: names and values for whoever receives it (3.3.2.3.7), as a dict, or as pairs, of which several
        may have one name. content_type: what the payload is, as a MIME type says it (3.3.2.3.9). response_topic: where
        an answer is expected (3.3.2.3.5), without wildcards; correlation_data: what the answer repeats (3.3.2.3.6).

        Raises MessageError where MQTT, or the configured version of it, cannot carry it, QueueStorageError while the
        disk fails, QueueClosedError. From any thread.
        """
        check_publish(topic, qos)
        extras = extras_with(retain, user_properties, content_type, response_topic, correlation_data)
        if extras is not None and extras.properties and self.config.protocol_version != _MQTT_5:
            raise MessageError(
                "user_properties, content_type, response_topic and correlation_data are MQTT 5's: "
                "set protocol_version to 5, or leave them out"
            )
        if isinstance(payload, (Telemetry, Inference, Alert, Status)):
            data: str | bytes = encode_message(payload, self.device_id, self._store.unix_ms())
        else:
            data = as_payload(payload)
        return self._outbox.publish(topic, data, qos, extras)

    def publish_telemetry(self, telemetry: Telemetry) -> PublishHandle:
        """Publish to glec/dtg/{device_id}/telemetry with QoS 0. Raises as `publish`.

        With `telemetry_batch_s` it is gathered, and its handle that of the batch: published once the batch is;
        `wait_durable` has what is gathered on disk now. While the disk fails it goes alone, if there is a link.
        """
        check_kind(telemetry, Telemetry, "publish_telemetry")
        if self._store.company is None:
            return self._publish_typed(telemetry)
        payload = encode_message(telemetry, self.device_id, self._store.unix_ms())
        try:
            return self._outbox.gather(payload)
        except QueueStorageError:
            return self._outbox.publish(self._topic(Telemetry.SUFFIX), payload, Telemetry.QOS)

    def publish_inference(self, inference: Inference) -> PublishHandle:
        """Publish to glec/dtg/{device_id}/inference with QoS 1. Raises as `publish`."""
        check_kind(inference, Inference, "publish_inference")
        return self._publish_typed(inference)

    def publish_alert(self, alert: Alert) -> PublishHandle:
        """Publish to glec/dtg/{device_id}/alerts with QoS 2. Raises as `publish`."""
        check_kind(alert, Alert, "publish_alert")
        return self._publish_typed(alert)

    def publish_status(self, status: Status | None = None) -> PublishHandle:
        """Publish to glec/dtg/{device_id}/status with QoS 1; without an argument, the gateway's own figures."""
        if status is None:
            status = self._status("ONLINE")
        check_kind(status, Status, "publish_status")
        return self._publish_typed(status)

    def _publish_typed(self, message: TypedMessage) -> PublishHandle:
        payload = encode_message(message, self.device_id, self._store.unix_ms())
        return self._outbox.publish(self._topic(message.SUFFIX), payload, message.QOS)

    def _topic(self, suffix: str) -> str:
        return f"glec/dtg/{self.device_id}/{suffix}"

    def handle_for(self, message_id: int) -> PublishHandle | None:
        """The handle of a message published before, also by an earlier process of this queue file.

        message_id: that of the handle that `publish` returned. None where the message is not in the queue any more: the
        broker has it, or it was dropped, which the drop callback was told. Raises MessageError where no message has it.
        """
        return self._outbox.handle_for(message_id)

    # ---- figures

    def is_queue_damaged(self) -> bool:
        """True while the queue file is damaged, or has lost its name, and that cannot be mended in use.

        A restart may. Raises QueueReplacedError where only that helps, as another file has the name.
        """
        return self._store.is_damaged

    def in_doubt(self) -> list[InDoubt]:
        """The ledger of QoS 2 messages whose fate MQTT cannot tell; see `OfflineQueueManager.in_doubt`."""
        return self._store.in_doubt()

    def quarantined(self) -> list[Quarantined]:
        """What the broker would not take, oldest first; see docs/internals/quarantine.md."""
        return self._store.quarantined()

    def retry_quarantined(self, numbers: Iterable[int]) -> list[int]:
        """Accept the messages of these entries anew; see `OfflineQueueManager.retry_quarantined`."""
        given = [self._store.retry_quarantined(number) for number in numbers]
        return [message_id for message_id in given if message_id is not None]

    def delete_quarantined(self, numbers: Iterable[int]) -> int:
        """Delete these entries for good; returns how many there were."""
        return self._store.delete_quarantined(list(numbers))

    def purge(self, message_ids: Iterable[int]) -> int:
        """Delete messages unsent, but for those that the broker has or may have; returns how many were in the queue.

        They count as dropped, with the reason `purged`, and the drop callback is told of each.
        """
        return self._store.purge(list(message_ids))

    @property
    def broker_url(self) -> str:
        """The URL that the connection leads to, or the next is to."""
        return self._target.url

    def get_metrics(self) -> Metrics:
        """A snapshot of the counters."""
        with self._lock:
            counts = dict(self._drops)
            reconnect_count = self._reconnect_count
        drops: Counter[str] = Counter()
        drops_by_qos: dict[str, list[int]] = {}
        for (reason, qos), count in counts.items():
            drops[reason] += count
            drops_by_qos.setdefault(reason, [0, 0, 0])[qos] += count
        if self._store.rows_lost:
            # Some of them were told of: where somebody waited for them.
            told = drops.get(DropReason.DAMAGED_FILE.value, 0)
            drops[DropReason.DAMAGED_FILE.value] = max(told, self._store.rows_lost)
        if self._outbox.lost_in_the_air:
            # Of them, only so many were told of as memory is kept for.
            drops[DropReason.LOST_IN_THE_AIR.value] = self._outbox.lost_in_the_air
        try:
            queue_bytes = self._store.disk_bytes()
        except OSError:
            # Its name is gone; it is put back, or `is_queue_damaged` says so.
            queue_bytes = 0
        gathered = self._store.gathered
        link = parts_of(self._client).dispatcher.link
        session = self._outbox.session
        stored = self._store.figures()
        return Metrics(
            state=self._state,
            in_state_s=time.monotonic() - self._state_since_s,
            last_failure=self._last_failure,
            attempts=self._attempts,
            connects=self._connects,
            sent_bytes=link.sent_bytes,
            received_bytes=link.received_bytes,
            queue_bytes=queue_bytes,
            is_connected=self.is_connected(),
            messages_sent=self._outbox.sent_count,
            messages_failed=sum(drops.values()) + self._outbox.refused_count,
            queue_size=self._outbox.stored_count,
            reconnect_count=reconnect_count,
            in_doubt=self._outbox.in_doubt_count,
            drops=dict(drops),
            drops_by_qos=drops_by_qos,
            pin_failures=self._policy.pin_failures,
            expiring_certificates=self._connector.expiring(self._clocks.wall_ms() / 1000),
            weaknesses=self._outbox.weaknesses.counts(),
            lost_in_the_air=self._outbox.lost_in_the_air,
            accepted=self._outbox.accepted_counts(stored.accepted),
            on_disk=stored.on_disk,
            published=session.encoded_counts,
            acknowledged=session.acknowledged_counts,
            to_disk=stored.writing,
            to_acknowledgement=Latency.of(*session.acknowledging),
            oldest_s=stored.oldest_s,
            disk_written_bytes=disk_written_bytes(),
            disk_syncs=stored.syncs,
            clock_steps=stored.clock_steps,
            certificates=self._connector.certificates,
            **({} if self._incoming_or_none is None else self._incoming_or_none.figures()),
            batches=gathered.batches,
            batched_messages=gathered.messages,
            batch_saved_bytes=saved_bytes(gathered, self.device_id),
        )

    def report_vehicle(self, *, can_messages_received: int | None = None, battery_voltage: float | None = None) -> None:
        """What only the caller knows, for the status heartbeat: CAN frames so far, battery in volts."""
        with self._lock:
            if can_messages_received is not None:
                self._can_frames = can_messages_received
            if battery_voltage is not None:
                self._battery_voltage = battery_voltage

    def enable_debug_logging(self, enabled: bool = True) -> None:
        """Log every packet to the logger "glec_fast" at DEBUG; False ends it."""
        logger.setLevel(logging.DEBUG if enabled else logging.NOTSET)
        if enabled:
            self._client.enable_logger(logger)
        else:
            self._client.disable_logger()

    def _status(self, status: str) -> Status:
        return Status(
            status=status,
            uptime_seconds=int(time.monotonic() - self._started_s),
            battery_voltage=self._battery_voltage,
            memory_usage_mb=memory_usage_mb(),
            storage_available_mb=available_storage_mb(self._queue_directory),
            can_messages_received=self._can_frames,
            mqtt_messages_sent=self._outbox.sent_count,
            offline_queue_size=self._outbox.stored_count,
        )

    def _tick(self) -> float:
        """Do what is due; returns the seconds until something is."""
        self._policy.look_for_proof(self._outbox.session.answered_count)
        if self._incoming_or_none is not None:
            self._incoming_or_none.tick()
        now_s = time.monotonic()
        if now_s >= self._next_status_s:
            self._next_status_s = now_s + self.config.status_interval_s
            self._log_expiring()
            # What is said while there is no link is no news once there is one.
            if self.is_connected():
                self._say("ONLINE")
        due_s = self._next_status_s - now_s
        # What has come and nobody has subscribed to has its own time.
        return due_s if self._incoming_or_none is None else min(due_s, 1.0)

    def _set_will(self) -> None:
        """Told when the link has broken, with the figures of the moment of connecting: MQTT fixes a will in CONNECT."""
        offline = encode_message(self._status("OFFLINE"), self.device_id, self._store.unix_ms())
        self._client.will_set(self._topic(Status.SUFFIX), offline, qos=Status.QOS, retain=self._retains_status)

    def _say(self, status: str) -> None:
        """Ahead of the queue, on this connection alone: later it would not be true."""
        if self.config.status_interval_s:
            payload = encode_message(self._status(status), self.device_id, self._store.unix_ms())
            self._outbox.say(self._topic(Status.SUFFIX), payload, retain=self._retains_status)

    # ---- called by the client and the store

    def _on_pre_connect(self, _client: paho.Client, _userdata: Any) -> None:
        self._attempts += 1
        self._is_failure_told = False
        if self._attempts > 1:
            self._tell("on_reconnecting")

    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: Any,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            refused = refusal(reason, self._target.url)
            if reason.value == _RETAIN_NOT_SUPPORTED and self._retains_status:
                # The next attempt does without.
                self._retains_status = False
                self._set_will()
            self._fail_attempt(logging.ERROR, refused)
            return
        self._policy.on_accepted(self._outbox.session.answered_count)
        self._connects += 1
        self._enter("connected")
        self._routes.on_accepted()
        with self._lock:
            self._reconnect_count += self._connected_once
        self._connected_once = self._was_connected = True
        if self._incoming_or_none is not None:
            self._incoming_or_none.on_connected(session_present=flags.session_present)
        # Behind the subscriptions: whoever hears of it may send a command.
        self._say("ONLINE")
        self._next_status_s = time.monotonic() + (self.config.status_interval_s or float("inf"))
        self._note_link(logging.INFO, f"connected to {self._target.url}")
        self._tell("on_connected")
        self._log_expiring()

    def _on_connect_fail(self, _client: paho.Client, _userdata: Any) -> None:
        if self._closed:
            # An attempt that `disconnect` has cut short.
            return
        error = self._policy.connect_error
        if error is not None:
            self._fail_attempt(logging.ERROR if isinstance(error, PinningError) else logging.WARNING, error)

    def _log_expiring(self) -> None:
        for each in self._connector.expiring(self._clocks.wall_ms() / 1000):
            if each not in self._expiry_told:
                self._expiry_told.add(each)
                end = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(each.expires_at_s))
                logger.warning("the %s's certificate %s expires on %s: renew it", each.owner, each.subject, end)

    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: Any,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._policy.on_ended(self._outbox.session.answered_count, in_order=self._outbox.is_left)
        if self._incoming_or_none is not None:
            self._incoming_or_none.on_disconnected()
        is_by_broker = flags.is_disconnect_packet_from_server
        is_lost = reason.is_failure or is_by_broker
        why = f"the broker ended it: {reason}" if is_by_broker else parts_of(self._client).ending.cause or str(reason)
        if not self._was_connected:
            if is_lost and not self._is_failure_told:
                self._fail_attempt(logging.WARNING, ConnectionLostError(why))
            return
        self._was_connected = False
        cause: ConnectionLostError | None = None
        if is_lost:
            cause = ConnectionLostError(f"the connection to {self._target.url} was lost: {why}")
            self._note_link(logging.WARNING, str(cause))
        else:
            self._note_link(logging.INFO, f"left {self._target.url}")
        if not self._closed:
            self._enter("connecting")
            self._last_failure = None if cause is None else str(cause)
        self._tell("on_connection_lost", cause)

    def _enter(self, state: LinkState) -> None:
        self._state_since_s = time.monotonic()
        self._state = state

    def _note_link(self, level: int, change: str) -> None:
        self._log.note(level, "changes of the connection", change, text=change)

    def _fail_attempt(self, level: int, error: Exception) -> None:
        self._is_failure_told = True
        text = f"no connection to {self._target.url}: {error}"
        self._last_failure = str(error)
        self._log.note(level, "attempts to connect failed", str(error), text=text)
        self._tell("on_connect_failed", error)

    def _tell(self, event: str, *arguments: object) -> None:
        try:
            getattr(self._callback, event)(*arguments)
        except Exception as error:
            text = f"the connection callback's {event} failed: {error!r}"
            self._log.note(logging.ERROR, "errors in the connection callback", text, text=text, error=error)

    def _on_dropped(self, dropped: list[Dropped]) -> None:
        with self._lock:
            for each in dropped:
                self._drops[each.reason.value, each.qos] += 1
        callback = self._on_drop
        if callback is None:
            return
        for each in dropped:
            try:
                callback(each)
            except Exception as error:  # noqa: PERF203 - each message is told of, whatever became of the others
                self._log.note(logging.ERROR, "errors in the drop callback", repr(error), error=error)

    def __enter__(self) -> MQTTManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()
