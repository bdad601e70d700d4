"""paho's internals that are built on: each is named in `glec_fast._paho`, and an import without one says so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from paho.mqtt import client as paho

import glec_fast
from glec_fast import _paho

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(glec_fast.__file__).parent
CEXT = PACKAGE.parent / "cext"
SEAM = PACKAGE / "_paho.py"
CONTRACT = {*_paho.METHODS, *_paho.ATTRIBUTES, *_paho._LAST_RECEIVED}
OF_OTHERS = {*_paho.MESSAGE, *_paho.INFO}
# Of its client, of what that hands out, and of its module.
ITS_CLIENT_S = {*vars(paho.Client), *paho.Client.__init__.__code__.co_names}
ITS_OWN = {*ITS_CLIENT_S, *vars(paho.MQTTMessage), *vars(paho.MQTTMessageInfo)}
ITS_MODULE_S = {*vars(paho)}
# What is a paho client itself: its own attributes and methods are that one's.
CLIENT = PACKAGE / "mqtt" / "client.py"
SOURCES = sorted(set(PACKAGE.rglob("*.py")) - {SEAM})
IN_CYTHON = re.compile(r"\b(?!self\b)\w+\.(_\w+)")
OF_MODULE_IN_CYTHON = re.compile(r"^\s*(?:from paho[\w.]* import.*\b_\w+|.*\bpaho\.(?:Client\.)?_\w+)", re.MULTILINE)

needs_cext = pytest.mark.skipif(not CEXT.exists(), reason="reads the sources of the extensions, which a wheel has not")


def is_internal(name: str, of: set[str]) -> bool:
    return name.startswith("_") and not name.startswith("__") and name in of


def used_by(tree: ast.AST, *, is_client: bool) -> Iterator[str]:
    """paho's internal names: attributes of others, and of `self` and as methods where that is a paho client."""
    for node in ast.walk(tree):
        name, is_own = "", False
        if isinstance(node, ast.Attribute):
            name, is_own = node.attr, isinstance(node.value, ast.Name) and node.value.id == "self"
        elif isinstance(node, ast.FunctionDef):
            name, is_own = node.name, True
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value
        if is_internal(name, ITS_CLIENT_S if is_own else ITS_OWN) and (is_client or not is_own):
            yield name


