"""The settings of an MQTTManager, checked when they are made (specification, "Configuration")."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, urlsplit

from glec_fast.errors import ConfigError
from glec_fast.fleet.properties import load_properties
from glec_fast.tls.config import TLSConfig
from glec_fast.validation import check_topic_level, is_utf8

_DEFAULT_PORTS = {"tcp": 1883, "mqtt": 1883, "ssl": 8883, "mqtts": 8883, "ws": 80, "wss": 443}
_TLS_SCHEMES = {"ssl", "mqtts", "wss"}
# Also percent-encoded, once or more often.
_CREDENTIALS = re.compile("@|%(25)*40")
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*\.?")
_KEEPALIVE_MAX_S = 65_535
_TEXT_MAX_BYTES = 65_535
_PROTOCOL_VERSIONS = (4, 5)


class Broker(NamedTuple):
    """Where a broker listens. `transport` is paho's name: tcp or websockets."""

    host: str
    port: int
    tls: bool
    transport: Literal["tcp", "websockets"]
    path: str


@dataclass(frozen=True)
class MQTTConfig:
    """Settings of one gateway; immutable. Raises ConfigError for one that is malformed or contradicts another.

    broker_url: tcp://, ssl:// (mqtts://), ws:// or wss://, host, optional port (1883, 8883, 80, 443), path for ws.
    client_id: also the device id in topics. username, password: None for none; a password needs a username.
    tls_config: None uses the system's certificate authorities for ssl and wss.
    queue_path: the queue file. queue_max_size: messages; the oldest go first. queue_ttl_hours: age of expiry.
    queue_max_retry: refusals by the broker until a message is given up.
    connection_timeout_s: for TCP and TLS together. keepalive_s: MQTT keep alive, 0 to 65,535, 0 turns it off.
    protocol_version: as in CONNECT: 4 is MQTT 3.1.1, 5 is MQTT 5.
    clean_session: False keeps the session at the broker, which exactly-once needs; in MQTT 5, one that does not end.
    auto_reconnect: False gives up after the first failure or loss of the connection.
    retry_*: waits of retry_initial_delay_ms, doubled each time, for retry_max_attempts; then retry_max_delay_ms, for
    ever.
    max_in_flight: most unacknowledged messages, 1 to 65,534.
    max_unreleased: the broker's limit of QoS 2 messages without PUBREL, 2 to 65,534; fewer are sent ahead. mosquitto
    (max_inflight_messages, 20 by default) acknowledges what is above it, and never hands it on.
    status_interval_s: between two status heartbeats; 0 turns them off.
    qos0_commit_delay_s: how long a queued QoS 0 message may wait in memory for others to share a transaction.
    wait_for_disk: `publish` of QoS 2 returns only once the message is on disk.
    resend_in_doubt: what to do where a broker acknowledged a QoS 2 message with PUBREC and then lost its session. True
    sends it again, and it may arrive twice; False leaves it to the broker, and it may be missing. See `in_doubt()`.
    """

    broker_url: str
    client_id: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls_config: TLSConfig | None = None
    queue_path: str | os.PathLike[str] = "queue.db"
    queue_max_size: int = 10_000
    queue_ttl_hours: float = 24
    queue_max_retry: int = 3
    connection_timeout_s: float = 30
    keepalive_s: int = 60
    protocol_version: int = 4
    clean_session: bool = False
    auto_reconnect: bool = True
    retry_max_attempts: int = 5
    retry_initial_delay_ms: int = 2000
    retry_max_delay_ms: int = 60_000
    max_in_flight: int = 1000
    max_unreleased: int = 20
    status_interval_s: float = 300
    qos0_commit_delay_s: float = 5
    wait_for_disk: bool = True
    resend_in_doubt: bool = False

    def __post_init__(self) -> None:
        broker = parse_broker_url(self.broker_url)
        check_topic_level("client_id", self.client_id)
        check_queue_settings(self.queue_max_size, self.queue_ttl_hours, self.queue_max_retry)
        _check_text("username", self.username)
        _check_text("password", self.password)
        _check_path("queue_path", self.queue_path)
        for name in ("clean_session", "auto_reconnect", "wait_for_disk", "resend_in_doubt"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} must be True or False")
        if type(self.protocol_version) is not int or self.protocol_version not in _PROTOCOL_VERSIONS:
            raise ConfigError("protocol_version must be 4 (MQTT 3.1.1) or 5 (MQTT 5)")
        if self.tls_config is not None and not isinstance(self.tls_config, TLSConfig):
            raise ConfigError(f"tls_config is {type(self.tls_config).__name__}; it must be a TLSConfig or None")
        if self.password is not None and self.username is None:
            raise ConfigError("password is set but username is not; MQTT 3.1.1 sends a password only with a user name")
        if self.tls_config is not None and not broker.tls:
            what = "certificate pins are" if self.tls_config.certificate_pins else "tls_config is"
            raise ConfigError(f"{what} set but broker_url is not encrypted: use ssl:// or wss://")
        _check_number("connection_timeout_s", self.connection_timeout_s, 0.001, 3600)
        _check_whole("keepalive_s", self.keepalive_s, 0, _KEEPALIVE_MAX_S)
        _check_whole("retry_max_attempts", self.retry_max_attempts, 0, 32)
        _check_whole("retry_initial_delay_ms", self.retry_initial_delay_ms, 1, 3_600_000)
        _check_whole("retry_max_delay_ms", self.retry_max_delay_ms, 1, 86_400_000)
        _check_whole("max_in_flight", self.max_in_flight, 1, 65_534)
        _check_whole("max_unreleased", self.max_unreleased, 2, 65_534)
        _check_number("status_interval_s", self.status_interval_s, 0, 86_400)
        _check_number("qos0_commit_delay_s", self.qos0_commit_delay_s, 0, 3600)

    @classmethod
    def from_properties(
        cls, path: str | os.PathLike[str], *, device_id: str | None = None, password: str | None = None
    ) -> MQTTConfig:
        """Read the specification's broker_config.properties; see `glec_fast.fleet.properties` for its placeholders.

        device_id: the client id, and what {DEVICE_ID} stands for. password: what {SECURE_PASSWORD} stands for; it goes
        before a password in the file. Raises ConfigError, with the line where one is to blame.
        """
        return load_properties(path, cls, device_id=device_id, password=password)

    def is_tls_enabled(self) -> bool:
        """True where the broker is reached over TLS."""
        return self.broker.tls

    @property
    def broker(self) -> Broker:
        """`broker_url`, taken apart."""
        return parse_broker_url(self.broker_url)


