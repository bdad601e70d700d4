"""A manager's store and client, made as its settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from glec_fast.durable.store import Store
from glec_fast.errors import ConfigError
from glec_fast.fleet.batches import company_of
from glec_fast.mqtt.client import Client, parts_of
from glec_fast.transport.way_out import parse_proxy, proxy_arguments

if TYPE_CHECKING:
    from glec_fast.durable.clock import Clocks
    from glec_fast.engine.connector import SecureConnector
    from glec_fast.fleet.config import Broker, MQTTConfig, Target
    from glec_fast.fleet.policy import FleetPolicy
    from glec_fast.runtime.summing_log import SummingLog

_HOUR_MS = 60 * 60 * 1000
_MQTT_5 = MQTTProtocolVersion.MQTTv5


def store_of(config: MQTTConfig, clocks: Clocks | None, log: SummingLog) -> Store:
    """The queue that a manager's messages are in. Raises the errors of `Store`."""
    return Store(
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
        log=log,
    )


def client_of(
    config: MQTTConfig, store: Store, policy: FleetPolicy, connector: SecureConnector, target: Target
) -> Client:
    """The client that a manager works with, over `store`. Raises ConfigError."""
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
    aim(client, target)
    # Now, so that what another broker leaves in doubt is known at once.
    parts_of(client).greeting.identify()
    client.suppress_exceptions = True
    equip(client, config, broker, connector)
    return client


def equip(client: Client, config: MQTTConfig, broker: Broker, connector: SecureConnector) -> None:
    """Have it connect as the settings say: TLS, WebSocket, proxy, interface, login.

    Raises ConfigError, TLSFileError.
    """
    client.connect_timeout = config.connection_timeout_s
    if broker.tls:
        client.tls_set_context(connector.context())
    if broker.transport == "websockets":
        client.ws_set_options(broker.path, config.headers or None)
    if config.proxy_url is not None:
        try:
            client.proxy_set(**proxy_arguments(parse_proxy(config.proxy_url), config.options))
        except ImportError as error:
            says = "proxy_url needs PySocks: pip install glec-fast[proxy]"
            raise ConfigError(says, field="proxy_url") from error
    connector.options = config.options
    if config.username is not None:
        client.username_pw_set(config.username, config.password)


def aim(client: Client, target: Target) -> None:
    """Have the next connection lead there."""
    broker = target.broker
    parts_of(client).greeting.aim(broker.host, broker.port, broker.transport, broker.path, target.owner)


def session_of(config: MQTTConfig) -> dict[str, Any]:
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
