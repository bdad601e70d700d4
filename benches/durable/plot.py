"""Rates of the durable publishers as bars, with what they lost and doubled behind each, as SVG without a library."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH, LABEL_WIDTH, FIGURE_WIDTH = 760, 90, 330
BAR_HEIGHT, BAR_PITCH, TITLE_HEIGHT, PANEL_GAP = 16, 24, 28, 16
OURS, OTHERS, INK, PAPER = "#d9480f", "#4c6ef5", "#212529", "#ffffff"


def in_svg(report: Mapping[str, Any]) -> str:
    valid = [each for each in report["results"] if "rate_msg_s" in each]
    most = max((each["rate_msg_s"] for each in valid), default=1.0)
    parts: list[str] = []
    top = 0
    for qos in sorted({each["qos"] for each in valid}):
        ranked = sorted((each for each in valid if each["qos"] == qos), key=lambda each: -each["rate_msg_s"])
        title = f"Durable, QoS {qos}: msg/s (each decade as long); lost and doubled over {report['kills']} kills"
        parts.append(_text(8, top + 18, title, 'font-weight="bold"'))
        for index, each in enumerate(ranked):
            y = top + TITLE_HEIGHT + index * BAR_PITCH
            # From 10 msg/s on, each decade as long as any other: they are far apart.
            share = max(0.02, math.log10(max(each["rate_msg_s"], 10) / 10) / math.log10(max(most, 100) / 10))
            width = share * (WIDTH - LABEL_WIDTH - FIGURE_WIDTH)
            colour = OURS if each["contender"] in ("glec-fast", "glec 3.1.1", "glec unwaited") else OTHERS
            figures = f"{each['rate_msg_s']:,.0f}"
            if "lost" in each:
                figures += f"  ·  {each['lost']:,} of {each['accepted']:,} lost, {each['doubled']:,} doubled"
            parts += [
                _text(LABEL_WIDTH - 8, y + 12, each["contender"], 'text-anchor="end"'),
                f'<rect x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" fill="{colour}"/>',
                _text(LABEL_WIDTH + width + 6, y + 12, figures),
            ]
        top += TITLE_HEIGHT + len(ranked) * BAR_PITCH + PANEL_GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{top}" fill="{PAPER}"/>', *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{INK}" {attributes}>{escape(text)}</text>'
