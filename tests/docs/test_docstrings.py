"""The docstrings of what a program may use name every argument, and each class says which threads may have it."""

from __future__ import annotations

import enum
import inspect
import re
from typing import TYPE_CHECKING, Any

import glec_fast
from glec_fast import aio, mqtt

if TYPE_CHECKING:
    from collections.abc import Iterator

# Made by us alone; and those that docs/settings.md has a row of for each argument.
NOT_MADE_BY_PROGRAMS = {"PublishHandle", "DeliveryHandle"}
SETTINGS = {"MQTTConfig", "TLSConfig"}
OF_THREADS = re.compile(r"[Tt]hread|[Ii]mmutable|\bloop\b")


def is_ours(found: Any) -> bool:
    return str(getattr(found, "__module__", "")).startswith("glec_fast")


def public() -> dict[str, Any]:
    modules = (glec_fast, mqtt, aio)
    names = [(module, name) for module in modules for name in getattr(module, "__all__", dir(module))]
    found = {name: getattr(module, name) for module, name in names if not name.startswith("_")}
    return {name: each for name, each in found.items() if is_ours(each) and callable(each)}


def classes() -> dict[str, type]:
    found = {name: each for name, each in public().items() if inspect.isclass(each)}
    return {name: each for name, each in found.items() if not issubclass(each, enum.Enum)}


def called() -> Iterator[tuple[str, Any, str]]:
    """Name, function, docstring of its class."""
    yield from ((name, each, "") for name, each in public().items() if inspect.isroutine(each))
    for name, kind in classes().items():
        of_class = inspect.getdoc(kind) or ""
        for base in filter(is_ours, kind.__mro__):
            methods = {key: getattr(each, "__func__", each) for key, each in vars(base).items() if key[0] != "_"}
            yield from (
                (f"{name}.{key}", each, of_class)
                for key, each in methods.items()
                if callable(each) and not inspect.isclass(each)
            )


def not_named(function: Any, says: str) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    named = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    return [each for each in named if each not in ("self", "cls") and not re.search(rf"\b{re.escape(each)}\b", says)]


def test_each_function_names_its_arguments() -> None:
    found = {name: (function, inspect.getdoc(function) or "", of_class) for name, function, of_class in called()}
    assert len(found) > 80
    assert [name for name, (_, says, _) in found.items() if not says] == []
    missing = {name: not_named(function, says + of_class) for name, (function, says, of_class) in found.items()}
    assert {name: names for name, names in missing.items() if names} == {}


def test_each_class_says_what_it_is_made_of_and_which_threads_may_have_it() -> None:
    plain = {name: each for name, each in classes().items() if not issubclass(each, BaseException)}
    assert [name for name, each in plain.items() if not OF_THREADS.search(inspect.getdoc(each) or "")] == []
    made = plain.keys() - NOT_MADE_BY_PROGRAMS - SETTINGS
    missing = {name: not_named(plain[name], inspect.getdoc(plain[name]) or "") for name in made}
    assert {name: names for name, names in missing.items() if names} == {}


def test_each_error_says_what_it_means() -> None:
    errors = [each for each in classes().values() if issubclass(each, BaseException)]
    assert errors
    assert [each.__name__ for each in errors if "__doc__" not in vars(each) or not each.__doc__] == []
