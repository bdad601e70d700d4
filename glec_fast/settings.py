"""What a setting is. Each is described once, in the field of MQTTConfig or TLSConfig that holds it.

From that description come what is refused, how the properties file and the service's environment are read, and the
reference page docs/settings.md. To add a setting is to add a field:

    keepalive_s: int = setting(60, "mqtt.connection.keepalive", whole(0, 65_535, "s"), "Keep alive; 0 turns it off.")
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, field, fields
from functools import wraps
from typing import Any, NamedTuple, TypeVar

from glec_fast.errors import ConfigError
from glec_fast.validation import check_path, has_forbidden, is_utf8

T = TypeVar("T")

ENVIRONMENT_PREFIX = "GLEC_"
_TEXT_MAX_BYTES = 65_535
_METADATA_KEY = "glec_fast.setting"


def _unchecked(_name: str, _value: object) -> None:
    pass


class Kind(NamedTuple):
    """The values of a setting.

    values: in words. parse: from text; raises ValueError, which does not repeat the text. check: raises ConfigError.
    is_secret: never shown. is_path: names a file. is_verbatim: white space at the end of the text is part of it.
    """

    values: str
    parse: Callable[[str], object]
    check: Callable[[str, Any], object] = _unchecked
    is_secret: bool = False
    is_path: bool = False
    is_verbatim: bool = False


class Setting(NamedTuple):
    """One setting.

    key: in the properties file. meaning: one sentence or two. credential: the file of /etc/glec-fast/credentials that
    sets it for the service. name, of_tls and default are those of the field; default is MISSING where there is none.
    """

    key: str
    kind: Kind
    meaning: str
    credential: str = ""
    name: str = ""
    of_tls: bool = False
    default: object = MISSING

    @property
    def variable(self) -> str:
        """The name in the service's environment."""
        prefix = f"{ENVIRONMENT_PREFIX}TLS_" if self.of_tls else ENVIRONMENT_PREFIX
        return prefix + self.name.removeprefix("tls_").upper()


def setting(default: T, key: str, kind: Kind, meaning: str, *, credential: str = "") -> T:
    """A field of a dataclass that is a setting; see `Setting`."""
    described = {_METADATA_KEY: Setting(key, kind, meaning, credential)}
    return field(default=default, repr=not kind.is_secret, metadata=described)


def settings_of(settings_class: type, *, of_tls: bool = False) -> dict[str, Setting]:
    """The settings of a class, by the names of its fields."""
    return {
        each.name: each.metadata[_METADATA_KEY]._replace(name=each.name, of_tls=of_tls, default=each.default)
        for each in fields(settings_class)
        if _METADATA_KEY in each.metadata
    }


def refusing_unknown(settings_class: type[T]) -> type[T]:
    """For a dataclass: a name that is no setting raises ConfigError, with the nearest that is one."""
    plain = settings_class.__init__
    known = [each.name for each in fields(settings_class)]  # type: ignore[arg-type]

    @wraps(plain)
    def checked(self: T, *values: object, **named: object) -> None:
        for name in named.keys() - set(known):
            raise ConfigError(f"{settings_class.__name__} has no setting {name!r}; {nearest(name, known)}", field=name)
        plain(self, *values, **named)

    setattr(settings_class, "__init__", checked)  # noqa: B010 - mypy takes it for a change of the signature
    return settings_class


def nearest(name: str, known: Iterable[str]) -> str:
    """What to do about a name that is none of a setting."""
    from difflib import get_close_matches  # costs memory that only a refusal is worth

    found = get_close_matches(name, known, 1)
    return f"did you mean {found[0]}?" if found else "`glec-fast settings` lists them"


def check_settings(settings: Any) -> None:
    """Refuse values that are none of their setting. Raises ConfigError."""
    for each in fields(settings):
        described: Setting | None = each.metadata.get(_METADATA_KEY)
        if described is not None:
            described.kind.check(each.name, getattr(settings, each.name))


# ---- the kinds


def trimmed(text: str) -> str:
    """The text without the white space at its end, which nobody sees in a file."""
    return text.rstrip(" \t\f")


