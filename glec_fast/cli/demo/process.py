"""The publishing process as its parent sees it: start it, let it go on, read its reports, kill it."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from glec_fast.cli.demo import DemoError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from glec_fast.cli.demo.vehicle import VehicleSettings

END_TIMEOUT_S = 10.0
ERROR_LINES = 4

# A word and its arguments, as vehicle.py documents them; ("ended",) once nothing more can come.
VehicleReport = tuple[str, ...]
ENDED: VehicleReport = ("ended",)


class VehicleProcess:
    """One run of `python -m MODULE SETTINGS`. It ends when this is closed, or with its parent."""

    def __init__(self, module: str, settings: VehicleSettings, error_path: Path) -> None:
        self._error_path = error_path
        self._reports: queue.Queue[VehicleReport] = queue.Queue()
        with error_path.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, settings.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name="vehicle-reports", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def allow(self, number: int) -> None:
        """Let it publish the messages below `number`."""
        assert self._process.stdin is not None
        # A process that is gone says so in its reports.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{number}\n")
            self._process.stdin.flush()

    def next_report(self, timeout_s: float) -> VehicleReport | None:
        """The next report; None if none came in time."""
        try:
            return self._reports.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def kill(self) -> Sequence[VehicleReport]:
        """End it with SIGKILL; returns what it had still said."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        said = []
        while (report := self._reports.get()) != ENDED:
            said.append(report)
        return said

    def wait(self) -> int:
        """Its exit status, once it has said its last word."""
        try:
            return self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise DemoError(f"the publishing process does not end within {END_TIMEOUT_S:.0f} s") from None

    def last_words(self) -> str:
        """The end of what it wrote to stderr, in one line."""
        lines = self._error_path.read_text(errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-ERROR_LINES:]) or "no word on stderr"

    def private_bytes(self) -> int:
        """Memory that only this process uses; 0 if it is gone."""
        try:
            lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))

    def close(self) -> None:
        """End it at once if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._reports.put(tuple(line.split()))
        self._reports.put(ENDED)


def file_set_bytes(path: Path) -> int:
    """The size of a queue file with all that stands beside it."""
    total = 0
    for suffix in ("", "-wal", "-shm", "-qos2"):
        with contextlib.suppress(FileNotFoundError):
            total += path.with_name(path.name + suffix).stat().st_size
    return total
