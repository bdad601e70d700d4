"""How the demo shows itself: live on a terminal, plain lines elsewhere, a table at the end, or one JSON object."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from glec_fast.cli.demo.verdict import QOS_LEVELS

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from glec_fast.cli.demo.verdict import Result

PLAIN_PERIOD_S = 2.0
LIVE_PERIOD_S = 0.1
# What each of these means is in verdict.py.
COLUMNS = ("published", "received", "lost", "duplicates", "unconfirmed")


@dataclass(frozen=True)
class Progress:
    published: int
    total: int
    received: int
    queue_size: int
    link: str


class Report(Protocol):
    def phase(self, text: str) -> None:
        """Something happened."""

    def progress(self, now: Progress) -> None:
        """Called often; shows what is worth showing."""

    def close(self) -> None:
        """No more is to come."""


class PlainReport:
    """A line for each event, and one every few seconds between them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started_s = time.monotonic()
        self._next_s = self._started_s + PLAIN_PERIOD_S

    def phase(self, text: str) -> None:
        self._line(text)

    def progress(self, now: Progress) -> None:
        if time.monotonic() >= self._next_s:
            self._line(f"  {_describe(now)}")

    def close(self) -> None:
        self._stream.flush()

    def _line(self, text: str) -> None:
        self._stream.write(f"[{time.monotonic() - self._started_s:5.1f} s] {text}\n")
        self._stream.flush()
        self._next_s = time.monotonic() + PLAIN_PERIOD_S


class LiveReport:
    """The events as they come, and below them a bar that moves."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._started_s = time.monotonic()
        self._next_s = 0.0
        self._bar = Bar(TextColumn("drive"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._task = self._bar.add_task("")
        self._live = Live(self._bar, console=console, transient=True)
        self._live.start()

    def phase(self, text: str) -> None:
        self._live.console.print(f"[dim]{time.monotonic() - self._started_s:5.1f} s[/dim]  {text}", highlight=False)

    def progress(self, now: Progress) -> None:
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + LIVE_PERIOD_S
            colour = "green" if now.link == "up" else "red"
            text = f"link [{colour}]{now.link}[/]  in the queue [bold]{now.queue_size}[/]  received {now.received}"
            self._bar.update(self._task, completed=now.published, total=now.total, description=text)

    def close(self) -> None:
        self._live.stop()


def open_report(stream: TextIO) -> Report:
    """The live view where `stream` is a terminal and rich is installed, else plain lines."""
    if not stream.isatty():
        return PlainReport(stream)
    try:
        from rich.console import Console
    except ImportError:
        return PlainReport(stream)
    return LiveReport(Console(file=stream))


def write_json(result: Result, stream: TextIO) -> None:
    found = dataclasses.asdict(result)
    batches = found.pop("batches")
    if batches is not None:
        found["batches"] = batches._asdict()
    stream.write(json.dumps(found) + "\n")


def write_table(result: Result, stream: TextIO) -> None:
    """The outcome for people: counts by QoS, then the figures, then the verdict."""
    if stream.isatty():
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            _print_rich(result, Console(file=stream))
            return
    stream.write("\n")
    widths = [max(len(row[column]) for row in _rows(result)) for column in range(len(COLUMNS) + 1)]
    for row in _rows(result):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        stream.write("  ".join(cells) + "\n")
    stream.write("\n")
    stream.writelines(f"{name:<24}{value}\n" for name, value in _figures(result))
    stream.write(f"\n{verdict_line(result)}\n")


def verdict_line(result: Result) -> str:
    faults = []
    if lost := sum(result.lost.values()):
        faults.append(f"{lost} lost")
    if twice := result.duplicates["2"]:
        faults.append(f"{twice} of QoS 2 came twice")
    if not result.is_command_ok:
        faults.append(f"a command ran {result.command.runs} times, with {result.command.replies} replies")
    total = sum(result.published.values())
    return f"FAILED: of {total} messages {' and '.join(faults)}" if faults else f"OK: {total} messages, none lost"


def _print_rich(result: Result, console: Console) -> None:
    from rich.table import Table

    header, *rows = _rows(result)
    table = Table(*header)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    figures = Table.grid(padding=(0, 2))
    for figure in _figures(result):
        figures.add_row(*figure)
    colour = "green" if result.ok else "red"
    shown: tuple[RenderableType, ...] = (table, figures, f"\n[bold {colour}]{verdict_line(result)}[/]")
    console.print(*shown, sep="\n", highlight=False)


def _rows(result: Result) -> list[list[str]]:
    by_column = [getattr(result, column) for column in COLUMNS]
    rows = [["", *COLUMNS]]
    rows += [[f"QoS {qos}", *(str(counts[str(qos)]) for counts in by_column)] for qos in QOS_LEVELS]
    return rows


def _figures(result: Result) -> list[tuple[str, str]]:
    figures = [
        ("broker", result.broker),
        ("flush rate", f"{result.flush_rate_msg_s:,.0f} msg/s"),
        ("longest queue", f"{result.queue_peak:,} messages"),
        ("queue on disk, peak", f"{result.disk_bytes:,} bytes"),
        ("memory, peak", f"{result.memory_bytes:,} bytes private to the publishing process"),
        ("processes killed", str(result.kills)),
    ]
    if result.batches is not None and result.batches.messages:
        batches = result.batches
        each, alone = batches.payload_bytes / batches.messages, batches.alone_bytes / batches.messages
        saved = f"{each:,.0f} bytes a message, alone {alone:,.0f}"
        figures.append(("telemetry in batches", f"{batches.messages:,} in {batches.batches:,}: {saved}"))
    if result.command.copies:
        sent = f"sent {result.command.copies} times while the link was cut"
        figures.append(("command", f"{sent}: ran {result.command.runs} time, {result.command.replies} replies"))
    if any(result.unconfirmed.values()):
        figures.append(("unconfirmed", "not yet on disk at a kill, or QoS 0 in the air at the cut"))
    return figures


def _describe(now: Progress) -> str:
    counts = f"{now.published}/{now.total} published, {now.queue_size} in the queue, {now.received} received"
    return f"{counts}, link {now.link}"
