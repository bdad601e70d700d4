"""`glec-fast top`: a live page of the running service, or of a program with a metrics_socket.

Link, rates, messages by QoS, latencies, queue, disk, drops and the last log lines. Ends with Ctrl-C. --once prints one
page, for a pipe or a report. Exit status 2 where nobody answers.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from glec_fast.cli.arguments import seconds
from glec_fast.cli.service_client import UnknownQuestionError, add_socket_option, ask, ask_figures
from glec_fast.errors import ConfigError
from glec_fast.fleet.metrics import metrics_as_json

if TYPE_CHECKING:
    import argparse

    from rich.console import RenderableType
    from rich.table import Table

SUMMARY = "watch the running service"
_BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
# For a terminal that has no others.
_ASCII_BARS = "_.-:=+*#"
_POINTS = 40
_LONGEST_FAILURE = 200
# Without a terminal's height.
_LINES_IN_A_PIPE = 5
_NO_LATENCY = {"messages": 0}
_DAY_S = 86_400
# The year 9999.
_TIME_MAX_MS = 253_402_300_800_000


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("top", help=SUMMARY, description=__doc__)
    add_socket_option(parser)
    parser.add_argument("--once", action="store_true", help="print one page and end")
    parser.add_argument(
        "--period", metavar="S", type=seconds, default=1.0, help="between two looks (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError as error:
        raise ConfigError("top needs the package rich: pip install 'glec-fast[cli]'") from error
    if not 0.1 <= arguments.period <= 3600:
        raise ConfigError("--period must be a number of seconds from 0.1 to 3600")
    console = Console(file=sys.stdout)
    page = Page(_BARS if console.encoding.startswith("utf") else _ASCII_BARS)
    _look(page, arguments)
    if arguments.once or not console.is_terminal or console.is_dumb_terminal:
        console.print(page.render(_LINES_IN_A_PIPE))
        return 0
    with Live(page.fitted(console.height), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(arguments.period)
            _look(page, arguments)
            live.update(page.fitted(console.height), refresh=True)


def _look(page: Page, arguments: argparse.Namespace) -> None:
    answer, figures = ask_figures(arguments.socket)
    taken_s = time.monotonic()
    try:
        lines = ask(arguments.socket, "log").get("lines")
    except UnknownQuestionError:
        # One of an older version.
        lines = None
    page.take({**answer, "metrics": metrics_as_json(figures)}, taken_s, _lines_of(lines))


def _lines_of(told: object) -> list[dict[str, Any]]:
    """Those that are lines of a log."""
    if not isinstance(told, list):
        return []
    like = {"time_ms": int, "level": str, "text": str}
    lines = [each for each in told if isinstance(each, dict) and like == {name: type(each.get(name)) for name in like}]
    return [line for line in lines if 0 <= line["time_ms"] < _TIME_MAX_MS]


class Page:
    """The last answers, and what changed between them. bars: signs for what is low to what is high."""

    def __init__(self, bars: str = _BARS) -> None:
        self._bars = bars
        self._answer: dict[str, Any] = {}
        self._lines: list[dict[str, Any]] = []
        self._taken_s = 0.0
        self._rates: dict[str, deque[float]] = {
            name: deque(maxlen=_POINTS) for name in ("messages_sent", "sent_bytes", "received_bytes")
        }
        self._queue: deque[float] = deque(maxlen=_POINTS)

    def take(self, answer: dict[str, Any], now_s: float, lines: list[dict[str, Any]] | None = None) -> None:
        """The next answer of the service, and the last lines of its log."""
        figures = answer["metrics"]
        if self._answer:
            before = self._answer["metrics"]
            for name, rates in self._rates.items():
                # A service that was started anew counts from 0.
                rates.append(max(figures[name] - before[name], 0) / max(now_s - self._taken_s, 1e-9))
        self._queue.append(figures["queue_size"])
        self._answer, self._taken_s, self._lines = answer, now_s, lines or []

    def fitted(self, height: int) -> RenderableType:
        """The page with as many log lines as there is room for."""
        return self.render(max(height - self._fixed_height() - 1, 0))

    def render(self, log_lines: int) -> RenderableType:
        """The page, for 80 columns and more, with at most so many log lines."""
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [self._head(), self._by_qos(), self._figures()]
        for line in self._lines[len(self._lines) - min(log_lines, len(self._lines)) :]:
            at = time.strftime("%H:%M:%S", time.localtime(line["time_ms"] / 1000))
            color = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}.get(line["level"], "")
            text = " ".join(str(line["text"]).split())
            parts.append(Text(f"{at} {text}", style=color, no_wrap=True, overflow="ellipsis"))
        return Group(*parts)

    def _fixed_height(self) -> int:
        # Head, rates, and the rows of the two tables below them.
        figures = self._answer["metrics"]
        return 4 + 4 + 8 + bool(figures["last_failure"]) + bool(figures.get("batches"))

    def _grid(self) -> Table:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=12, no_wrap=True)
        table.add_column(min_width=18, no_wrap=True, justify="right")
        table.add_column(no_wrap=True, overflow="ellipsis")
        return table

    def _head(self) -> RenderableType:
        from rich.text import Text

        figures, table = self._answer["metrics"], self._grid()
        state = Text(figures["state"], style=f"bold {'green' if figures['is_connected'] else 'red'}")
        broker = self._answer.get("broker", "")
        client = Text(self._answer["client_id"], style="bold")
        table.add_row(client, state, f"for {_span(figures['in_state_s'])}, {broker}" if broker else "")
        for label, name, unit in (
            ("sent", "messages_sent", "msg/s"),
            ("up", "sent_bytes", "B/s"),
            ("down", "received_bytes", "B/s"),
        ):
            rates = self._rates[name]
            shown = f"{rates[-1]:,.0f} {unit}" if rates else f"{figures[name]:,} {unit.partition('/')[0]}"
            table.add_row(label, shown, self._sparkline(rates))
        return table

    def _by_qos(self) -> RenderableType:
        from rich.table import Table

        figures = self._answer["metrics"]
        names = (("accepted", "accepted"), ("on_disk", "on disk"), ("published", "packets"), ("acknowledged", "acked"))
        table = Table.grid(padding=(0, 2))
        for width in (12, *(10 for _ in names), 10):
            table.add_column(min_width=width, no_wrap=True, justify="right" if width == 10 else "left")
        table.add_row("", *(shown for _, shown in names), "dropped", style="dim")
        dropped = [sum(counts[qos] for counts in figures["drops_by_qos"].values()) for qos in range(3)]
        for qos in range(3):
            counts = [f"{figures[name][qos]:,}" if name in figures else "" for name, _ in names]
            table.add_row(f"QoS {qos}", *counts, f"{dropped[qos]:,}")
        return table

    def _figures(self) -> RenderableType:
        from rich.text import Text

        figures, table = self._answer["metrics"], self._grid()
        for label, name in (("to disk", "to_disk"), ("to ack", "to_acknowledgement")):
            took = figures.get(name, _NO_LATENCY)
            if took["messages"]:
                shown = f"p99 {_seconds(took['p99_s'])}, the longest {_seconds(took['max_s'])}"
                table.add_row(label, f"p50 {_seconds(took['p50_s'])}", shown)
            else:
                table.add_row(label, "-", "")
        oldest_s = figures.get("oldest_s", 0)
        oldest = f"the oldest {_span(oldest_s)}  " if oldest_s >= 1 and figures["queue_size"] else ""
        table.add_row("queue", f"{figures['queue_size']:,} msg", oldest + self._sparkline(self._queue))
        if figures.get("batches"):
            saved = f"{figures['batch_saved_bytes'] / 1000:,.0f} kB saved"
            table.add_row("batches", f"{figures['batches']:,}", f"of {figures['batched_messages']:,} messages, {saved}")
        written = (
            f"written {figures.get('disk_written_bytes', 0) / 1e6:,.1f} MB, {figures.get('disk_syncs', 0):,} syncs"
        )
        table.add_row("file", f"{figures['queue_bytes'] / 1024:,.0f} KiB", written)
        table.add_row("connects", f"{figures['connects']:,}", f"of {figures['attempts']:,} attempts{self._ends()}")
        drops = ", ".join(f"{reason} {count:,}" for reason, count in figures["drops"].items() if count)
        table.add_row("dropped", f"{sum(figures['drops'].values()):,}", drops)
        steps = figures.get("clock_steps", 0)
        table.add_row("in doubt", f"{figures['in_doubt']:,}", f"the clock stepped {steps:,} times" if steps else "")
        if figures["last_failure"]:
            table.add_row("last failure", "", Text(figures["last_failure"][:_LONGEST_FAILURE], style="yellow"))
        return table

    def _sparkline(self, values: deque[float]) -> str:
        highest, signs = max(values, default=0), self._bars
        if not highest:
            return ""
        return "".join(signs[min(int(value / highest * len(signs)), len(signs) - 1)] for value in values)

    def _ends(self) -> str:
        certificates = self._answer["metrics"].get("certificates", ())
        if not certificates:
            return ""
        days = (min(each["expires_at_s"] for each in certificates) - time.time()) / _DAY_S
        return f"; a certificate ends in {days:,.0f} d"


def _span(seconds: float) -> str:
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{value} {unit}" for value, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (rest_s, "s")) if value]
    return " ".join(parts[:2]) or "0 s"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds < 10 else _span(seconds)
