"""The settings of an MQTTManager, checked when they are made (specification, "Configuration")."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, urlsplit

from glec_fast.durable.limits import ALERTS_FIRST, FIFO, OLDEST, THIN
from glec_fast.durable.quarantine import DEFAULT_QUARANTINE_DAYS, DEFAULT_QUARANTINE_SIZE
from glec_fast.errors import ConfigError
from glec_fast.outbox.owners import Owner
from glec_fast.settings import (
    FLAG,
    OPTIONAL_PATH,
    PATH,
    Kind,
    check_settings,
    comma_separated,
    number,
    one_of,
    optional_text,
    parsed,
    parsed_list,
    refusing_unknown,
    setting,
    settings_of,
    trimmed,
    whole,
)
from glec_fast.tls.config import TLSConfig
from glec_fast.transport.way_out import SocketOption, parse_interface, parse_option, parse_proxy
from glec_fast.validation import PACKET_MAX_BYTES, check_topic_level, is_utf8

_DEFAULT_PORTS = {"tcp": 1883, "mqtt": 1883, "ssl": 8883, "mqtts": 8883, "ws": 80, "wss": 443}
TLS_SCHEMES = {"ssl", "mqtts", "wss"}
# Also percent-encoded, once or more often.
_CREDENTIALS = re.compile("@|%(25)*40")
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*\.?")
_KEEPALIVE_MAX_S = 65_535
# RFC 9110, 5.6.2.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAME_MAX = 255


class Broker(NamedTuple):
    """Where a broker listens. `transport` is paho's name: tcp or websockets."""

    host: str
    port: int
    tls: bool
    transport: Literal["tcp", "websockets"]
    path: str

    @property
    def address(self) -> str:
        """What its session is called where no name is given."""
        return f"{self.host}:{self.port}"


class Target(NamedTuple):
    """One way to connect. owner: whose the session there is."""

    url: str
    broker: Broker
    owner: Owner


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (colon and _HEADER_NAME.fullmatch(name) and value.strip().isascii() and value.strip().isprintable()):
        raise ValueError("it must be a header of HTTP as Name: value")
    return name, value.strip()


def _ip_address(text: str) -> object:
    # ipaddress would repeat the text, which may be a secret in the wrong place.
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            return socket.inet_pton(family, text.partition("%")[0] if family == socket.AF_INET6 else text)
    raise ValueError("it must be an IP address of this machine")


