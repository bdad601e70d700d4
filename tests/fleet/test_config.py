"""The settings: each malformed one is refused by name, contradictions are, and no text shows the password."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from glec_fast import MQTTConfig
from glec_fast.errors import ConfigError, GlecError
from glec_fast.fleet.config import Broker, check_queue_settings, parse_broker_url
from glec_fast.tls.config import TLSConfig

SECRET = "s3cr3t-pa55"


def config(**settings: Any) -> MQTTConfig:
    return MQTTConfig(**{"broker_url": "tcp://host", "client_id": "DTG-SN-12345", **settings})


def test_defaults_are_the_specifications() -> None:
    made = config()
    assert made.queue_max_size == 10_000
    assert made.queue_ttl_hours == 24
    assert made.queue_max_retry == 3
    assert made.connection_timeout_s == 30
    assert made.keepalive_s == 60
    assert made.clean_session is False
    assert made.auto_reconnect is True
    assert (made.retry_max_attempts, made.retry_initial_delay_ms, made.retry_max_delay_ms) == (5, 2000, 60_000)
    assert made.status_interval_s == 300


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("tcp://host", Broker("host", 1883, False, "tcp", "/mqtt")),
        ("mqtt://host:1", Broker("host", 1, False, "tcp", "/mqtt")),
        ("ssl://mqtt.fleet.glec.co.kr:8883", Broker("mqtt.fleet.glec.co.kr", 8883, True, "tcp", "/mqtt")),
        ("mqtts://host", Broker("host", 8883, True, "tcp", "/mqtt")),
        ("SSL://Host/", Broker("host", 8883, True, "tcp", "/")),
        ("ws://host", Broker("host", 80, False, "websockets", "/mqtt")),
        ("ws://host:8080/", Broker("host", 8080, False, "websockets", "/")),
        ("wss://host/a/b", Broker("host", 443, True, "websockets", "/a/b")),
        ("tcp://127.0.0.1:65535", Broker("127.0.0.1", 65535, False, "tcp", "/mqtt")),
        ("ssl://[2001:db8::1]:8883", Broker("2001:db8::1", 8883, True, "tcp", "/mqtt")),
    ],
)
def test_urls(url: str, broker: Broker) -> None:
    assert parse_broker_url(url) == broker
    assert config(broker_url=url).broker == broker


@pytest.mark.parametrize(
    "url",
    [
        None,
        b"tcp://host",
        "",
        "host",
        "host:1883",
        "http://host",
        "://host",
        "tcp:host",
        "tcp://",
        "tcp://:1883",
        "tcp://host:0",
        "tcp://host:65536",
        "tcp://host:-1",
        "tcp://host:port",
        "tcp://[::1",
        "tcp://host/path",
        "tcp://host?x=1",
        "tcp://host#x",
        "ws://host/a?x=1",
        "tcp://ho st",
        "tcp://host\n",
        "tcp://ho\tst",
        " tcp://host",
    ],
)
def test_malformed_urls(url: object) -> None:
    with pytest.raises(ConfigError, match="broker_url"):
        config(broker_url=url)


@pytest.mark.parametrize(
    "url",
    [
        f"ssl://user:{SECRET}@host",
        f"http://user:{SECRET}@host",
        f"ssl://user:{SECRET}@host:99999",
        f"ssl://{SECRET}@host/path",
        f"ssl://user:#{SECRET}@host",
        f"ssl://user:/{SECRET}@host:x",
        f"user:{SECRET}@host",
        f"ssl://user:{SECRET}@[host",
        f"ssl://user:{SECRET} @host",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="credentials") as caught:
        config(broker_url=url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


MALFORMED: dict[str, list[object]] = {
    "client_id": ["", None, "a/b", "a+", "#", "a\0", "a\n", 5, "x" * 65_536],
    "username": [5, b"user", "\ud800", "x" * 65_536],
    "password": [5, b"secret", "\ud800"],
    "tls_config": ["ca.crt", {}],
    "queue_path": ["", None, 5],
    "connection_timeout_s": [0, -1, math.nan, math.inf, "30", True, None],
    "protocol_version": [3, 6, 4.0, "5", True, None],
    "keepalive_s": [-1, 65_536, 1.5, "60", True, None],
    "clean_session": [1, "yes", None],
    "auto_reconnect": [0, "no", None],
    "wait_for_disk": [1, None],
    "resend_in_doubt": [1, None],
    "retry_max_attempts": [-1, 33, 1.0, None],
    "retry_initial_delay_ms": [0, -1, 1.5, None],
    "retry_max_delay_ms": [0, -1, 1.5, None],
    "proxy_url": ["", "proxy:8080", "ftp://proxy:1", "http://proxy", "socks5://:1080", "http://proxy:0", 5],
    "websocket_headers": [("X-Token",), ("X Token: a",), ("X: a\nY: b",), ["X: a"], "X: a", None],
    "local_address": ["", "localhost", "256.0.0.1", 5],
    "network_interface": ["", "a/b", "w" * 16, "é", 5],
    "socket_options": [("SO_SNDBUF",), ("SO_SNDBUF=x",), ("SO_NONE=1",), ("NI_MAXHOST=1",), "SO_SNDBUF=1", None],
    "retry_jitter": ["", "EQUAL", None, 1, True],
    "quarantine_max_size": [0, 1.5, None],
    "quarantine_days": [0, math.nan, None],
    "max_qos": [-1, 3, 1.0, True, None],
    "max_packet_bytes": [63, 268_435_461, 100.0, None],
    "max_in_flight": [0, 65_535, 1.0, None],
    "broker_urls": ["tcp://a", [5], ["a"], ["tcp://a", "ssl://b"], None, [f"tcp://u:{SECRET}@h"]],
    "broker_name": ["", 5, [], ["a"] * 3, [5], "a\n", "x" * 256],
    "on_owner_away": ["stay", None, True],
    "max_unreleased": [0, 65_535, 1.0, None],
    "flush_max_msg_s": [-1, 1_000_001, 1.5, True, None],
    "status_retained": [1, "yes", None],
    "status_interval_s": [-1, math.nan, math.inf, "300", True],
    "overflow": ["", "newest", None],
    "answer_timeout_s": [-1, math.nan, math.inf, "8", True, None],
    "ack_timeout_s": [-1, math.nan, math.inf, "60", True, None],
    "resend_unproven": [0, 1, "yes", "true", None],
    "qos0_commit_delay_s": [-1, math.nan, 3601, None],
    "telemetry_batch_s": [-1, math.nan, 3601, "1", True, None],
    "handler_threads": [0, 65, 1.0, True, None],
    "inbox_max_size": [0, 65_536, 1.0, True, None],
    "inbox_max_bytes": [65_535, 268_435_456, 1e6, None],
    "command_history_size": [0, 1_000_001, 1.0, True, None],
    "command_reply_max_bytes": [255, 1_000_001, 1e3, None],
    "metrics_socket": ["", 5, b"", True],
}
QUEUE_MALFORMED: dict[str, list[object]] = {
    "queue_max_size": [0, -1, 1.5, True, 100_000_001, None],
    "queue_max_bytes": [0, 999_999, 1e6, None],
    "queue_order": ["", "FIFO", "lifo", None, 1],
    "queue_ttl_hours": [0, -1, math.nan, math.inf, "24", True],
    "queue_max_retry": [0, -1, 1.5, True, None],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in MALFORMED.items() for value in values],
    ids=lambda value: repr(value)[:30],
)
def test_each_malformed_setting_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        config(**{"username": "user", name: value})
    assert isinstance(caught.value, (GlecError, ValueError))


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in QUEUE_MALFORMED.items() for value in values]
)
def test_each_malformed_setting_of_the_queue_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match="queue"):
        config(**{name: value})


def test_every_setting_is_tested() -> None:
    names = {field.name for field in dataclasses.fields(MQTTConfig)}
    assert names == {"broker_url", *MALFORMED, *QUEUE_MALFORMED}


@pytest.mark.parametrize(
    "settings",
    [
        {"keepalive_s": 0},
        {"keepalive_s": 65_535},
        {"status_interval_s": 0},
        {"qos0_commit_delay_s": 0},
        {"connection_timeout_s": 0.5},
        {"queue_ttl_hours": 0.001},
        {"queue_max_size": 1},
        {"retry_max_attempts": 0},
        {"queue_path": Path("queue.db")},
        {"username": "user"},
        {"username": "user", "password": ""},
        {"client_id": "x" * 100},
        {"broker_url": "ssl://host", "tls_config": TLSConfig("ca.crt")},
        {"broker_urls": ("tcp://host", "ws://other:80/mqtt")},
        {"broker_name": "fleet"},
        {"broker_name": ("fleet",)},
        {"max_unreleased": 1},
    ],
)
def test_limits_are_accepted(settings: dict[str, Any]) -> None:
    made = config(**settings)
    assert {name: getattr(made, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"password": SECRET}, "username is not"),
        ({"tls_config": TLSConfig("ca.crt")}, "not encrypted"),
        ({"tls_config": TLSConfig("ca.crt"), "broker_url": "ws://host"}, "not encrypted"),
    ],
)
def test_contradictions(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        config(**settings)
    assert SECRET not in str(caught.value)


def owners(**settings: Any) -> list[tuple[str, str, list[str]]]:
    made = MQTTConfig(client_id="DTG-1", **settings)
    return [(target.url, target.owner.name, sorted(target.owner.members)) for target in made.targets]


def test_several_urls_share_one_owner_unless_each_has_a_name() -> None:
    a, b = "tcp://a", "tcp://b:1"
    assert owners(broker_urls=[a, b]) == [(a, "a:1883", ["a:1883", "b:1"]), (b, "a:1883", ["a:1883", "b:1"])]
    assert owners(broker_url=b, broker_urls=[a, b, a]) == owners(broker_urls=[a, b])
    assert owners(broker_url=a, broker_urls=[b]) == owners(broker_urls=[a, b])
    assert owners(broker_url=a) == [(a, "a:1883", ["a:1883"])]
    shared = owners(broker_urls=[a, b], broker_name="fleet")
    assert [owner for _, owner, _ in shared] == ["fleet", "fleet"]
    apart = [(a, "north", ["a:1883"]), (b, "south", ["b:1"])]
    assert owners(broker_urls=[a, b], broker_name=["north", "south"]) == apart
    two = MQTTConfig(client_id="DTG-1", broker_urls=[a, b], broker_name=["north", "south"])
    assert [target.owner.apart for target in two.targets] == [{"south"}, {"north"}]
    assert MQTTConfig(client_id="DTG-1", broker_urls=[a, b]).broker_url == a


def test_a_config_without_a_broker_or_a_client_id_is_refused() -> None:
    for settings in ({}, {"client_id": "DTG-1"}, {"broker_url": "tcp://a"}, {"broker_urls": [], "client_id": "DTG-1"}):
        with pytest.raises(ConfigError, match=r"broker_url|client_id"):
            MQTTConfig(**settings)


def test_no_text_shows_the_password() -> None:
    made = config(username="user", password=SECRET)
    assert "user" in repr(made)
    assert SECRET not in repr(made)
    assert SECRET not in str(made)
    assert SECRET not in f"{made}"
    for bad in (SECRET.encode(), [SECRET]):
        with pytest.raises(ConfigError) as caught:
            config(username="user", password=bad)
        assert SECRET not in str(caught.value)


def test_no_text_shows_the_keys_password() -> None:
    made = config(broker_url="ssl://host", tls_config=TLSConfig("ca.crt", "client.crt", "client.key", SECRET))
    assert SECRET not in repr(made)


def test_settings_are_immutable() -> None:
    made = config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.client_id = "other"  # type: ignore[misc]
    assert dataclasses.replace(made, keepalive_s=5).keepalive_s == 5
    with pytest.raises(ConfigError):
        dataclasses.replace(made, keepalive_s=-5)


def test_queue_settings() -> None:
    assert check_queue_settings(1, 0.5, 1) is None
    for bad in ((0, 24, 3), (10, 0, 3), (10, 24, 0)):
        with pytest.raises(ConfigError):
            check_queue_settings(*bad)
