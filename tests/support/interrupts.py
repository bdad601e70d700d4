"""An exception between any two steps of a call into the client: what it leaves on the wire, in memory and on disk.

`make interrupts POINTS=5000`, which says how far it is every 250 points. A signal's handler may raise wherever Python
looks for signals; a trace function can, at each call, line and return of a program. Each point is a client of its own
that is interrupted once, and then goes on or is closed.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import os
import random
import select
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

import glec_fast
from glec_fast.testbed.certificates import CertificateAuthority
from support.lock_order import Watch
from support.recording_broker import RecordingBroker, payload_of
from support.transports import WebSocket

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OURS = (str(Path(glec_fast.__file__).parent), str(Path(paho.__file__).parent))
# Steps of `PythonSocket` count too.
OUR_CALLS = ("send", "recv")
# Longer than `close` may take with a link that takes nothing.
HANG_S = 15.0
GO_ON_S = 8.0
MESSAGES = 4
INCOMING = 5
ACTS = ("publish", "threaded", "loop", "forever", "connect", "disconnect", "close", "receive", "flush", "own")
# What is raised in the network thread, by another, needs one.
THREADED_ACTS = ("threaded", "flush")
HOWS = ("step", "opcode", "burst", "async")
# Of each act in memory and with a store, as many as there are, or nearly.
STEPS = {
    "publish": (190, 600),
    "threaded": (40, 450),
    "loop": (1500, 1800),
    "forever": (1900, 2300),
    "connect": (1700, 2100),
    "disconnect": (150, 170),
    "close": (170, 280),
    "receive": (2500, 3300),
    "flush": (90, 130),
    "own": (850, 750),
}
OPCODES_A_STEP = 4
CHUNK = 50
PROGRESS_POINTS = 250
TRANSPORTS = ("tcp", "tcp", "tcp", "python", "tls", "websockets")


class Interrupted(KeyboardInterrupt):
    """What the harness raises."""


class StepTrace:
    """Raises at the `at`-th step of the calling thread in the client's modules or paho's."""

    def __init__(self, at: int, *, by_opcode: bool = False, error: type[BaseException] = Interrupted) -> None:
        self.at = at
        self.count = 0
        self.where = ""
        self._by_opcode = by_opcode
        self._error = error

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        is_ours = frame.f_code.co_filename.startswith(OURS)
        if not is_ours and not (frame.f_code.co_filename == __file__ and frame.f_code.co_name in OUR_CALLS):
            return None
        frame.f_trace_opcodes = self._by_opcode
        self.count += 1
        if self.count == self.at:
            self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name} {event}"
            raise self._error
        return self


class Bursts:
    """A timer's signals, at random, each of whose handlers raises, until it has done so `times` times."""

    def __init__(self, rnd: random.Random) -> None:
        self.left = rnd.randint(1, 4)
        self.where = ""
        self._first_s, self._next_s = rnd.uniform(0.00002, 0.004), rnd.uniform(0.00002, 0.001)

    def start(self) -> None:
        signal.signal(signal.SIGALRM, self._on_alarm)
        signal.setitimer(signal.ITIMER_REAL, self._first_s)

    def stop(self) -> None:
        self.left = 0
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _on_alarm(self, _number: int, frame: Any) -> None:
        if self.left <= 0:
            return
        # What comes before and after is the harness's own, and so is the program's callback.
        is_ours = _is_within(frame, "interrupted_call") and not _is_within(frame, "count_message")
        if is_ours:
            self.left -= 1
            self.where += f" {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        # Only now, or on a slow machine one handler would cut into another for ever.
        signal.setitimer(signal.ITIMER_REAL, self._next_s)
        if is_ours:
            raise Interrupted


def _is_within(frame: Any, name: str) -> bool:
    while frame is not None and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame is not None


class AsyncExceptions:
    """A thread that raises in the client's own, at random, as debuggers and watchdogs do."""

    def __init__(self, client: Any, rnd: random.Random) -> None:
        self.where = ""
        self._client = client
        self._delays_s = [rnd.uniform(0.0001, 0.004) for _ in range(rnd.randint(1, 3))]
        self._error = rnd.choice((Interrupted, RuntimeError))
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        for delay_s in self._delays_s:
            time.sleep(delay_s)
            thread = self._client._thread
            if thread is not None and thread.ident is not None:
                raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident), ctypes.py_object(self._error)
                )
                self.where += f" {self._error.__name__}" * raised