def parse_broker_url(url: str) -> Broker:
    """Take a broker URL apart. Raises ConfigError."""
    if not isinstance(url, str):
        raise ConfigError(f"broker_url is {type(url).__name__}; it must be str, such as ssl://host:8883")
    # None of these repeats the URL: what is malformed may hold a password in any form.
    if _CREDENTIALS.search(url):
        raise ConfigError("broker_url holds credentials; give them as username and password, so that no log shows them")
    if not url.isprintable() or " " in url:
        raise ConfigError("broker_url has a space or control character; remove it")
    parts, port = _split(url)
    if parts is None or port == 0:
        raise ConfigError("broker_url has no valid host and port; write it as ssl://host:8883, the port 1 to 65535")
    if parts.scheme not in _DEFAULT_PORTS:
        raise ConfigError(f"broker_url must begin with one of {', '.join(s + '://' for s in _DEFAULT_PORTS)}")
    if not parts.hostname or not _is_host(parts.hostname, is_bracketed="[" in parts.netloc):
        raise ConfigError(f"broker_url has no valid host; write it as {parts.scheme}://host:port")
    websockets = parts.scheme in ("ws", "wss")
    if parts.query or parts.fragment or (parts.path not in ("", "/") and not websockets):
        raise ConfigError(f"broker_url has a path or query, which {parts.scheme}:// does not use")
    return Broker(
        parts.hostname,
        port if port is not None else _DEFAULT_PORTS[parts.scheme],
        parts.scheme in _TLS_SCHEMES,
        "websockets" if websockets else "tcp",
        parts.path or "/mqtt",
    )


def _split(url: str) -> tuple[SplitResult | None, int | None]:
    """The URL's parts and its port; no parts where they cannot be told apart."""
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError:
        return None, None


def _is_host(host: str, *, is_bracketed: bool) -> bool:
    """A name of letters of any script, digits, hyphens and underscores; in brackets an IPv6 address."""
    if not is_bracketed:
        return _NAME.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def check_queue_settings(max_queue_size: int, ttl_hours: float, max_retry: int) -> None:
    """Refuse settings that no queue can work with. Raises ConfigError."""
    _check_whole("queue size", max_queue_size, 1, 100_000_000)
    _check_number("queue TTL in hours", ttl_hours, 0.0001, 24 * 3660)
    _check_whole("queue retry limit", max_retry, 1, 1_000_000)


def _check_text(name: str, value: object) -> None:
    # Without the value: one of them is the password.
    if value is None:
        return
    if not isinstance(value, str) or not is_utf8(value) or len(value.encode()) > _TEXT_MAX_BYTES:
        raise ConfigError(f"{name} must be a str of at most {_TEXT_MAX_BYTES} bytes of UTF-8, or None")


def _check_path(name: str, value: object) -> None:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ConfigError(f"{name} must be the path of a file")


def _check_whole(name: str, value: object, lowest: int, highest: int) -> None:
    if type(value) is not int or not lowest <= value <= highest:
        raise ConfigError(f"{name} must be a whole number from {lowest} to {highest}")


def _check_number(name: str, value: object, lowest: float, highest: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest <= value <= highest:
        raise ConfigError(f"{name} must be a number from {lowest} to {highest}")
