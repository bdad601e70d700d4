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
    """The broker, a row for each figure, how to read them, and what is missing; ends with a line feed."""
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
    return "\n".join([head, "", *(line.rstrip() for line in lines), "", foot, *report["notes"], ""])


def _rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Of what was measured."""
    rows = []
    for qos in (0, 1, 2):
        if figures := results.get(f"publish-{qos}"):
            rows.append(_row(f"publish, QoS {qos}, msg/s", figures, "rate_msg_s", ",.0f"))
            rows.append(_row("  CPU for each message, us", figures, "cpu_us", ",.1f"))
    for qos in (1, 2):
        if figures := results.get(f"answer-{qos}"):
            met = _met(f"< {TARGET_ANSWER_MS[qos]} ms", figures, "median_ms", -1, TARGET_ANSWER_MS[qos])
            rows.append(_row(f"publish until acknowledged, QoS {qos}, median ms", figures, "median_ms", ",.2f", met))
            rows.append(_row(f"  the slowest of {_count(figures)}", figures, "slowest_ms", ",.2f"))
    for qos in (1, 2):
        if figures := results.get(f"flush-{qos}"):
            met = _met(f"> {TARGET_FLUSH_MSG_S} msg/s", figures, "rate_msg_s", 1, TARGET_FLUSH_MSG_S)
            name = f"flush of {_count(figures)} queued, QoS {qos}, msg/s"
            rows.append(_row(name, figures, "rate_msg_s", ",.0f", met))
    published = results.get("publish-1") or results.get("publish-0") or {}
    memory = {kind: {"mb": each["memory_bytes"] / 1e6} for kind, each in published.items() if each["memory_bytes"]}
    if memory:
        met = _met("< 10 MB", memory, "mb", -1, TARGET_MEMORY_BYTES / 1e6, ",.2f")
        rows.append(_row("memory above an interpreter, MB", memory, "mb", ",.1f", met))
    return rows


def _met(
    wanted: str, figures: Mapping[str, Mapping[str, float]], key: str, power: int, target: float, form: str = ",.0f"
) -> str:
    """What is asked for, and how often the client with a store meets it. power: -1 where less is better, else 1."""
    reached = figures.get(STORE, {}).get(key)
    return wanted if reached is None else f"{wanted}: {(reached / target) ** power:{form}} x"


def _count(figures: Mapping[str, Mapping[str, float]]) -> str:
    return f"{max(each['count'] for each in figures.values()):,}"


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
