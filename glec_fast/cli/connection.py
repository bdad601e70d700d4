"""What `pub` and `sub` have in common: which broker, and a client for it that holds nothing on disk."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from glec_fast.cli.environment import CLIENT_ID, SETTINGS, URL, config_from
from glec_fast.engine.connector import SecureConnector
from glec_fast.engine.refusal import in_its_words, refusal
from glec_fast.errors import ConfigError, ConnectionLostError, GlecError, TLSError
from glec_fast.fleet.client import equip
from glec_fast.fleet.config import MQTTConfig
from glec_fast.mqtt.client import Client, parts_of
from glec_fast.settings import ENVIRONMENT_PREFIX
from glec_fast.tls.config import TLSConfig

if TYPE_CHECKING:
    import argparse

    from paho.mqtt.reasoncodes import ReasonCode

_MQTT_5 = MQTTProtocolVersion.MQTTv5
PASSWORD = next(name for name, each in SETTINGS.items() if each.name == "password")


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """--broker and what belongs to it, --config, or the environment of the service."""
    group = parser.add_argument_group("which broker (default: the environment of glec-fast service)")
    group.add_argument("--config", metavar="FILE", help="a broker_config.properties")
    group.add_argument("--device-id", metavar="ID", help="what {DEVICE_ID} in FILE stands for")
    group.add_argument("--broker", metavar="URL", help="in place of FILE, such as ssl://host:8883")
    group.add_argument("--ca-cert", metavar="FILE", help="the authority of --broker; without it, the system's")
    group.add_argument("--username", metavar="NAME", help=f"at --broker; its password comes from {PASSWORD}")
    group.add_argument("--client-id", metavar="ID", help="(default: the device's with -pub or -sub behind it)")


def config_of(arguments: argparse.Namespace) -> MQTTConfig:
    """The settings that the options name. Raises ConfigError."""
    return config_at("--broker URL", arguments.broker, arguments, arguments.client_id)


def config_at(option: str, url: str | None, arguments: argparse.Namespace, client_id: str | None = None) -> MQTTConfig:
    """The settings of a broker that is named by a URL alone, else those of --config or of the service's environment.

    option: what the URL is called on the command line. Raises ConfigError, in the command line's words.
    """
    named = option.partition(" ")[0]
    if url is None:
        for name in ("ca_cert", "username"):
            if getattr(arguments, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} belongs to {option}: name the broker as well")
        if arguments.config is not None:
            return MQTTConfig.from_properties(arguments.config, device_id=arguments.device_id)
        if arguments.device_id is not None:
            raise ConfigError(f"--device-id belongs to --config or {option}: name the broker as well")
        if not any(name.startswith((ENVIRONMENT_PREFIX, "CREDENTIALS_DIRECTORY")) for name in os.environ):
            raise ConfigError(f"no broker is named: give {option} or --config FILE, or set {URL} and {CLIENT_ID}")
        return config_from(os.environ)
    if arguments.config is not None:
        raise ConfigError(f"{named} and --config name two brokers: give one of them")
    try:
        return MQTTConfig(
            broker_url=url,
            client_id=client_id or arguments.device_id or f"glec-fast-{os.getpid()}",
            username=arguments.username,
            password=os.environ.get(PASSWORD) if arguments.username is not None else None,
            tls_config=None if arguments.ca_cert is None else TLSConfig(arguments.ca_cert),
        )
    except ConfigError as error:
        given = {"broker_url": named, "ca_cert": "--ca-cert", "tls_config": "--ca-cert", "username": "--username"}
        given |= {"client_id": "--device-id" if client_id is None else "--client-id", "password": PASSWORD}
        raise ConfigError(f"{given.get(error.field or '', named)}: {error}", field=error.field) from error


class Connection:
    """A client in memory, connected to the broker of the settings, for one command. A context manager.

    suffix: behind the device's client id, whose running service would be pushed off the broker. on_connected: called
    with the client at each connection. Raises BrokerRefusalError, TLSError and the others of connecting.
    """

    def __init__(self, config: MQTTConfig, client_id: str | None, suffix: str) -> None:
        self._config = config
        broker = config.broker
        connector = SecureConnector((config.tls_config or TLSConfig()) if broker.tls else None, broker.host)
        is_5 = config.protocol_version == _MQTT_5
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or config.client_id + suffix,
            clean_session=None if is_5 else True,
            protocol=MQTTProtocolVersion(config.protocol_version),
            transport=broker.transport,
            connector=connector,
        )
        equip(self.client, config, broker, connector)
        self._answered = threading.Event()
        self._refused: GlecError | None = None
        # CONNACK's properties (MQTT 5).
        self.told: Any = None
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        # How often a connection ended by itself, and for what.
        self.ends, self.cause = 0, ""
        self.on_connected: Any = None

    def __enter__(self) -> Connection:
        broker = self._config.broker
        try:
            address = self._config.local_address or ""
            self.client.connect(broker.host, broker.port, self._config.keepalive_s, address)
        except GlecError:
            raise
        except OSError as error:
            says = f"no connection to {self._config.broker_url}: {error.strerror or error}; ask `glec-fast doctor`"
            raise (TLSError if broker.tls else ConnectionLostError)(says) from error
        self.client.loop_start()
        if not self._answered.wait(self._config.connection_timeout_s):
            says = f"the broker did not answer CONNECT within {self._config.connection_timeout_s:g} s"
            self._refused = ConnectionLostError(f"{says}: ask `glec-fast doctor {self._config.broker_url}`")
        if self._refused is not None:
            self.__exit__()
            raise self._refused
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _on_disconnect(self, client: Any, _userdata: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        if reason.is_failure or flags.is_disconnect_packet_from_server:
            told = in_its_words(reason, properties)
            self.cause = told if flags.is_disconnect_packet_from_server else parts_of(client).ending.cause or told
            self.ends += 1
            if not self._answered.is_set():
                says = f"the connection ended before CONNACK: {self.cause}"
                self._refused = ConnectionLostError(f"{says}; ask `glec-fast doctor {self._config.broker_url}`")
                self._answered.set()

    def _on_connect(self, client: Any, _userdata: Any, _flags: Any, reason: ReasonCode, properties: Any) -> None:
        self.told = properties
        if reason.is_failure:
            self._refused = refusal(reason, self._config.broker_url, properties)
        elif self.on_connected is not None:
            self.on_connected(client)
        self._answered.set()
