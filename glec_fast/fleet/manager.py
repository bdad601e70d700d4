"""MQTTManager: the fleet API over one durable Client (specification, "MQTTManager Integration")."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from glec_fast._paho import MQTTMessage
from glec_fast.durable.clock import Clocks
from glec_fast.durable.extras import UserProperties, extras_with
from glec_fast.durable.outcomes import Dropped
from glec_fast.engine.connector import SecureConnector
from glec_fast.engine.probe import probe
from glec_fast.engine.refusal import in_its_words, refusal
from glec_fast.engine.routes import Routes
from glec_fast.errors import (
    MessageError,
    PinningError,
    QueueClosedError,
    QueueStorageError,
    SubscriptionRefusedError,
)
from glec_fast.fleet._payload import encode_message
from glec_fast.fleet.batches import may_be_gathered
from glec_fast.fleet.client import aim, client_of, session_of, store_of
from glec_fast.fleet.config import MQTTConfig, Target, check_config
from glec_fast.fleet.connection import ConnectionCallback, Reports, check_connection_callback
from glec_fast.fleet.figures import Drops, Figures
from glec_fast.fleet.heartbeat import Heartbeat
from glec_fast.fleet.messages import KINDS, Alert, Inference, Status, Telemetry, TypedMessage
from glec_fast.fleet.metrics import Metrics
from glec_fast.fleet.overseen import Overseen
from glec_fast.fleet.payload import as_payload, check_kind
from glec_fast.fleet.policy import FleetPolicy
from glec_fast.fleet.topics import topic_of
from glec_fast.mqtt.client import parts_of
from glec_fast.outbox.handle import PublishHandle
from glec_fast.runtime import process
from glec_fast.runtime._lock import Lock
from glec_fast.runtime.log import logger
from glec_fast.runtime.summing_log import SummingLog
from glec_fast.tls.config import TLSConfig
from glec_fast.validation import check_callback, check_command, check_filter, check_publish

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

_MQTT_5 = MQTTProtocolVersion.MQTTv5


class MQTTManager(Overseen):
    """Publishes from a vehicle gateway to the fleet platform, over any loss of link, process or power.

    Every accepted QoS 1 and 2 message is on disk until the broker has taken it over. Thread-safe; every method may be
    called from a callback. Opens the queue file at once. Raises ConfigError and the errors of
    `glec_fast.durable.store.Store`.

    config: its settings; they do not change any more. clocks: the machine's where None.
    """

    def __init__(self, config: MQTTConfig, *, clocks: Clocks | None = None) -> None:
        check_config(config)
        self.config = config
        self._clocks = clocks or Clocks()
        self._lock = Lock("MQTTManager._lock")
        # No new use is accepted; one call is at work on the end; and it is over.
        self._closed = self._is_leaving = self._has_left = False
        self._targets = config.targets
        self._routes = Routes(len(self._targets), self._look_for_first)
        tls_config = (config.tls_config or TLSConfig()) if config.broker.tls else None
        self._log = SummingLog()
        self._reports = Reports(self._log)
        self._drops = Drops(self._log, self._lock)
        self._connector = SecureConnector(tls_config, config.broker.host, self._log)
        # For its errors, before the queue is opened.
        self._connector.context()
        self._store = store_of(config, clocks, self._log)
        try:
            self._policy = FleetPolicy(config, self._tick, self._drops.on_dropped, self._log, self._routes)
            self._client = client_of(config, self._store, self._policy, self._connector, self._target)
        except BaseException:
            self._store.close()
            raise
        self._outbox = cast("DurableOutbox", parts_of(self._client).outbox)
        topics = [self._topic(each.SUFFIX) for each in KINDS]
        if self._store.company is not None:
            topics.insert(0, self._store.company.topic)
            self._outbox.asks_at_once = config.answer_timeout_s > 0
        self._outbox.session.use_aliases(topics)
        if config.flush_max_msg_s:
            self._outbox.bound_rate(config.flush_max_msg_s)
        self._heartbeat = Heartbeat(config, self._client, self._store, self._outbox)
        counted = self._client, self._store, self._outbox, self._connector, self._policy, self._reports, self._drops
        self._figures = Figures(*counted, config.client_id)
        self._policy.aim = lambda: aim(self._client, self._target)
        self._policy.take_leave = lambda: self._heartbeat.say("OFFLINE")
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
        self._client._glec_wake()

    def _process_forked(self, pid: int) -> None:
        if self._answering is not None:
            self._answering.let_go_in_child()
        process.forbid(self, pid, {"disconnect": None, "is_connected": False})
        if self._incoming_or_none is not None:
            self._incoming_or_none.forbid(pid)

    # ---- connection

    @property
    def device_id(self) -> str:
        """The device's name in topics and payloads: the client id."""
        return self.config.client_id

    def set_connection_callback(self, callback: ConnectionCallback) -> None:
        """Tell `callback` of connections made and lost. An exception in it is logged and changes nothing.

        Raises ConfigError for what is no ConnectionCallback.
        """
        check_connection_callback(callback)
        self._reports.callback = callback

    def set_drop_callback(self, callback: Callable[[Dropped], None] | None) -> None:
        """Tell `callback` of each message that is dropped. Keep it short: it is called from the store's thread.

        Of what was lost in the air, see `Metrics`, it is told by the network thread, as far as that knows which it was.
        None ends it. Raises ConfigError for what is no function.
        """
        if callback is not None:
            check_callback("callback", callback)
        self._drops.callback = callback

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
            self._heartbeat.set_will()
            address = self.config.local_address or ""
            self._client.connect_async(
                broker.host, broker.port, self.config.keepalive_s, address, **session_of(self.config)
            )
            self._reports.enter("connecting")
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
        is_ours = False
        try:
            with self._lock:
                if self._has_left or self._is_leaving:
                    return
                is_ours = self._is_leaving = True
                if not self._closed:
                    self._closed = True
                    self._reports.enter("closed")
            self._leave()
            self._has_left = True
        finally:
            # What an exception has cut short, the next call goes on with.
            if is_ours:
                self._is_leaving = False

    def _leave(self) -> None:
        if self._incoming_or_none is not None:
            self._incoming_or_none.close()
        if self._answering is not None:
            self._answering.close()
        if self.is_connected():
            if not self._store.is_own_thread():
                # Sent before DISCONNECT, which waits for it; else it is written as the queue is closed.
                self._store.close_batch()
            self._heartbeat.say("OFFLINE")
        self._client.close()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every accepted message is finished; False after `timeout_s` seconds, with nothing lost.

        None waits as long as it takes. Raises ConfigError for what is no time, QueueClosedError.
        """
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
        """Have the broker send no more for `topic_filter`, also where an earlier process subscribed to it.

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
        if it has no Message Expiry: Unix milliseconds, or a time with its offset such as 2026-11-28T06:00:00Z. Each id
        is run once: a duplicate gets the reply that was kept. What the handler returns is the result, as JSON; the
        reply goes through the queue to {name}/reply, or to the command's Response Topic with its Correlation Data
        (MQTT 5), as {"id", "status": "done", "result"}. Where it raises, or is not run, the status is "error", and
        "error" has a code and a message.

        on_crash: what becomes of a command that the end of the process cut into. "fail" answers that it was
        interrupted, and runs it at most once; "retry" runs it again, with `context.is_retry`, so at least once.
        Commands of one name run one after another, in the threads of `subscribe`. Declare them before `connect`.
        Raises ConfigError, QueueClosedError after `disconnect`.
        """

        check_command(name, on_crash)

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

                given = self._client, self._received, self.config, self._log, self._on_subscription_refused
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

        topic: without wildcards. payload: str, bytes, a dict (sent as JSON) or a typed message. qos: 0, 1 or 2; 2
        returns once it is on disk. With `telemetry_batch_s`, a JSON object for glec/dtg/{device_id}/telemetry with QoS
        0 and nothing of what follows is telemetry: see `publish_telemetry`.
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
        data = as_payload(payload, self._encoded)
        is_for_batches = self._store.company is not None and qos == Telemetry.QOS and extras is None
        if is_for_batches and topic == self._topic(Telemetry.SUFFIX) and may_be_gathered(data):
            return self._gather(data if isinstance(data, bytes) else data.encode())
        return self._outbox.publish(topic, data, qos, extras)

    def publish_telemetry(self, telemetry: Telemetry) -> PublishHandle:
        """Publish to glec/dtg/{device_id}/telemetry with QoS 0. Raises as `publish`.

        With `telemetry_batch_s` it is gathered, and its handle that of the batch: published once the batch is;
        `wait_durable` has what is gathered on disk now. While the disk fails it goes alone, if there is a link.
        """
        check_kind(telemetry, Telemetry, "publish_telemetry")
        if self._store.company is None:
            return self._publish_typed(telemetry)
        return self._gather(self._encoded(telemetry))

    def _gather(self, telemetry: bytes) -> PublishHandle:
        try:
            return self._outbox.gather(telemetry)
        except QueueStorageError:
            return self._outbox.publish(self._topic(Telemetry.SUFFIX), telemetry, Telemetry.QOS)

    def publish_inference(self, inference: Inference) -> PublishHandle:
        """Publish to glec/dtg/{device_id}/inference with QoS 1. Raises as `publish`."""
        check_kind(inference, Inference, "publish_inference")
        return self._publish_typed(inference)

    def publish_alert(self, alert: Alert) -> PublishHandle:
        """Publish an alert to glec/dtg/{device_id}/alerts with QoS 2. Raises as `publish`."""
        check_kind(alert, Alert, "publish_alert")
        return self._publish_typed(alert)

    def publish_status(self, status: Status | None = None) -> PublishHandle:
        """Publish to glec/dtg/{device_id}/status with QoS 1; without an argument, the gateway's own figures.

        Raises as `publish`.
        """
        if status is None:
            status = self._heartbeat.status("ONLINE")
        check_kind(status, Status, "publish_status")
        return self._publish_typed(status)

    def _publish_typed(self, message: TypedMessage) -> PublishHandle:
        return self._outbox.publish(self._topic(message.SUFFIX), self._encoded(message), message.QOS)

    def _encoded(self, message: TypedMessage) -> bytes:
        return encode_message(message, self.device_id, self._store.clock.unix_ms())

    def _topic(self, suffix: str) -> str:
        return topic_of(self.device_id, suffix)

    def handle_for(self, message_id: int) -> PublishHandle | None:
        """The handle of a message published before, also by an earlier process of this queue file.

        message_id: that of the handle that `publish` returned. None where the message is not in the queue any more: the
        broker has it, it was dropped, which the drop callback was told, or a process was killed before it was on disk
        (`PublishHandle.wait_durable`). Raises MessageError where no message can have it.
        """
        return self._outbox.handle_for(message_id)

    # ---- figures

    def is_queue_damaged(self) -> bool:
        """True while the queue file is damaged, or has lost its name, and that cannot be mended in use.

        A restart may. Raises QueueReplacedError where only that helps, as another file has the name.
        """
        return self._store.is_damaged

    def purge(self, message_ids: Iterable[int]) -> int:
        """Delete messages unsent, but for those that the broker has or may have; returns how many were in the queue.

        message_ids: of their handles. They count as dropped, with the reason `purged`, and the drop callback is told of
        each. Raises MessageError for what is no id, QueueStorageError, QueueClosedError.
        """
        return self._store.purge(message_ids)

    @property
    def broker_url(self) -> str:
        """The URL that the connection leads to, or the next is to."""
        return self._target.url

    def get_metrics(self) -> Metrics:
        """A snapshot of the counters. Never raises, also after `disconnect`."""
        incoming = {} if self._incoming_or_none is None else self._incoming_or_none.figures()
        return self._figures.snapshot(self._clocks.wall_ms() / 1000, incoming, is_connected=self.is_connected())

    def report_vehicle(self, *, can_messages_received: int | None = None, battery_voltage: float | None = None) -> None:
        """What only the caller knows, for the status heartbeat; None leaves it as it was.

        can_messages_received: CAN frames so far. battery_voltage: in volts. Raises MessageError for what no status has.
        """
        self._heartbeat.report_vehicle(can_messages_received, battery_voltage)

    def enable_debug_logging(self, enabled: bool = True) -> None:
        """Log every packet to the logger "glec_fast" at DEBUG; enabled False ends it."""
        own = logging.getLogger("glec_fast")
        own.setLevel(logging.DEBUG if enabled else logging.NOTSET)
        if enabled:
            # Unlike `own`, it raises nothing that a handler does.
            self._client.enable_logger(logger)  # type: ignore[arg-type]
        else:
            self._client.disable_logger()

    def _tick(self) -> float:
        """Do what is due; returns the seconds until something is."""
        self._policy.look_for_proof(self._outbox.session.answered_count)
        incoming = self._incoming_or_none
        incoming_due_s = float("inf") if incoming is None else incoming.tick()
        if self._heartbeat.take_due():
            self._note_expiring()
            # What is said while there is no link is no news once there is one.
            if self.is_connected():
                self._heartbeat.say("ONLINE")
        return min(incoming_due_s, self._heartbeat.due_in_s)

    # ---- called by the client

    def _on_pre_connect(self, _client: paho.Client, _userdata: Any) -> None:
        self._reports.on_attempt()

    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: Any,
        _flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            refused = refusal(reason, self._target.url, properties)
            self._heartbeat.on_refused(reason.value)
            self._reports.on_failed(logging.ERROR, self._target.url, refused)
            return
        self._policy.on_accepted(self._outbox.session.answered_count)
        self._reports.on_accepted()
        self._routes.on_accepted()
        if self._incoming_or_none is not None:
            self._incoming_or_none.on_connected()
        # Behind the subscriptions: whoever hears of it may send a command.
        self._heartbeat.begin()
        self._reports.tell_connected(self._target.url)
        self._note_expiring()

    def _on_connect_fail(self, _client: paho.Client, _userdata: Any) -> None:
        if self._closed:
            # An attempt that `disconnect` has cut short.
            return
        error = self._policy.connect_error
        if error is not None:
            level = logging.ERROR if isinstance(error, PinningError) else logging.WARNING
            self._reports.on_failed(level, self._target.url, error)

    def _note_expiring(self) -> None:
        self._reports.note_expiring(self._connector.expiring(self._clocks.wall_ms() / 1000))

    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: Any,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._policy.on_ended(self._outbox.session.answered_count, in_order=self._outbox.is_left)
        if self._incoming_or_none is not None:
            outbox = self._outbox
            by_peer = outbox.is_left or outbox.is_broken_off or outbox.is_violated
            self._incoming_or_none.on_disconnected(by_peer=by_peer)
        is_by_broker = flags.is_disconnect_packet_from_server
        told = f"the broker ended it: {in_its_words(reason, properties)}"
        why = told if is_by_broker else parts_of(self._client).ending.cause or str(reason)
        if self._policy.is_asking_again:
            why = "it was left, for the broker to send again what was too much at once"
        is_lost = reason.is_failure or is_by_broker
        self._reports.on_ended(self._target.url, why, is_lost=is_lost, is_last=self._closed)

    def _on_subscription_refused(self, topic_filter: str, error: SubscriptionRefusedError) -> None:
        self._reports.tell("on_subscription_refused", topic_filter, error)

    def __enter__(self) -> MQTTManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()
