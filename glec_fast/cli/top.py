"""`glec-fast top`: a live page of the running service: link, rates, queue, drops.

Ends with Ctrl-C. --once prints one page, for a pipe or a report. Exit status 2 where no service answers.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from glec_fast.cli.service_client import add_socket_option, ask
from glec_fast.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from rich.console import RenderableType

SUMMARY = "watch the running service"
_BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_POINTS = 40
_LONGEST_FAILURE = 200


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("top", help=SUMMARY, description=__doc__)
    add_socket_option(parser)
    parser.add_argument("--once", action="store_true", help="print one page and end")
    parser.add_argument(
        "--period", metavar="S", type=float, default=1.0, help="between two looks (default: %(default)s)"
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
    page = Page()
    page.take(ask(arguments.socket, "metrics"), time.monotonic())
    console = Console(file=sys.stdout)
    if arguments.once or not console.is_terminal:
        console.print(page.render())
        return 0
    with Live(page.render(), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(arguments.period)
            page.take(ask(arguments.socket, "metrics"), time.monotonic())
            live.update(page.render(), refresh=True)


class Page:
    """The last answers, and what changed between them."""

    def __init__(self) -> None:
        self._answer: dict[str, Any] = {}
        self._taken_s = 0.0
        self._rates: dict[str, deque[float]] = {
            name: deque(maxlen=_POINTS) for name in ("messages_sent", "sent_bytes", "received_bytes")
        }
        self._queue: deque[float] = deque(maxlen=_POINTS)

    def take(self, answer: dict[str, Any], now_s: float) -> None:
        """The next answer of the service."""
        figures = answer["metrics"]
        if self._answer:
            before = self._answer["metrics"]
            for name, rates in self._rates.items():
                # A service that was started anew counts from 0.
                rates.append(max(figures[name] - before[name], 0) / max(now_s - self._taken_s, 1e-9))
        self._queue.append(figures["queue_size"])
        self._answer, self._taken_s = answer, now_s

    def render(self) -> RenderableType:
        """The page, for 80 columns and more."""
        from rich.table import Table
        from rich.text import Text

        figures = self._answer["metrics"]
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=12, no_wrap=True)
        table.add_column(min_width=18, no_wrap=True, justify="right")
        table.add_column(no_wrap=True, overflow="ellipsis")
        color = "green" if figures["is_connected"] else "red"
        state = Text(figures["state"], style=f"bold {color}")
        table.add_row(Text(self._answer["client_id"], style="bold"), state, f"for {_span(figures['in_state_s'])}")
        for label, name, unit in (
            ("sent", "messages_sent", "msg/s"),
            ("up", "sent_bytes", "B/s"),
            ("down", "received_bytes", "B/s"),
        ):
            rates = self._rates[name]
            shown = f"{rates[-1]:,.0f} {unit}" if rates else f"{figures[name]:,} {unit.partition('/')[0]}"
            table.add_row(label, shown, _sparkline(rates))
        table.add_row("queue", f"{figures['queue_size']:,} msg", _sparkline(self._queue))
        if figures["batches"]:
            saved = f"{figures['batch_saved_bytes'] / 1000:,.0f} kB saved"
            table.add_row("batches", f"{figures['batches']:,}", f"of {figures['batched_messages']:,} messages, {saved}")
        table.add_row("on disk", f"{figures['queue_bytes'] / 1024:,.0f} KiB", "")
        table.add_row("connects", f"{figures['connects']:,}", f"of {figures['attempts']:,} attempts")
        drops = ", ".join(f"{reason} {count:,}" for reason, count in figures["drops"].items() if count)
        table.add_row("dropped", f"{sum(figures['drops'].values()):,}", drops)
        table.add_row("in doubt", f"{figures['in_doubt']:,}", "")
        if figures["last_failure"]:
            table.add_row("last failure", "", Text(figures["last_failure"][:_LONGEST_FAILURE], style="yellow"))
        return table


def _sparkline(values: deque[float]) -> str:
    highest = max(values, default=0)
    if not highest:
        return ""
    return "".join(_BARS[min(int(value / highest * len(_BARS)), len(_BARS) - 1)] for value in values)


def _span(seconds: float) -> str:
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{value} {unit}" for value, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (rest_s, "s")) if value]
    return " ".join(parts[:2]) or "0 s"
