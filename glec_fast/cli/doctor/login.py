"""The MQTT login: CONNECT with the user name and password, over the connection that a manager would make."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from paho.mqtt.client import WebsocketConnectionError
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from glec_fast.cli.doctor.crossed import speaks_tls
from glec_fast.cli.doctor.finding import Finding
from glec_fast.engine.connector import SecureConnector
from glec_fast.engine.refusal import refusal
from glec_fast.fleet.client import equip
from glec_fast.mqtt.client import Client
from glec_fast.mqtt.greeting import with_session_expiry
from glec_fast.tls.config import TLSConfig
from glec_fast.tls.handshake import explain

if TYPE_CHECKING:
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from glec_fast.fleet.config import MQTTConfig

# The device's own id would push its running service off the broker.
SUFFIX = "-doctor"
_WEBSOCKET_ADVICE = "see whether this port is the broker's for WebSocket, and the URL's path its own, /mqtt as a rule"
_MQTT_5 = MQTTProtocolVersion.MQTTv5


def examine_login(config: MQTTConfig, *, as_device: bool) -> Finding:
    """Log in and leave.

    As the device itself with `as_device`, with the session that the broker keeps for it; else under a name of its own
    and with a session that ends at once.
    """
    broker = config.broker
    client_id = config.client_id if as_device else config.client_id + SUFFIX
    is_clean = config.clean_session or not as_device
    session: dict[str, Any] = {}
    if config.protocol_version == _MQTT_5:
        session = {"clean_start": is_clean, "properties": None if is_clean else with_session_expiry(None)}
    tls_config = (config.tls_config or TLSConfig()) if broker.tls else None
    connector = SecureConnector(tls_config, broker.host)
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if session else is_clean,
        protocol=MQTTProtocolVersion(config.protocol_version),
        transport=broker.transport,
        reconnect_on_failure=False,
        connector=connector,
    )
    answers: list[ReasonCode] = []
    told: list[Properties | None] = []
    is_over = threading.Event()

    def on_connect(_client: Any, _userdata: Any, _flags: Any, reason: ReasonCode, properties: Any) -> None:
        told.append(properties)
        answers.append(reason)
        is_over.set()

    client.on_connect = on_connect
    client.on_disconnect = lambda *_: is_over.set()
    started_s = time.monotonic()
    deadline_s = started_s + config.connection_timeout_s
    try:
        equip(client, config, broker, connector)
        client.connect(broker.host, broker.port, bind_address=config.local_address or "", **session)
        client.loop_start()
        # At the deadline it was the client that ended it.
        ended = is_over.wait(deadline_s - time.monotonic()) and time.monotonic() < deadline_s
    except WebsocketConnectionError:
        return _crossed(config) or Finding("login", "failed", "no WebSocket is spoken there", _WEBSOCKET_ADVICE)
    except OSError as error:
        failure = explain(error, broker.host)
        return Finding("login", "failed", failure.found, failure.advice)
    finally:
        client.close()
    if not answers:
        return _unanswered(config, ended=ended)
    if answers[0].is_failure:
        text, _, advice = str(refusal(answers[0], config.broker_url, told[0])).rpartition("; ")
        if not as_device and answers[0].value in (133, 135):
            advice += "; where the broker knows the device's own id only, try --as-device while its service is stopped"
        return Finding("login", "failed", text, advice)
    took_ms = (time.monotonic() - started_s) * 1e3
    who = f"{client_id!r}" + (f" and user {config.username!r}" if config.username is not None else "")
    found = f"accepted as {who} in {took_ms:.1f} ms"
    if config.protocol_version != _MQTT_5:
        found += ", with MQTT 3.1.1; mosquitto keeps its word on QoS 2 better, and faster, with protocol_version 5"
    return Finding("login", "ok", found)


def _crossed(config: MQTTConfig) -> Finding | None:
    """A TLS port that was spoken to in the clear."""
    if config.broker.tls or not speaks_tls(config.broker, config.connection_timeout_s):
        return None
    found = "TLS is spoken there, and it was spoken to in the clear"
    return Finding("login", "failed", found, "use ssl:// (or wss://) in broker_url")


def _unanswered(config: MQTTConfig, *, ended: bool) -> Finding:
    """No CONNACK came. ended: the broker has closed the connection."""
    crossed = _crossed(config)
    if crossed is not None:
        return crossed
    if not ended:
        advice = "see whether an MQTT broker listens there, and its log"
        return Finding("login", "failed", "the broker did not answer CONNECT in time", advice)
    found = "the broker closed the connection before CONNACK"
    advice = (
        "see whether an MQTT broker listens there, and its log: it may refuse the version, the client id or the user"
    )
    return Finding("login", "failed", found, advice)
