"""A properties file with secrets in it, damaged in every way: nothing that is said about it repeats any of them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from glec_fast import ConfigError, MQTTConfig, TLSConfig
from glec_fast.cli.main import main
from glec_fast.fleet.properties import SETTINGS

# None of them has a part that is in a setting's name, a path or an error; in the last, %40 is the @ of it.
PASSWORD = "Zq7xKw93vJhQ"
KEY_PASSWORD = "Yp4%40Gz8bXnR"
PRIVATE_KEY = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgVcB"
PARTS = 5
URLS = ["tcp://127.0.0.1:1", f"tcp://u:{PASSWORD}", f"tcp://u:{PASSWORD}@127.0.0.1:1", f"tcp://u:{KEY_PASSWORD}h"]
LINES = {
    "mqtt.broker.url": "tcp://127.0.0.1:1",
    "mqtt.broker.username": "gw-{DEVICE_ID}",
    "mqtt.broker.password": PASSWORD,
    "mqtt.connection.keepalive": "60",
    "mqtt.queue.path": "q.db",
    "mqtt.tls.key_password": KEY_PASSWORD,
    "mqtt.tls.version": "TLSv1.2",
}
# A value of these is either what it must be or refused; user name, client id, broker name and paths may be any text.
TYPED = [key for key, setting in SETTINGS.items() if not setting.kind.is_secret and not setting.kind.is_path]
TYPED.remove("mqtt.broker.username")
TYPED.remove("mqtt.client.id")
TYPED.remove("mqtt.broker.name")
TYPED.remove("mqtt.connection.network_interface")


def said_of(path: Path) -> str:
    """All that a load, a doctor and their logs say."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    logging.getLogger("glec_fast").addHandler(handler)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                made = MQTTConfig.from_properties(path, device_id="D-1")
                out.write(f"{made!r} {made} {made.tls_config!r}")
            except ConfigError as error:
                out.write("".join(traceback.format_exception(error)))
                chain: BaseException | None = error
                while chain is not None:
                    out.write(f"{chain!r} {chain.args!r} {vars(chain)!r}")
                    chain = chain.__cause__ or chain.__context__
            main(["doctor", "--device-id", "D-1", "--config", str(path)])
    finally:
        logging.getLogger("glec_fast").removeHandler(handler)
    return out.getvalue()


def assert_nothing_shown(content: bytes, directory: Path) -> None:
    path = directory / "c.properties"
    path.write_bytes(content)
    said = said_of(path).replace(str(directory), "").lower()
    assert "settings" in said, "the control: the doctor has spoken"
    for secret in (PASSWORD, KEY_PASSWORD, KEY_PASSWORD.replace("%40", "@"), PRIVATE_KEY):
        for start in range(len(secret) - PARTS + 1):
            part = secret[start : start + PARTS].lower()
            assert part not in said, (part, content, said)


def text_of(lines: dict[str, str]) -> str:
    return "".join(f"{key}={value}\n" for key, value in lines.items())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("p")


