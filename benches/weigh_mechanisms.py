"""What each mechanism of a flush buys: the same queue, flushed with all of them, and without one, in turn.

  all       as it is
  log       without the log of images: an image that comes alone goes to the row of `glec_session`
  network   without the network thread writing an image: the store's thread does, which costs two switches
  named     without finished messages named in images: a row is deleted with the image that ends its exchange

Against mosquitto as it comes (20 in flight: an image for every few messages) and with a raised window. Medians over the
rounds; each is in a process of its own against a broker of its own. Run it where nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import BENCHES, BenchError, count_rows, mosquitto, print_table
from workload import make_rows

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW = 1000
BROKERS = {"default": ("", 20), "raised": ("max_inflight_messages 2000\n", 2000)}
TIMEOUT_S = 300.0
FIGURES = ("rate", "cpu_us", "written")


def without_log() -> None:
    from glec_fast.durable.inflight_log import SavedImage

    SavedImage.open_log = lambda _image: None  # type: ignore[method-assign]


def without_network() -> None:
    from glec_fast.durable import outgoing

    outgoing._QUICK_COMMIT_S = -1.0


def without_named() -> None:
    from glec_fast.durable.outgoing import Outgoing

    save, take = Outgoing.save_image, Outgoing.take

    def save_where_nothing_is_finished(self: Outgoing) -> int | None:
        outbox: Any = self.outbox
        return None if self.finished or (outbox is not None and outbox._finished) else save(self)

    def take_and_delete(self: Outgoing, commit: Any, **given: Any) -> None:
        take(self, commit, **{**given, "makes_room": True})

    Outgoing.save_image = save_where_nothing_is_finished  # type: ignore[method-assign]
    Outgoing.take = take_and_delete  # type: ignore[method-assign]


WITHOUT: dict[str, Callable[[], None]] = {
    "all": lambda: None,
    "log": without_log,
    "network": without_network,
    "named": without_named,
}


def flush(name: str, broker: str, qos: int, messages: int) -> dict[str, float]:
    from glec_fast import OfflineQueueManager

    lines, max_unreleased = BROKERS[broker]
    with tempfile.TemporaryDirectory() as directory, mosquitto(nodelay=False, extra=lines) as server:
        path = Path(directory) / "queue.db"
        queue = OfflineQueueManager(str(path), max_queue_size=messages)
        queue.enqueue_many(make_rows(messages, qos))
        queue.release()
        numbers = map(str, (server.port, qos, messages, WINDOW, max_unreleased))
        command = [sys.executable, __file__, "--child", name, "glec", *numbers, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if done.returncode or count_rows(path):
            raise BenchError(f"without {name}: {done.stderr or 'rows are left'}")
    figures: dict[str, float] = json.loads(done.stdout)
    return {
        "rate": messages / figures["wall_s"],
        "cpu_us": figures["cpu_s"] * 1e6 / messages,
        "written": figures["write_bytes"] / messages,
    }


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        WITHOUT[sys.argv[2]]()
        sys.argv = ["contender.py", *sys.argv[3:]]
        runpy.run_path(str(BENCHES / "contender.py"), run_name="__main__")
        return
    parser = argparse.ArgumentParser(description="What each mechanism of a flush buys.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=10_000)
    args = parser.parse_args()
    for qos, broker in ((2, "default"), (2, "raised"), (1, "default")):
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in WITHOUT}
        for _ in range(args.rounds):
            for name in WITHOUT:
                measured[name].append(flush(name, broker, qos, args.messages))
        rows = []
        for name, rounds in measured.items():
            medians = [statistics.median(each[figure] for each in rounds) for figure in ("rate", "cpu_us", "written")]
            ratios = [each["rate"] / whole["rate"] for each, whole in zip(rounds, measured["all"], strict=True)]
            cells = [
                f"{medians[0]:,.0f}",
                f"{statistics.median(ratios):.2f}",
                f"{medians[1]:.1f}",
                f"{medians[2]:,.0f}",
            ]
            rows.append([name if name == "all" else f"without {name}", *cells])
        title = f"QoS {qos}, mosquitto {broker}, {args.messages:,} messages, median of {args.rounds} rounds"
        print_table(title, ("", "msg/s", "of all", "CPU us/msg", "written B/msg"), rows)


if __name__ == "__main__":
    main()
