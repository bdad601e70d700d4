"""`make footprint-arm`: the memory of a manager's life on armv7l, under emulation, in a root where pip has the wheel.

Usage: python wheels/footprint.py WHEEL      (of `make wheels`, in wheels/dist)

What is counted is what no file backs of the guest's memory alone, which has a range of its own in the emulator's: not
the emulator, nor the code that it has translated. Seen every few ms, the most of it is printed, with the interpreter
and above a bare one: import, TLS with a pin and one CA, 10,000 messages queued, flushed, metrics read.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dependencies import REPOSITORY, WHEELS, download, install

sys.path.insert(0, str(REPOSITORY / "benches"))

from bench_footprint import pin_of
from harness import make_certificates, mosquitto

from guest import cache_directory, fresh_guest
from targets import TARGETS

if TYPE_CHECKING:
    from guest import Guest

# Above what the emulator takes for itself, and page-aligned.
GUEST_BASE = 0x20_0000_0000
GUEST_BYTES = 1 << 32
SAMPLE_S = 0.01
CHILD = "footprint_child.py"
PATH = ["/venv/lib/python3.11/site-packages"]


def anonymous_kib(process: Path) -> int:
    """Of the guest's range of an emulator's memory."""
    total, is_guests = 0, False
    for line in (process / "smaps").read_text().splitlines():
        head = line.split(None, 1)[0]
        if not head.endswith(":"):
            start = int(head.partition("-")[0], 16)
            is_guests = GUEST_BASE <= start < GUEST_BASE + GUEST_BYTES
        elif is_guests and head == "Anonymous:":
            total += int(line.split()[1])
    return total


class Peak:
    """Looks at the guest's Python until it is told to end."""

    def __init__(self, word: str) -> None:
        self.kib = 0
        self._word = word.encode()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._is_over.wait(SAMPLE_S):
            # One may end while it is looked at.
            with suppress(OSError):
                for process in Path("/proc").glob("[0-9]*"):
                    if self._is_emulator(process):
                        self.kib = max(self.kib, anonymous_kib(process))

    def _is_emulator(self, process: Path) -> bool:
        command = (process / "cmdline").read_bytes()
        return self._word in command and b"qemu" in command.partition(b"\0")[0]

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def run_child(guest: Guest, word: str, order: dict[str, Any]) -> int:
    environment = {"PATH": "/venv/bin:/usr/bin:/bin", "QEMU_GUEST_BASE": hex(GUEST_BASE)}
    argument = json.dumps({**order, "path": PATH, "word": word})
    with Peak(word) as peak:
        guest.run("python", "-I", "-S", f"/{CHILD}", argument, environment=environment)
    return peak.kib


def main() -> int:
    target, cache = TARGETS["armv7l"], cache_directory()
    wheel = Path(sys.argv[1])
    dependencies = download(target, [str(wheel)], cache)
    with tempfile.TemporaryDirectory() as directory, fresh_guest(target, cache) as guest:
        tls = make_certificates(Path(directory))
        (guest.root / WHEELS.lstrip("/")).mkdir()
        shutil.copy(wheel, guest.root / WHEELS.lstrip("/"))
        install(guest, dependencies, [f"{WHEELS}/{wheel.name}"], "/venv")
        # An interpreter that compiles what it imports holds more.
        guest.run("/venv/bin/python", "-m", "compileall", "-q", *PATH, "/usr/lib/python3.11")
        shutil.copy(REPOSITORY / "benches" / CHILD, guest.root / CHILD)
        shutil.copy(tls.ca, guest.root / "ca.crt")
        word = f"footprint-{time.monotonic_ns()}"
        bare_kib = run_child(guest, f"{word}-bare", {"run": "import", "module": "json"})
        for qos in (1, 2):
            extra = "max_inflight_messages 0\nmax_queued_messages 0"
            with mosquitto(nodelay=True, extra=extra, certificate=tls.server) as broker:
                order = {
                    "run": "stages",
                    "url": f"ssl://127.0.0.1:{broker.tls_port}",
                    "queue_path": f"/queue-{qos}.db",
                    "ca": "/ca.crt",
                    "pin": pin_of(tls.server.certificate_path),
                    "qos": qos,
                    "messages": 10_000,
                    "reconnects": 0,
                    "settings": {"max_unreleased": 1000, "status_interval_s": 0},
                }
                peak_kib = run_child(guest, f"{word}-{qos}", order)
            sys.stdout.write(
                f"armv7l, QoS {qos}: peak {peak_kib * 1024 / 1e6:.1f} MB with the interpreter, "
                f"{(peak_kib - bare_kib) * 1024 / 1e6:.1f} MB above a bare one ({bare_kib * 1024 / 1e6:.1f} MB)\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