def whole(lowest: int, highest: int, unit: str = "") -> Kind:
    """A whole number, both ends included."""

    def check(name: str, value: object) -> None:
        if type(value) is not int or not lowest <= value <= highest:
            raise ConfigError(f"{name} must be a whole number from {lowest} to {highest}", field=name)

    return Kind(_range_in_words("whole number", lowest, highest, unit), _whole, check)


def number(lowest: float, highest: float, unit: str = "") -> Kind:
    """A number, both ends included."""

    def check(name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest <= value <= highest:
            raise ConfigError(f"{name} must be a number from {lowest} to {highest}", field=name)

    return Kind(_range_in_words("number", lowest, highest, unit), _number, check)


def one_of(choices: Mapping[Any, str]) -> Kind:
    """One of a few values, each with what it stands for, or an empty text. They are all whole numbers, or all texts."""
    in_words = " or ".join(f"{value} ({meaning})" if meaning else str(value) for value, meaning in choices.items())
    first = next(iter(choices))

    def check(name: str, value: object) -> None:
        if type(value) is not type(first) or value not in choices:
            raise ConfigError(f"{name} must be {in_words}", field=name)

    return Kind(in_words, _whole if isinstance(first, int) else trimmed, check)


def optional_text(*, is_secret: bool = False) -> Kind:
    """A text of UTF-8 as MQTT carries it, or None."""

    def check(name: str, value: object) -> None:
        # Without the value: one of them is the password.
        if value is None:
            return
        if not isinstance(value, str) or not is_utf8(value) or len(value.encode()) > _TEXT_MAX_BYTES:
            raise ConfigError(f"{name} must be a str of at most {_TEXT_MAX_BYTES} bytes of UTF-8, or None", field=name)
        if not is_secret and has_forbidden(value):
            # A password is binary data (MQTT 3.1.1, 3.1.3.5).
            says = f"{name} has a control character, or what is no character (MQTT 1.5.3); remove it"
            raise ConfigError(says, field=name)

    return Kind("text", str, check, is_secret=is_secret, is_verbatim=True)


def parsed(values: str, parse: Callable[[str], object], *, is_secret: bool = False) -> Kind:
    """A text that `parse` takes, which raises ValueError for others and does not repeat them; or None."""

    def check(name: str, value: object) -> None:
        if value is None:
            return
        try:
            if not isinstance(value, str):
                raise ValueError("it must be a str")
            parse(value)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}", field=name) from None

    return Kind(values, trimmed, check, is_secret=is_secret)


def parsed_list(values: str, parse: Callable[[str], object], *, is_secret: bool = False) -> Kind:
    """A tuple of texts that `parse` takes."""

    def check(name: str, value: object) -> None:
        try:
            if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
                raise ValueError("it must be a tuple of str")
            for each in value:
                parse(each)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}", field=name) from None

    return Kind(f"{values}; several with commas between them", comma_separated, check, is_secret=is_secret)


def _check_flag(name: str, value: object) -> None:
    if type(value) is not bool:
        raise ConfigError(f"{name} must be True or False", field=name)


def _check_optional_path(name: str, value: object) -> None:
    if value is not None:
        check_path(name, value)


def _flag(text: str) -> bool:
    text = trimmed(text)
    if text not in ("true", "false"):
        raise ValueError("it must be true or false")
    return text == "true"


def _whole(text: str) -> int:
    text = trimmed(text)
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError("it must be a whole number")
    return int(text)


def _number(text: str) -> float:
    text = trimmed(text)
    if not re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,9})?", text):
        raise ValueError("it must be a number")
    return float(text) if "." in text else int(text)


def comma_separated(text: str) -> tuple[str, ...]:
    """What stands between commas, without white space around it."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _range_in_words(what: str, lowest: float, highest: float, unit: str) -> str:
    return f"{what}, {lowest:,} to {highest:,}" + (f" {unit}" if unit else "")


FLAG = Kind("true or false", _flag, _check_flag)
PATH = Kind("path of a file", trimmed, check_path, is_path=True)
OPTIONAL_PATH = Kind("path of a file", trimmed, _check_optional_path, is_path=True)
# Python takes their content as well; whoever holds them checks that.
FILE = Kind("path of a file", trimmed, is_path=True)
PINS = Kind('"sha256/" and 44 characters of base64 each; several with commas between them', comma_separated)
