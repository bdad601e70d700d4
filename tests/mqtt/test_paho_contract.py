"""paho's internals that are built on: each is named in `glec_fast.mqtt._paho`, and an import without one says so."""

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
from glec_fast.mqtt import _paho

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(glec_fast.__file__).parent
CEXT = PACKAGE.parent / "cext"
CONTRACT = {*_paho.METHODS, *_paho.ATTRIBUTES, *_paho.FUNCTIONS, *_paho._LAST_RECEIVED}
# Of its client, and of its module.
ITS_OWN = {*vars(paho.Client), *paho.Client.__init__.__code__.co_names}
ITS_MODULE_S = {*vars(paho)}
# The halves of our client, each of which is a paho client too.
CLIENTS = ("client", "durable_client", "receive", "secure")


def internals_of(tree: ast.AST) -> Iterator[str]:
    """Names with an underscore that are paho's too: attributes, methods that stand in for its own, and texts."""
    for node in ast.walk(tree):
        name, of = "", ITS_OWN
        if isinstance(node, ast.Attribute):
            name = node.attr
            if isinstance(node.value, ast.Name) and node.value.id == "paho":
                of = ITS_MODULE_S
        elif isinstance(node, ast.FunctionDef):
            name = node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value
        if name.startswith("_") and not name.startswith("__") and name in of:
            yield name


def used_internals() -> set[str]:
    trees = [ast.parse((PACKAGE / "mqtt" / f"{name}.py").read_text()) for name in CLIENTS]
    manager = ast.parse((PACKAGE / "fleet" / "manager.py").read_text())
    trees += [node for node in ast.walk(manager) if isinstance(node, ast.ClassDef) and node.name == "_FleetClient"]
    used = {name for tree in trees for name in internals_of(tree)}
    publish = (CEXT / "outbox" / "_outbox.pyx").read_text()
    used |= {name for name in re.findall(r"client\.(_\w+)", publish) if name in ITS_OWN}
    used |= set(re.findall(r"from paho.mqtt.client import (_\w+)", publish))
    return used


@pytest.mark.skipif(not CEXT.exists(), reason="reads the sources of the extensions, which a wheel has not")
def test_it_names_just_what_is_used() -> None:
    used = used_internals()
    assert used <= CONTRACT, "used, but not in the contract"
    named = {name for name in CONTRACT if name.startswith("_")} - {*_paho._LAST_RECEIVED}
    assert named <= used, "in the contract, but not used"


def test_this_paho_keeps_to_it() -> None:
    assert _paho.missing_internals() == []


@pytest.mark.parametrize("name", sorted(_paho.METHODS))
def test_a_method_that_is_gone_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(paho.Client, name)
    assert _paho.missing_internals() == [name]


@pytest.mark.parametrize("name", sorted(_paho.ATTRIBUTES))
def test_an_attribute_that_is_gone_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = _paho._initialised_names() - {name}
    monkeypatch.setattr(_paho, "_initialised_names", lambda: left)
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
