"""One program, one scripted peer, two clients: what each saw, returned, raised and put on the wire, to be compared."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt as paho_mqtt
import pytest
from paho.mqtt import client as paho
from paho.mqtt.client import CallbackAPIVersion, MQTTMessage
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

import glec_fast.mqtt
from support.wire_reference import publish, remaining_length

WAIT_S = 10.0
V31, V311, V5 = MQTTProtocolVersion.MQTTv31, MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5
API1, API2 = CallbackAPIVersion.VERSION1, CallbackAPIVersion.VERSION2
IS_2_1 = paho_mqtt.__version__.startswith("2.1.")
AS_2_2 = pytest.mark.skipif(IS_2_1, reason="where paho-mqtt 2.1 and 2.2 differ, ours is as 2.2")
NO_WARNING = pytest.mark.filterwarnings("ignore:Callback API version 1 is deprecated:DeprecationWarning")
# paho leaves some sockets to the garbage collector, and a client half made fails again when it is collected.
LEAVES_SOCKETS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5], ids=["3.1", "3.1.1", "5"])
APIS = pytest.mark.parametrize("api", [API1, API2], ids=["api1", "api2"])
CALLBACKS = (
    "on_connect", "on_connect_fail", "on_disconnect", "on_log", "on_message", "on_pre_connect", "on_publish",
    "on_socket_close", "on_socket_open", "on_socket_register_write", "on_socket_unregister_write", "on_subscribe",
    "on_unsubscribe",
)  # fmt: skip


def connack(version: int, code: int = 0, *, present: bool = False, properties: bytes = b"\x00") -> bytes:
    body = bytes((present, code)) + (properties if version == V5 else b"")
    return b"\x20" + remaining_length(len(body)) + body


def ack(kind: int, mid: int, rest: bytes = b"") -> bytes:
    return bytes((kind, 2 + len(rest))) + mid.to_bytes(2, "big") + rest


def suback(version: int, mid: int, codes: bytes) -> bytes:
    return ack(0x90, mid, (b"\x00" if version == V5 else b"") + codes)


def unsuback(version: int, mid: int, codes: bytes) -> bytes:
    return ack(0xB0, mid, b"\x00" + codes if version == V5 else b"")


def inbound(version: int, topic: str, payload: bytes, qos: int, mid: int = 0, **flags: bool) -> bytes:
    return publish(topic, payload, qos, mid, properties=b"\x00" if version == V5 else b"", **flags)


@dataclass
class Expect:
    """Read whole packets, so many."""

    count: int = 1


@dataclass
class Send:
    data: bytes


@dataclass
class Close:
    """End the connection from the peer's side.

    What the client still sends is taken: a socket that is closed over it would answer with a reset, which the client
    sees or not, as the two of them meet.
    """


Step = Expect | Send | Close


class Peer:
    """A server on loopback, or on a Unix socket at `path`.

    Plays one list of steps for each connection, and records the packets that it read: (connection, bytes).
    wrap: what comes before MQTT: TLS, a proxy's or a WebSocket's handshake. Gives what is spoken through.
    """

    def __init__(
        self, *connections: list[Step], path: str = "", wrap: Callable[[socket.socket], Any] | None = None
    ) -> None:
        self.packets: list[tuple[int, bytes]] = []
        self.changed = threading.Condition()
        self.played = 0
        self._connections = connections
        self._wrap = wrap
        if path:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen()
        else:
            self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(WAIT_S)
        self.port = 0 if path else int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Peer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join(WAIT_S)

    def _run(self) -> None:
        for number, steps in enumerate(self._connections):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(WAIT_S)
            if self.port:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                with (
                    connection,
                    self._wrap(connection) if self._wrap is not None else connection as spoken,
                    spoken.makefile("rb") as stream,
                ):
                    self._play(number, spoken, stream, steps)
            except OSError:
                # The client did not like what comes before MQTT.
                self._count_played()

    def _play(self, number: int, connection: Any, stream: Any, steps: list[Step]) -> None:
        for step in [*steps, None]:
            if isinstance(step, Send):
                connection.sendall(step.data)
            elif isinstance(step, Close):
                connection.shutdown(socket.SHUT_WR)
                while stream.read(1 << 16):
                    pass
                break
            else:
                # Without a step: until the client ends it.
                count = step.count if step is not None else 1 << 30
                for _ in range(count):
                    packet = read_packet(stream)
                    if packet is None:
                        break
                    with self.changed:
                        self.packets.append((number, packet))
                        self.changed.notify_all()
        self._count_played()

    def _count_played(self) -> None:
        with self.changed:
            self.played += 1
            self.changed.notify_all()

    def wait_played(self, connections: int) -> None:
        """Every step of so many connections is done, and the client's last bytes are read."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.played >= connections, WAIT_S), self.packets


