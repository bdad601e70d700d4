"""broker_config.properties (specification, "Configuration"): read, typed, and its placeholders filled.

Java's format, as the Android client of the same fleet reads the same file: `key=value`, comments with # or !, escapes
with a backslash. Each error names the line, and never repeats what might be a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from glec_fast.errors import ConfigError
from glec_fast.tls import TLSConfig, warn_if_world_readable

_KEY = re.compile(r"[a-z][a-z0-9_.]{0,63}\Z")
_PLACEHOLDER = re.compile(r"\{([A-Z][A-Z0-9_]*)\}")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", **{sign: sign for sign in "\\:=#! {}"}}
_DEVICE_ID = "DEVICE_ID"
_FILE_MAX_BYTES = 1 << 20
_SECRET_MAX_BYTES = 1 << 16


class _Setting(NamedTuple):
    """Where a key's value goes: a field of MQTTConfig, or with `of_tls` of TLSConfig."""

    field: str
    convert: Callable[[str], object]
    of_tls: bool = False
    is_secret: bool = False
    is_path: bool = False


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("it must be true or false")
    return text == "true"


def _whole(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError("it must be a whole number")
    return int(text)


def _number(text: str) -> float:
    if not re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,9})?", text):
        raise ValueError("it must be a number")
    return float(text) if "." in text else int(text)


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_TLS_ENABLED = "mqtt.tls.enabled"
SETTINGS: Mapping[str, _Setting] = {
    "mqtt.broker.url": _Setting("broker_url", str),
    "mqtt.broker.username": _Setting("username", str),
    "mqtt.broker.password": _Setting("password", str, is_secret=True),
    "mqtt.connection.timeout": _Setting("connection_timeout_s", _number),
    "mqtt.connection.keepalive": _Setting("keepalive_s", _whole),
    "mqtt.protocol.version": _Setting("protocol_version", _whole),
    "mqtt.connection.clean_session": _Setting("clean_session", _boolean),
    "mqtt.connection.auto_reconnect": _Setting("auto_reconnect", _boolean),
    "mqtt.retry.max_attempts": _Setting("retry_max_attempts", _whole),
    "mqtt.retry.initial_delay_ms": _Setting("retry_initial_delay_ms", _whole),
    "mqtt.retry.max_delay_ms": _Setting("retry_max_delay_ms", _whole),
    "mqtt.queue.max_size": _Setting("queue_max_size", _whole),
    "mqtt.queue.ttl_hours": _Setting("queue_ttl_hours", _number),
    "mqtt.queue.max_retry": _Setting("queue_max_retry", _whole),
    "mqtt.queue.path": _Setting("queue_path", str, is_path=True),
    _TLS_ENABLED: _Setting("enabled", _boolean, of_tls=True),
    "mqtt.tls.ca_cert": _Setting("ca_cert", str, of_tls=True, is_path=True),
    "mqtt.tls.client_cert": _Setting("client_cert", str, of_tls=True, is_path=True),
    "mqtt.tls.client_key": _Setting("client_key", str, of_tls=True, is_path=True),
    "mqtt.tls.key_password": _Setting("key_password", str, of_tls=True, is_secret=True),
    "mqtt.tls.verify_hostname": _Setting("verify_hostname", _boolean, of_tls=True),
    "mqtt.tls.version": _Setting("tls_version", str, of_tls=True),
    "mqtt.tls.certificate_pins": _Setting("certificate_pins", _list, of_tls=True),
}

# What the errors call these fields.
_SPOKEN = {
    "queue_max_size": "queue size",
    "queue_ttl_hours": "queue TTL",
    "queue_max_retry": "queue retry limit",
    "certificate_pins": "certificate pin",
}
_Made = TypeVar("_Made")


class _Line(NamedTuple):
    number: int
    key: str
    raw: str


