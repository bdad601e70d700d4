"""The figures of `glec-fast bench` as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glec_fast.cli.bench.contender import MEMORY, PAHO, STORE

if TYPE_CHECKING:
    from collections.abc import Mapping

# "Performance Targets" of the specification.
TARGET_FLUSH_MSG_S = 100
TARGET_ANSWER_MS = {1: 500, 2: 1000}
TARGET_MEMORY_BYTES = 10_000_000
KINDS = (PAHO, MEMORY, STORE)
HEADER = ("", "paho", "glec-fast", "with a queue file", "specification")


def in_table(report: Mapping[str, Any]) -> str:
    """The broker, a row for each figure, and how to read them; ends with a line feed."""
    rows = [HEADER, *_rows(report["results"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    head = f"{report['broker']}, {report['payload_bytes']} bytes of payload, at most {report['seconds']:g} s a figure"
    foot = (
        "(n x): of paho's figure; last column: what is asked for, and how many times that is met. With a queue file\n"
        f"each publish of QoS 2 waits until it is on the disk of {report['queue_directory']}; paho keeps nothing."
    )
    return "\n".join([head, "", *(line.rstrip() for line in lines), "", foot, ""])


def _rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for qos in (0, 1, 2):
        figures = results[f"publish-{qos}"]
        rows.append(_row(f"publish, QoS {qos}, msg/s", figures, "rate_msg_s", ",.0f"))
        rows.append(_row("  CPU for each message, us", figures, "cpu_us", ",.1f"))
    for qos in (1, 2):
        figures, target_ms = results[f"answer-{qos}"], TARGET_ANSWER_MS[qos]
        met = f"< {target_ms} ms: {target_ms / figures[STORE]['median_ms']:,.0f} x"
        rows.append(_row(f"publish until acknowledged, QoS {qos}, median ms", figures, "median_ms", ",.2f", met))
        rows.append(_row(f"  the slowest of {figures[STORE]['count']}", figures, "slowest_ms", ",.2f"))
    for qos in (1, 2):
        figures = results[f"flush-{qos}"]
        met = f"> {TARGET_FLUSH_MSG_S} msg/s: {figures[STORE]['rate_msg_s'] / TARGET_FLUSH_MSG_S:,.0f} x"
        name = f"flush of {figures[STORE]['count']:,} queued, QoS {qos}, msg/s"
        rows.append(_row(name, figures, "rate_msg_s", ",.0f", met))
    memory = {kind: {"mb": each["memory_bytes"] / 1e6} for kind, each in results["publish-1"].items()}
    if all(each["mb"] for each in memory.values()):
        met = f"< 10 MB: {TARGET_MEMORY_BYTES / 1e6 / memory[STORE]['mb']:,.2f} x"
        rows.append(_row("memory above an interpreter, MB", memory, "mb", ",.1f", met))
    return rows


def _row(name: str, figures: Mapping[str, Mapping[str, float]], key: str, form: str, met: str = "") -> tuple[str, ...]:
    paho = figures.get(PAHO, {}).get(key)
    cells = []
    for kind in KINDS:
        value = figures.get(kind, {}).get(key)
        if value is None:
            cells.append("-")
        elif kind == PAHO or not paho:
            cells.append(format(value, form))
        else:
            times = value / paho
            cells.append(f"{value:{form}} ({times:,.0f} x)" if times >= 100 else f"{value:{form}} ({times:.2g} x)")
    return (name, *cells, met)
