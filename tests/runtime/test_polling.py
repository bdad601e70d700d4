"""Waiting for sockets where there is a poll, and where there is none."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast.runtime import polling
from glec_fast.runtime.polling import READABLE, UNKNOWN, WRITABLE, is_readable, new_poll
from glec_fast.transport.poller import Poller

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["poll", "select"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "select":
        monkeypatch.delattr(select, "poll")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_the_names_are_those_of_poll() -> None:
    assert (READABLE, WRITABLE, UNKNOWN) == (select.POLLIN, select.POLLOUT, select.POLLNVAL)


def test_it_tells_of_bytes_room_and_the_end(pair: Any) -> None:
    ours, theirs = pair
    poll = new_poll()
    poll.register(ours, READABLE | WRITABLE)
    assert poll.poll(0) == [(ours.fileno(), WRITABLE)]
    theirs.send(b"x")
    assert poll.poll(1000) == [(ours.fileno(), READABLE | WRITABLE)]
    poll.register(ours, READABLE)
    ours.recv(1)
    assert poll.poll(1) == []
    assert not is_readable(ours, 0)
    theirs.close()
    assert is_readable(ours, 1000)
    poll.unregister(ours.fileno())
    assert poll.poll(0) == []


def test_the_loop_s_wait_tells_who_is_ready(pair: Any) -> None:
    ours, theirs = pair
    waker, wakes = socket.socketpair()
    with waker, wakes:
        poller = Poller()
        assert poller.wait(ours.fileno(), waker.fileno(), for_room=False, timeout_ms=0) == (0, False)
        wakes.send(b"x")
        assert poller.wait(ours.fileno(), waker.fileno(), for_room=True, timeout_ms=1000) == (WRITABLE, True)
        theirs.send(b"x")
        flags, _ = poller.wait(ours.fileno(), -1, for_room=False, timeout_ms=1000)
        assert flags & READABLE
        with pytest.raises(ValueError, match="negative"):
            poller.wait(-1, -1, for_room=False, timeout_ms=0)


def test_what_another_wait_was_about_is_passed_over(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with eventlet, whose select may return what was asked for before."""
    ours, _ = pair
    monkeypatch.delattr(select, "poll", raising=False)
    answers = iter([([99], [98], []), ([], [], []), ([ours.fileno()], [], [])])
    monkeypatch.setattr(polling.select, "select", lambda *_: next(answers))
    poll = new_poll()
    poll.register(ours, READABLE)
    assert poll.poll(10_000) == [(ours.fileno(), READABLE)]
