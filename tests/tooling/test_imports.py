"""What `import glec_fast` leaves out, as each of these costs hundreds of KiB on a gateway."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import apsw
import orjson
import paho.mqtt
import pytest

import glec_fast

# Without `site`, whose hooks for an editable install import half of these themselves.
BARE = (sys.executable, "-I", "-S", "-c")
HEAVY = (
    "urllib.request",
    "http.client",
    "email",
    "datetime",
    "shutil",
    "tempfile",
    "ipaddress",
    "dns.resolver",
    "inspect",
    "traceback",
    "platform",
    "uuid",
    "selectors",
    "random",
    "shlex",
)
# Of our own: for a damaged file, for WebSockets.
HEAVY_PARTS = ("glec_fast.durable.remains", "glec_fast.durable.raw_pages", "glec_fast.transport.websocket")
# Of all that the package gives, above a bare interpreter, compiled files or not. 10 MB today.
EVERYTHING_KIB_MAX = 16_000
ANONYMOUS = (
    "anonymous = lambda: next(int(line.split()[1]) for line in open('/proc/self/smaps_rollup') if 'Anonymous' in line);"
)
PATHS = sorted(
    {str(Path(package.__path__[0]).parent) for package in (apsw, orjson, glec_fast)}
    | {str(Path(paho.mqtt.__path__[0]).parents[1])}
)


def run(code: str) -> object:
    program = f"import sys; sys.path += {PATHS!r}; import json; before = set(sys.modules); {code}"
    return json.loads(subprocess.run([*BARE, program], capture_output=True, check=True, timeout=60).stdout)


def test_what_is_rarely_used_is_not_imported() -> None:
    loaded = run("from glec_fast import *; print(json.dumps(sorted(set(sys.modules) - before)))")
    assert isinstance(loaded, list)
    assert "paho.mqtt.client" in loaded
    assert [name for name in HEAVY + HEAVY_PARTS if name in loaded] == []


def test_paho_finds_it_when_it_is_used() -> None:
    code = (
        "import os, glec_fast; from paho.mqtt import client; os.environ['mqtt_proxy'] = 'http://proxy:1';"
        "found = client.urllib.request.getproxies();"
        "print(json.dumps([found, client.urllib.parse.urlsplit('http://[::1]:1').hostname]))"
    )
    assert run(code) == [{"mqtt": "http://proxy:1"}, "::1"]


def test_paho_has_the_name_of_the_system_and_makes_up_client_ids() -> None:
    code = (
        "import os, glec_fast; from paho.mqtt import client; late = 'platform' not in sys.modules;"
        "made = client.Client(client.CallbackAPIVersion.VERSION2, protocol=client.MQTTv31);"
        "print(json.dumps([late, client.platform.system() == os.uname().sysname, client.platform.python_version(),"
        " len(made._client_id)]))"
    )
    found = run(code)
    assert isinstance(found, list)
    assert found[:3] == [True, True, ".".join(map(str, sys.version_info[:3]))]
    assert found[3] > 10


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


def test_a_part_loads_no_other() -> None:
    loaded = run("import glec_fast; print(json.dumps(sorted(set(sys.modules) - before)))")
    assert isinstance(loaded, list)
    ours = [name for name in loaded if name.startswith("glec_fast")]
    # What `_paho` is made of.
    assert ours == ["glec_fast", "glec_fast._paho", "glec_fast.runtime", "glec_fast.runtime._field"]
    loaded = run("from glec_fast import Client; print(json.dumps(sorted(set(sys.modules) - before)))")
    assert isinstance(loaded, list)
    assert not [name for name in loaded if name.startswith("glec_fast.fleet")]


def test_each_name_is_there_and_each_package() -> None:
    code = (
        "import glec_fast; found = {name: getattr(glec_fast, name).__module__ for name in glec_fast.__all__};"
        "from glec_fast import *;"
        "print(json.dumps([sorted(found), hasattr(glec_fast, 'nothing'), glec_fast.errors.__name__,"
        " set(glec_fast.__all__) <= set(dir(glec_fast))]))"
    )
    assert run(code) == [sorted(glec_fast.__all__), False, "glec_fast.errors", True]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read where Linux tells it")
def test_all_of_it_stays_small() -> None:
    code = f"{ANONYMOUS} bare = anonymous(); from glec_fast import *; print(anonymous() - bare)"
    # The second finds compiled files, if they may be kept at all.
    taken = [run(code) for _ in range(2)]
    assert isinstance(taken[1], int)
    assert taken[1] < EVERYTHING_KIB_MAX


def test_a_program_may_have_a_module_by_the_name_of_a_package(tmp_path: Path) -> None:
    """That paho would import were it there."""
    (tmp_path / "dns.py").write_text("import glec_fast.mqtt\n")
    run = subprocess.run([sys.executable, str(tmp_path / "dns.py")], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