def names_of_paho(tree: ast.AST) -> set[str]:
    """What its module and its classes are called in this module."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            origin = getattr(node, "module", None) or ""
            for each in node.names:
                if origin.startswith("paho") or each.name.startswith("paho"):
                    names.add((each.asname or each.name).partition(".")[0])
                elif origin == "glec_fast._paho" and each.name[0].isupper():
                    names.add(each.asname or each.name)
    return names


def read_outside_the_seam(tree: ast.AST) -> Iterator[str]:
    """Private names that are read from paho's module or its classes."""
    paho_s = names_of_paho(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("paho"):
            yield from (each.name for each in node.names if each.name.startswith("_"))
        if isinstance(node, ast.Attribute):
            root: ast.AST = node
            while isinstance(root, ast.Attribute):
                root = root.value
            is_paho_s = isinstance(root, ast.Name) and root.id in paho_s
            if is_paho_s and node.attr.startswith("_") and not node.attr.startswith("__"):
                yield ast.unparse(node)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_private_is_read_from_paho_elsewhere(source: Path) -> None:
    assert list(read_outside_the_seam(ast.parse(source.read_text()))) == []


@pytest.mark.parametrize("source", sorted((PACKAGE / "mqtt").glob("*.py")), ids=lambda path: path.name)
def test_its_class_is_not_looked_up_by_its_name(source: Path) -> None:
    """It may be ours by then."""
    assert "paho.Client" not in {ast.unparse(node) for node in ast.walk(ast.parse(source.read_text()))}


@needs_cext
@pytest.mark.parametrize("source", sorted(CEXT.rglob("*.p??")), ids=lambda path: path.relative_to(CEXT).as_posix())
def test_nothing_private_is_read_from_paho_in_cython(source: Path) -> None:
    text = source.read_text()
    assert OF_MODULE_IN_CYTHON.findall(text) == []
    assert {name for name in IN_CYTHON.findall(text) if is_internal(name, ITS_OWN)} <= CONTRACT | OF_OTHERS


@needs_cext
def test_it_names_just_what_is_used() -> None:
    used = {*_paho.LOCKS}
    for source in SOURCES:
        used.update(used_by(ast.parse(source.read_text()), is_client=source == CLIENT))
    for node in ast.parse(SEAM.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name in ("Paho", "_Tapped"):
            used.update(used_by(node, is_client=False))
    for source in CEXT.rglob("*.p??"):
        used.update(name for name in IN_CYTHON.findall(source.read_text()) if is_internal(name, ITS_OWN))
    assert used <= CONTRACT | OF_OTHERS, "used, but not in the contract"
    assert CONTRACT - {*_paho._LAST_RECEIVED} <= used, "in the contract, but not used"


@pytest.mark.parametrize(
    "text",
    [
        "from paho.mqtt.client import _encode_payload",
        "from paho.mqtt import client as mqtt\nmqtt._ConnectionState",
        "import paho.mqtt.client as mqtt\nmqtt.Client._loop",
        "import paho.mqtt.client\npaho.mqtt.client._ConnectionState.MQTT_CS_NEW",
        "from paho.mqtt.client import Client\nClient._loop",
        "from glec_fast._paho import MQTTMessage\nMQTTMessage._topic",
    ],
)
def test_a_use_elsewhere_is_found(text: str) -> None:
    assert list(read_outside_the_seam(ast.parse(text)))


def test_this_paho_keeps_to_it() -> None:
    assert _paho.missing_internals() == []


@pytest.mark.parametrize("name", sorted(_paho.METHODS))
def test_a_method_that_is_gone_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(paho.Client, name)
    assert _paho.missing_internals() == [name]


@pytest.mark.parametrize("name", sorted(_paho.ATTRIBUTES))
def test_an_attribute_that_is_gone_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = _paho._used_names() - {name}
    monkeypatch.setattr(_paho, "_used_names", lambda: left)
    assert name in _paho.missing_internals()


@pytest.mark.parametrize("name", sorted(_paho.FUNCTIONS))
def test_a_function_that_is_gone_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(paho, name)
    assert name in _paho.missing_internals()


def test_an_import_over_another_paho_says_what_to_install() -> None:
    program = "from paho.mqtt.client import Client; del Client._packet_queue; import glec_fast.mqtt"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: paho-mqtt")
    assert "_packet_queue" in last
    assert "install a version from 2.1 on" in last


REPLACED = {
    "wrapped": "functools.wraps(init)(counted)",
    "wrapped and hidden": "counted",
    "of a mock": "mock.Mock(return_value=None)",
}
PLACES = {
    "a subclass": "type('Traced', (paho.Client,), {})",
    "a function": "lambda *a, **k: made.append(a) or own(*a, **k)",
    "a mock": "mock.MagicMock()",
    "a mock with its methods": "mock.create_autospec(paho.Client)",
}
PROLOGUE = """
import functools
from unittest import mock
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion as own_versions
made = []
own = paho.Client
init = own.__init__
def counted(self, *a, **k):
    made.append(self)
    init(self, *a, **k)
"""
EPILOGUE = """
client = glec_fast.Client(own_versions.VERSION2, client_id="name")
assert isinstance(client, own)
f = lambda *a: None
client.on_publish = f
client.max_inflight_messages_set(7)
client.max_queued_messages_set(8)
assert client.on_publish is f and client.max_inflight_messages == 7 and client.max_queued_messages == 8
assert client.publish("t", b"x", 1).mid == 1
client.enable_logger()
"""


def run(program: str) -> tuple[int, str]:
    """Its exit status and standard error."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("replaced", REPLACED.values(), ids=REPLACED)
def test_an_initialiser_that_was_wrapped_before(replaced: str) -> None:
    program = PROLOGUE + f"paho.Client.__init__ = {replaced}\nimport glec_fast\n"
    if "counted" in replaced:
        program += EPILOGUE + "assert made == [client]"
    assert run(program) == (0, "")


@pytest.mark.parametrize("placed", PLACES.values(), ids=PLACES)
def test_a_class_in_the_place_of_paho_s(placed: str) -> None:
    """Before and after the import: nothing is looked up by its name later."""
    assert run(PROLOGUE + f"paho.Client = {placed}\nimport glec_fast\n" + EPILOGUE) == (0, "")
    assert run(PROLOGUE + f"import glec_fast\npaho.Client = {placed}\n" + EPILOGUE) == (0, "")


def test_our_class_in_the_place_of_paho_s() -> None:
    swap = "import glec_fast\npaho.Client = glec_fast.Client\n"
    assert run(PROLOGUE + swap + EPILOGUE) == (0, "")