def load_properties(
    path: str | os.PathLike[str],
    make: Callable[..., _Made],
    *,
    device_id: str | None = None,
    password: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> _Made:
    """What `make` (MQTTConfig) makes of a properties file. Raises ConfigError, with the line where one is to blame.

    {DEVICE_ID} is filled by `device_id`, {SECURE_PASSWORD} by `password`; these and any other placeholder of a password
    by the environment variable of that name, the file that NAME_FILE names, or the file NAME in $CREDENTIALS_DIRECTORY
    (systemd's LoadCredential=), in this order. Paths are relative to the properties file.
    """
    file = _File(Path(path), device_id, password, os.environ if environment is None else environment)
    arguments = file.arguments()
    try:
        return make(**arguments)
    except ConfigError as error:
        raise file.located(error) from error


class _File:
    def __init__(self, path: Path, device_id: str | None, password: str | None, environment: Mapping[str, str]) -> None:
        self._path = path
        self._environment = environment
        self._given = {_DEVICE_ID: device_id, "SECURE_PASSWORD": password}
        self._lines = self._parse(self._text())

    def arguments(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"client_id": self._filled(_DEVICE_ID, "device_id is not given")}
        tls: dict[str, Any] = {}
        for line in self._lines.values():
            setting = SETTINGS[line.key]
            (tls if setting.of_tls else settings)[setting.field] = self._value(line, setting)
        if "mqtt.broker.url" not in self._lines:
            raise ConfigError(f"{self._path}: mqtt.broker.url is missing; name the broker, such as ssl://host:8883")
        if self._given["SECURE_PASSWORD"] is not None:
            settings["password"] = self._given["SECURE_PASSWORD"]
        tls_config = self._tls_config(settings["broker_url"], tls)
        if tls_config is not None:
            settings["tls_config"] = tls_config
        return settings

    # ---- lines

    def _text(self) -> str:
        try:
            with self._path.open("rb") as file:
                content = file.read(_FILE_MAX_BYTES + 1)
            if len(content) > _FILE_MAX_BYTES:
                raise ConfigError(f"{self._path} is larger than {_FILE_MAX_BYTES} bytes; it is no properties file")
            return content.decode("utf-8-sig")
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}; check its path and rights") from error
        except UnicodeDecodeError as error:
            # Without the cause: it holds the whole content.
            position = error.start
        number = content.count(b"\n", 0, position) + 1
        raise ConfigError(f"{self._path}, line {number}: it is not UTF-8; save it as UTF-8, or write \\uXXXX")

    def _parse(self, text: str) -> dict[str, _Line]:
        lines: dict[str, _Line] = {}
        for number, raw in enumerate(re.split(r"\r\n|\n|\r", text), 1):
            stripped = raw.lstrip(" \t\f")
            if not stripped or stripped[0] in "#!":
                continue
            key, separator, value = stripped.partition("=")
            key = key.rstrip(" \t\f")
            if not separator or not _KEY.match(key):
                raise self._error(number, "it must be KEY=VALUE, such as mqtt.broker.url=ssl://host:8883")
            if key not in SETTINGS:
                raise self._error(number, f"{key} is no setting; {_nearest(key)}")
            if key in lines:
                raise self._error(number, f"{key} was set in line {lines[key].number} already; keep one of them")
            lines[key] = _Line(number, key, value.lstrip(" \t\f"))
        return lines

    def _error(self, number: int, message: str) -> ConfigError:
        return ConfigError(f"{self._path}, line {number}: {message}")

    # ---- values

    def _value(self, line: _Line, setting: _Setting) -> object:
        text = self._fill(line, setting)
        if not text and not setting.is_secret:
            raise self._error(line.number, f"{line.key} has no value; set one or remove the line")
        try:
            value = setting.convert(text)
        except ValueError as error:
            raise self._error(line.number, f"{line.key} is {text!r}; {error}") from None
        if setting.is_path:
            return str(self._path.parent / text)
        return value

    def _fill(self, line: _Line, setting: _Setting) -> str:
        """Unescape what the file says, and put in what its placeholders stand for, which is taken as it is."""
        parts: list[str] = []
        position = 0
        raw = _without_trailing_space(line.raw)
        is_literal = False
        while position < len(raw):
            if placeholder := _PLACEHOLDER.match(raw, position):
                parts.append(self._placeholder(line, setting, placeholder[1]))
                position = placeholder.end()
            elif escape := _ESCAPE.match(raw, position):
                parts.append(self._escape(line, escape[1]))
                position = escape.end()
                is_literal = True
            elif raw[position] == "\\":
                raise self._error(line.number, "it ends in a backslash; write the value in one line, or double it")
            else:
                parts.append(raw[position])
                position += 1
                is_literal = True
        if setting.is_secret and is_literal:
            warn_if_world_readable(f"{line.key} in", self._path)
        try:
            # \ud83d\ude00 are two escapes for one character.
            return "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            pass
        raise self._error(line.number, f"{line.key} has half a character; write both of its \\u escapes")

    def _escape(self, line: _Line, escape: str) -> str:
        if escape in _ESCAPED:
            return _ESCAPED[escape]
        if len(escape) == 5:
            return chr(int(escape[1:], 16))
        raise self._error(line.number, f"{line.key} has a backslash that begins no escape; double it")

    def _placeholder(self, line: _Line, setting: _Setting, name: str) -> str:
        if name != _DEVICE_ID and not setting.is_secret:
            raise self._error(line.number, f"{{{name}}} is for passwords; {line.key} may hold {{{_DEVICE_ID}}} only")
        return self._filled(name, f"line {line.number}: {{{name}}} is not filled")

    def _filled(self, name: str, problem: str) -> str:
        value = self._given.get(name)
        if value is None:
            value = self._environment.get(name)
        if value is None:
            value = self._from_file(name)
        if not value:
            raise ConfigError(
                f"{self._path}, {problem}: give it as an argument, as the environment variable {name}, as a file named "
                f"by {name}_FILE, or as the systemd credential {name}"
            )
        return value

    def _from_file(self, name: str) -> str | None:
        named = self._environment.get(f"{name}_FILE")
        credentials = self._environment.get("CREDENTIALS_DIRECTORY")
        if named is not None:
            path = Path(named)
        elif credentials is not None and (Path(credentials) / name).exists():
            path = Path(credentials) / name
        else:
            return None
        if name != _DEVICE_ID:
            warn_if_world_readable(f"the file of {name},", path)
        return read_secret(name, path)

    # ---- TLS

    def _tls_config(self, url: str, tls: dict[str, Any]) -> TLSConfig | None:
        """None where the URL is not encrypted: certificates named in the file are of no use then, and pins a trap."""
        encrypted = url.lower().startswith(("ssl:", "mqtts:", "wss:"))
        enabled = tls.pop("enabled", encrypted)
        if enabled != encrypted:
            number = self._lines[_TLS_ENABLED].number
            scheme = "not encrypted" if enabled else "encrypted"
            says = f"{_TLS_ENABLED} is {str(enabled).lower()}, and mqtt.broker.url is {scheme}; change one of them"
            raise self._error(number, says)
        if not enabled:
            if tls.get("certificate_pins"):
                number = self._lines["mqtt.tls.certificate_pins"].number
                raise self._error(number, "pins without TLS protect nothing; use ssl:// or remove them")
            return None
        try:
            return TLSConfig(**tls)
        except ConfigError as error:
            raise self.located(error) from error

    def located(self, error: ConfigError) -> ConfigError:
        """The same error with the file, and the line of the setting that its text begins with."""
        text = str(error)
        for line in self._lines.values():
            field = SETTINGS[line.key].field
            if text.startswith(_SPOKEN.get(field, field)):
                return self._error(line.number, f"{line.key}: {text}")
        return ConfigError(f"{self._path}: {text}")


def read_secret(name: str, path: Path) -> str:
    """The text of a file without its last line's end. Raises ConfigError, which never holds any of it."""
    try:
        with path.open("rb") as file:
            content = file.read(_SECRET_MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}, the file of {name}, cannot be read: {error.strerror}; check its rights") from error
    try:
        return content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        # Without the cause: it holds the secret.
        pass
    raise ConfigError(f"{path}, the file of {name}, is not UTF-8; write it anew")


def _without_trailing_space(raw: str) -> str:
    """Spaces at the end are accidents, unless the last one is escaped."""
    stripped = raw.rstrip(" \t\f")
    backslashes = len(stripped) - len(stripped.rstrip("\\"))
    return raw[: len(stripped) + 1] if backslashes % 2 and len(raw) > len(stripped) else stripped


def _nearest(key: str) -> str:
    from difflib import get_close_matches

    nearest = get_close_matches(key, SETTINGS, 1)
    return f"did you mean {nearest[0]}?" if nearest else "see README.md for those there are"
