"""Poller: a socket, whoever wakes the loop, and what it keeps between two waits."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from glec_fast.transport.poller import Poller

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def waking() -> Iterator[Pair]:
    reader, writer = socket.socketpair()
    with reader, writer:
        yield reader, writer


def test_it_tells_of_bytes_of_room_and_of_a_waker(pair: Pair, waking: Pair) -> None:
    poller = Poller()
    ours, waker = pair[0].fileno(), waking[0].fileno()
    assert poller.wait(ours, waker, for_room=False, timeout_ms=0) == (0, False)
    assert poller.wait(ours, waker, for_room=True, timeout_ms=0) == (select.POLLOUT, False)
    pair[1].send(b"x")
    assert poller.wait(ours, waker, for_room=True, timeout_ms=0) == (select.POLLIN | select.POLLOUT, False)
    waking[1].send(b"x")
    assert poller.wait(ours, waker, for_room=False, timeout_ms=0) == (select.POLLIN, True)
    assert poller.wait(ours, -1, for_room=False, timeout_ms=0) == (select.POLLIN, False)


def test_it_waits_for_another_socket_from_one_call_to_the_next(pair: Pair, waking: Pair) -> None:
    poller = Poller()
    assert poller.wait(pair[0].fileno(), -1, for_room=False, timeout_ms=0) == (0, False)
    waking[1].send(b"x")
    assert poller.wait(waking[0].fileno(), -1, for_room=False, timeout_ms=0) == (select.POLLIN, False)


def test_a_socket_that_is_gone_is_told(pair: Pair) -> None:
    poller = Poller()
    descriptor = pair[0].fileno()
    assert poller.wait(descriptor, -1, for_room=False, timeout_ms=0) == (0, False)
    pair[0].close()
    assert poller.wait(descriptor, -1, for_room=False, timeout_ms=0) == (select.POLLNVAL, False)
    with pytest.raises(ValueError, match="negative"):
        poller.wait(-1, -1, for_room=False, timeout_ms=0)