class PythonSocket:
    """A socket whose calls are Python: an exception may part them from what they did."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        # For the trace.
        self.send, self.recv = self._make_calls(sock)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    @staticmethod
    def _make_calls(sock: Any) -> tuple[Any, Any]:
        def send(data: bytes) -> int:
            size = sock.send(data)
            return int(size)

        def recv(limit_bytes: int) -> bytes:
            data = sock.recv(limit_bytes)
            return bytes(data)

        return send, recv


class PythonSocketClient(glec_fast.Client):
    """Its sockets are those."""

    def _create_socket(self) -> Any:
        return PythonSocket(super()._create_socket())


class Point:
    """One client, interrupted once."""

    def __init__(
        self, act: str, qos: int, *, stored: bool, goes_on: bool, big: bool, transport: str, directory: Path
    ) -> None:
        self.act, self.qos, self.stored, self.goes_on, self.transport = act, qos, stored, goes_on, transport
        self.path = directory / "queue.db" if stored else None
        incoming = [(f"in/{qos}", payload_of(b"in%010d" % number, 12), qos) for number in range(INCOMING)]
        self.broker = RecordingBroker(
            incoming if act == "receive" else None, receive_buffer_bytes=4096 if big else 0, wrap=wrapper(transport)
        )
        self.size = 60_000 if big else 40
        self.accepted: dict[bytes, Any] = {}
        self.received: Counter[bytes] = Counter()
        self.in_callback = False
        self.is_interrupted = False
        self.problems: list[str] = []
        self.client = self.make_client()

    def make_client(self) -> Any:
        options = {"store": self.path} if self.stored else {"clean_session": False}
        if self.transport == "websockets":
            options["transport"] = "websockets"
        made = PythonSocketClient if self.transport == "python" else glec_fast.Client
        client = made(CallbackAPIVersion.VERSION2, client_id="c", **options)
        if self.transport == "tls":
            client.tls_set(str(authority().certificate_path))
        if self.act == "own":
            # As asyncio's helpers do: the loop is told of what it is to wait for.
            client.on_socket_register_write = client.on_socket_unregister_write = lambda *_: None
        client.on_message = self.count_message
        return client

    def count_message(self, _client: Any, _userdata: Any, message: Any) -> None:
        """A program's callback. Whoever cuts into it has had the message, and must note so himself."""
        self.received[bytes(message.payload)] += 1

    def publish(self, number: int) -> None:
        key = b"k%011d" % number
        handle = self.client.publish("t/" + key.decode(), payload_of(key, self.size), self.qos)
        if not (handle.rc and self.qos == 0 and not self.stored):
            self.accepted[key] = handle

    def connect(self) -> None:
        self.client.connect("127.0.0.1", self.broker.port)

    def turn(self) -> None:
        client = self.client
        if self.act == "own" and client.socket() is not None:
            select.select([client.socket()], [client.socket()] if client.want_write() else [], [], 0.02)
            rc = client.loop_read() or client.loop_write() or client.loop_misc()
        else:
            rc = client.loop(0.02)
        if rc and client.socket() is None:
            with suppress(OSError):
                self.connect()

    def turn_until_connected(self) -> None:
        deadline_s = time.monotonic() + GO_ON_S
        while not self.client.is_connected() and time.monotonic() < deadline_s:
            self.turn()

    def is_done(self) -> bool:
        return all(handle._fate is not None for handle in self.accepted.values()) and (
            self.act != "receive" or self.broker.is_all_acknowledged
        )

    def prepare(self) -> None:
        """What comes before the call that is interrupted."""
        if self.act in ("connect", "forever", "loop", "receive", "own"):
            for number in range(MESSAGES):
                self.publish(number)
        if self.act not in ("connect", "forever", "receive"):
            self.connect()
            self.turn_until_connected()
        if self.act in ("disconnect", "close"):
            for number in range(MESSAGES):
                self.publish(number)
        if self.act in ("threaded", "flush"):
            self.client.loop_start()
            for number in range(MESSAGES if self.act == "flush" else 0):
                self.publish(number)

    def interrupted_call(self) -> None:
        client, act = self.client, self.act
        if act in ("publish", "threaded"):
            for number in range(MESSAGES):
                self.publish(number)
        elif act in ("loop", "receive"):
            if act == "receive":
                self.connect()
            for _ in range(12):
                client.loop(0.005)
        elif act == "own":
            for _ in range(6):
                client.loop_write()
                client.loop_read()
                client.loop_misc()
        elif act == "forever":
            self.connect()
            client.on_publish = lambda *_: client.disconnect() if self.is_nearly_done() else None
            if self.qos == 0:
                client.on_connect = lambda *_: client.disconnect()
            client.loop_forever()
        elif act == "connect":
            self.connect()
            for _ in range(6):
                client.loop(0.005)
        elif act == "disconnect":
            client.disconnect()
        elif act == "close":
            client.close()
        elif act == "flush":
            for handle in list(self.accepted.values()):
                # Of QoS 0 in memory that its connection has taken along.
                with suppress(RuntimeError):
                    handle.wait_for_publish(5)
            if self.stored:
                client.flush(5)

    def is_nearly_done(self) -> bool:
        return sum(handle._fate is None for handle in self.accepted.values()) <= 1

    def go_on(self) -> None:
        """As a program does that catches it and calls `loop` again."""
        client = self.client
        client.on_publish = client.on_connect = None
        if self.act in ("disconnect", "close"):
            # Cut short, it is called again.
            getattr(client, self.act)()
            if self.act == "close" and self.stored:
                return
            self.connect()
        if self.act in THREADED_ACTS and client._thread is None:
            # What was raised in it has ended it, as it would end any.
            client.loop_start()
        if client._thread is None and not self.stored and not self.qos:
            # In memory, QoS 0 without a connection goes nowhere.
            self.turn_until_connected()
        for number in range(MESSAGES, 2 * MESSAGES):
            self.publish(number)
        deadline_s = time.monotonic() + GO_ON_S
        while not self.is_done() and time.monotonic() < deadline_s:
            if client._thread is not None:
                time.sleep(0.005)
                if client._thread is None:
                    client.loop_start()
                if client.socket() is None and client._state == paho._ConnectionState.MQTT_CS_DISCONNECTED:
                    client.reconnect()
                continue
            if client.socket() is None:
                with suppress(OSError):
                    self.connect()
            self.turn()
        lost = [key for key, handle in self.accepted.items() if handle._fate is None]
        if lost:
            self.problems.append(f"lost: {len(lost)} are not published")
        if self.act == "receive" and not self.broker.is_all_acknowledged:
            self.problems.append(f"lost: {len(self.broker._unacknowledged)} of the server's are not acknowledged")

    def finish(self) -> None:
        self.client.close()
        if self.stored:
            self.client = self.make_client()
            self.broker.on_new_client()
            self.connect()
            self.client.loop_start()
            if not self.client.flush(GO_ON_S):
                self.problems.append("lost: the file's next client cannot empty it")
            deadline_s = time.monotonic() + GO_ON_S
            # Of QoS 0 nothing tells, and a slow reader's would go with the connection.
            while time.monotonic() < deadline_s and not self.has_all_arrived():
                time.sleep(0.005)
            self.client.close()

    def has_all_arrived(self) -> bool:
        return all(self.broker.delivered[key] for key in self.accepted)

    def judge(self) -> None:
        broker = self.broker
        if broker.faults:
            self.problems += [f"stream: {fault}" for fault in broker.faults[:3]]
        twice = [key for key, count in broker.delivered.items() if count > 1]
        if self.qos != 1 and twice:
            self.problems.append(f"twice: {twice[:3]}")
        must_arrive = self.accepted if self.stored or (self.goes_on and self.qos) else {}
        # QoS 0 that a socket took may go with its connection.
        left = {key for key, handle in self.accepted.items() if self.qos == 0 and handle._fate is True}
        missing = [key for key in must_arrive if not broker.delivered[key] and key not in left]
        if missing:
            self.problems.append(f"lost: {missing[:3]} never reached the broker")
        if self.act == "receive" and self.qos == 2:
            counts = [self.received[payload_of(b"in%010d" % number, 12)] for number in range(INCOMING)]
            if max(counts) > 1:
                self.problems.append(f"twice: received {counts}")
            if self.goes_on and min(counts) < 1:
                self.problems.append(f"lost: received {counts}")


