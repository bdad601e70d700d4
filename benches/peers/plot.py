"""The publish rates as an SVG of bars, one panel for each QoS, without a drawing library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from peers.catalog import GLEC, RAW

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH, LABEL_WIDTH, FIGURE_WIDTH = 760, 130, 190
BAR_HEIGHT, BAR_PITCH, TITLE_HEIGHT, PANEL_GAP = 16, 22, 28, 18
COLOURS = {GLEC: "#d9480f", RAW: "#adb5bd"}
OTHERS = "#4c6ef5"
INK, PAPER = "#212529", "#ffffff"


def in_svg(report: Mapping[str, Any]) -> str:
    parts = []
    top = 0
    for result in report["results"]:
        if result["action"] == "publish":
            panel, height = _panel(result, top)
            parts += panel
            top += height + PANEL_GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top}" fill="{PAPER}"/>', *parts, "</svg>", ""])


def _panel(result: Mapping[str, Any], top: int) -> tuple[list[str], int]:
    valid = {name: figures for name, figures in result["peers"].items() if "rate_msg_s" in figures}
    ranked = sorted(valid, key=lambda name: valid[name]["rate_msg_s"], reverse=True)
    fastest = valid[ranked[0]]["rate_msg_s"] if ranked else 1.0
    parts = [_text(8, top + 18, f"Publishing at QoS {result['qos']}: msg/s (CPU per message)", 'font-weight="bold"')]
    for index, name in enumerate(ranked):
        y = top + TITLE_HEIGHT + index * BAR_PITCH
        rate = valid[name]["rate_msg_s"]
        width = max(1.0, rate / fastest * (WIDTH - LABEL_WIDTH - FIGURE_WIDTH))
        colour = COLOURS.get(name, OTHERS)
        figures = f"{rate:,.0f} ({valid[name]['cpu_us_per_message']:.1f} µs)"
        parts += [
            _text(LABEL_WIDTH - 8, y + 12, name, 'text-anchor="end"'),
            f'<rect x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" fill="{colour}"/>',
            _text(LABEL_WIDTH + width + 6, y + 12, figures),
        ]
    return parts, TITLE_HEIGHT + len(ranked) * BAR_PITCH


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{INK}" {attributes}>{escape(text)}</text>'
