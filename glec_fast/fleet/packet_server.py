"""A Unix socket (SOCK_SEQPACKET) that answers each packet with one: that of the service, and a manager's own."""

from __future__ import annotations

import json
import logging
import os
import selectors
import socket
import stat
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from glec_fast.errors import ConfigError
from glec_fast.runtime.summing_log import SummingLog

BACKLOG = 128
# So that no program takes the descriptors that the link to the broker needs; others wait for one to leave.
MAX_CLIENTS = 256
_ACCEPT_PAUSE_S = 1.0
# A watchdog hears between two turns that we live; whoever answers may take long over each.
_TURN_MAX_S = 5.0
# The kernel has dropped it, as this process may have no more of them: what the packet alone says is not what was meant.
_WITHOUT_DESCRIPTOR = json.dumps(
    {"error": "the descriptor of a packet was lost, as there are too many: send it again", "retryable": True}
).encode()


class PacketServer:
    """The socket and its clients. All but `wake` belongs to one thread.

    path: made with rights 0660; a socket that nobody listens on is removed. answer: called with a packet, of at most
    max_packet_bytes and one, and the descriptors that came with it; returns what JSON carries.
    Raises ConfigError, with `field`, where there can be no such socket.
    """

    def __init__(
        self,
        path: Path,
        answer: Callable[[bytes, list[int]], dict[str, object]],
        max_packet_bytes: int,
        field: str | None = None,
    ) -> None:
        self._path = path
        self._answer = answer
        self._max_packet_bytes = max_packet_bytes
        self._log = SummingLog()
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = os.pipe()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            _remove_stale(path)
            self._listener.bind(os.fspath(path))
            path.chmod(0o660)
            self._listener.listen(BACKLOG)
        except OSError as error:
            self.let_go()
            says = f"{path} cannot be listened on ({error}): check its folder, its rights, and that it is short"
            raise ConfigError(says, field=field) from error
        self._listener.setblocking(False)
        self._is_listening = False
        self._listen_at_s = 0.0
        # Not served yet of those that had something at one time. Asked again, the kernel would name the first first.
        self._ready: deque[selectors.SelectorKey] = deque()

    def turn(self, timeout_s: float) -> None:
        """Answer what has come, or wait for it for at most `timeout_s`. What is left after 5 s is for the next turn."""
        if not self._is_listening:
            self._listen_again()
        self._log.tick()
        if not self._ready:
            found = self._selector.select(timeout_s if self._is_listening else min(timeout_s, _ACCEPT_PAUSE_S))
            self._ready.extend(key for key, _ in found)
        ends_s = time.monotonic() + _TURN_MAX_S
        while self._ready:
            key = self._ready.popleft()
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.fileobj, socket.socket):
                self._serve(key.fileobj, key.data)
            if time.monotonic() > ends_s:
                break

    def wake(self) -> None:
        """End the turn that waits, and each that comes. Any thread."""
        with suppress(OSError):
            os.write(self._waker, b"\0")

    @property
    def _client_count(self) -> int:
        return len(self._selector.get_map()) - 1 - self._is_listening

    def _listen_again(self) -> None:
        if time.monotonic() >= self._listen_at_s and self._client_count < MAX_CLIENTS:
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._is_listening = True

    def _accept(self) -> None:
        """Take all that wait, as far as there is room."""
        while self._is_listening:
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors or memory, as a rule; those that are connected are served on.
                text = f"no further program can connect for now: {error}"
                self._log.note(logging.ERROR, "programs that could not connect", str(error), text=text)
                self._listen_at_s = time.monotonic() + _ACCEPT_PAUSE_S
                self._stop_listening()
                return
            client.setblocking(False)
            self._selector.register(client, selectors.EVENT_READ)
            if self._client_count >= MAX_CLIENTS:
                text = f"{MAX_CLIENTS} programs are connected, the most that are served at once"
                self._log.note(logging.WARNING, "times that no more programs were let in", "the most", text=text)
                self._stop_listening()

    def _stop_listening(self) -> None:
        self._selector.unregister(self._listener)
        self._is_listening = False

    def _serve(self, client: socket.socket, unsent: bytes | None) -> None:
        """unsent: its last answer, where it had not read enough of those before."""
        answer = unsent
        try:
            if answer is None:
                answer = self._answer_next(client)
            if answer:
                client.send(answer)
                if unsent is not None:
                    self._selector.modify(client, selectors.EVENT_READ)
                return
        except BlockingIOError:
            self._selector.modify(client, selectors.EVENT_WRITE, answer)
            return
        except OSError:
            # It went: what it published is accepted all the same.
            pass
        self._selector.unregister(client)
        client.close()

    def _answer_next(self, client: socket.socket) -> bytes:
        """To its next packet; empty where it has gone."""
        packet, descriptors, flags, _ = socket.recv_fds(client, self._max_packet_bytes + 1, 1, socket.MSG_CMSG_CLOEXEC)
        if flags & socket.MSG_CTRUNC and not descriptors:
            return _WITHOUT_DESCRIPTOR
        try:
            return json.dumps(self._answer(packet, descriptors)).encode() if packet else b""
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def close(self) -> None:
        """Let go of every client, and of the socket."""
        self.let_go()
        self._path.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Close all descriptors. The name stays, as in a forked child, whose parent has it."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._listener.close()
        self._selector.close()
        os.close(self._woken)
        os.close(self._waker)


def _remove_stale(path: Path) -> None:
    """Raises OSError where another program listens there, or what is there is no socket."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(f"what is there is no socket: {path}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise FileExistsError("another program listens on it")