@cache
def authority() -> CertificateAuthority:
    """One for the process, whose folder the system clears."""
    return CertificateAuthority(Path(tempfile.mkdtemp(prefix="interrupts-")))


def wrapper(transport: str) -> Any:
    """What the broker's side makes of a connection."""
    if transport == "websockets":
        return lambda sock: WebSocket(sock, frame_bytes=50)
    if transport != "tls":
        return None
    issued = authority().issue_server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(issued.certificate_path, issued.key_path)
    return lambda sock: context.wrap_socket(sock, server_side=True)


def run_point(
    act: str, qos: int, at: int, *, how: str, stored: bool, goes_on: bool, big: bool, transport: str
) -> dict[str, Any]:
    """Where it was interrupted, empty where the call ended before, and what was wrong afterwards."""
    directory = Path(tempfile.mkdtemp())
    faulthandler.dump_traceback_later(HANG_S + 5 * GO_ON_S, exit=True)
    watch = Watch()
    watch.start()
    point = Point(act, qos, stored=stored, goes_on=goes_on, big=big, transport=transport, directory=directory)
    source: Any = None
    try:
        point.prepare()
        rnd = random.Random(f"{act} {qos} {at} {stored} {goes_on} {big} {transport}")
        if how == "async":
            source = AsyncExceptions(point.client, rnd)
            source.start()
            try:
                point.interrupted_call()
            finally:
                source.stop()
        elif how == "burst":
            source = Bursts(rnd)
            try:
                source.start()
                with suppress(Interrupted):
                    point.interrupted_call()
            finally:
                source.stop()
        else:
            source = StepTrace(at, by_opcode=how == "opcode")
            sys.settrace(source)
            try:
                point.interrupted_call()
            except Interrupted:
                pass
            finally:
                sys.settrace(None)
        if goes_on:
            point.go_on()
        started_s = time.monotonic()
        point.finish()
        if time.monotonic() - started_s > HANG_S:
            point.problems.append("hang: close took too long")
        point.judge()
        if violations := watch.take_violations():
            point.problems.append(f"lock order: {violations}")
    except Exception as error:
        point.problems.append(f"raised: {type(error).__name__} {error}")
    finally:
        point.broker.close()
        shutil.rmtree(directory, ignore_errors=True)
        faulthandler.cancel_dump_traceback_later()
    return {"where": "?" if source is None else source.where, "problems": point.problems}


