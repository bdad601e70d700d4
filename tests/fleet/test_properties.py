"""broker_config.properties: every key, typed; placeholders; and for each mistake an error with its line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from glec_fast import ConfigError, MQTTConfig
from glec_fast.fleet.properties import SETTINGS
from glec_fast.tls.config import TLSConfig
from support.setting_values import BACKUP, COMPANIONS, PIN, SETTING_VALUES

SECRET = "s3cr3t-pa55"
KEYS = {each.name: key for key, each in SETTINGS.items()}
# The specification's file, to the letter.
SPECIFIED = """\
# MQTT Broker
mqtt.broker.url=ssl://mqtt.fleet.glec.co.kr:8883
mqtt.broker.username=dtg-device-{DEVICE_ID}
mqtt.broker.password={SECURE_PASSWORD}

# Connection
mqtt.connection.timeout=30
mqtt.connection.keepalive=60
mqtt.connection.clean_session=false
mqtt.connection.auto_reconnect=true

# Retry
mqtt.retry.max_attempts=5
mqtt.retry.initial_delay_ms=2000
mqtt.retry.max_delay_ms=60000

# Queue
mqtt.queue.max_size=10000
mqtt.queue.ttl_hours=24
mqtt.queue.max_retry=3

# Security
mqtt.tls.enabled=true
mqtt.tls.ca_cert=mqtt_ca.crt
mqtt.tls.client_cert=client.crt
mqtt.tls.client_key=client.key
mqtt.tls.verify_hostname=true
"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEVICE_ID", "SECURE_PASSWORD", "KEY_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "broker_config.properties"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o600)
    return path


def load(directory: Path, text: str | bytes, **arguments: Any) -> MQTTConfig:
    return MQTTConfig.from_properties(write(directory, text), **{"device_id": "12345", **arguments})


def with_line(directory: Path, line: str, url: str = "ssl://host") -> MQTTConfig:
    user = "#" if line.startswith("mqtt.broker.username") else "mqtt.broker.username=user"
    return load(directory, f"mqtt.broker.url={url}\n{user}\n{line}\n")


def test_the_specifications_file(tmp_path: Path) -> None:
    made = load(tmp_path, SPECIFIED, password=SECRET)
    assert made == MQTTConfig(
        broker_url="ssl://mqtt.fleet.glec.co.kr:8883",
        client_id="12345",
        username="dtg-device-12345",
        password=SECRET,
        connection_timeout_s=30,
        keepalive_s=60,
        clean_session=False,
        auto_reconnect=True,
        retry_max_attempts=5,
        retry_initial_delay_ms=2000,
        retry_max_delay_ms=60_000,
        queue_max_size=10_000,
        queue_ttl_hours=24,
        queue_max_retry=3,
        tls_config=TLSConfig(str(tmp_path / "mqtt_ca.crt"), str(tmp_path / "client.crt"), str(tmp_path / "client.key")),
    )
    assert SECRET not in repr(made)


def test_the_specifications_keys_are_settings() -> None:
    assert {line.split("=")[0] for line in SPECIFIED.splitlines() if "=" in line} <= set(SETTINGS)


@pytest.mark.parametrize("name", SETTING_VALUES)
def test_every_key_is_typed(name: str, tmp_path: Path) -> None:
    named = {each: SETTING_VALUES[each][0] for each in ("broker_url", name, *COMPANIONS.get(name, ()))}
    made = load(tmp_path, "".join(f"{KEYS[each]}={text}\n" for each, text in named.items()))
    found = getattr(made.tls_config if SETTINGS[KEYS[name]].of_tls else made, name)
    assert found == SETTING_VALUES[name][1]
    assert type(found) is type(SETTING_VALUES[name][1])


def test_tls_may_be_enabled_once_more(tmp_path: Path) -> None:
    assert with_line(tmp_path, "mqtt.tls.enabled=true").tls_config == TLSConfig()


