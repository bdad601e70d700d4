"""The rooms of the house: which package may import which, also from Cython, which the linter of imports cannot read."""

from __future__ import annotations

import re

import pytest

from support.places import REPOSITORY

CEXT = REPOSITORY / "cext"
# From the top down. A package imports from rows below its own alone.
LAYERS = (
    {"cli"},
    {"testbed"},
    {"aio"},
    {"fleet"},
    {"mqtt"},
    {"engine"},
    {"outbox", "transport"},
    {"durable", "protocol", "tls"},
    {"_paho"},
    {"runtime"},
    {"settings"},
    {"validation"},
    {"errors"},
)
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}
IMPORT = re.compile(r"^\s*from glec_fast\.(\w+)[\w.]* import", re.MULTILINE)

pytestmark = pytest.mark.skipif(not CEXT.exists(), reason="reads the sources of the extensions, which a wheel has not")


@pytest.mark.parametrize("source", [path.relative_to(CEXT).as_posix() for path in sorted(CEXT.rglob("*.p??"))])
def test_cython_imports_point_down(source: str) -> None:
    package = source.split("/")[0]
    imported = set(IMPORT.findall((CEXT / source).read_text())) - {package}
    assert all(LEVEL[each] > LEVEL[package] for each in imported), imported


@pytest.mark.parametrize("source", [path.relative_to(CEXT).as_posix() for path in sorted(CEXT.rglob("*.pyx"))])
def test_what_an_extension_says_of_itself_stands_once(source: str) -> None:
    def words(text: str) -> str:
        return " ".join(text.replace("#", " ").split())

    text = (CEXT / source).read_text()
    parts = re.findall(r'^include "(.*)"$', text, re.MULTILINE)
    said = words(" ".join([text, *[(CEXT / source).with_name(part).read_text() for part in parts]]))
    stub = (REPOSITORY / "glec_fast" / source).with_suffix(".pyi").read_text()
    texts = [words(doc) for doc in re.findall(r'^ +"""(.*?)"""$', stub, re.DOTALL | re.MULTILINE)]
    # The public messages, which an editor shows the stub of, and Python the docstring.
    assert source == "fleet/_payload.pyx" or [doc for doc in texts if doc in said] == []


def test_the_linter_holds_the_same_layers() -> None:
    settings = (REPOSITORY / "pyproject.toml").read_text()
    named = re.search(r'name = "Imports point down".*?layers = \[(.*?)\]', settings, re.DOTALL)
    assert named is not None
    rows = [set(re.findall(r"glec_fast\.(\w+)", row)) for row in re.findall(r'"(.*?)"', named[1])]
    assert rows == list(LAYERS)


def test_every_package_has_a_level() -> None:
    packages = {path.parent.name for path in (REPOSITORY / "glec_fast").glob("*/__init__.py")}
    # For PyInstaller alone; it imports nothing of ours, and nothing imports it.
    assert packages - {"__pyinstaller"} <= set(LEVEL)


def test_every_package_says_what_it_must_not_know() -> None:
    texts = {path.parent.name: path.read_text() for path in (REPOSITORY / "glec_fast").glob("*/__init__.py")}
    assert [name for name in texts.keys() & LEVEL.keys() if "ust not know" not in texts[name].split('"""')[1]] == []
