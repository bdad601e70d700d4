"""What `import glec_fast` leaves out, as each of these costs hundreds of KiB on a gateway."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import apsw
import orjson
import paho.mqtt

import glec_fast

# Without `site`, whose hooks for an editable install import half of these themselves.
BARE = (sys.executable, "-I", "-S", "-c")
HEAVY = ("urllib.request", "http.client", "email", "datetime", "shutil", "tempfile", "ipaddress", "dns.resolver")
PATHS = sorted(
    {str(Path(package.__path__[0]).parent) for package in (apsw, orjson, glec_fast)}
    | {str(Path(paho.mqtt.__path__[0]).parents[1])}
)


def run(code: str) -> object:
    program = f"import sys; sys.path += {PATHS!r}; import json; before = set(sys.modules); {code}"
    return json.loads(subprocess.run([*BARE, program], capture_output=True, check=True, timeout=60).stdout)


def test_what_is_rarely_used_is_not_imported() -> None:
    loaded = run("import glec_fast; print(json.dumps(sorted(set(sys.modules) - before)))")
    assert isinstance(loaded, list)
    assert "paho.mqtt.client" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_paho_finds_it_when_it_is_used() -> None:
    code = (
        "import os, glec_fast; from paho.mqtt import client; os.environ['mqtt_proxy'] = 'http://proxy:1';"
        "found = client.urllib.request.getproxies();"
        "print(json.dumps([found, client.urllib.parse.urlsplit('http://[::1]:1').hostname]))"
    )
    assert run(code) == [{"mqtt": "http://proxy:1"}, "::1"]


def test_a_program_that_imports_it_has_the_true_one() -> None:
    code = (
        "import glec_fast, urllib.request, ipaddress;"
        "print(json.dumps([urllib.request.__spec__.name, ipaddress.__spec__.name, 'urlopen' in vars(urllib.request)]))"
    )
    assert run(code) == ["urllib.request", "ipaddress", True]


def test_what_a_program_has_imported_before_stays() -> None:
    code = (
        "import urllib.request as before; import glec_fast; from paho.mqtt import client;"
        "print(json.dumps(client.urllib.request is before))"
    )
    assert run(code) is True
