"""glec_fast.Client in memory against the field: Python, C and JavaScript clients, and a raw socket.

Each run is a process of its own against a mosquitto of its own; the peers take turns, round by round. What is measured:
  publish  from the first call to the last acknowledgement; QoS 0 until the broker has acknowledged a QoS 1 message
           sent after. Rate, and CPU of the client's process. After a warm-up of 1,000 messages
  call     the caller's time in one publish() in such a burst (aiomqtt: with the acknowledgement, as it has no other)
  receive  from the first on_message to the last, fed with ready-made packets through mosquitto, which is what
           limits it: the raw socket only counts what it delivers
  backlog  the same, of what mosquitto has kept for the client's session while it was away: nobody publishes meanwhile.
           For QoS 0 it is told to (queue_qos0_messages)
  drain    the same, with the ready-made packets right from a socket: what the client can take
  pace     publish to acknowledgement at 100 msg/s

With --tls all but `drain` over TLS, by ours and paho: the raw socket speaks none.

Before the rounds each peer publishes once, untimed, beside a subscriber that must get each message exactly once. Where
it does not, its loss is reported in the place of a rate. A peer that is not installed is named with what is to be done.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_flush import list_of, positive
from harness import BenchError, machine, make_certificates
from peers.bars import judge
from peers.catalog import PEERS, MissingPeerError, Setup
from peers.plot import in_svg
from peers.report import in_markdown
from peers.runs import LIMITS, Setting, prove, run, write_payloads
from workload import PAYLOAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ACTIONS = {
    "publish": (0, 1, 2),
    "call": (0, 1, 2),
    "receive": (0, 1),
    "backlog": (0, 1),
    "drain": (0, 1),
    "pace": (1,),
}
# Its server in the broker's place speaks no TLS.
WITHOUT_TLS = "drain"


def find(name: str, setup: Setup) -> list[str] | MissingPeerError:
    try:
        return PEERS[name].command(setup)
    except MissingPeerError as error:
        return error


def measure(commands: Mapping[str, list[str]], action: str, qos: int, rounds: int, setting: Setting) -> dict[str, Any]:
    able = [name for name in commands if action in PEERS[name].actions and qos in PEERS[name].qos]
    faults = {name: fault_of(commands[name], qos, setting) for name in able} if action == "publish" else {}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in able if not faults.get(name)}
    for _ in range(rounds):
        for name, done in runs.items():
            done.append(run(commands[name], action, qos, setting))
    peers = {name: faults.get(name) or summarize(runs[name], setting.count_of(action)) for name in able}
    return {"action": action, "qos": qos, "peers": peers}


def fault_of(command: list[str], qos: int, setting: Setting) -> dict[str, str]:
    """Empty where each message arrived once."""
    try:
        return prove(command, qos, setting)
    except BenchError as error:
        return {"invalid": f"failed: {error}"}


def summarize(runs: Sequence[Mapping[str, Any]], count: int) -> dict[str, Any]:
    """Medians over the rounds of whatever the peer reports; times in seconds."""
    series = {key: [figures[key] for figures in runs] for key in runs[0] if key.endswith("_s")}
    if "wall_s" in series:
        series["rate_msg_s"] = [count / wall_s for wall_s in series.pop("wall_s")]
        series["cpu_us_per_message"] = [cpu_s * 1e6 / count for cpu_s in series.pop("cpu_s")]
    medians = {key: statistics.median(values) for key, values in series.items()}
    return {"version": runs[0]["version"], **medians, **{f"{key}_by_round": values for key, values in series.items()}}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Rate, CPU and time of a call of MQTT clients on one mosquitto, as tables in Markdown."
    )
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--messages", type=positive, default=20_000)
    parser.add_argument("--pace-messages", type=positive, default=300, help="messages at 100 msg/s (default: 300)")
    parser.add_argument("--peers", type=list_of(str, list(PEERS)), default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument("--measure", type=list_of(str, list(ACTIONS)), default=list(ACTIONS), help=", ".join(ACTIONS))
    parser.add_argument("--tls", action="store_true", help="over TLS, without drain and by those peers alone that can")
    parser.add_argument("--qos", type=list_of(int, [0, 1, 2]), default=[0, 1, 2])
    parser.add_argument(
        "--broker-limit",
        choices=list(LIMITS),
        default="none",
        help="the broker's max_inflight_messages: none (windows of 1,000), or its default of 20 (windows of 20)",
    )
    parser.add_argument(
        "--nodelay", action="store_true", help="a broker with set_tcp_nodelay, which is not its default"
    )
    parser.add_argument("--no-install", action="store_true", help="do not have npm install MQTT.js")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the publish rates")
    return parser.parse_args()


def report_of(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    limit = LIMITS[args.broker_limit]
    tls = make_certificates(directory) if args.tls else None
    setting = Setting(limit, args.nodelay, args.messages, args.pace_messages, directory, tls)
    write_payloads(setting)
    setup = Setup(directory, may_install=not args.no_install)
    names = [name for name in args.peers if PEERS[name].over_tls or not args.tls]
    found = {name: find(name, setup) for name in names}
    commands = {name: command for name, command in found.items() if isinstance(command, list)}
    results = [
        measure(commands, action, qos, args.rounds, setting)
        for action in args.measure
        if not (args.tls and action == WITHOUT_TLS)
        for qos in ACTIONS[action]
        if qos in args.qos
    ]
    versions = {
        name: figures["version"]
        for result in results
        for name, figures in result["peers"].items()
        if "version" in figures
    }
    return {
        "machine": machine(),
        "broker": {"limit": args.broker_limit, "settings": limit.settings, "nodelay": args.nodelay},
        "tls": args.tls,
        "payload_bytes": PAYLOAD_BYTES,
        "messages": args.messages,
        "pace_messages": args.pace_messages,
        "rounds": args.rounds,
        "window": limit.window,
        "peers": {
            name: {
                "language": PEERS[name].language,
                "version": versions.get(name, ""),
                "has_window": PEERS[name].has_window,
                "missing": None if name in commands else str(found[name]),
            }
            for name in names
        },
        "results": results,
        "bars": judge(results),
    }


def failures_of(report: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}, QoS {result['qos']}: {figures['invalid']}"
        for result in report["results"]
        for name, figures in result["peers"].items()
        if str(figures.get("invalid", "")).startswith("failed")
    ]


def main() -> int:
    args = parse_arguments()
    try:
        with tempfile.TemporaryDirectory() as directory:
            report = report_of(args, Path(directory))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2) if args.json else in_markdown(report))
    if args.plot:
        args.plot.write_text(in_svg(report), encoding="utf-8")
    failures = failures_of(report)
    print(*failures, sep="\n", end="\n" if failures else "", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
