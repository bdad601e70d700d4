"""The link: it relays, counts, cuts, stalls and comes back."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from contextlib import ExitStack

import pytest

from glec_fast.testbed import ToolError
from glec_fast.testbed.link import Link
from support.faulty_link import FaultyLink

TIMEOUT_S = 5.0


class EchoServer:
    """Sends back all it reads, and keeps it; one thread a connection."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(peer,)))
            self._threads[-1].start()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(65536):
                    self.received += data
                    peer.sendall(data)
            except ConnectionError:
                pass
        self.ended.set()


@pytest.fixture
def echo():
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture
def relay(echo):
    with Link(echo.address) as link:
        yield link


@pytest.fixture
def dial(relay):
    with ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(relay.address, TIMEOUT_S))


def read_exactly(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


def read_to_end(client: socket.socket) -> bytes:
    data = b""
    while more := client.recv(65536):
        data += more
    return data


def test_bytes_pass_both_ways_and_are_counted(relay, dial):
    client = dial()
    client.sendall(b"x" * 1000)
    assert read_exactly(client, 1000) == b"x" * 1000
    assert (relay.bytes_up, relay.bytes_down) == (1000, 1000)
    assert (relay.accepted_connections, relay.open_connections) == (1, 1)


def test_much_data_passes_unchanged_though_the_reader_is_slow(relay, dial, echo):
    client = dial()
    sent = bytes(range(256)) * 40_000
    sender = threading.Thread(target=client.sendall, args=(sent,))
    sender.start()
    assert read_exactly(client, len(sent)) == sent
    sender.join(TIMEOUT_S)
    assert bytes(echo.received) == sent


def test_an_orderly_end_passes_with_all_that_came_before(relay, dial, echo):
    client = dial()
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    assert read_to_end(client) == b"last words"
    assert echo.ended.wait(TIMEOUT_S)
    assert relay.wait_for(lambda link: link.open_connections == 0, TIMEOUT_S)


def test_a_cut_resets_what_is_open_and_refuses_what_is_new_until_restored(relay, dial, echo):
    client = dial()
    client.sendall(b"a")
    assert read_exactly(client, 1) == b"a"
    relay.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert echo.ended.wait(TIMEOUT_S)
    assert relay.is_down
    with pytest.raises(ConnectionRefusedError):
        dial()
    relay.restore()
    client = dial()
    client.sendall(b"b")
    assert read_exactly(client, 1) == b"b"


def test_the_port_stays_ours_while_the_link_is_cut(relay):
    relay.cut()
    with socket.socket() as thief, pytest.raises(OSError, match=str(errno.EADDRINUSE)):
        thief.bind(relay.address)


def test_refuse_spares_what_is_open_and_drop_spares_what_is_new(relay, dial):
    client = dial()
    client.sendall(b"a")
    assert read_exactly(client, 1) == b"a"
    relay.refuse()
    with pytest.raises(ConnectionRefusedError):
        dial()
    client.sendall(b"b")
    assert read_exactly(client, 1) == b"b"
    relay.restore()
    relay.drop()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client = dial()
    client.sendall(b"c")
    assert read_exactly(client, 1) == b"c"


@pytest.mark.parametrize("count", [1, 7, 4096, 300_000])
def test_cut_after_passes_exactly_so_many_bytes_up(relay, dial, echo, count):
    client = dial()
    relay.cut_after(count)
    client.sendall(b"x" * 400_000)
    client.shutdown(socket.SHUT_WR)
    assert echo.ended.wait(TIMEOUT_S)
    assert relay.wait_for(lambda link: link.is_down, TIMEOUT_S)
    assert (len(echo.received), relay.bytes_up) == (count, count)
    assert read_to_end(client) == b"x" * relay.bytes_down


def test_cut_after_passes_exactly_so_many_bytes_down(relay, dial):
    client = dial()
    client.sendall(b"ab")
    assert read_exactly(client, 2) == b"ab"
    relay.cut_after(3, "down")
    client.sendall(b"cdefg")
    assert read_to_end(client) == b"cde"
    assert relay.wait_for(lambda link: link.is_down, TIMEOUT_S)


def test_restore_cancels_cut_after(relay, dial):
    client = dial()
    relay.cut_after(1)
    relay.restore()
    client.sendall(b"abc")
    assert read_exactly(client, 3) == b"abc"


def test_a_stalled_link_holds_bytes_back_and_closes_nothing(relay, dial):
    client = dial()
    client.sendall(b"a")
    assert read_exactly(client, 1) == b"a"
    relay.stall()
    client.sendall(b"b")
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)
    assert relay.bytes_up == 1
    client.settimeout(TIMEOUT_S)
    relay.restore()
    assert read_exactly(client, 1) == b"b"