@refusing_unknown
@dataclass(frozen=True)
class MQTTConfig:
    """Settings of one gateway; immutable. Raises ConfigError for one that is malformed or contradicts another.

    docs/settings.md has them all, with ranges, units, and their names in broker_config.properties and in the
    environment of `glec-fast service`:

        MQTTConfig("ssl://mqtt.example.com", "DTG-SN-12345", queue_ttl_hours=72)
    """

    broker_url: str = setting(
        "",
        "mqtt.broker.url",
        Kind("URL", trimmed, lambda _name, value: parse_broker_url(value)),
        "tcp:// (mqtt://), ssl:// (mqtts://), ws:// or wss://, the host, unless it is 1883, 8883, 80 or 443 the "
        "port, and for ws the path. Not needed with broker_urls; one that is not among them goes before them.",
    )
    client_id: str = setting(
        "",
        "mqtt.client.id",
        Kind("text without /, + and #", str, check_topic_level, is_verbatim=True),
        "Who we are to the broker, and the device's level of its topics.",
    )
    username: str | None = setting(None, "mqtt.broker.username", optional_text(), "The user's name at the broker.")
    password: str | None = setting(
        None, "mqtt.broker.password", optional_text(is_secret=True), "It needs a username.", credential="password"
    )
    # Its own settings are described there.
    tls_config: TLSConfig | None = None
    queue_path: str | os.PathLike[str] = setting(
        "queue.db", "mqtt.queue.path", PATH, "The queue file. The service has it in its state directory."
    )
    queue_max_size: int = setting(
        10_000,
        "mqtt.queue.max_size",
        whole(1, 100_000_000, "messages"),
        "What the queue holds; `overflow` says what a full one drops.",
    )
    queue_ttl_hours: float = setting(
        24, "mqtt.queue.ttl_hours", number(0.0001, 24 * 3660, "hours"), "The age at which a message is dropped."
    )
    queue_max_retry: int = setting(
        3,
        "mqtt.queue.max_retry",
        whole(1, 1_000_000, "refusals"),
        "By the broker, of one message, by a reason code or by ending the connection over it, until it goes into "
        "quarantine.",
    )
    quarantine_max_size: int = setting(
        DEFAULT_QUARANTINE_SIZE,
        "mqtt.quarantine.max_size",
        whole(1, 1_000_000, "messages"),
        "What quarantine holds of messages that the broker would not take, in a quarter of queue_max_bytes at most; "
        "the oldest go first.",
    )
    quarantine_days: float = setting(
        DEFAULT_QUARANTINE_DAYS,
        "mqtt.quarantine.days",
        number(0.001, 36_600, "days"),
        "How long a message stays in quarantine.",
    )
    max_qos: int = setting(
        2,
        "mqtt.connection.max_qos",
        one_of({0: "at most once", 1: "at least once", 2: "exactly once"}),
        "The highest QoS that the broker takes: what has a higher one is sent with this. In MQTT 5 it says so.",
    )
    max_packet_bytes: int = setting(
        PACKET_MAX_BYTES,
        "mqtt.connection.max_packet_bytes",
        whole(64, PACKET_MAX_BYTES, "bytes"),
        "The largest packet that the broker takes; `publish` refuses what needs a larger one.",
    )
    connection_timeout_s: float = setting(
        30, "mqtt.connection.timeout", number(0.001, 3600, "s"), "For TCP, TLS and the broker's CONNACK together."
    )
    keepalive_s: int = setting(
        60, "mqtt.connection.keepalive", whole(0, _KEEPALIVE_MAX_S, "s"), "MQTT's keep alive; 0 turns it off."
    )
    protocol_version: int = setting(
        4, "mqtt.protocol.version", one_of({4: "MQTT 3.1.1", 5: "MQTT 5"}), "As in CONNECT."
    )
    clean_session: bool = setting(
        False,
        "mqtt.connection.clean_session",
        FLAG,
        "Off, the broker keeps the session, which exactly-once needs; in MQTT 5, one that does not end.",
    )
    auto_reconnect: bool = setting(
        True, "mqtt.connection.auto_reconnect", FLAG, "Off, the first failure or loss of the connection is the last."
    )
    retry_max_attempts: int = setting(
        5,
        "mqtt.retry.max_attempts",
        whole(0, 32, "attempts"),
        "Each waits twice as long as the one before it. After them the wait is retry_max_delay_ms, for ever.",
    )
    retry_initial_delay_ms: int = setting(
        2000, "mqtt.retry.initial_delay_ms", whole(1, 3_600_000, "ms"), "The wait before the first."
    )
    retry_max_delay_ms: int = setting(
        60_000, "mqtt.retry.max_delay_ms", whole(1, 86_400_000, "ms"), "The longest wait."
    )
    proxy_url: str | None = setting(
        None,
        "mqtt.proxy.url",
        parsed("URL", parse_proxy, is_secret=True),
        "http://, socks4://, socks5:// or, to have the proxy look up the broker's name, socks4a://, socks5h://; then "
        "user:password@ if need be, host and port. It needs PySocks: pip install glec-fast[proxy].",
    )
    websocket_headers: tuple[str, ...] = setting(
        (),
        "mqtt.websocket.headers",
        parsed_list("Name: value", _header, is_secret=True),
        "Sent with the upgrade to a WebSocket, such as a token that the server asks for.",
    )
    local_address: str | None = setting(
        None, "mqtt.connection.local_address", parsed("IP address", _ip_address), "The address that is connected from."
    )
    network_interface: str | None = setting(
        None,
        "mqtt.connection.network_interface",
        parsed("name of an interface", parse_interface),
        "The only one that is connected over, such as wwan0 (SO_BINDTODEVICE, Linux).",
    )
    socket_options: tuple[str, ...] = setting(
        (),
        "mqtt.connection.socket_options",
        parsed_list("NAME=NUMBER", parse_option),
        "Of setsockopt(2), by the names of socket(7), tcp(7), ip(7) and ipv6(7), such as SO_SNDBUF=65536.",
    )
    retry_jitter: str = setting(
        "equal",
        "mqtt.retry.jitter",
        one_of({"none": "the waits as they are", "equal": "half of each is random", "full": "all of each is random"}),
        "Makes the waits upper bounds, so that gateways that lost a broker together come back one by one.",
    )
    max_in_flight: int = setting(
        1000,
        "mqtt.connection.max_in_flight",
        whole(1, 65_534, "messages"),
        "The most that are unacknowledged at once, and that are held in memory.",
    )
    max_unreleased: int = setting(
        20,
        "mqtt.connection.max_unreleased",
        whole(1, 65_534, "messages"),
        "The broker's limit of QoS 2 messages without PUBREL; fewer are sent ahead. mosquitto "
        "(max_inflight_messages) acknowledges what is above it, and never hands it on.",
    )
    status_interval_s: float = setting(
        300,
        "mqtt.status.interval_s",
        number(0, 86_400, "s"),
        "Between two status heartbeats; 0: no status but the will.",
    )
    qos0_commit_delay_s: float = setting(
        5,
        "mqtt.queue.qos0_commit_delay_s",
        number(0, 3600, "s"),
        "How long a queued QoS 0 message may wait in memory for others to share a transaction.",
    )
    wait_for_disk: bool = setting(
        True, "mqtt.queue.wait_for_disk", FLAG, "On, `publish` of QoS 2 returns only once the message is on disk."
    )
    resend_in_doubt: bool = setting(
        False,
        "mqtt.queue.resend_in_doubt",
        FLAG,
        "Of a QoS 2 message that a broker acknowledged with PUBREC before it lost its session: on, it is sent "
        "again and may arrive twice; off, it is left to the broker and may be missing.",
    )
    broker_urls: Sequence[str] = setting(
        (),
        "mqtt.broker.urls",
        Kind("URLs; several with commas between them", comma_separated, lambda _name, value: _check_urls(value)),
        "Several ways to a broker, or several brokers, all with TLS or none: in this order, the next where one "
        "does not answer, and back to the first once it does.",
    )
    broker_name: str | Sequence[str] | None = setting(
        None,
        "mqtt.broker.name",
        Kind(
            "text; several with commas between them",
            lambda text: _names_from(text),
            lambda _name, value: _check_names(value),
        ),
        "Whose the session is. All URLs lead to one session (one broker, a cluster) unless there are as many names "
        "as URLs, one for each. Without a name it is host:port of the first URL; with one, URLs may change.",
    )
    on_owner_away: str = setting(
        "move",
        "mqtt.broker.on_owner_away",
        one_of({"wait": "", "move": ""}),
        "What becomes of QoS 2 messages in flight with a broker where a broker of another name is connected to: "
        "wait for the first, or move to the other, where they may arrive twice (see docs/guarantees.md).",
    )
    queue_max_bytes: int = setting(
        50_000_000,
        "mqtt.queue.max_bytes",
        whole(1_000_000, 1_000_000_000_000, "bytes"),
        "What the queue file may grow to; its log takes 1 MB more.",
    )
    overflow: str = setting(
        THIN,
        "mqtt.queue.overflow",
        one_of({THIN: "", OLDEST: ""}),
        "What a full queue drops: QoS 0 before QoS 1, and that before QoS 2, the oldest first. thin drops every "
        "second message of the older half of QoS 0 instead, so that a long way is kept at a coarser grain. "
        "oldest with the order fifo drops the oldest, whatever its QoS.",
    )
    queue_order: str = setting(
        ALERTS_FIRST,
        "mqtt.queue.order",
        one_of({ALERTS_FIRST: "", FIFO: ""}),
        "alerts_first sends what has QoS 2 ahead of all that waits, and each QoS in the order in which it came. "
        "fifo sends all in that order.",
    )
    status_retained: bool = setting(
        True,
        "mqtt.status.retained",
        FLAG,
        "On, the broker keeps the last status, and the will, for consumers that come later.",
    )
    answer_timeout_s: float = setting(
        8,
        "mqtt.connection.answer_timeout",
        number(0, 3600, "s"),
        "After so long without anything that shows that what went out has arrived, PINGREQ asks; so long its "
        "answer may take. 0 leaves both to the keep alive.",
    )
    ack_timeout_s: float = setting(
        60,
        "mqtt.connection.ack_timeout",
        number(0, 86_400, "s"),
        "A message that is unacknowledged for so long, on a connection that lives, ends it, and goes again on the "
        "next. 0 is for ever.",
    )
    resend_unproven: bool = setting(
        False,
        "mqtt.queue.resend_unproven",
        FLAG,
        "Of QoS 0 messages that were on their way as a link died, and of which nothing proves that they arrived: "
        "on, they are queued again and may arrive twice; off, they are counted as lost in the air.",
    )
    flush_max_msg_s: int = setting(
        0,
        "mqtt.connection.flush_max_msg_s",
        whole(0, 1_000_000, "messages a second"),
        "The most that are sent, alerts first, where the broker ends connections over more (AWS IoT Core: 100). "
        "0 is as fast as it goes.",
    )

    handler_threads: int = setting(
        4,
        "mqtt.inbox.handler_threads",
        whole(1, 64, "threads"),
        "Threads at most that run handlers of messages and commands; they start when something comes.",
    )
    inbox_max_size: int = setting(
        1000,
        "mqtt.inbox.max_size",
        whole(1, 65_535, "messages"),
        "The most that have come and are not handled. More of QoS 0 are dropped; of QoS 1 and 2 the broker keeps "
        "them (Receive Maximum in MQTT 5).",
    )
    inbox_max_bytes: int = setting(
        4_000_000,
        "mqtt.inbox.max_bytes",
        whole(65_536, 268_435_455, "bytes"),
        "What these may take, and in MQTT 5 the largest packet that the broker may send.",
    )
    telemetry_batch_s: float = setting(
        0,
        "mqtt.telemetry.batch_s",
        number(0, 3600, "s"),
        "How long telemetry waits for more, to be one message of glec/dtg/{client_id}/telemetry/batch: a JSON "
        "array under zlib, sooner where it has 64 KiB of JSON. It is on disk within qos0_commit_delay_s. 0 sends "
        "each alone.",
    )
    metrics_socket: str | os.PathLike[str] | None = setting(
        None,
        "mqtt.metrics.socket",
        OPTIONAL_PATH,
        "A Unix socket of this program, made for its user and group, which `glec-fast metrics` and `glec-fast top` "
        "ask. The service is asked over its own.",
    )

    command_history_size: int = setting(
        1000,
        "mqtt.commands.history_size",
        whole(1, 1_000_000, "commands"),
        "The last commands whose replies are kept on disk, for duplicates; an older one would be run again. They "
        "take a quarter of queue_max_bytes at most.",
    )
    command_reply_max_bytes: int = setting(
        8192,
        "mqtt.commands.reply_max_bytes",
        whole(256, 1_000_000, "bytes"),
        "The largest reply to a command; in the place of a larger one goes an error.",
    )

    def __post_init__(self) -> None:
        _check_urls(self.broker_urls)
        object.__setattr__(self, "broker_urls", tuple(self.broker_urls))
        if self.broker_urls and self.broker_url == "":
            object.__setattr__(self, "broker_url", self.broker_urls[0])
        check_settings(self)
        broker = self.broker
        if any(each.tls != broker.tls for each in map(parse_broker_url, self.urls)):
            says = "broker_urls are encrypted in part: a password or message would go both ways; use TLS for all"
            raise ConfigError(says, field="broker_urls")
        if not isinstance(self.broker_name, str | None) and len(self.broker_name) != len(self.urls):
            says = f"broker_name has {len(self.broker_name)} names for {len(self.urls)} URLs: give one, or one for each"
            raise ConfigError(says, field="broker_name")
        if self.tls_config is not None and not isinstance(self.tls_config, TLSConfig):
            says = f"tls_config is {type(self.tls_config).__name__}; it must be a TLSConfig or None"
            raise ConfigError(says, field="tls_config")
        if self.password is not None and self.username is None:
            says = "password is set but username is not; MQTT 3.1.1 sends a password only with a user name"
            raise ConfigError(says, field="password")
        if self.tls_config is not None and not broker.tls:
            what = "certificate pins are" if self.tls_config.certificate_pins else "tls_config is"
            says = f"{what} set but broker_url is not encrypted: use ssl:// or wss://"
            raise ConfigError(says, field="tls_config")

    @classmethod
    def from_properties(
        cls, path: str | os.PathLike[str], *, device_id: str | None = None, password: str | None = None
    ) -> MQTTConfig:
        """Read the specification's broker_config.properties; see `glec_fast.fleet.properties` for its placeholders.

        path: of the file. device_id: the client id, and what {DEVICE_ID} stands for. password: what {SECURE_PASSWORD}
        stands for; it goes before a password in the file. Raises ConfigError, with the line where one is to blame.
        """
        from glec_fast.fleet.properties import load_properties

        return load_properties(path, cls, device_id=device_id, password=password)

    @property
    def headers(self) -> dict[str, str]:
        """`websocket_headers`, taken apart."""
        return dict(_header(each) for each in self.websocket_headers)

    @property
    def options(self) -> list[SocketOption]:
        """What each socket is to have before it connects."""
        options = [parse_option(each) for each in self.socket_options]
        if self.network_interface is not None:
            options.append(parse_interface(self.network_interface))
        return options

    def is_tls_enabled(self) -> bool:
        """True where the broker is reached over TLS."""
        return self.broker.tls

    @property
    def broker(self) -> Broker:
        """`broker_url`, taken apart."""
        return parse_broker_url(self.broker_url)

    @property
    def urls(self) -> tuple[str, ...]:
        """All that are connected to, in order."""
        urls = tuple(dict.fromkeys(self.broker_urls))
        return urls if self.broker_url in urls else (self.broker_url, *urls)

    @property
    def targets(self) -> tuple[Target, ...]:
        """One for each of `urls`."""
        brokers = [parse_broker_url(url) for url in self.urls]
        names = self.broker_name
        if names is None:
            names = brokers[0].address
        names = (names,) * len(brokers) if isinstance(names, str) else tuple(names)
        members: dict[str, set[str]] = {name: set() for name in names}
        for broker, name in zip(brokers, names, strict=True):
            members[name].add(broker.address)
        owners = {name: Owner(name, frozenset(found), members.keys() - {name}) for name, found in members.items()}
        return tuple(
            Target(url, broker, owners[name]) for url, broker, name in zip(self.urls, brokers, names, strict=True)
        )