def damage(draw: Any, text: str) -> bytes:
    kind = draw(st.sampled_from(DAMAGE))
    lines = text.split("\n")
    at = draw(st.integers(0, len(lines) - 2))
    if kind == "cut":
        return text[: draw(st.integers(0, len(text)))].encode()
    if kind == "cut the beginning":
        return text[draw(st.integers(0, len(text))) :].encode()
    if kind == "join":
        lines[at : at + 2] = [lines[at] + draw(st.sampled_from(["", " ", "\\\n", "\\\n  ", "\t"])) + lines[at + 1]]
    elif kind == "break":
        position = draw(st.integers(0, len(lines[at])))
        between = draw(st.sampled_from(["\n", "\r", "\\\n", "\\\r\n   ", "\n  ", "\\\n\n", "\\\n="]))
        lines[at] = lines[at][:position] + between + lines[at][position:]
    elif kind == "separator":
        lines[at] = lines[at].replace("=", draw(st.sampled_from([":", " ", "", "\t", "==", "\\=", ": ", "=="])), 1)
    elif kind == "double":
        lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
    elif kind == "misspell":
        position = draw(st.integers(0, len(lines[at])))
        lines[at] = (
            lines[at][:position]
            + draw(st.sampled_from(["x", "", ".", "\\u00", "\0", "\ufeff", "ä", "\\"]))
            + (lines[at][position + draw(st.integers(0, 2)) :])
        )
    elif kind == "wrap":
        wrapped = draw(st.sampled_from(["{%s}", "${%s}", "${X:%s}", "{{%s}}", "$%s", "%%%s%%", '"%s"', "a %s", "%s\\"]))
        key, _, value = lines[at].partition("=")
        value = value.upper() if draw(st.booleans()) else value
        lines[at] = f"{key}={wrapped % value}"
    elif kind == "encoding":
        return text.encode(draw(st.sampled_from(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037"])))
    return "\n".join(lines).encode("latin-1" if draw(st.booleans()) and "\ufeff" not in "".join(lines) else "utf-8")


DAMAGE = ["cut", "cut the beginning", "join", "break", "separator", "double", "misspell", "wrap", "encoding"]


@st.composite
def damaged(draw: Any) -> bytes:
    lines = dict(LINES, **{"mqtt.broker.url": draw(st.sampled_from(URLS))})
    misplaced = draw(st.none() | st.sampled_from(TYPED))
    if misplaced is not None:
        lines[misplaced] = draw(st.sampled_from([PASSWORD, KEY_PASSWORD, PRIVATE_KEY]))
    if draw(st.booleans()):
        lines = dict(draw(st.permutations(list(lines.items()))))
    return damage(draw, text_of(lines))


# Derandomized: a secret may run into the name of a host, and nobody can tell one from the other.
@settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=damaged())
@example(content=b"mqtt.broker.url=tcp://127.0.0.1:1\nmqtt.broker.password=a\n  " + PASSWORD.encode() + b"=x\n")
@example(content=b"mqtt.broker.url=tcp://u:" + KEY_PASSWORD.encode() + b"\n")
@example(content=b"mqtt.broker.url=tcp://" + KEY_PASSWORD.encode() + b"\n")
@example(content=b"mqtt.broker.url=ws://u:1/" + KEY_PASSWORD.encode() + b"\n")
def test_a_damaged_file(content: bytes, directory: Path) -> None:
    assert_nothing_shown(content, directory)


@pytest.mark.parametrize("secret", [PASSWORD, KEY_PASSWORD, PRIVATE_KEY, f"u:{PASSWORD}"])
@pytest.mark.parametrize("key", TYPED)
def test_a_secret_in_the_place_of_another_value(key: str, secret: str, directory: Path) -> None:
    assert_nothing_shown(text_of({**LINES, key: secret}).encode(), directory)


@pytest.mark.parametrize("joint", ["", " ", "\\\n", "\\\n   ", "\\\r\n"])
@pytest.mark.parametrize("key", ["mqtt.broker.username", "mqtt.queue.path", "mqtt.tls.ca_cert", "mqtt.broker.url"])
@pytest.mark.parametrize("name", ["mqtt.broker.password", "mqtt.broker.pasword", "password", "word"])
def test_a_line_that_ran_into_the_next(key: str, joint: str, name: str, directory: Path) -> None:
    text = text_of({"mqtt.broker.url": "tcp://127.0.0.1:1", key: f"x{joint}{name}={PASSWORD}"})
    assert_nothing_shown(text.encode(), directory)


@pytest.mark.parametrize("separator", [":", " ", "\t", "\\ = "])
@pytest.mark.parametrize("key", ["mqtt.broker.username", "mqtt.queue.path", "mqtt.tls.ca_cert", "mqtt.broker.url"])
def test_a_setting_with_another_separator_that_ran_into_another(key: str, separator: str, directory: Path) -> None:
    text = text_of({"mqtt.broker.url": "tcp://127.0.0.1:1", key: f"x\\\nmqtt.broker.password{separator}{PASSWORD}"})
    assert_nothing_shown(text.encode(), directory)


@pytest.mark.parametrize("begin", ["-----BEGIN PRIVATE KEY-----", "---BEGIN PRIVATE KEY", "", "\\-----BEGIN RSA"])
@pytest.mark.parametrize("joint", ["\n", "\\\n", "\\n\\\n", " "])
@pytest.mark.parametrize("key", ["mqtt.tls.client_key", "mqtt.tls.ca_cert", "mqtt.tls.client_cert", "mqtt.queue.path"])
def test_a_private_key_in_the_file(begin: str, joint: str, key: str, directory: Path) -> None:
    other = {"mqtt.tls.client_key": "mqtt.tls.client_cert"}.get(key, "mqtt.tls.version")
    text = text_of(
        {"mqtt.broker.url": "ssl://127.0.0.1:1", other: "TLSv1.2", key: joint.join([begin, PRIVATE_KEY, PRIVATE_KEY])}
    )
    assert_nothing_shown(text.encode(), directory)


def test_a_private_key_in_place_of_the_file(directory: Path) -> None:
    assert_nothing_shown(f"-----BEGIN PRIVATE KEY-----\n{PRIVATE_KEY}\n-----END PRIVATE KEY-----\n".encode(), directory)


SETTINGS_BY_CODE = ["broker_url", "queue_path", "protocol_version", "keepalive_s", "queue_max_size", "wait_for_disk"]


@pytest.mark.parametrize("name", SETTINGS_BY_CODE)
def test_a_secret_in_the_place_of_another_setting(name: str) -> None:
    value: Any = [PASSWORD] if name == "queue_path" else f"u:{PASSWORD}"
    with pytest.raises(ConfigError) as caught:
        MQTTConfig(**{"broker_url": "tcp://h", "client_id": "D", name: value})
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url", [url for url in URLS if "127" not in url] + [f"wss://h/{KEY_PASSWORD}", f"u:{PASSWORD}"]
)
def test_a_password_in_a_url(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MQTTConfig(broker_url=url, client_id="D")
    shown = "".join(traceback.format_exception(caught.value)) + json.dumps(str(caught.value.__context__))
    assert not re.search(f"{PASSWORD}|{KEY_PASSWORD}", shown)


@pytest.mark.parametrize("name", ["tls_version", "verify_hostname", "certificate_pins", "key_password", "client_key"])
def test_a_secret_in_the_place_of_a_setting_of_tls(name: str) -> None:
    value: Any = [PRIVATE_KEY] if name == "certificate_pins" else PRIVATE_KEY
    with pytest.raises(ConfigError) as caught:
        TLSConfig(**{"ca_cert": "ca.crt", name: value})
    assert PRIVATE_KEY not in "".join(traceback.format_exception(caught.value))
