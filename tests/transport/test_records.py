"""TLS with memory between OpenSSL and the socket: records in any pieces, writes of which the socket takes a part."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import select
import shutil
import socket
import ssl
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast.engine.connector import Connector
from glec_fast.testbed.certificates import CertificateAuthority
from glec_fast.transport._records import Records, gather
from support.tls_peer import server_context

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 15.0
RECORD_BYTES = 16 * 1024
RECORDS = 500
PUBACK = b"\x40\x02\x00\x01"


class Server:
    """OpenSSL in memory behind the other end of a pair of sockets: each byte moves when it is told to."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT_S)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def take(self, limit: int = 1 << 20) -> None:
        """What the client's end has sent by now, at most `limit` bytes."""
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self._incoming.write(self.sock.recv(limit))
        self.sock.settimeout(TIMEOUT_S)

    def encrypted(self, *packets: bytes) -> bytes:
        """A record of each packet, and what OpenSSL itself has to say."""
        for packet in packets:
            self.tls.write(packet)
        return self._outgoing.read()

    def decrypted(self) -> bytes:
        received = b""
        with contextlib.suppress(ssl.SSLWantReadError):
            while data := self.tls.read(1 << 20):
                received += data
        return received


class Ends:
    """A client's end that is connected, without a word on the way, and the server's."""

    def __init__(self, authority: CertificateAuthority, context: ssl.SSLContext | None = None) -> None:
        near, far = socket.socketpair()
        self.context = context or ssl.create_default_context(cafile=str(authority.certificate_path))
        self.client = self.context.wrap_socket(near, server_hostname="localhost", do_handshake_on_connect=False)
        gather(self.client, None)
        self.client.setblocking(False)
        self.server = Server(far, server_context(authority.issue_server()))

    def shake_hands(self) -> None:
        is_over = [False, False]
        while not all(is_over):
            for index, step in enumerate((self.client.do_handshake, self.server.tls.do_handshake)):
                with contextlib.suppress(ssl.SSLWantReadError):
                    step()
                    is_over[index] = True
                self.server.take()
                self.server.sock.sendall(self.server.encrypted())
        # Session tickets.
        with pytest.raises(ssl.SSLWantReadError):
            self.client.recv(1)

    def received(self) -> bytes:
        """All that can be read now."""
        received = b""
        with contextlib.suppress(ssl.SSLWantReadError):
            while data := self.client.recv(65_536):
                received += data
        return received

    def close(self) -> None:
        self.client.close()
        self.server.sock.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def ends(authority: CertificateAuthority) -> Iterator[Ends]:
    ends = Ends(authority)
    ends.shake_hands()
    yield ends
    ends.close()