def read_packet(stream: Any) -> bytes | None:
    """One whole MQTT packet, None at the end."""
    try:
        head = stream.read(1)
        length, shift = 0, 0
        while head:
            byte = stream.read(1)
            if not byte:
                return None
            head += byte
            length |= (byte[0] & 127) << shift
            shift += 7
            if not byte[0] & 128:
                return bytes(head + stream.read(length))
    except OSError:
        pass
    return None


def plain(value: Any) -> Any:
    """A value that compares by what a program can see of it."""
    if isinstance(value, MQTTMessage):
        return (
            "message", value.topic, value.payload, value.qos, value.mid, value.dup, value.retain,
            plain(value.properties) if hasattr(value, "properties") else None, int(value.state),
        )  # fmt: skip
    if isinstance(value, ReasonCode):
        return "reason", value.packetType, value.value, str(value)
    if isinstance(value, Properties):
        return "properties", value.packetType, value.json()
    if hasattr(value, "fileno"):
        return "socket"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return type(value).__name__, {name: plain(each) for name, each in value._asdict().items()}
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if hasattr(value, "session_present"):
        return "flags", vars(value)
    return value


@dataclass
class Run:
    """One client under one program. `seen`: callbacks and results, in order."""

    client: Any
    peer: Peer | None
    seen: list[Any] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def record(self, name: str, *values: Any) -> None:
        self.seen.append((name, *(plain(value) for value in values)))
        self.counts[name] = self.counts.get(name, 0) + 1

    def watch(self, *names: str) -> None:
        """Record these callbacks."""
        for name in names:
            setattr(self.client, name, self._recorder(name))

    def _recorder(self, name: str) -> Callable[..., None]:
        def callback(_client: Any, *arguments: Any) -> None:
            # The userdata, which is the program's own, shows that it is handed on.
            self.record(name, *arguments)

        return callback

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the client, and record what it returned or raised."""
        return self.call_of(self.client, name, *arguments, **named)

    def call_of(self, owner: Any, name: str, *arguments: Any, **named: Any) -> Any:
        try:
            result = getattr(owner, name)(*arguments, **named)
        except Exception as error:
            kind = type(error)
            # A class of ours may stand for one of Python's only where it is one.
            builtin = next(each for each in kind.__mro__ if each.__module__ == "builtins")
            shown = builtin if kind.__module__.startswith("glec_fast") else kind
            self.record(f"{name} raised", shown.__qualname__, str(error))
            return None
        if hasattr(result, "mid") and hasattr(result, "rc"):
            self.record(f"{name} returned", result.mid, int(result.rc), list(result), result[0], int(result[1]))
        else:
            self.record(f"{name} returned", result)
        return result

    def connect(self, **named: Any) -> None:
        assert self.peer is not None
        self.call("connect", "127.0.0.1", self.peer.port, **named)

    def loop_until(self, name: str, count: int = 1) -> None:
        """Work the loop by hand until a callback was seen so often."""
        deadline_s = time.monotonic() + WAIT_S
        while self.counts.get(name, 0) < count:
            assert time.monotonic() < deadline_s, (name, self.seen)
            self.client.loop(0.02)

    def loop_until_received(self, packets: int) -> None:
        """Work the loop by hand until the peer has read so many packets in all."""
        assert self.peer is not None
        deadline_s = time.monotonic() + WAIT_S
        while len(self.peer.packets) < packets:
            assert time.monotonic() < deadline_s, self.peer.packets
            self.client.loop(0.02)


def outcome(
    client: Any,
    program: Callable[[Run], None],
    connections: list[list[Step]],
    path: str = "",
    wrap: Callable[[socket.socket], Any] | None = None,
) -> tuple[Any, Any]:
    """(what the program saw, what the peer read)."""
    with Peer(*connections, path=path, wrap=wrap) as peer:
        run = Run(client, peer)
        program(run)
        peer.wait_played(len(connections))
    return run.seen, peer.packets


def compare(
    program: Callable[[Run], None],
    connections: list[list[Step]],
    version: int = V311,
    api: Any = API2,
    prepare: Callable[[Any], None] | None = None,
    wrap: Callable[[socket.socket], Any] | None = None,
    subclass: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Any, Any]:
    """Run it with either client; what ours saw and sent is returned once it is the same.

    subclass: what a class derived from each client adds.
    """
    outcomes = []
    for module in (paho, glec_fast.mqtt):
        make = type("Derived", (module.Client,), subclass) if subclass is not None else module.Client
        client = make(api, **{"client_id": "device", "protocol": version, **settings})
        if prepare is not None:
            prepare(client)
        outcomes.append(outcome(client, program, connections, wrap=wrap))
    (theirs, their_bytes), (ours, our_bytes) = outcomes
    assert ours == theirs
    assert our_bytes == their_bytes
    return ours, our_bytes