def test_the_client_id_may_be_made_of_the_device_id(tmp_path: Path) -> None:
    assert with_line(tmp_path, "mqtt.client.id=DTG-{DEVICE_ID}").client_id == "DTG-12345"
    assert load(tmp_path, "mqtt.broker.url=tcp://h\nmqtt.client.id=own\n", device_id=None).client_id == "own"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("mqtt.broker.url", "host"),
        ("mqtt.broker.url", "ssl://host:0"),
        ("mqtt.connection.timeout", "soon"),
        ("mqtt.connection.timeout", "0"),
        ("mqtt.connection.timeout", "1e3"),
        ("mqtt.connection.timeout", "nan"),
        ("mqtt.protocol.version", "3.1.1"),
        ("mqtt.protocol.version", "3"),
        ("mqtt.connection.keepalive", "60.5"),
        ("mqtt.connection.keepalive", "65536"),
        ("mqtt.connection.keepalive", "1_0"),
        ("mqtt.connection.clean_session", "False"),
        ("mqtt.connection.clean_session", "0"),
        ("mqtt.connection.auto_reconnect", "yes"),
        ("mqtt.retry.max_attempts", "-1"),
        ("mqtt.retry.initial_delay_ms", "0"),
        ("mqtt.retry.max_delay_ms", "2000 ms"),
        ("mqtt.queue.max_size", "0"),
        ("mqtt.queue.ttl_hours", "0"),
        ("mqtt.queue.max_retry", "0"),
        ("mqtt.queue.max_retry", "\u0663"),
        ("mqtt.queue.path", ""),
        ("mqtt.tls.enabled", "on"),
        ("mqtt.tls.enabled", "false"),
        ("mqtt.tls.ca_cert", ""),
        ("mqtt.tls.verify_hostname", "TRUE"),
        ("mqtt.tls.partial_chain", "yes"),
        ("mqtt.tls.crl", ""),
        ("mqtt.tls.version", "TLSv1.1"),
        ("mqtt.tls.certificate_pins", "sha256/short="),
        ("mqtt.tls.certificate_pins", f"{PIN} {BACKUP}"),
        ("mqtt.tls.key_password", "a key is missing"),
        ("mqtt.tls.client_key", "no.certificate"),
    ],
)
def test_each_malformed_value_is_refused_with_its_line(key: str, text: str, tmp_path: Path) -> None:
    lines = ["# a comment", "", *([] if key == "mqtt.broker.url" else ["mqtt.broker.url=ssl://host"])]
    expected = rf"broker_config\.properties, line {len(lines) + 1}: .*{key}"
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path, "\n".join([*lines, f"{key}={text}", ""]))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("mqtt.broker.pasword=x", r"did you mean mqtt\.broker\.password"),
        ("something.else=x", "no setting"),
        ("mqtt.broker.password", "KEY=VALUE"),
        ("=x", "KEY=VALUE"),
        ("MQTT.BROKER.URL=x", r"did you mean mqtt\.broker\.url"),
        ("Mqtt.Broker.Username=x", r"did you mean mqtt\.broker\.username"),
        ("mqtt broker url=x", "KEY=VALUE"),
        ("mqtt.broker.url=ssl://host", "set in line 1"),
        ("mqtt.broker.password=x\\", "backslash"),
        ("mqtt.broker.password=\\u12", "four digits"),
        ("mqtt\\u00.url=x", "four digits"),
        ("mqtt.broker.password=\\ud83d", "half a character"),
        ("mqtt.broker.username={device_id}", "not filled"),
        ("mqtt.broker.username=${USER:x}", "not filled"),
        ("mqtt.broker.username={{DEVICE_ID}}", "not filled"),
        ("mqtt.broker.username=#{DEVICE_ID}", "not filled"),
        ("mqtt.broker.username=%{DEVICE_ID}", "not filled"),
        ("mqtt.broker.username=\\${DEVICE_ID}", "not filled"),
        ("mqtt.broker.username={DEVICE_ID", "not filled"),
        ("mqtt.broker.username=DEVICE_ID}", "not filled"),
        ("mqtt.broker.username={DEVICE-ID}", "not filled"),
        ("mqtt.broker.username={ DEVICE_ID }", "not filled"),
        ("mqtt.broker.password=${MQTT_PASSWORD}", "not filled"),
        ("mqtt.broker.password=${MQTT_PASSWORD:-x}", "not filled"),
        ("mqtt.broker.password=${}", "not filled"),
        ("mqtt.broker.password=$MQTT_PASSWORD", "of another tool"),
        ("mqtt.broker.password=%MQTT_PASSWORD%", "of another tool"),
        ("mqtt.broker.password=@mqtt.password@", "of another tool"),
        ("mqtt.broker.password=<password>", "of another tool"),
        ("mqtt.broker.username=umqtt.broker.password=x", "another setting"),
        ("mqtt.broker.username=u\\\nmqtt.broker.password=x", "another setting"),
        ("mqtt.broker.username=u mqtt.broker.pasword = x", "another setting"),
        ("mqtt.connection.keepalive={SECURE_PASSWORD}", "for passwords"),
        ("mqtt.queue.path={UNKNOWN}", "for passwords"),
        ("mqtt.broker.password={SECURE_PASSWORD}", "not filled"),
        ("mqtt.tls.key_password={KEY_PASSWORD}", "not filled"),
    ],
)
def test_each_malformed_line_is_refused_with_its_number(line: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"line 3: .*{says}"):
        with_line(tmp_path, line)


