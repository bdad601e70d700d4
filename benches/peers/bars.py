"""What glec_fast.Client must reach, each bar as a ratio of two peers in the same rounds."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import median_of_ratios
from peers.catalog import GLEC, LIBMOSQUITTO, PAHO, PEERS, RAW

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Bar(NamedTuple):
    what: str
    action: str
    qos: int
    series: str
    to: str
    least: float | None = None
    most: float | None = None


RATE, CALL, ACK_P50, ACK_P99 = "rate_msg_s", "call_p50_s", "ack_p50_s", "ack_p99_s"
BARS = (
    Bar("publish, QoS 0", "publish", 0, RATE, PAHO, least=5),
    Bar("publish, QoS 1", "publish", 1, RATE, PAHO, least=5),
    Bar("publish, QoS 2", "publish", 2, RATE, PAHO, least=3),
    Bar("publish, QoS 1", "publish", 1, RATE, LIBMOSQUITTO, least=1),
    Bar("publish, QoS 1", "publish", 1, RATE, RAW, least=0.8),
    Bar("one publish() call, QoS 0, median", "call", 0, CALL, PAHO, most=1 / 5),
    Bar("one publish() call, QoS 1, median", "call", 1, CALL, PAHO, most=1 / 5),
    Bar("one publish() call, QoS 2, median", "call", 2, CALL, PAHO, most=1 / 5),
    Bar("receive, QoS 0", "receive", 0, RATE, PAHO, least=4),
    Bar("receive, QoS 1", "receive", 1, RATE, PAHO, least=4),
    Bar("receive what was kept, QoS 0", "backlog", 0, RATE, PAHO, least=4),
    Bar("receive what was kept, QoS 1", "backlog", 1, RATE, PAHO, least=4),
    Bar("receive what is ready, QoS 0", "drain", 0, RATE, PAHO, least=4),
    Bar("receive what is ready, QoS 1", "drain", 1, RATE, PAHO, least=4),
    Bar("publish to acknowledgement, QoS 1, p50", "pace", 1, ACK_P50, PAHO, most=1),
    Bar("publish to acknowledgement, QoS 1, p99", "pace", 1, ACK_P99, PAHO, most=1),
)


def judge(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One verdict for each bar whose two peers have run."""
    peers_of = {(result["action"], result["qos"]): result["peers"] for result in results}
    verdicts = [verdict for bar in BARS if (verdict := _verdict(bar, peers_of.get((bar.action, bar.qos), {})))]
    return verdicts + _first_of_python(peers_of)


def _verdict(bar: Bar, peers: Mapping[str, Any]) -> dict[str, Any] | None:
    series = f"{bar.series}_by_round"
    ours, theirs = (peers.get(name, {}).get(series) for name in (GLEC, bar.to))
    ratio = median_of_ratios(ours or (), theirs or ())
    if ratio is None:
        return None
    met = ratio >= bar.least if bar.least is not None else ratio <= (bar.most or 0)
    limit = f">= {bar.least:g}" if bar.least is not None else f"<= {bar.most:g}"
    return {"what": bar.what, "bar": f"{limit} x {bar.to}", "ratio": ratio, "met": met}


def _first_of_python(peers_of: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[dict[str, Any]]:
    verdicts = []
    for qos in (0, 1, 2):
        rates = {
            name: statistics.median(figures["rate_msg_s_by_round"])
            for name, figures in peers_of.get(("publish", qos), {}).items()
            if "Python" in PEERS[name].language and "rate_msg_s_by_round" in figures
        }
        ours = rates.pop(GLEC, None)
        if ours is None or not rates:
            continue
        best = max(rates, key=lambda name: rates[name])
        verdicts.append(
            {
                "what": f"publish, QoS {qos}, against the next of all Python clients",
                "bar": f"> 1 x {best}",
                "ratio": ours / rates[best],
                "met": ours > rates[best],
            }
        )
    return verdicts
