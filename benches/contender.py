"""One contender of the flush benchmark in a process of its own, so that CPU, memory and writes are its own.

Called by harness.run_contender as `contender.py NAME PORT QOS MESSAGES WINDOW MAX_UNRELEASED QUEUE_PATH [CA]`;
prints one JSON object. CA, the certificate of an authority, means TLS, which the raw socket does not speak.
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


class Order:
    """What is to be flushed, how, and where to."""

    def __init__(
        self, port: int, qos: int, messages: int, window: int, max_unreleased: int, queue_path: str, ca: str = ""
    ) -> None:
        self.port, self.qos, self.messages = port, qos, messages
        self.window, self.max_unreleased = window, max_unreleased
        self.queue_path, self.ca = queue_path, ca


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


def run_raw(order: Order) -> Meter:
    import raw_socket

    flush = raw_socket.prepare(order.messages, order.qos)
    meter = Meter()
    with raw_socket.connect(order.port, CLIENT_ID) as sock:
        meter.on_connack()
        acks = raw_socket.pump(sock, flush, order.window, order.max_unreleased)
        meter.on_flushed()
    raw_socket.check(acks, flush)
    return meter


def run_synced(order: Order) -> Meter:
    import os

    import raw_socket

    flush = raw_socket.prepare(order.messages, order.qos)
    page = bytes(PAGE_BYTES)
    log = os.open(f"{order.queue_path}-log", os.O_WRONLY | os.O_CREAT)
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
    with raw_socket.connect(order.port, CLIENT_ID) as sock:
        meter.on_connack()
        acks = raw_socket.pump(sock, flush, order.window, order.max_unreleased, sync)
        meter.on_flushed()
    os.close(log)
    raw_socket.check(acks, flush)
    return meter


def run_baseline(order: Order) -> Meter:
    from baseline_manager import BaselineManager

    manager = BaselineManager(
        "127.0.0.1", order.port, CLIENT_ID, order.queue_path, max_inflight=order.window, ca=order.ca
    )
    meter = Meter()
    manager.on_connected = meter.on_connack
    manager.connect()
    if not manager.wait_flushed(FLUSH_TIMEOUT_S):
        raise TimeoutError("the baseline did not empty its queue")
    meter.on_flushed()
    manager.disconnect()
    return meter


def run_glec(order: Order) -> Meter:
    from glec_fast import ConnectionCallback, MQTTConfig, MQTTManager, TLSConfig

    class OnConnack(ConnectionCallback):
        def on_connected(self) -> None:
            meter.on_connack()

    config = MQTTConfig(
        broker_url=f"{'ssl' if order.ca else 'tcp'}://127.0.0.1:{order.port}",
        client_id=CLIENT_ID,
        tls_config=TLSConfig.create_server_auth(order.ca) if order.ca else None,
        queue_path=order.queue_path,
        queue_max_size=order.messages,
        max_in_flight=order.window,
        max_unreleased=order.max_unreleased,
        # What is counted is the workload alone.
        status_interval_s=0,
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


def run_bare(_order: Order) -> Meter:
    """The interpreter with this file alone: what the memory of every other contender is counted above."""
    meter = Meter()
    meter.on_connack()
    meter.on_flushed()
    return meter


RUNNERS = {"bare": run_bare, "raw": run_raw, "synced": run_synced, "baseline": run_baseline, "glec": run_glec}


def main() -> None:
    meter = RUNNERS[sys.argv[1]](Order(*map(int, sys.argv[2:7]), *sys.argv[7:]))

    import json  # after the measuring: its memory is not the contender's

    print(json.dumps(meter.figures()))


if __name__ == "__main__":
    main()