def check_config(config: object) -> None:
    """Refuse what are no settings. Raises ConfigError."""
    if not isinstance(config, MQTTConfig):
        raise ConfigError(f"config is {type(config).__name__}; give an MQTTConfig")


def parse_broker_url(url: str) -> Broker:
    """Take a broker URL apart. Raises ConfigError."""
    if not isinstance(url, str):
        raise ConfigError(
            f"broker_url is {type(url).__name__}; it must be str, such as ssl://host:8883", field="broker_url"
        )
    # None of these repeats the URL: what is malformed may hold a password in any form.
    if _CREDENTIALS.search(url):
        raise ConfigError(
            "broker_url holds credentials; give them as username and password, so that no log shows them",
            field="broker_url",
        )
    if not url.isprintable() or " " in url:
        raise ConfigError("broker_url has a space or control character; remove it", field="broker_url")
    parts, port = _split(url)
    if parts is None or port == 0:
        raise ConfigError(
            "broker_url has no valid host and port; write it as ssl://host:8883, the port 1 to 65535",
            field="broker_url",
        )
    if parts.scheme not in _DEFAULT_PORTS:
        raise ConfigError(
            f"broker_url must begin with one of {', '.join(s + '://' for s in _DEFAULT_PORTS)}", field="broker_url"
        )
    if not parts.hostname or not _is_host(parts.hostname, is_bracketed="[" in parts.netloc):
        raise ConfigError(f"broker_url has no valid host; write it as {parts.scheme}://host:port", field="broker_url")
    websockets = parts.scheme in ("ws", "wss")
    if parts.query or parts.fragment or (parts.path not in ("", "/") and not websockets):
        raise ConfigError(f"broker_url has a path or query, which {parts.scheme}:// does not use", field="broker_url")
    return Broker(
        parts.hostname,
        port if port is not None else _DEFAULT_PORTS[parts.scheme],
        parts.scheme in TLS_SCHEMES,
        "websockets" if websockets else "tcp",
        parts.path or "/mqtt",
    )


