"""The service's environment: every setting in it, typed; credentials; and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from glec_fast import ConfigError
from glec_fast.cli.environment import SETTINGS, config_from
from support.setting_values import COMPANIONS, SETTING_VALUES

SECRET = "s3cr3t-pa55"
BY_NAME = {each.name: each for each in SETTINGS.values()}


def bare(directory: Path) -> dict[str, str]:
    return {
        "GLEC_BROKER_URL": "ssl://host",
        "GLEC_CLIENT_ID": "DTG-1",
        "STATE_DIRECTORY": str(directory),
        "CREDENTIALS_DIRECTORY": str(directory),
    }


@pytest.mark.parametrize("name", SETTING_VALUES)
def test_every_setting(name: str, tmp_path: Path) -> None:
    named = {each: SETTING_VALUES[each][0] for each in (name, *COMPANIONS.get(name, ()))}
    config = config_from(bare(tmp_path) | {BY_NAME[each].variable: text for each, text in named.items()})
    found = getattr(config.tls_config if BY_NAME[name].of_tls else config, name)
    assert found == SETTING_VALUES[name][1]
    assert type(found) is type(SETTING_VALUES[name][1])


@pytest.mark.parametrize("name", ["password", "key_password"])
def test_a_secret_comes_from_a_file_as_well(name: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    environment = bare(tmp_path) | {BY_NAME[each].variable: SETTING_VALUES[each][0] for each in COMPANIONS[name]}
    config = config_from(environment | {f"{BY_NAME[name].variable}_FILE": str(path)})
    assert getattr(config.tls_config if BY_NAME[name].of_tls else config, name) == SECRET


@pytest.mark.parametrize("name", [name for name, each in BY_NAME.items() if each.credential])
def test_a_credential_sets_it_where_no_variable_does(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"glec_{BY_NAME[name].credential}"
    path.write_text(SECRET)
    path.chmod(0o600)
    environment = bare(tmp_path) | {
        BY_NAME[each].variable: SETTING_VALUES[each][0] for each in COMPANIONS.get(name, ())
    }
    for text in ("", SETTING_VALUES[name][0]):
        config = config_from(environment | {BY_NAME[name].variable: text})
        found = getattr(config.tls_config if BY_NAME[name].of_tls else config, name)
        assert found == (text or (SECRET if BY_NAME[name].kind.is_secret else path))


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"GLEC_QUEUE_MAX_SIZE": "many"}, "GLEC_QUEUE_MAX_SIZE is malformed: it must be a whole number"),
        ({"GLEC_QUEUE_MAX_SIZE": "0"}, "GLEC_QUEUE_MAX_SIZE: queue_max_size must be a whole number from 1"),
        ({"GLEC_BROKER_URL": "host"}, "GLEC_BROKER_URL: broker_url must begin with"),
        ({"GLEC_CLIENT_ID": "a/b"}, "GLEC_CLIENT_ID: client_id"),
        ({"GLEC_PASSWORD": SECRET}, "GLEC_PASSWORD: password is set but username is not"),
        ({"GLEC_TLS_CLIENT_KEY": "/key", "GLEC_TLS_CA_CERT": "/ca"}, "GLEC_TLS_CLIENT_KEY: client_key is set"),
        ({"GLEC_TLS_CERTIFICATE_PINS": SECRET}, "GLEC_TLS_CERTIFICATE_PINS: certificate pin number 1 must begin with"),
        ({"GLEC_TLS_CA_CERT": f"-----BEGIN {SECRET}"}, "GLEC_TLS_CA_CERT is no path"),
        (
            {"GLEC_QUEUE_MAXSIZE": "5"},
            r"GLEC_QUEUE_MAXSIZE in the environment is no setting; did you mean GLEC_QUEUE_MAX",
        ),
        ({"GLEC_XYZZY": SECRET}, "GLEC_XYZZY in the environment is no setting; `glec-fast settings`"),
        ({"GLEC_CONFIG": "f", "GLEC_KEEPALIVE_S": "5"}, "GLEC_BROKER_URL and GLEC_KEEPALIVE_S set beside f"),
        (
            {"GLEC_USERNAME": "u", "GLEC_PASSWORD_FILE": "/no/such"},
            "/no/such, the file of the password, cannot be read",
        ),
    ],
)
def test_what_is_wrong_is_named(variables: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        config_from(bare(tmp_path) | variables)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
