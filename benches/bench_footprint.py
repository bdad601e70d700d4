"""How small it is: memory, flash, bytes over the air, wake-ups. Each run in a process of its own; medians of --rounds.

  memory   KiB of anonymous memory (smaps_rollup) above a bare interpreter, stage by stage: imported, manager made,
           messages queued offline, connected, flushed and metrics read, connected anew a few times. `peak` is the
           highest that was seen meanwhile, looked at every few ms. Over TLS with a pin; with one CA, and with the
           system's
  import   `import glec_fast` against `import paho.mqtt.client`
  flash    bytes written to the disk a message (write_bytes), without a link: at 1 Hz in commits of five, the same with
           a full queue, alerts alone, and telemetry in batches
  alert    time of `publish_alert`, which returns once it is on disk, of that of one bare write and fdatasync
  air      bytes a day of a drive's telemetry at 1 Hz over TLS, single and in batches, with what TCP and IP add, and
           with PINGREQ, which asks whether it has arrived
  idle     wake-ups of each thread in a keep-alive interval, connected and idle

    python benches/bench_footprint.py [--rounds 5] [--parts memory,import,flash,alert,air,idle] [--json]

Compiled files are made first: an interpreter that compiles what it imports holds more. Written bytes need a real disk
under --directory, not tmpfs.
"""

from __future__ import annotations

import argparse
import base64
import compileall
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import orjson
import paho.mqtt
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from harness import BENCHES, BenchError, machine, make_certificates, mosquitto, print_table

import glec_fast
from glec_fast.testbed.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHILD_TIMEOUT_S = 600.0
SAMPLE_S = 0.004
STAGES = ("import", "manager", "queued", "connected", "flushed", "reconnected", "peak")
PACKAGES = [Path(package.__path__[0]) for package in (glec_fast, apsw, orjson, paho.mqtt)]
PATH = sorted({str(each.parents[1] if each.name == "mqtt" else each.parent) for each in PACKAGES})
# IP and TCP with its time stamps: of what carries a message, and of the acknowledgement that comes back.
SEGMENT_BYTES = 52
DAY_S = 86_400
BATCH = 60
# PINGREQ, which asks whether a message has arrived, and its answer in TLS 1.3, and what TCP adds to each and to the
# acknowledgement of the second: every so many seconds, while single messages go. With a batch it goes in one segment.
QUESTION_BYTES = 2 * 24 + 3 * SEGMENT_BYTES
ANSWER_TIMEOUT_S = 8
# Without a link, and so many of them are in a full queue.
FLASH_MESSAGES, FILLED_MESSAGES = 1200, 10_000
# Real drives, where they are: not part of the product.
RECORDED = [BENCHES.parent.parent / "shared/data" / name for name in ("drive6_1hz.csv.gz", "long7_1hz.csv.gz")]