def _check_urls(value: object) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError("broker_urls must be a list of URLs, such as ssl://host:8883", field="broker_urls")
    for place, url in enumerate(value, 1):
        _check_url(place, url)


def _check_url(place: int, url: str) -> None:
    try:
        parse_broker_url(url)
    except ConfigError as error:
        says = str(error).replace("broker_url", f"number {place} of broker_urls", 1)
        raise ConfigError(says, field="broker_urls") from None


def _names_from(text: str) -> str | tuple[str, ...]:
    names = comma_separated(text)
    return names[0] if len(names) == 1 else names


def _check_names(value: object) -> None:
    if value is None:
        return
    names = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
    for name in names or [None]:
        if not isinstance(name, str) or not is_utf8(name) or not name.isprintable() or not 0 < len(name) <= _NAME_MAX:
            says = f"broker_name must be a text of 1 to {_NAME_MAX} characters, or one for each URL"
            raise ConfigError(says, field="broker_name")


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
    # Rare, and 150 KiB.
    import ipaddress

    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def check_queue_settings(max_queue_size: int, ttl_hours: float, max_retry: int) -> None:
    """Refuse settings that no queue can work with; they have other names in MQTTConfig. Raises ConfigError."""
    described = settings_of(MQTTConfig)
    described["queue_max_size"].kind.check("max_queue_size", max_queue_size)
    described["queue_ttl_hours"].kind.check("ttl_hours", ttl_hours)
    described["queue_max_retry"].kind.check("max_retry", max_retry)
