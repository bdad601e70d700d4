"""One contender of the flush benchmark in a process of its own, so that CPU, memory and writes are its own.

Called by harness.run_contender as `contender.py NAME PORT QOS MESSAGES WINDOW MAX_UNRELEASED QUEUE_PATH`; prints one
JSON object.
Only what every interpreter has loaded anyway is imported at the top: the memory figure is the contender's alone.
"""

from __future__ import annotations

import sys
import time

CLIENT_ID = "DTG-BENCH"
FLUSH_TIMEOUT_S = 600.0
# As much as a database writes at least for one change, into a file that need not grow.
PAGE_BYTES = 4096
LOG_BYTES = 1_048_576


def sum_of_proc(name: str, prefix: str) -> int:
    """The sum of the numbers in /proc/self/NAME on lines that start with `prefix`."""
    with open(f"/proc/self/{name}", encoding="ascii") as lines:  # noqa: PTH123 - pathlib would count as memory
        return sum(int(line.split()[1]) for line in lines if line.startswith(prefix))


def private_bytes() -> int:
    """Memory that would be freed if this process ended, from the kernel's own sum over its mappings."""
    return sum_of_proc("smaps_rollup", "Private_") * 1024


def peak_rss_bytes() -> int:
    return sum_of_proc("status", "VmHWM") * 1024


def write_bytes() -> int:
    """Bytes this process has caused to be written to the storage layer. A file in memory (tmpfs) counts as none."""
    return sum_of_proc("io", "write_bytes")


class Meter:
    """The wall clock runs from CONNACK to the last acknowledgement kept; CPU also covers connecting.

    A client that reads its queue ahead of CONNACK would otherwise have that work for nothing.
    """

    def __init__(self) -> None:
        self._connack_s = 0.0
        self._write_bytes_before = write_bytes()
        self._cpu_before_s = time.process_time()
        self.wall_s = 0.0
        self.cpu_s = 0.0
        self.private_bytes = 0
        self.peak_rss_bytes = 0

    def on_connack(self) -> None:
        self._connack_s = time.perf_counter()

    def on_flushed(self) -> None:
        self.wall_s = time.perf_counter() - self._connack_s
        self.cpu_s = time.process_time() - self._cpu_before_s
        self.private_bytes = private_bytes()
        self.peak_rss_bytes = peak_rss_bytes()

    def figures(self) -> dict[str, float]:
        """Taken after the contender has closed its file: the checkpoint at closing is written too."""
        return {
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "write_bytes": write_bytes() - self._write_bytes_before,
            "private_bytes": self.private_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
        }


def run_raw(port: int, qos: int, messages: int, window: int, max_unreleased: int, _queue_path: str) -> Meter:
    import raw_socket

    flush = raw_socket.prepare(messages, qos)
    meter = Meter()
    with raw_socket.connect(port, CLIENT_ID) as sock:
        meter.on_connack()
        acks = raw_socket.pump(sock, flush, window, max_unreleased)
        meter.on_flushed()
    raw_socket.check(acks, flush)
    return meter


def run_synced(port: int, qos: int, messages: int, window: int, max_unreleased: int, queue_path: str) -> Meter:
    import os

    import raw_socket

    flush = raw_socket.prepare(messages, qos)
    page = bytes(PAGE_BYTES)
    log = os.open(f"{queue_path}-log", os.O_WRONLY | os.O_CREAT)
    # Page by page: what is written in one piece is kept in one piece, and goes to the disk as a whole with each page.
    for _ in range(LOG_BYTES // PAGE_BYTES):
        os.write(log, page)
    os.fsync(log)
    os.lseek(log, 0, os.SEEK_SET)

    def sync() -> None:
        if os.write(log, page) and os.lseek(log, 0, os.SEEK_CUR) >= LOG_BYTES:
            os.lseek(log, 0, os.SEEK_SET)
        os.fdatasync(log)

    meter = Meter()
    with raw_socket.connect(port, CLIENT_ID) as sock:
        meter.on_connack()
        acks = raw_socket.pump(sock, flush, window, max_unreleased, sync)
        meter.on_flushed()
    os.close(log)
    raw_socket.check(acks, flush)
    return meter


def run_baseline(port: int, _qos: int, _messages: int, window: int, _max_unreleased: int, queue_path: str) -> Meter:
    from baseline_manager import BaselineManager

    manager = BaselineManager("127.0.0.1", port, CLIENT_ID, queue_path, max_inflight=window)
    meter = Meter()
    manager.on_connected = meter.on_connack
    manager.connect()
    if not manager.wait_flushed(FLUSH_TIMEOUT_S):
        raise TimeoutError("the baseline did not empty its queue")
    meter.on_flushed()
    manager.disconnect()
    return meter


def run_glec(port: int, _qos: int, messages: int, window: int, max_unreleased: int, queue_path: str) -> Meter:
    from glec_fast import ConnectionCallback, MQTTConfig, MQTTManager

    class OnConnack(ConnectionCallback):
        def on_connected(self) -> None:
            meter.on_connack()

    config = MQTTConfig(
        broker_url=f"tcp://127.0.0.1:{port}",
        client_id=CLIENT_ID,
        queue_path=queue_path,
        queue_max_size=messages,
        max_in_flight=window,
        max_unreleased=max_unreleased,
    )
    manager = MQTTManager(config)
    meter = Meter()
    manager.set_connection_callback(OnConnack())
    manager.connect()
    if not manager.flush(FLUSH_TIMEOUT_S):
        raise TimeoutError("glec did not empty its queue")
    meter.on_flushed()
    manager.disconnect()
    return meter


def run_bare(_port: int, _qos: int, _messages: int, _window: int, _max_unreleased: int, _queue_path: str) -> Meter:
    """The interpreter with this file alone: what the memory of every other contender is counted above."""
    meter = Meter()
    meter.on_connack()
    meter.on_flushed()
    return meter


RUNNERS = {"bare": run_bare, "raw": run_raw, "synced": run_synced, "baseline": run_baseline, "glec": run_glec}


def main() -> None:
    name, port, qos, messages, window, max_unreleased, queue_path = sys.argv[1:]
    meter = RUNNERS[name](int(port), int(qos), int(messages), int(window), int(max_unreleased), queue_path)

    import json  # after the measuring: its memory is not the contender's

    print(json.dumps(meter.figures()))


if __name__ == "__main__":
    main()
