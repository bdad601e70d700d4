"""The figures as tables in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peers.catalog import GLEC

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NOTHING = "-"


def in_markdown(report: Mapping[str, Any]) -> str:
    parts = [_introduction(report)]
    results: dict[str, dict[int, Mapping[str, Any]]] = {}
    for result in report["results"]:
        results.setdefault(result["action"], {})[result["qos"]] = result["peers"]
    titles: dict[str, tuple[str, tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...]]] = {
        "publish": ("Publishing", (("msg/s", _rate), ("CPU/msg", _cpu))),
        "receive": ("Receiving with on_message, from the broker", (("msg/s", _rate), ("CPU/msg", _cpu))),
        "backlog": (
            "Receiving with on_message, what the broker kept while the client was away",
            (("msg/s", _rate), ("CPU/msg", _cpu)),
        ),
        "drain": ("Receiving with on_message, from ready-made packets", (("msg/s", _rate), ("CPU/msg", _cpu))),
        "call": ("One call of publish() in a burst", (("median", _us("call_p50_s")), ("p99", _us("call_p99_s")))),
        "pace": (
            "Publish to acknowledgement at 100 msg/s",
            (("p50", _us("ack_p50_s")), ("p99", _us("ack_p99_s")), ("call", _us("call_p50_s"))),
        ),
    }
    for action, (title, columns) in titles.items():
        if action in results:
            parts.append(f"**{title}**\n\n{_figures(results[action], columns, report['peers'])}")
    if report["bars"]:
        rows = [(v["what"], v["bar"], f"{v['ratio']:.2f}", "yes" if v["met"] else "no") for v in report["bars"]]
        parts.append("**Bars**\n\n" + table(("what", "bar", "measured", "met"), rows))
    missing = [f"- {name} was not run: {peer['missing']}" for name, peer in report["peers"].items() if peer["missing"]]
    parts.extend(["\n".join(missing)] if missing else [])
    return "\n\n".join(parts)


def _introduction(report: Mapping[str, Any]) -> str:
    broker = report["broker"]
    nodelay = ", set_tcp_nodelay" if broker["nodelay"] else ""
    settings = ", ".join(broker["settings"].strip().splitlines())
    return (
        f"{report['messages']:,} messages of {report['payload_bytes']} bytes, medians of {report['rounds']} rounds, "
        f"window {report['window']:,} where the client has one, {'over TLS, ' if report['tls'] else ''}"
        f"mosquitto with {settings}{nodelay}; "
        f"{report['machine']['cpus']} cores, {report['machine']['arch']}, Python {report['machine']['python']}."
    )


def _figures(
    by_qos: Mapping[int, Mapping[str, Any]],
    columns: Sequence[tuple[str, Callable[[Mapping[str, Any]], str]]],
    peers: Mapping[str, Any],
) -> str:
    header = ["client", *(f"QoS {qos} {title}" for qos in by_qos for title, _ in columns)]
    rows = []
    for name, peer in peers.items():
        if not any(name in figures for figures in by_qos.values()):
            continue
        cells = [_label(name, peer)]
        for figures in by_qos.values():
            cells += _cells(figures.get(name), columns)
        rows.append([f"**{cell}**" for cell in cells] if name == GLEC else cells)
    return table(header, rows)


def _label(name: str, peer: Mapping[str, Any]) -> str:
    version = f" {peer['version']}" if peer["version"] else ""
    window = "" if peer["has_window"] else " (no window)"
    return f"{name}{version}{window}"


def _cells(
    figures: Mapping[str, Any] | None, columns: Sequence[tuple[str, Callable[[Mapping[str, Any]], str]]]
) -> list[str]:
    if figures is None:
        return [NOTHING] * len(columns)
    if "invalid" in figures:
        return [str(figures["invalid"]).splitlines()[0], *[NOTHING] * (len(columns) - 1)]
    return [cell(figures) for _, cell in columns]


def _rate(figures: Mapping[str, Any]) -> str:
    return f"{figures['rate_msg_s']:,.0f}"


def _cpu(figures: Mapping[str, Any]) -> str:
    return f"{figures['cpu_us_per_message']:.1f} µs"


def _us(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda figures: f"{figures[key] * 1e6:,.1f} µs"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
