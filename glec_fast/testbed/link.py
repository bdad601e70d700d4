"""A TCP relay on loopback that fails as a vehicle's radio link does. One thread, no buffering beyond one read.

What it can do: end connections (`drop`, `cut`, `cut_after`), refuse them (`refuse`), hold bytes back (`stall`), be a
tunnel, in which everything vanishes and nothing is closed (`swallow`), and be narrow (`slow`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from glec_fast.testbed import ToolError

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"
READ_BYTES = 256 * 1024
# A slow link hands on what has come due so often.
_PACE_S = 0.01
# SO_LINGER on, zero seconds: close() sends a reset instead of an orderly end.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Direction = Literal["up", "down"]


@dataclass(eq=False)
class _Flow:
    """One direction of one connection. `pending` was read from `source` and not yet taken by `sink`."""

    direction: Direction
    source: socket.socket
    sink: socket.socket
    pending: memoryview = field(default_factory=lambda: memoryview(b""))
    ended: bool = False
    # Bytes of it have vanished: nothing of it arrives any more, nor does its end.
    is_dead: bool = False


@dataclass(eq=False)
class _Connection:
    client: socket.socket
    server: socket.socket
    up: _Flow
    down: _Flow
    connected: bool = False


class Link:
    """Relays `address` to `target`. "up" is from the client to the server, "down" the way back.

    Every method may be called from any thread and has taken effect when it returns.
    buffer_bytes: what its kernel keeps of each direction, 0 for the system's default, which is more than a slow link
    of a real radio has.
    """

    def __init__(self, target: tuple[str, int], *, buffer_bytes: int = 0) -> None:
        try:
            found = socket.getaddrinfo(*target, type=socket.SOCK_STREAM)[0]
        except OSError as error:
            raise ToolError(f"cannot find the host {target[0]}: {error.strerror}") from error
        self._family: socket.AddressFamily = found[0]
        self._target = found[4]
        # Bound and never listening: it keeps the port ours while the link is down, so that clients are refused.
        self._port_holder = _bind(0)
        self.port: int = self._port_holder.getsockname()[1]
        self._changed = threading.Condition()
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = os.pipe()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._listener: socket.socket | None = None
        self._connections: set[_Connection] = set()
        # Ends that were told of a cut in order and have not closed yet. To close ours first, with bytes of theirs
        # unread, would reset them and take back what they were to get.
        self._leaving: set[socket.socket] = set()
        self._bytes: dict[Direction, int] = {"up": 0, "down": 0}
        self._cut_at: dict[Direction, int] = {}
        self._buffer_bytes = buffer_bytes
        self._swallowed: frozenset[Direction] = frozenset()
        # Bytes a second, and what may pass by now.
        self._rates: dict[Direction, float] = {}
        self._due_bytes: dict[Direction, float] = {}
        self._paced_s = time.monotonic()
        self._stalled = False
        self._closing = False
        self._accepted = 0
        self._thread = threading.Thread(target=self._run, name="glec-link", daemon=True)
        self.restore()
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    @property
    def bytes_up(self) -> int:
        return self._bytes["up"]

    @property
    def bytes_down(self) -> int:
        return self._bytes["down"]

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def accepted_connections(self) -> int:
        """How many clients have connected since the start."""
        return self._accepted

    def refuse(self) -> None:
        """Refuse new connections; those that are open go on."""
        with self._changed:
            if self._listener is not None:
                self._forget(self._listener)
                self._listener = None

    def drop(self) -> None:
        """Reset the open connections; new ones are welcome."""
        with self._changed:
            for connection in tuple(self._connections):
                self._end(connection, reset=True)
            for end in tuple(self._leaving):
                self._forget(end)
            self._leaving.clear()

    def cut(self) -> None:
        """Reset the open connections and refuse new ones until `restore`."""
        with self._changed:
            self.refuse()
            self.drop()

    def stall(self) -> None:
        """Pass no more bytes, yet close nothing: a dead spot. Ends with `restore`."""
        with self._changed:
            self._stalled = True
            self._watch_all()

    def swallow(self, direction: Direction | None = None) -> None:
        """Take what comes, that way or both, and hand none of it on; close nothing, and tell of no end: a tunnel.

        Ends with `restore`, but for connections of which something has vanished: they are half-open for good, as no
        network makes up for what it has acknowledged.
        """
        with self._changed:
            self._swallowed = frozenset((direction,) if direction else ("up", "down"))
            for connection in self._connections:
                self._swallow_from(connection)
            self._watch_all()

    def slow(self, bytes_per_s: float, direction: Direction = "up") -> None:
        """Pass so many bytes a second that way, over all connections, and no more. Ends with `restore`."""
        if bytes_per_s <= 0:
            raise ToolError(f"slow needs a rate above 0 bytes a second, not {bytes_per_s}: use stall() for none")
        with self._changed:
            self._rates[direction] = bytes_per_s
            self._due_bytes[direction] = 0.0
            self._paced_s = time.monotonic()
            self._watch_all()
        # It may be waiting without a limit.
        os.write(self._wake_writer, b"s")

    def restore(self) -> None:
        """Undo `cut`, `refuse`, `stall`, `swallow` and `slow`, and cancel `cut_after`."""
        with self._changed:
            self._stalled = False
            self._swallowed = frozenset()
            self._rates.clear()
            self._cut_at.clear()
            if self._listener is None:
                self._listener = _bind(self.port)
                if self._buffer_bytes:
                    # What it accepts inherits it.
                    self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
                self._listener.listen()
                self._watch(self._listener, selectors.EVENT_READ)
            self._watch_all()

    def cut_after(self, count_bytes: int, direction: Direction = "up") -> None:
        """Pass exactly `count_bytes` more that way, then end the connections and refuse new ones until `restore`."""
        if count_bytes < 1:
            raise ToolError(f"cut_after needs at least 1 byte, not {count_bytes}: use cut() to cut now")
        with self._changed:
            self._cut_at[direction] = self._bytes[direction] + count_bytes

    def restore_for(self, count_bytes: int, direction: Direction = "up") -> None:
        """`restore` and `cut_after`, with nothing that passes between them."""
        with self._changed:
            self.restore()
            self.cut_after(count_bytes, direction)

    def wait_for(self, condition: Callable[[Link], bool], timeout_s: float) -> bool:
        """Wait until `condition(self)`, looked at whenever something changed; False when it did not come."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), timeout_s)

    @property
    def is_down(self) -> bool:
        """True while new connections are refused."""
        return self._listener is None

    def close(self) -> None:
        """End everything and give the port back. May be called twice."""
        with self._changed:
            if self._closing:
                return
            self.cut()
            self._closing = True
        os.write(self._wake_writer, b"x")
        self._thread.join()
        self._port_holder.close()
        self._selector.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            ready = self._selector.select(_PACE_S if self._rates else None)
            with self._changed:
                if self._closing:
                    return
                if self._rates:
                    self._let_due_pass()
                for key, events in ready:
                    self._on_ready(key.fileobj, events, key.data)
                self._changed.notify_all()

    def _on_ready(self, ready: Any, events: int, connection: _Connection | None) -> None:
        if connection is None:
            if ready is self._listener:
                self._accept()
            elif ready is self._wake_reader:
                os.read(self._wake_reader, READ_BYTES)
            elif ready in self._leaving:
                self._see_off(ready)
        elif connection in self._connections:
            try:
                self._relay(connection, ready, events)
            except OSError:
                # Either end broke the connection; the other is told in the same way.
                self._end(connection, reset=True)
            else:
                self._watch_connection(connection)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        server = socket.socket(self._family, socket.SOCK_STREAM)
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._buffer_bytes:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_bytes)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_bytes)
        up, down = _Flow("up", client, server), _Flow("down", server, client)
        connection = _Connection(client, server, up, down)
        self._swallow_from(connection)
        self._connections.add(connection)
        self._accepted += 1
        if server.connect_ex(self._target) in (0, errno.EINPROGRESS):
            self._watch_connection(connection)
        else:
            self._end(connection, reset=True)

    def _relay(self, connection: _Connection, ready: object, events: int) -> None:
        if not connection.connected:
            if failure := connection.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(failure, os.strerror(failure))
            connection.connected = True
            return
        for flow in (connection.up, connection.down):
            if ready is flow.sink and events & selectors.EVENT_WRITE:
                self._write(flow)
            if ready is flow.source and events & selectors.EVENT_READ and not flow.pending:
                self._read(flow)
                self._write(flow)
        if connection.up.ended and connection.down.ended:
            self._end(connection, reset=False)
        elif self._cut_is_due():
            self.refuse()
            for each in tuple(self._connections):
                self._part(each)

    def _read(self, flow: _Flow) -> None:
        size_bytes = READ_BYTES
        if flow.direction in self._cut_at:
            size_bytes = min(size_bytes, self._cut_at[flow.direction] - self._bytes[flow.direction])
        if flow.direction in self._rates and not flow.is_dead:
            size_bytes = min(size_bytes, int(self._due_bytes[flow.direction]))
        if not size_bytes:
            return
        try:
            data = flow.source.recv(size_bytes)
        except BlockingIOError:
            return
        except OSError:
            if not flow.is_dead:
                raise
            # The other end does not hear of it.
            data = b""
        self._bytes[flow.direction] += len(data)
        if flow.is_dead:
            flow.ended = not data
            return
        if flow.direction in self._rates:
            self._due_bytes[flow.direction] -= len(data)
        flow.pending = memoryview(data)
        if not data:
            flow.ended = True
            with contextlib.suppress(OSError):  # The sink may be gone already: then there is no one to tell.
                flow.sink.shutdown(socket.SHUT_WR)

    def _write(self, flow: _Flow) -> None:
        if flow.pending:
            with contextlib.suppress(BlockingIOError):  # The sink is full: the selector says when it is not.
                flow.pending = flow.pending[flow.sink.send(flow.pending) :]

    def _swallow_from(self, connection: _Connection) -> None:
        """From now on what goes the ways that are swallowed is lost to this connection."""
        for flow in (connection.up, connection.down):
            if flow.direction in self._swallowed and not flow.is_dead:
                flow.is_dead = True
                flow.pending = memoryview(b"")

    def _let_due_pass(self) -> None:
        now_s = time.monotonic()
        for direction, rate in self._rates.items():
            # What nobody had to send then cannot be made up for.
            most_bytes = max(rate * 5 * _PACE_S, 1.0)
            due_bytes = self._due_bytes[direction] + rate * (now_s - self._paced_s)
            self._due_bytes[direction] = min(due_bytes, most_bytes)
        self._paced_s = now_s
        self._watch_all()

    def _cut_is_due(self) -> bool:
        """True once the last byte allowed has been read and handed on."""
        flows = [flow for connection in self._connections for flow in (connection.up, connection.down)]
        return any(
            self._bytes[direction] >= limit and not any(flow.pending for flow in flows if flow.direction == direction)
            for direction, limit in self._cut_at.items()
        )

    def _watch_all(self) -> None:
        for connection in self._connections:
            self._watch_connection(connection)

    def _watch_connection(self, connection: _Connection) -> None:
        if connection not in self._connections:
            return
        events = {connection.client: 0, connection.server: 0}
        if not connection.connected:
            events[connection.server] = selectors.EVENT_WRITE
        elif not self._stalled:
            for flow in (connection.up, connection.down):
                if flow.pending:
                    events[flow.sink] |= selectors.EVENT_WRITE
                elif not flow.ended and (flow.is_dead or self._due_bytes_of(flow.direction) >= 1):
                    events[flow.source] |= selectors.EVENT_READ
        for end, wanted in events.items():
            self._watch(end, wanted, connection)

    def _due_bytes_of(self, direction: Direction) -> float:
        return self._due_bytes[direction] if direction in self._rates else READ_BYTES

    def _watch(self, end: socket.socket, events: int, connection: _Connection | None = None) -> None:
        known = end in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(end)
        elif known:
            self._selector.modify(end, events, connection)
        else:
            self._selector.register(end, events, connection)

    def _end(self, connection: _Connection, *, reset: bool) -> None:
        if reset:
            connection.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._forget(connection.client)
        self._forget(connection.server)
        self._connections.discard(connection)
        self._changed.notify_all()

    def _part(self, connection: _Connection) -> None:
        """End a connection so that each end still reads all that was sent to it."""
        self._connections.discard(connection)
        for end in (connection.client, connection.server):
            with contextlib.suppress(OSError):  # It has broken off by itself.
                end.shutdown(socket.SHUT_WR)
            self._leaving.add(end)
            self._watch(end, selectors.EVENT_READ)

    def _see_off(self, end: socket.socket) -> None:
        try:
            gone = not end.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone:
            self._leaving.discard(end)
            self._forget(end)

    def _forget(self, end: socket.socket) -> None:
        self._watch(end, 0)
        end.close()


def _bind(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    bound.setblocking(False)
    return bound
