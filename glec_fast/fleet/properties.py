"""broker_config.properties (specification, "Configuration"): read, typed, and its placeholders filled.

Java's format, as the Android client of the same fleet reads the same file; see `java_properties`. Each error names the
line and the setting, and repeats nothing of what the file says: where one is damaged, a secret may stand anywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from glec_fast.errors import ConfigError
from glec_fast.fleet.config import MQTTConfig
from glec_fast.fleet.java_properties import Entry, EscapeError, entries, unescape, unescaped, with_pairs_joined
from glec_fast.runtime.log import logger
from glec_fast.settings import FLAG, Setting, settings_of, trimmed
from glec_fast.tls.config import TLSConfig, warn_if_world_readable
from glec_fast.tls.key_format import looks_like_a_key
from glec_fast.validation import is_utf8

_PLACEHOLDER = re.compile(r"\$?\{([A-Z][A-Z0-9_]*)\}")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
# How a shell, or a tool that makes such files, writes a variable. A value that is nothing else was meant to be filled.
_FOREIGN_PLACEHOLDER = re.compile(r"\$[A-Za-z_]\w*|%[A-Za-z_]\w*%|@[A-Za-z_][\w.]*@|<[A-Za-z_][\w-]*>")
_BRACES = "{}"
# Of one that is written #{NAME} or %{NAME}, the sign would be left over.
_FOREIGN_SIGNS = ("$", "#", "%")
_DEVICE_ID = "DEVICE_ID"
_FILE_MAX_BYTES = 1 << 20
_SECRET_MAX_BYTES = 1 << 16
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# Longer ones are no typing error of a setting's name.
_KEY_MAX_CHARS = 64


_TLS_ENABLED = "mqtt.tls.enabled"
_BY_NAME = settings_of(MQTTConfig) | settings_of(TLSConfig, of_tls=True)
_URL = _BY_NAME["broker_url"].key
_URLS = _BY_NAME["broker_urls"].key
_CLIENT_ID = _BY_NAME["client_id"].key
_PINS = _BY_NAME["certificate_pins"].key
# By their keys. One is no field: the URL's scheme says the same, and the two must agree.
SETTINGS: Mapping[str, Setting] = {
    **{each.key: each for each in _BY_NAME.values()},
    _TLS_ENABLED: Setting(_TLS_ENABLED, FLAG, "", name="enabled", of_tls=True),
}
_Made = TypeVar("_Made")


# Where a line's end was lost, the next setting is part of the value.
_SWALLOWED = re.compile("|".join(map(re.escape, SETTINGS)), re.IGNORECASE)
_ASSIGNMENT = re.compile(r"(?<!\\)=")


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

    The client id is what {DEVICE_ID} stands for, unless the file sets it.
    {DEVICE_ID} is filled by `device_id`, {SECURE_PASSWORD} by `password`; these and any other placeholder of a password
    by the environment variable of that name, the file that NAME_FILE names, or the file NAME in $CREDENTIALS_DIRECTORY
    (systemd's LoadCredential=), in this order. ${NAME} is the same as {NAME}. Other braces have a backslash before
    them. Paths are relative to the properties file.
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
        self._lines = self._parse(self._content())

    def arguments(self) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        tls: dict[str, Any] = {}
        if _CLIENT_ID not in self._lines:
            settings["client_id"] = self._filled(_DEVICE_ID, "device_id is not given")
        for line in self._lines.values():
            setting = SETTINGS[line.key]
            (tls if setting.of_tls else settings)[setting.name] = self._value(line, setting)
        if _URL not in self._lines and _URLS not in self._lines:
            raise ConfigError(f"{self._path}: {_URL} is missing; name the broker, such as ssl://host:8883")
        if self._given["SECURE_PASSWORD"] is not None:
            settings["password"] = self._given["SECURE_PASSWORD"]
        tls_config = self._tls_config(settings.get("broker_url") or "".join(settings["broker_urls"][:1]), tls)
        if tls_config is not None:
            settings["tls_config"] = tls_config
        return settings

    # ---- lines

    def _content(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                content = file.read(_FILE_MAX_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}; check its path and rights") from error
        if len(content) > _FILE_MAX_BYTES:
            raise ConfigError(f"{self._path} is larger than {_FILE_MAX_BYTES} bytes; it is no properties file")
        if content.startswith(_UTF16_MARKS):
            raise ConfigError(f"{self._path} is UTF-16; save it as UTF-8")
        return content

    def _parse(self, content: bytes) -> dict[str, _Line]:
        lines: dict[str, _Line] = {}
        for entry in entries(content):
            try:
                line = _Line(entry.line, unescape(entry.raw_key), entry.raw_value)
            except EscapeError as error:
                raise self._error(entry.line, f"what it begins with is no setting: {error}") from error
            self._check(entry, line.key, lines)
            lines[line.key] = line
        return lines

    def _check(self, entry: Entry, key: str, before: Mapping[str, _Line]) -> None:
        if not entry.is_utf8:
            raise self._error(entry.line, "it is not UTF-8; save it as UTF-8, or write \\uXXXX")
        if key not in SETTINGS:
            raise self._error(entry.line, f"what it begins with is no setting; {_nearest(key)}")
        if not entry.has_separator:
            raise self._error(entry.line, f"{key} stands alone; it must be KEY=VALUE")
        if key in before:
            first = before[key].number
            raise self._error(entry.line, f"{key} was set in line {first} already; keep one of them")
        if entry.is_cut:
            raise self._error(entry.line, f"{key} ends in a backslash and the file with it; complete the value")

    def _error(self, line: int, message: str, field: str | None = None) -> ConfigError:
        return ConfigError(f"{self._path}, line {line}: {message}", field=field)

    # ---- values

    def _value(self, line: _Line, setting: Setting) -> object:
        text = self._fill(line, setting)
        kind = setting.kind
        is_shown_text = kind.is_path or (kind.is_verbatim and not kind.is_secret)
        if _SWALLOWED.search(text) or (is_shown_text and _ASSIGNMENT.search(line.raw)):
            says = "has another setting in its value; end the line before that, or put a backslash before each ="
            raise self._error(line.number, f"{line.key} {says}")
        if not text and not kind.is_secret:
            raise self._error(line.number, f"{line.key} has no value; set one or remove the line")
        try:
            value = kind.parse(text)
        except ValueError as error:
            raise self._error(line.number, f"{line.key} is malformed: {error}") from error
        if kind.is_path:
            # It is named in errors, so that it must not be anything else.
            if looks_like_a_key(text):
                raise self._error(line.number, f"{line.key} is no path; give the path of a file")
            return str(self._path.parent / str(value))
        return value

    def _fill(self, line: _Line, setting: Setting) -> str:
        """Unescape what the file says, and put in what its placeholders stand for, which is taken as it is."""
        raw = line.raw
        if setting.kind.is_verbatim and raw != trimmed(raw):
            logger.warning("%s, line %d: %s ends in a space, which is part of it", self._path, line.number, line.key)
        if _FOREIGN_PLACEHOLDER.fullmatch(trimmed(raw)):
            raise self._error(line.number, f"{line.key} has a placeholder of another tool; write it as ${{NAME}}")
        parts: list[str] = []
        position = 0
        is_literal = False
        while position < len(raw):
            if placeholder := _PLACEHOLDER.match(raw, position):
                if is_literal and parts[-1] in _FOREIGN_SIGNS:
                    raise self._unfilled(line)
                parts.append(self._placeholder(line, setting, placeholder[1]))
                position = placeholder.end()
                continue
            is_literal = True
            if escape := _ESCAPE.match(raw, position):
                parts.append(self._escape(line, escape[1]))
                position = escape.end()
            elif raw[position] in _BRACES:
                raise self._unfilled(line)
            else:
                parts.append(raw[position])
                position += 1
        if setting.kind.is_secret and is_literal:
            warn_if_world_readable(f"{line.key} in", self._path)
        text = with_pairs_joined("".join(parts))
        if not is_utf8(text):
            raise self._error(line.number, f"{line.key} has half a character; write both of its \\u escapes")
        return text

    def _escape(self, line: _Line, escape: str) -> str:
        try:
            return unescaped(escape)
        except EscapeError as error:
            raise self._error(line.number, f"{line.key} is malformed: {error}") from error

    def _unfilled(self, line: _Line) -> ConfigError:
        says = "has a placeholder that is not filled, or a brace; write {NAME} in capital letters, or \\{ for the brace"
        return self._error(line.number, f"{line.key} {says}")

    def _placeholder(self, line: _Line, setting: Setting, name: str) -> str:
        if name != _DEVICE_ID and not setting.kind.is_secret:
            says = f"this placeholder is for passwords; {line.key} may hold {{{_DEVICE_ID}}} only"
            raise self._error(line.number, says)
        return self._filled(name, f"line {line.number}: a placeholder of {line.key} is not filled")

    def _filled(self, name: str, problem: str) -> str:
        value = self._given.get(name)
        if value is None:
            value = self._environment.get(name)
        if value is None:
            value = self._from_file(name)
        if not value:
            # What stands in the braces may be a password, unless it is one of these.
            shown = name if name in self._given else "NAME"
            raise ConfigError(
                f"{self._path}, {problem}: give it as an argument, as the environment variable {shown}, as a file "
                f"named by {shown}_FILE, or as the systemd credential {shown}"
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
            says = f"{_TLS_ENABLED} is {str(enabled).lower()}, and {_URL} is {scheme}; change one of them"
            raise self._error(number, says)
        if not enabled:
            if tls.get("certificate_pins"):
                number = self._lines[_PINS].number
                raise self._error(number, "pins without TLS protect nothing; use ssl:// or remove them")
            return None
        try:
            return TLSConfig(**tls)
        except ConfigError as error:
            raise self.located(error) from error

    def located(self, error: ConfigError) -> ConfigError:
        """The same error with the file, and the line of the setting that is to blame."""
        described = _BY_NAME.get(error.field or "")
        line = None if described is None else self._lines.get(described.key)
        if line is None:
            return ConfigError(f"{self._path}: {error}", field=error.field)
        return self._error(line.number, f"{line.key}: {error}", field=error.field)


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


def _nearest(key: str) -> str:
    from difflib import get_close_matches

    nearest = get_close_matches(key.lower(), SETTINGS, 1) if len(key) <= _KEY_MAX_CHARS else []
    if nearest:
        return f"did you mean {nearest[0]}?"
    return "it must be KEY=VALUE, such as mqtt.broker.url=ssl://host:8883, with a key that `glec-fast settings` lists"