@pytest.mark.parametrize(
    "text",
    [
        f"mqtt.broker.url=ssl://host\nmqtt.broker.password {SECRET}",
        f"mqtt.broker.url=ssl://host\n{SECRET}=x",
        f"mqtt.broker.url=ssl://user:{SECRET}@host",
        f"mqtt.broker.url=ssl://host\nmqtt.broker.password={SECRET}",
        f"mqtt.broker.url=ssl://host\nmqtt.broker.username=u\nmqtt.broker.password={SECRET}\\u",
        f"mqtt.broker.url=ssl://host\nmqtt.broker.username=u\nmqtt.broker.password={SECRET}{{NO}}",
        f"mqtt.broker.url=ssl://host\nmqtt.tls.key_password={SECRET}",
        f"mqtt.broker.url=ssl://host\nmqtt.broker.password={SECRET}\xff".encode("latin-1"),
    ],
)
def test_no_error_repeats_a_secret(text: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        assert SECRET not in repr(error)
        assert SECRET not in repr(vars(error))
        assert not isinstance(error, UnicodeError), "it would hold the whole file"
        error = error.__cause__ or error.__context__


def test_an_unfilled_device_id(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device_id is not given"):
        load(tmp_path, "mqtt.broker.url=ssl://host\n", device_id=None)


@pytest.mark.parametrize("device_id", ["a/b", "+", "#", "a\nb", "\ud800", "", "x" * 65_536])
def test_a_device_id_that_could_inject_levels_is_refused(device_id: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, "mqtt.broker.url=ssl://host\n", device_id=device_id)


def test_the_url_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mqtt\.broker\.url is missing"):
        load(tmp_path, "")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        MQTTConfig.from_properties(tmp_path / "nowhere", device_id="x")


def test_a_file_too_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger"):
        load(tmp_path, b"#" * (1 << 20) + b"#")


class TestPlaceholders:
    TEXT = "mqtt.broker.url=ssl://host\nmqtt.broker.username=u\nmqtt.broker.password={SECURE_PASSWORD}\n"

    def test_from_arguments(self, tmp_path: Path) -> None:
        assert load(tmp_path, self.TEXT, password=SECRET).password == SECRET

    def test_from_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECURE_PASSWORD", SECRET)
        monkeypatch.setenv("DEVICE_ID", "from-environment")
        made = load(tmp_path, self.TEXT, device_id=None)
        assert (made.client_id, made.password) == ("from-environment", SECRET)

    def test_from_a_named_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "secret").write_text(SECRET + "\n")
        (tmp_path / "secret").chmod(0o600)
        monkeypatch.setenv("SECURE_PASSWORD_FILE", str(tmp_path / "secret"))
        assert load(tmp_path, self.TEXT).password == SECRET

    def test_from_systemd_credentials(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, content in (("SECURE_PASSWORD", f" {SECRET} \n"), ("DEVICE_ID", "from-credential")):
            (tmp_path / name).write_text(content)
            (tmp_path / name).chmod(0o400)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        made = load(tmp_path, self.TEXT, device_id=None)
        assert (made.client_id, made.password) == ("from-credential", f" {SECRET} "), "only the end of the line goes"

    def test_with_a_dollar_as_well(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MQTT_PASSWORD", SECRET)
        text = self.TEXT.replace("{SECURE_PASSWORD}", "${MQTT_PASSWORD}").replace("=u", "=dtg-${DEVICE_ID}")
        made = load(tmp_path, text)
        assert (made.username, made.password) == ("dtg-12345", SECRET)

    def test_arguments_go_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECURE_PASSWORD", "other")
        assert load(tmp_path, self.TEXT, password=SECRET).password == SECRET
        assert load(tmp_path, self.TEXT.replace("{SECURE_PASSWORD}", "other"), password=SECRET).password == SECRET

    def test_a_filled_value_is_taken_as_it_is(self, tmp_path: Path) -> None:
        odd = "\\u0041{DEVICE_ID}#=!  "
        assert load(tmp_path, self.TEXT, password=odd).password == odd

    def test_more_than_one_in_a_value(self, tmp_path: Path) -> None:
        text = "mqtt.broker.url=ssl://{DEVICE_ID}.{DEVICE_ID}.example\n"
        assert load(tmp_path, text, device_id="a").broker.host == "a.a.example"

    def test_a_file_that_cannot_be_read_or_is_binary(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECURE_PASSWORD_FILE", str(tmp_path / "secret"))
        with pytest.raises(ConfigError, match="cannot be read"):
            load(tmp_path, self.TEXT)
        (tmp_path / "secret").write_bytes(SECRET.encode() + b"\xff")
        (tmp_path / "secret").chmod(0o600)
        with pytest.raises(ConfigError, match="not UTF-8") as caught:
            load(tmp_path, self.TEXT)
        assert caught.value.__context__ is None

    def test_an_empty_secret_is_unfilled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECURE_PASSWORD", "")
        with pytest.raises(ConfigError, match="not filled"):
            load(tmp_path, self.TEXT)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("plain", "plain"),
        ("  a b  ", "a b  "),
        ("a\\ ", "a "),
        ("a\\\\ ", "a\\ "),
        ("\\q\\.", "q."),
        ("a\\\n   b", "ab"),
        ("Pa$$w0rd$", "Pa$$w0rd$"),
        ("a\\\\", "a\\"),
        ("\\u00e4\\t\\:\\=\\#\\!", "ä\t:=#!"),
        ("\\ud83d\\ude00", "😀"),
        ("Größe", "Größe"),
        ("a=b:c#d!e", "a=b:c#d!e"),
        ("\\{lower} \\{\\}".replace("r}", "r\\}"), "{lower} {}"),
        ("\\{DEVICE_ID\\}", "{DEVICE_ID}"),
        ("\\\\{DEVICE_ID}", "\\12345"),
    ],
)
def test_javas_escapes(raw: str, value: str, tmp_path: Path) -> None:
    assert with_line(tmp_path, f"mqtt.broker.password = {raw}").password == value


@pytest.mark.parametrize(
    "line",
    [
        "mqtt.broker.username:u",
        "mqtt.broker.username u",
        "mqtt.broker.username\tu",
        "mqtt.broker.username = u",
        "mqtt\\.broker\\.username=u",
        "mqtt.broker.\\\n    username=u",
        "mqtt.broker.username=\\\n    u",
        "\\u006dqtt.broker.username=u",
        "# \xe4 is not UTF-8\nmqtt.broker.username=u",
    ],
)
def test_javas_keys_and_separators(line: str, tmp_path: Path) -> None:
    assert load(tmp_path, b"mqtt.broker.url=ssl://host\n" + line.encode("latin-1")).username == "u"


def test_a_file_that_java_has_written(tmp_path: Path) -> None:
    """Properties.store escapes what a key could end at, and the signs of a comment."""
    text = (
        "#Fleet\n#Fri Nov 27 14:00:00 UTC 2026\nmqtt.broker.url=ssl\\://host\\:8883\nmqtt.broker.username=a\\=b\n"
        "mqtt.broker.password=\\ \\#p\\!\\u00E4\nmqtt.tls.ca_cert=c\\=1.crt\n"
    )
    made = load(tmp_path, text)
    assert (made.broker_url, made.username, made.password) == ("ssl://host:8883", "a=b", " #p!\u00e4")
    assert made.tls_config is not None
    assert made.tls_config.ca_cert == str(tmp_path / "c=1.crt")


def test_numbers_and_paths_have_no_space_after_them(tmp_path: Path) -> None:
    text = (
        "mqtt.broker.url=ssl://host \nmqtt.connection.keepalive=61 \nmqtt.tls.enabled=true\t\nmqtt.queue.path=q.db \n"
    )
    made = load(tmp_path, text)
    assert (made.broker_url, made.keepalive_s, made.queue_path) == ("ssl://host", 61, str(tmp_path / "q.db"))


def test_a_space_at_the_end_of_a_password_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_line(tmp_path, f"mqtt.broker.password={SECRET} ")
    assert "line 3: mqtt.broker.password ends in a space" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-be"])
def test_another_encoding_is_refused(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, TestPlaceholders.TEXT.encode(encoding), password=SECRET)
    assert ("save it as UTF-8" in str(caught.value)) == (encoding == "utf-16")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_ends_of_lines_and_a_byte_order_mark(newline: str, tmp_path: Path) -> None:
    text = "\ufeff# x\n! y\n \t\n  mqtt.broker.url = ssl://host\n".replace("\n", newline)
    assert load(tmp_path, text).broker_url == "ssl://host"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["mqtt.broker.url=tcp://host", "mqtt.tls.enabled=true"], "line 2: .*not encrypted"),
        (["mqtt.broker.url=ssl://host", "mqtt.tls.enabled=false"], "line 2: .*encrypted"),
        (["mqtt.broker.url=tcp://host", f"mqtt.tls.certificate_pins={PIN}"], "line 2: .*pins without TLS"),
        (["mqtt.broker.url=ssl://host", "mqtt.tls.client_key=k"], "line 2: .*belong together"),
        (["mqtt.broker.url=ssl://host", "mqtt.broker.password=k"], "username is not"),
    ],
)
def test_contradictions(lines: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, "\n".join(lines))


def test_tls_turned_off_needs_no_certificates(tmp_path: Path) -> None:
    text = SPECIFIED.replace("ssl://", "tcp://").replace("tls.enabled=true", "tls.enabled=false")
    assert load(tmp_path, text, password="x").tls_config is None


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_world_readable_password_is_warned_about(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, f"mqtt.broker.url=ssl://host\nmqtt.broker.username=u\nmqtt.broker.password={SECRET}\n")
    path.chmod(mode)
    with caplog.at_level(logging.WARNING):
        MQTTConfig.from_properties(path, device_id="x")
    assert ("every user of this machine can read" in caplog.text) == (mode == 0o644)
    assert SECRET not in caplog.text
    caplog.clear()
    write(tmp_path, TestPlaceholders.TEXT).chmod(0o644)
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(mode)
    monkeypatch.setenv("SECURE_PASSWORD_FILE", str(tmp_path / "secret"))
    MQTTConfig.from_properties(path, device_id="x")
    assert ("can read the file of SECURE_PASSWORD" in caplog.text) == (mode == 0o644)
    assert "can read mqtt.broker.password in" not in caplog.text, "the properties file itself holds no secret"