class TestReading:
    def test_all_records_that_are_there_come_with_one_read(self, ends: Ends) -> None:
        ends.server.sock.sendall(ends.server.encrypted(*[PUBACK] * RECORDS))
        assert ends.client.recv(65_536) == PUBACK * RECORDS
        assert ends.client.pending() == 0
        with pytest.raises(ssl.SSLWantReadError):
            ends.client.recv(65_536)

    def test_what_no_poll_tells_of_is_pending(self, ends: Ends) -> None:
        ends.server.sock.sendall(ends.server.encrypted(*[PUBACK] * RECORDS))
        received = ends.client.recv(10)
        while select.select([ends.client], [], [], 0)[0] or ends.client.pending():
            received += ends.client.recv(10)
        assert received == PUBACK * RECORDS

    def test_records_cut_at_every_byte_come_whole_and_in_order(self, ends: Ends) -> None:
        packets = b"\x40\x02\x00\x01", b"\x50\x02\x00\x02", b"x" * 50
        cut, size = 0, 1
        while cut < size:
            encrypted = ends.server.encrypted(*packets)
            size = len(encrypted)
            ends.server.sock.sendall(encrypted[:cut])
            first = ends.received()
            ends.server.sock.sendall(encrypted[cut:])
            assert first + ends.received() == b"".join(packets)
            assert ends.client.pending() == 0
            cut += 1

    def test_large_records_and_small_ones_come_in_order_whatever_is_asked_for(self, ends: Ends) -> None:
        packets = [bytes([number]) * size for number, size in enumerate((1, 16_384, 3, 16_384, 40_000, 2))]
        sending = threading.Thread(target=ends.server.sock.sendall, args=(ends.server.encrypted(*packets),))
        sending.start()
        received, sizes = b"", itertools.cycle((1, 5000, 65_536, 16_384))
        ends.client.settimeout(TIMEOUT_S)
        while len(received) < sum(map(len, packets)):
            limit = next(sizes)
            data = ends.client.recv(limit)
            assert 0 < len(data) <= limit
            received += data
        sending.join()
        assert received == b"".join(packets)

    def test_a_buffer_of_the_program_is_filled(self, ends: Ends) -> None:
        ends.server.sock.sendall(ends.server.encrypted(b"ab", b"cd", b"ef"))
        room = bytearray(b"......")
        assert ends.client.recv_into(memoryview(room)[1:], 3) == 3
        assert room == b".abc.."
        assert ends.client.recv_into(room) == 3
        assert room == b"defc.."

    @pytest.mark.parametrize("last", ["close_notify", "eof", "garbage", "reset"])
    def test_what_came_before_the_end_is_read_first(self, ends: Ends, last: str) -> None:
        encrypted = ends.server.encrypted(PUBACK, PUBACK)
        if last == "close_notify":
            with pytest.raises(ssl.SSLWantReadError):
                ends.server.tls.unwrap()
            encrypted += ends.server.encrypted()
        ends.server.sock.sendall(encrypted + (b"no record of TLS" if last == "garbage" else b""))
        if last in ("eof", "reset"):
            if last == "reset":
                # Unread when the end is closed.
                ends.client.send(b"x")
            ends.server.sock.close()
        assert ends.client.recv(65_536) == PUBACK * 2
        if last in ("close_notify", "garbage"):
            assert ends.client.pending(), "the socket has no more to say"
        if last == "garbage":
            with pytest.raises(ssl.SSLError, match="wrong version number"):
                ends.client.recv(65_536)
            ends.server.take()
            with pytest.raises(ssl.SSLError, match="alert"):
                ends.server.tls.read(1)
        elif last == "reset":
            with pytest.raises(ConnectionResetError):
                ends.client.recv(65_536)
        else:
            assert ends.client.recv(65_536) == b""


