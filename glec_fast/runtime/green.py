"""Programs in which gevent or eventlet have put green threads in the place of threads: all are one of the system's.

Who waited there as a thread does would keep from running whoever is waited for.
"""

from __future__ import annotations

import sys
from importlib import import_module

from glec_fast.runtime._lock import be_green


def notice() -> None:
    """Where either has done so by now, have locks and waits be those of its greenlets. Before anything is held."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        library, threads = "gevent", "gevent.thread"
    elif eventlet is not None and eventlet.is_monkey_patched("thread"):
        library, threads = "eventlet", "eventlet.green.thread"
    else:
        return
    pause, new_lock = import_module(library).sleep, import_module(threads).allocate_lock
    be_green(import_module("greenlet").getcurrent, pause, new_lock)