class Child:
    """A run of footprint_child.py: its peak of anonymous memory, and what it said."""

    def __init__(self, order: dict[str, Any], on_word: Callable[[Child, str], None] | None = None) -> None:
        command = [sys.executable, "-I", "-S", str(BENCHES / "footprint_child.py"), json.dumps({**order, "path": PATH})]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self.peak_kib = 0
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self._is_over = threading.Event()
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        timer = threading.Timer(CHILD_TIMEOUT_S, self._process.kill)
        timer.start()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        last = ""
        try:
            for line in self._process.stdout:
                last = line.strip()
                if on_word is not None and not last.startswith("{"):
                    on_word(self, last)
            errors = self._process.stderr.read()
        finally:
            timer.cancel()
            self._is_over.set()
            watcher.join()
        if self._process.wait():
            raise BenchError(f"{order['run']} failed:\n{errors}")
        self.figures: dict[str, Any] = json.loads(last)

    def go_on(self) -> None:
        """For a run that waits for it."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _watch(self) -> None:
        path = Path(f"/proc/{self._process.pid}/smaps_rollup")
        while not self._is_over.wait(SAMPLE_S):
            try:
                text = path.read_text()
            except OSError:
                return
            found = [int(line.split()[1]) for line in text.splitlines() if line.startswith("Anonymous:")]
            self.peak_kib = max(self.peak_kib, *found, 0)


def pin_of(certificate_path: Path) -> str:
    key = x509.load_pem_x509_certificate(certificate_path.read_bytes()).public_key()
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    return "sha256/" + base64.b64encode(digest).decode()


def rounds_of(count: int, measure: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """The median of each figure of `measure(*arguments)`."""
    found = [measure(*arguments) for _ in range(count)]
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


# ---- memory


def measure_memory(args: argparse.Namespace, directory: Path) -> Iterator[dict[str, Any]]:
    tls = make_certificates(directory)
    pin = pin_of(tls.server.certificate_path)
    system = system_authorities(directory, tls.ca)
    cases = (
        ("one CA, QoS 1", tls.ca, 1, 0),
        ("one CA, QoS 2", tls.ca, 2, 0),
        ("one CA, QoS 1, reconnected", tls.ca, 1, args.reconnects),
        ("the system's CAs, QoS 1, reconnected", None, 1, args.reconnects),
    )
    for title, ca, qos, reconnects in cases:
        given = args, directory, system, tls.server, pin, ca, qos, reconnects
        figures = rounds_of(args.rounds, measure_stages, *given)
        yield {"case": title, **figures}


def system_authorities(directory: Path, ca: Path) -> dict[str, str]:
    """The environment that names them, and the broker's own among them, as Debian has them: in a file and a folder."""
    bundles = Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/ssl/cert.pem")
    blocks = ca.read_text()
    blocks += next((path.read_text() for path in bundles if path.exists()), "")
    file, folder = directory / "system.pem", directory / "system"
    file.write_text(blocks)
    folder.mkdir()
    for number, block in enumerate(blocks.split("-----END CERTIFICATE-----\n")[:-1]):
        (folder / f"{number}.pem").write_text(block + "-----END CERTIFICATE-----\n")
    if shutil.which("openssl") is not None:
        # Without, the folder is of no use, and the file is read.
        subprocess.run(["openssl", "rehash", str(folder)], check=True, capture_output=True)
    return {"SSL_CERT_FILE": str(file), "SSL_CERT_DIR": str(folder)}


def measure_stages(
    args: argparse.Namespace,
    directory: Path,
    system: dict[str, str],
    server: Any,
    pin: str,
    ca: Path | None,
    qos: int,
    reconnects: int,
) -> dict[str, float]:
    settings = {"max_unreleased": 1000, "retry_initial_delay_ms": 20, "retry_max_delay_ms": 20, "status_interval_s": 0}
    with (
        tempfile.TemporaryDirectory(dir=directory) as folder,
        mosquitto(nodelay=True, extra="max_inflight_messages 0\nmax_queued_messages 0", certificate=server) as broker,
        Link((broker.host, broker.tls_port)) as link,
    ):

        def cut(_child: Child, _word: str) -> None:
            link.cut()
            link.restore()

        order = {
            "run": "stages",
            "url": f"ssl://127.0.0.1:{link.port}",
            "queue_path": f"{folder}/queue.db",
            "ca": str(ca) if ca is not None else None,
            "pin": pin,
            "qos": qos,
            "messages": args.messages,
            "reconnects": reconnects,
            "settings": settings,
        }
        os.environ.update(system)
        try:
            child = Child(order, cut)
        finally:
            for name in system:
                del os.environ[name]
    bare = child.figures.pop("bare")
    return {name: value - bare for name, value in {**child.figures, "peak": child.peak_kib}.items()}


def measure_imports(args: argparse.Namespace, _directory: Path) -> Iterator[dict[str, Any]]:
    modules = ("paho.mqtt.client", "glec_fast")
    for module in modules:
        yield {"module": module, **rounds_of(args.rounds, measure_import, module)}


def measure_import(module: str) -> dict[str, float]:
    return Child({"run": "import", "module": module}).figures


# ---- flash