# ---- the campaign


def random_point(rnd: random.Random, acts: Sequence[str], hows: Sequence[str]) -> dict[str, Any]:
    """What `run_point` takes."""
    act = rnd.choice(acts)
    how = rnd.choice([each for each in hows if each != "async" or act in THREADED_ACTS])
    stored = rnd.random() < 0.5
    steps = STEPS[act][stored] * (OPCODES_A_STEP if how == "opcode" else 1)
    return {
        "act": act,
        "qos": rnd.randrange(3),
        "at": rnd.randint(1, steps),
        "how": how,
        "stored": stored,
        "goes_on": rnd.random() < 0.5,
        "big": rnd.random() < 0.5,
        "transport": rnd.choice(TRANSPORTS),
    }


def run_all(points: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each point and what it found. They share a child; one that hangs ends it, and those behind have another."""
    while points:
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "support.interrupts", "--child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=Path(__file__).parent.parent,
            )
            with child:
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write(json.dumps(points))
                child.stdin.close()
                for line in child.stdout:
                    yield points.pop(0), json.loads(line)
            if points:
                errors.seek(0)
                yield points.pop(0), {"where": "?", "problems": [f"hang: {errors.read()[-1500:]}"]}


class Campaign:
    """`count` interrupted calls of all kinds, spread over `children` processes at a time, which share no state.

    It writes down what was wrong as that is found, and every `PROGRESS_POINTS` how many points and problems there are.
    """

    def __init__(self, count: int, seed: int, acts: Sequence[str], hows: Sequence[str]) -> None:
        # Points, and problems of each kind.
        self.counts: Counter[str] = Counter()
        self._count = count
        self._acts, self._hows = acts, hows
        self._rnd = random.Random(seed)
        self._lock = threading.Lock()
        # Handed out, and not known to be points yet: their calls may end before they are interrupted.
        self._open = 0

    def run(self, children: int) -> None:
        with ThreadPoolExecutor(children) as pool:
            for each in [pool.submit(self._run_chunks) for _ in range(children)]:
                each.result()

    def _run_chunks(self) -> None:
        while chunk := self._take_chunk():
            for point, found in run_all(chunk):
                self._note(point, found)

    def _take_chunk(self) -> list[dict[str, Any]]:
        with self._lock:
            size = min(self._count - self.counts["points"] - self._open, CHUNK)
            self._open += max(size, 0)
            return [random_point(self._rnd, self._acts, self._hows) for _ in range(size)]

    def _note(self, point: dict[str, Any], found: dict[str, Any]) -> None:
        with self._lock:
            self._open -= 1
            for problem in found["problems"]:
                self.counts[problem.split(":")[0]] += 1
                _say(f"{json.dumps(point)} {found['where']} -> {problem}")
            if found["where"]:
                self.counts["points"] += 1
                if self.counts["points"] % PROGRESS_POINTS == 0:
                    _say(f"of {self._count}: {json.dumps(self.counts)}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def campaign(
    count: int, seed: int, acts: Sequence[str] = ACTS, hows: Sequence[str] = HOWS, *, children: int = 1
) -> Counter[str]:
    """Interrupt `count` calls. Returns how many points there were, and problems of each kind."""
    made = Campaign(count, seed, acts, hows)
    made.run(children)
    return made.counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--acts", nargs="*", default=ACTS)
    parser.add_argument("--hows", nargs="*", default=HOWS)
    parser.add_argument("--children", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--point", type=json.loads, help="run this one alone")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child or given.point:
        for point in [given.point] if given.point else json.load(sys.stdin):
            _say(json.dumps(run_point(**point)))
        return
    counts = campaign(given.points, given.seed, given.acts, given.hows, children=given.children)
    _say(json.dumps(counts))
    sys.exit(len(counts) > 1)


if __name__ == "__main__":
    main()
