"""`glec-fast settings`: every setting, what it may hold, and what it is called in each of the three places."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import MISSING
from typing import TYPE_CHECKING

from glec_fast.cli.environment import CONFIG, FILE_SUFFIX, SETTINGS

if TYPE_CHECKING:
    import argparse

    from glec_fast.settings import Setting

SUMMARY = "list every setting, with its values and its names"
_WIDTH = 80
_INTRODUCTION = f"""\
# Settings

`glec-fast settings --markdown` writes this page.

Each setting has three names: in Python a field of `MQTTConfig`, or of `TLSConfig` (marked TLS); a key of
`broker_config.properties`, which `MQTTConfig.from_properties` and `{CONFIG}` read; and a variable in the environment of
`glec-fast service`. What is not set has its default. A value that is none of its setting, and a name that is no
setting, are refused before anything is done, with the name of the file, the line or the variable.

In files and in the environment a flag is `true` or `false`, and the values of a list have commas between them.

A file of `/etc/glec-fast/credentials` sets what the table names it for, where no variable does; systemd hands it over.
Of a password there is also a variable with `{FILE_SUFFIX}` at its end, such as `GLEC_PASSWORD{FILE_SUFFIX}`, that names
a file of it, so that the process shows no password. In the properties file a password may be `{{NAME}}`, which
stands for the variable of that name, for the file that `NAME{FILE_SUFFIX}` names, or for systemd's credential `NAME`.
Without `mqtt.client.id` the client id is what `{{DEVICE_ID}}` stands for: `device_id` of `from_properties`, or
`GLEC_CLIENT_ID`. `mqtt.tls.enabled` may say once more what the URL's scheme says, and must not contradict it.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("settings", help=SUMMARY, description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="write the reference page, docs/settings.md")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    sys.stdout.write(page() if arguments.markdown else "\n".join(map(_paragraph, SETTINGS.values())))
    return 0


def page() -> str:
    """The reference page."""
    lines = [
        _INTRODUCTION,
        "| in Python | values | default | in properties | in the environment | |",
        "|---|---|---|---|---|---|",
        *map(_row, SETTINGS.values()),
    ]
    return "\n".join(lines) + "\n"


def _row(setting: Setting) -> str:
    name = f"`{setting.name}`" + (" (TLS)" if setting.of_tls else "")
    meaning = setting.meaning
    if setting.credential:
        meaning += f" Credential: `{setting.credential}`."
    default = _default(setting)
    shown = f"`{default}`" if setting.default not in (MISSING, None, (), "") else default
    return f"| {name} | {setting.kind.values} | {shown} | `{setting.key}` | `{setting.variable}` | {meaning} |"


def _paragraph(setting: Setting) -> str:
    indent = " " * 4
    text = setting.meaning + (f" Credential: {setting.credential}." if setting.credential else "")
    lines = [
        f"{setting.name}{' of TLSConfig' if setting.of_tls else ''}",
        *textwrap.wrap(
            f"{setting.kind.values}; default: {_default(setting)}",
            _WIDTH,
            initial_indent=indent,
            subsequent_indent=indent,
        ),
        *textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent),
        f"{indent}{setting.key}  {setting.variable}",
    ]
    return "\n".join(lines) + "\n"


def _default(setting: Setting) -> str:
    default = setting.default
    if default is MISSING or default == "":
        return "must be set"
    if default is None or default == ():
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)