class TestWriting:
    @pytest.mark.parametrize("taken_bytes", [1, 700, 1 << 20])
    def test_a_full_socket_gets_each_byte_once(self, ends: Ends, taken_bytes: int) -> None:
        """What has not left is given again, with more behind it, as the outbox does."""
        data = os.urandom(60_000)
        ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sent, refused, received, rounds = 0, 0, b"", 0
        while len(received) < len(data):
            rounds += 1
            try:
                size = ends.client.send(data[sent : min(sent + 20_000 + rounds, len(data))]) if sent < len(data) else 0
                assert size > 0 or sent == len(data)
                sent += size
            except ssl.SSLWantWriteError:
                refused += 1
            for _ in range(max(1, 2000 // taken_bytes)):
                ends.server.take(taken_bytes)
            received += ends.server.decrypted()
        assert refused
        assert sent == len(data)
        assert received == data

    def test_no_more_than_a_record_is_kept(self, ends: Ends) -> None:
        """What is said to have left has: a socket that takes nothing takes no byte of what is written meanwhile."""
        data = bytes(1 << 20)
        sent = 0
        with contextlib.suppress(ssl.SSLWantWriteError):
            while True:
                sent += ends.client.send(data)
        for _ in range(3):
            with pytest.raises(ssl.SSLWantWriteError):
                ends.client.send(data)
        received = 0
        while select.select([ends.server.sock], [], [], 0)[0]:
            ends.server.take()
            received += len(ends.server.decrypted())
        assert sent == received, "a record that is not whole is no one's yet"
        assert ends.client.send(data[:RECORD_BYTES]) == RECORD_BYTES
        ends.server.take()
        assert len(ends.server.decrypted()) == RECORD_BYTES

    def test_a_blocking_socket_takes_all(self, ends: Ends) -> None:
        ends.client.settimeout(TIMEOUT_S)
        data, received = bytes(range(256)) * 4000, bytearray()

        def take() -> None:
            while len(received) < len(data):
                select.select([ends.server.sock], [], [], TIMEOUT_S)
                ends.server.take()
                received.extend(ends.server.decrypted())

        taking = threading.Thread(target=take)
        taking.start()
        ends.client.sendall(data)
        taking.join()
        assert received == data


class TestHandshake:
    def test_a_program_sees_a_socket_of_ssl(self, ends: Ends) -> None:
        client = ends.client
        assert type(client) is ssl.SSLSocket
        cipher, certificate = client.cipher(), client.getpeercert()
        assert cipher is not None
        assert cipher == ends.server.tls.cipher()
        assert certificate is not None
        assert certificate["subject"]
        assert client.getpeercert(binary_form=True)
        assert client.version() == "TLSv1.3"
        assert client.selected_alpn_protocol() is None
        assert client.compression() is None
        assert not client.session_reused
        assert client.session is not None
        assert client.get_channel_binding("tls-unique")
        assert client.context is ends.context
        client.context = ends.context

    def test_it_resumes_and_negotiates_as_without(self, authority: CertificateAuthority) -> None:
        context = ssl.create_default_context(cafile=str(authority.certificate_path))
        context.set_alpn_protocols(["mqtt"])
        server = server_context(authority.issue_server())
        server.set_alpn_protocols(["mqtt"])
        sessions: list[ssl.SSLSession | None] = [None]
        for resumed in (False, True):
            near, far = socket.socketpair()
            client = context.wrap_socket(
                near, server_hostname="localhost", do_handshake_on_connect=False, session=sessions[-1]
            )
            gather(client, sessions[-1])
            with far, Answering(far, server), client:
                client.settimeout(TIMEOUT_S)
                client.do_handshake()
                client.sendall(b"x")
                assert client.recv(10) == b"x"
                assert client.session_reused is resumed
                assert client.selected_alpn_protocol() == "mqtt"
                sessions.append(client.session)

    def test_a_peer_that_dribbles_does_not_outlast_the_time_out(self, authority: CertificateAuthority) -> None:
        ends = Ends(authority)
        ends.client.settimeout(0.3)
        ended = threading.Event()

        def dribble() -> None:
            hello = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"
            for byte in hello + bytes(16_000):
                if ended.wait(0.05):
                    return
                ends.server.sock.sendall(bytes([byte]))

        dribbling = threading.Thread(target=dribble)
        dribbling.start()
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            ends.client.do_handshake()
        took_s = time.monotonic() - began_s
        ended.set()
        dribbling.join()
        ends.close()
        assert took_s < TIMEOUT_S
        assert ends.client.fileno() == -1

    def test_a_failure_is_told_to_the_peer(self, authority: CertificateAuthority) -> None:
        ends = Ends(authority, ssl.create_default_context())
        with pytest.raises(ssl.SSLCertVerificationError):
            ends.shake_hands()
        ends.server.take()
        with pytest.raises(ssl.SSLError, match="unknown ca"):
            ends.server.tls.do_handshake()
        ends.close()

    def test_it_ends_in_order(self, ends: Ends) -> None:
        ended: list[bool] = []

        def end() -> None:
            while not ended:
                select.select([ends.server.sock], [], [], TIMEOUT_S)
                ends.server.take()
                try:
                    ends.server.tls.unwrap()
                    ended.append(True)
                except ssl.SSLWantReadError:
                    pass
                ends.server.sock.sendall(ends.server.encrypted())

        ending = threading.Thread(target=end)
        ending.start()
        ends.client.settimeout(TIMEOUT_S)
        below = ends.client.unwrap()
        ending.join()
        below.sendall(b"in the clear")
        assert ends.server.sock.recv(100) == b"in the clear"

    def test_a_class_of_the_program_has_it_too(self, authority: CertificateAuthority) -> None:
        class Counting(ssl.SSLSocket):
            reads = 0

            def recv(self, *arguments: Any) -> bytes:
                type(self).reads += 1
                return super().recv(*arguments)

        context = ssl.create_default_context(cafile=str(authority.certificate_path))
        context.sslsocket_class = Counting
        ends = Ends(authority, context)
        ends.shake_hands()
        ends.server.sock.sendall(ends.server.encrypted(PUBACK, PUBACK))
        assert ends.received() == PUBACK * 2
        assert Counting.reads == 3
        ends.close()

    @pytest.mark.parametrize("is_own", [False, True])
    def test_a_context_that_wraps_in_its_own_way_is_left_alone(
        self, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch, *, is_own: bool
    ) -> None:
        """Also where it is the only one there is, as with gevent, which does not take a name as bytes."""
        names: list[object] = []

        class Own(ssl.SSLContext):
            def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
                names.append(options["server_hostname"])
                return super().wrap_socket(*arguments, **options)

        server = server_context(authority.issue_server())
        context = Own(ssl.PROTOCOL_TLS_CLIENT) if is_own else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(authority.certificate_path)
        if is_own:
            monkeypatch.setattr(ssl, "SSLContext", Own)
        near, far = socket.socketpair()
        connector = Connector()
        connector.begin(TIMEOUT_S)
        with far, Answering(far, server):
            client = connector.shake_hands(near, context, "localhost")
            assert isinstance(client._sslobj, Records) is not is_own
            client.close()
        assert names == ["localhost"] * is_own


class Answering:
    """A server that gives back what it gets, in a thread."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock, self._context = sock, context
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._context.wrap_socket(self._sock, server_side=True) as tls:
            while data := tls.recv(1000):
                tls.sendall(data)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        # Once the client has closed its end.
        self._thread.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="its server does on command what Python's cannot")
@pytest.mark.parametrize(
    ("version", "command"), [("-tls1_3", b"K\n"), ("-tls1_2", b"R\n")], ids=["KeyUpdate", "renegotiation"]
)
def test_a_handshake_within_the_connection_is_answered(
    authority: CertificateAuthority, version: str, command: bytes
) -> None:
    issued = authority.issue_server()
    files = "-cert", str(issued.certificate_path), "-key", str(issued.key_path)
    context = ssl.create_default_context(cafile=str(authority.certificate_path))
    # Of a terminal it reads a line at a time.
    keyboard, terminal = pty.openpty()
    with subprocess.Popen(
        ["openssl", "s_server", "-accept", "127.0.0.1:0", version, *files],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        try:
            tcp = socket.create_connection(("127.0.0.1", port_of(process.stdout)), TIMEOUT_S)
            with context.wrap_socket(tcp, server_hostname="localhost", do_handshake_on_connect=False) as client:
                gather(client, None)
                client.do_handshake()
                for _ in range(3):
                    os.write(keyboard, command)
                    os.write(keyboard, b"down\n")
                    assert client.recv(100) == b"down\n"
                    client.sendall(b"up\n")
                    while process.stdout.readline() != b"up\n":
                        pass
        finally:
            process.kill()
            os.close(keyboard)
            os.close(terminal)


def port_of(lines: Any) -> int:
    """Where it listens."""
    for line in lines:
        if line.startswith(b"ACCEPT"):
            return int(line.rpartition(b":")[2])
    raise AssertionError("it does not listen")