def measure_flash(args: argparse.Namespace, directory: Path) -> Iterator[dict[str, Any]]:
    once = args.flash_messages
    delay = {"qos0_commit_delay_s": 3600}
    batch = {"kind": "telemetry", "batch": BATCH, "messages": once}
    second = {"kind": "telemetry", "rows_a_commit": 5, "messages": once}
    # Longer: what the filling left in the log is written into the file meanwhile.
    filled = FILLED_MESSAGES * once // FLASH_MESSAGES
    full = {**second, "messages": 5 * once, "filled": filled}
    cases = [
        ("1 Hz, a commit every 5 s", second),
        ("the same, the queue full, thinned", {**full, "overflow": "thin"}),
        ("the same, the oldest dropped", {**full, "overflow": "oldest"}),
        ("an alert alone", {"kind": "alert", "rows_a_commit": 1, "messages": once // 5}),
        # Each sync writes a page of 4 KiB at least, however little is new in it.
        *(
            (f"in batches of 60 s, on disk every {delay_s} s", {**batch, "rows_a_commit": delay_s})
            for delay_s in (5, 30, BATCH)
        ),
    ]
    for title, case in cases:
        settings = {**delay, "queue_max_size": case.get("filled", 100_000), "overflow": case.get("overflow", "thin")}
        if case.get("batch"):
            settings["telemetry_batch_s"] = 3600

        yield {"case": title, **rounds_of(args.rounds, measure_written, directory, case, settings)}


def measure_written(directory: Path, case: dict[str, Any], settings: dict[str, Any]) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        order = {
            "run": "flash",
            "url": "tcp://127.0.0.1:1",
            "queue_path": f"{folder}/queue.db",
            "filled": 0,
            "batch": 0,
            **case,
            "settings": settings,
        }
        return Child(order).figures


# ---- an alert to the disk


def measure_alert(args: argparse.Namespace, directory: Path) -> Iterator[dict[str, Any]]:
    yield rounds_of(args.rounds, measure_alerts, directory, max(args.flash_messages // 4, 1))


def measure_alerts(directory: Path, messages: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        order = {"run": "alert", "url": "tcp://127.0.0.1:1", "queue_path": f"{folder}/queue.db", "settings": {}}
        taken = Child({**order, "messages": messages}).figures
    bare, alert = sorted(taken["bare_s"]), sorted(taken["alert_s"])
    figures = {"alert_ms": statistics.median(alert) * 1e3, "bare_ms": statistics.median(bare) * 1e3}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        figures[name] = alert[int(len(alert) * share)] / bare[int(len(bare) * share)]
    return figures


# ---- over the air


def measure_air(args: argparse.Namespace, directory: Path) -> Iterator[dict[str, Any]]:
    tls = make_certificates(directory)
    pin = pin_of(tls.server.certificate_path)
    drives = args.drives or [path for path in RECORDED if path.exists()] or [None]
    for drive in drives:
        name = "a made-up drive" if drive is None else Path(drive).name.partition("_")[0]
        for title, batch in (("single messages", 0), ("batches of 60 s", BATCH)):
            with (
                tempfile.TemporaryDirectory(dir=directory) as folder,
                mosquitto(nodelay=True, certificate=tls.server) as broker,
                Link((broker.host, broker.tls_port)) as link,
            ):
                settings = {"telemetry_batch_s": 3600} if batch else {}
                order = {
                    "run": "air",
                    "url": f"ssl://127.0.0.1:{link.port}",
                    "queue_path": f"{folder}/queue.db",
                    "ca": str(tls.ca),
                    "pin": pin,
                    "drive": None if drive is None else str(drive),
                    "batch": batch,
                    "messages": args.air_messages,
                    "settings": settings,
                }
                figures = run_air(order, link)
            messages = figures["messages"]
            if batch:
                # With PINGREQ; the answer, which acknowledges both; and what acknowledges that.
                wire = figures["bytes"] + -(-messages // batch) * 3 * SEGMENT_BYTES
            else:
                # Of messages that follow each other more closely than it waits, one in so many is asked about.
                wire = figures["bytes"] + messages * (2 * SEGMENT_BYTES + QUESTION_BYTES / ANSWER_TIMEOUT_S)
            yield {
                "case": f"{name}, {title}",
                "tls_bytes_per_message": figures["bytes"] / messages,
                "bytes_a_day": wire / messages * DAY_S,
            }


def run_air(order: dict[str, Any], link: Link) -> dict[str, float]:
    seen: dict[str, int] = {}

    def note(child: Child, word: str) -> None:
        # What is on its way is counted by then.
        time.sleep(1.0)
        seen[word] = link.bytes_up + link.bytes_down
        child.go_on()

    figures = Child(order, note).figures
    return {**figures, "bytes": seen["sent"] - seen["connected"]}


# ---- wake-ups


def measure_idle(args: argparse.Namespace, directory: Path) -> Iterator[dict[str, Any]]:
    with mosquitto(nodelay=True) as broker, tempfile.TemporaryDirectory(dir=directory) as folder:
        order = {
            "run": "idle",
            "url": f"tcp://127.0.0.1:{broker.port}",
            "queue_path": f"{folder}/queue.db",
            "intervals": args.intervals,
            "settings": {"keepalive_s": args.keepalive, "status_interval_s": 0},
        }
        for name, count in Child(order).figures.items():
            yield {"thread": name, "wakeups_per_keepalive": count}


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterator[dict[str, Any]]]] = {
    "memory": measure_memory,
    "import": measure_imports,
    "flash": measure_flash,
    "alert": measure_alert,
    "air": measure_air,
    "idle": measure_idle,
}


def print_report(report: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    if "memory" in report:
        rows = [[each["case"], *(f"{each[s]:,.0f}" if s in each else "-" for s in STAGES)] for each in report["memory"]]
        title = f"KiB of anonymous memory above a bare interpreter, {args.messages:,} messages, median of {args.rounds}"
        print_table(title, ("case", *STAGES), rows)
    if "import" in report:
        base = report["import"][0]["import"]
        rows = [[each["module"], f"{each['import']:,.0f}", f"{each['import'] / base:.2f}"] for each in report["import"]]
        print_table("imported alone, KiB", ("module", "KiB", "of paho"), rows)
    if "flash" in report:
        rows = [[each["case"], f"{each['write_bytes'] / 1000:,.2f}"] for each in report["flash"]]
        print_table("written to the disk a message, without a link", ("case", "kB"), rows)
    if "alert" in report:
        rows = [
            [f"{each['alert_ms']:.2f}", *(f"{each[name]:.2f}" for name in ("bare_ms", "p50", "p99"))]
            for each in report["alert"]
        ]
        print_table("publish_alert to the disk", ("ms, median", "bare ms", "p50 of bare", "p99 of bare"), rows)
    if "air" in report:
        rows = [
            [each["case"], f"{each['tls_bytes_per_message']:,.1f}", f"{each['bytes_a_day'] / 1e6:,.2f}"]
            for each in report["air"]
        ]
        print_table("telemetry at 1 Hz over TLS", ("case", "B a message in TLS", "MB a day with TCP"), rows)
    if "idle" in report:
        rows = [[each["thread"], f"{each['wakeups_per_keepalive']:,.1f}"] for each in report["idle"]]
        print_table(f"wake-ups in a keep-alive interval of {args.keepalive} s, idle", ("thread", "times"), rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas between them (default: all)")
    parser.add_argument("--messages", type=int, default=10_000, help="queued for the memory")
    parser.add_argument("--reconnects", type=int, default=10)
    parser.add_argument("--flash-messages", type=int, default=FLASH_MESSAGES)
    parser.add_argument("--air-messages", type=int, default=6000, help="of each drive at most")
    parser.add_argument(
        "--drives",
        nargs="+",
        help="recorded, for what goes over the air (default: those in ../shared/data, or made up)",
    )
    parser.add_argument("--keepalive", type=int, default=10)
    parser.add_argument("--intervals", type=int, default=3)
    parser.add_argument("--directory", help="where queue files go; written bytes need a real disk, not tmpfs")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    for package in PACKAGES:
        compileall.compile_dir(package, quiet=1)
    try:
        with tempfile.TemporaryDirectory(dir=args.directory) as directory:
            report = {name: list(PARTS[name](args, Path(directory))) for name in args.parts.split(",")}
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"machine": machine(), "rounds": args.rounds, **report}, indent=2))
    else:
        print_report(report, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