def test_a_tunnel_takes_all_tells_of_no_end_and_leaves_half_open_connections(relay, dial, echo):
    client = dial()
    client.sendall(b"a")
    assert read_exactly(client, 1) == b"a"
    relay.swallow()
    client.sendall(b"lost")
    assert relay.wait_for(lambda link: link.bytes_up == 5, TIMEOUT_S)
    in_tunnel = dial()
    in_tunnel.sendall(b"lost too")
    assert relay.wait_for(lambda link: link.bytes_up == 13, TIMEOUT_S)
    relay.restore()
    client.sendall(b"and for good")
    assert relay.wait_for(lambda link: link.bytes_up == 25, TIMEOUT_S)
    client.close()
    fresh = dial()
    fresh.sendall(b"b")
    assert read_exactly(fresh, 1) == b"b"
    assert bytes(echo.received) == b"ab"
    assert not echo.ended.is_set(), "the server does not hear that the first has gone"
    assert relay.open_connections == 3


def test_a_reset_vanishes_in_a_tunnel(relay, dial, echo):
    client = dial()
    client.sendall(b"a")
    assert read_exactly(client, 1) == b"a"
    relay.swallow()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    relay.restore()
    fresh = dial()
    fresh.sendall(b"b")
    assert read_exactly(fresh, 1) == b"b"
    assert not echo.ended.is_set()


def test_answers_alone_are_swallowed(relay, dial, echo):
    client = dial()
    relay.swallow("down")
    client.sendall(b"abc")
    assert relay.wait_for(lambda link: link.bytes_down == 3, TIMEOUT_S), "the server has had them, and has answered"
    client.shutdown(socket.SHUT_WR)
    assert echo.ended.wait(TIMEOUT_S)
    assert bytes(echo.received) == b"abc"


def test_a_slow_link_passes_so_many_bytes_a_second(echo):
    with Link(echo.address, buffer_bytes=4096) as link, socket.create_connection(link.address, TIMEOUT_S) as client:
        link.slow(50_000)
        began_s = time.monotonic()
        client.sendall(b"x" * 10_000)
        assert read_exactly(client, 10_000) == b"x" * 10_000
        # What is due is rounded up at either end.
        assert time.monotonic() - began_s > 0.1
        link.restore()
        client.sendall(b"y" * 1000)
        assert read_exactly(client, 1000) == b"y" * 1000


def test_a_target_that_refuses_makes_a_reset(echo):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    with Link(address) as link:
        with pytest.raises(ConnectionResetError), socket.create_connection(link.address, TIMEOUT_S) as client:
            client.recv(1)
        assert link.wait_for(lambda link: link.open_connections == 0, TIMEOUT_S)


def test_an_unknown_host_and_a_bad_count_are_clear_errors(relay):
    with pytest.raises(ToolError, match=r"cannot find the host no\.such\.host\.invalid"):
        Link(("no.such.host.invalid", 1883))
    with pytest.raises(ToolError, match="at least 1 byte"):
        relay.cut_after(0)
    with pytest.raises(ToolError, match="above 0"):
        relay.slow(0)


def test_close_may_be_called_twice_and_frees_the_port(echo):
    link = Link(echo.address)
    link.close()
    link.close()
    with socket.create_server(link.address) as next_owner:
        assert next_owner.getsockname() == link.address


def test_a_faulty_link_changes_nothing_but_the_size_and_time_of_pieces(echo):
    with FaultyLink(echo.address) as link:
        link.piece_bytes, link.delay_s = 3, 0.001
        with socket.create_connection(link.address, TIMEOUT_S) as client:
            client.sendall(b"0123456789")
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(client) == b"0123456789"
        assert bytes(echo.received) == b"0123456789"
        assert link.pieces_sent >= 8


@pytest.mark.parametrize("reset", [False, True])
def test_a_faulty_link_opens_until_a_byte(echo, reset):
    with FaultyLink(echo.address) as link:
        link.cut()
        link.restore_until(4, "up", reset=reset)
        with socket.create_connection(link.address, TIMEOUT_S) as client:
            client.sendall(b"0123456789")
            assert echo.ended.wait(TIMEOUT_S)
            assert link.wait_for(lambda link: link.is_down, TIMEOUT_S)
            assert bytes(echo.received) == b"0123"
            if reset:
                with pytest.raises(ConnectionResetError):
                    read_to_end(client)
            else:
                assert b"0123".startswith(read_to_end(client))
