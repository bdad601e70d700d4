"""The settings of a gateway as its service has them: in the environment, in systemd's credentials, or in a properties
file that the environment names. What each variable is called and may hold: docs/settings.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glec_fast.errors import ConfigError
from glec_fast.fleet.config import MQTTConfig
from glec_fast.fleet.properties import load_properties, read_secret
from glec_fast.settings import ENVIRONMENT_PREFIX, Setting, nearest, settings_of
from glec_fast.tls.config import TLSConfig, warn_if_world_readable
from glec_fast.tls.key_format import looks_like_a_key

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG = "GLEC_CONFIG"
# Of a secret, where its own variable would show it to whoever may look at the process.
FILE_SUFFIX = "_FILE"
SETTINGS: Mapping[str, Setting] = {
    each.variable: each for each in (*settings_of(MQTTConfig).values(), *settings_of(TLSConfig, of_tls=True).values())
}
_BY_NAME = {each.name: each for each in SETTINGS.values()}
CLIENT_ID = _BY_NAME["client_id"].variable
URL, _URLS = _BY_NAME["broker_url"].variable, _BY_NAME["broker_urls"].variable
_KNOWN = {CONFIG, *SETTINGS} | {name + FILE_SUFFIX for name, each in SETTINGS.items() if each.kind.is_secret}


def config_from(environment: Mapping[str, str]) -> MQTTConfig:
    """The settings that the environment holds, or the properties file that it names. Raises ConfigError."""
    _check_names(environment)
    properties = _properties_file(environment)
    if properties is not None:
        return _from_properties(properties, environment)
    required = (_URLS if environment.get(_URLS) else URL, CLIENT_ID)
    missing = [name for name in required if not environment.get(name)]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} not set: the service's environment file is the place for that")
    authority = _BY_NAME["ca_cert"]
    if not _source(authority, environment) and _source(_BY_NAME["client_cert"], environment):
        advice = f"put the broker's authority beside it, or set {authority.variable}"
        raise ConfigError(f"there is a client certificate but no ca.crt: {advice}", field=authority.name)
    values: dict[str, Any] = {}
    tls: dict[str, Any] = {}
    for each in SETTINGS.values():
        value = _value(each, environment)
        if value is not None:
            (tls if each.of_tls else values)[each.name] = value
    values.setdefault("queue_path", _queue_path(environment))
    try:
        return MQTTConfig(**values, tls_config=TLSConfig(**tls) if tls else None)
    except ConfigError as error:
        described = _BY_NAME.get(error.field or "")
        source = None if described is None else _source(described, environment)
        raise ConfigError(f"{source}: {error}" if source else str(error), field=error.field) from error


def directory_from(environment: Mapping[str, str], name: str) -> Path:
    """A directory that systemd made for the service. Raises ConfigError."""
    if not environment.get(name):
        raise ConfigError(f"{name} is not set: systemd sets it; elsewhere, name a directory that you may write to")
    return Path(environment[name])


def _check_names(environment: Mapping[str, str]) -> None:
    """A setting that is misspelt would be without effect, and nobody would know."""
    for name in environment:
        if name.startswith(ENVIRONMENT_PREFIX) and name not in _KNOWN:
            raise ConfigError(f"{name} in the environment is no setting; {nearest(name, _KNOWN)}")


def _source(setting: Setting, environment: Mapping[str, str]) -> str | None:
    """Where a setting comes from: a variable's name, or a credential's."""
    if environment.get(setting.variable):
        return setting.variable
    if setting.kind.is_secret and environment.get(setting.variable + FILE_SUFFIX):
        return setting.variable + FILE_SUFFIX
    path = _credential(environment, setting.credential) if setting.credential else None
    return None if path is None else str(path)


def _value(setting: Setting, environment: Mapping[str, str]) -> object | None:
    """None where it is not set. A variable goes before a credential."""
    text = environment.get(setting.variable)
    if text:
        return _parsed(setting, text)
    named = environment.get(setting.variable + FILE_SUFFIX) if setting.kind.is_secret else None
    path = Path(named) if named else _credential(environment, setting.credential) if setting.credential else None
    if path is None or not setting.kind.is_secret:
        return path
    name = f"the {setting.name.replace('_', ' ')}"
    warn_if_world_readable(f"{name} in", path)
    return read_secret(name, path)


def _parsed(setting: Setting, text: str) -> object:
    # A path is named in errors, so that it must not be anything else.
    if setting.kind.is_path and looks_like_a_key(text):
        raise ConfigError(f"{setting.variable} is no path; give the path of a file", field=setting.name)
    try:
        return setting.kind.parse(text)
    except ValueError as error:
        raise ConfigError(f"{setting.variable} is malformed: {error}", field=setting.name) from error


def _credential(environment: Mapping[str, str], name: str) -> Path | None:
    """The file of that name which systemd hands over (LoadCredential=), if there is one."""
    path = Path(environment.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / f"glec_{name}"
    return path if path.exists() else None


def _properties_file(environment: Mapping[str, str]) -> Path | None:
    named = environment.get(CONFIG)
    path = Path(named) if named else _credential(environment, "broker_config.properties")
    others = [name for name in sorted(_KNOWN - {CONFIG, CLIENT_ID}) if environment.get(name)]
    if path is not None and others:
        raise ConfigError(f"{' and '.join(others)} set beside {path}: keep the settings in one of the two places")
    return path


def _from_properties(path: Path, environment: Mapping[str, str]) -> MQTTConfig:
    password = _credential(environment, "password")
    if password is not None:
        environment = {"SECURE_PASSWORD_FILE": str(password), **environment}

    def make(**settings: Any) -> MQTTConfig:
        if "queue_path" not in settings:
            settings["queue_path"] = _queue_path(environment)
        return MQTTConfig(**settings)

    return load_properties(path, make, device_id=environment.get(CLIENT_ID) or None, environment=environment)


def _queue_path(environment: Mapping[str, str]) -> Path:
    return directory_from(environment, "STATE_DIRECTORY") / "queue.db"
