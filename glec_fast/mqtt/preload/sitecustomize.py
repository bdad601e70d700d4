"""Has our class in paho's place as soon as a program imports either; until then it costs nothing.

`python -m glec_fast.mqtt` puts this folder on PYTHONPATH. A `sitecustomize` of the system's is run too.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

PREFIX = "GLEC_FAST_MQTT_PREFIX"
STORE = "GLEC_FAST_MQTT_STORE"
# Whichever a program imports first: the second is imported by the first.
_PAHO_S, _OURS = "paho.mqtt.client", "glec_fast"
_HERE = os.path.dirname(os.path.abspath(__file__))


class _Swapping(Loader):
    """Loads what it is asked for as it would be loaded anyway, and then makes the swap."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec: Any = module.__spec__
        module.__loader__ = spec.loader = self._loader
        self._loader.exec_module(module)
        from glec_fast.mqtt.swap import install, store_in

        directory = os.environ.get(STORE)
        install(store=None if directory is None else store_in(directory))


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in (_PAHO_S, _OURS):
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Swapping(spec.loader)
        return spec


def _run_next() -> None:
    """The `sitecustomize` that would have been run without this one."""
    elsewhere = [each for each in sys.path if os.path.abspath(each) != _HERE]
    spec = PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        sys.modules["sitecustomize"] = module = module_from_spec(spec)
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    # Another Python, which a program may start, need not have us installed.
    if os.environ.get(PREFIX) == sys.prefix:
        sys.meta_path.insert(0, _Finder())
    _run_next()
