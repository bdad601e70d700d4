"""Several addresses of one host within one time-out."""

from __future__ import annotations

import functools
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from glec_fast.engine.connector import Connector
from glec_fast.transport.dial import ATTEMPT_DELAY_S, Attempt, Route, _Race, dial, in_turn, resolve

TIMEOUT_S = 10.0


def resolve_to(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    """The host has one address for each port."""

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in ports]

    monkeypatch.setattr("glec_fast.transport.dial.socket.getaddrinfo", getaddrinfo)


def test_the_next_is_tried_beside_an_address_that_does_not_answer(
    swallowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as good:
        port = good.getsockname()[1]
        resolve_to(monkeypatch, swallowed, swallowed, port)
        started_s = time.monotonic()
        with dial("broker", 1, TIMEOUT_S) as sock:
            assert sock.getpeername()[1] == port
        waited_s = time.monotonic() - started_s
        assert waited_s >= 2 * ATTEMPT_DELAY_S, "the control: the first two were tried"
        assert waited_s < TIMEOUT_S / 2, "and had nothing like their share of the time"


def test_the_time_out_is_that_of_all_addresses(swallowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, *[swallowed] * 4)
    started_s = time.monotonic()
    with pytest.raises(TimeoutError):
        dial("broker", 1, 1.0)
    assert 0.99 < time.monotonic() - started_s < 3.5, "not four times that"


def test_an_address_that_refuses_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as good:
        resolve_to(monkeypatch, 1, good.getsockname()[1])
        dial("broker", 1, TIMEOUT_S).close()
    resolve_to(monkeypatch, 1, 1)
    with pytest.raises(ConnectionRefusedError):
        dial("broker", 1, TIMEOUT_S)


def test_a_source_address_is_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as good:
        port = good.getsockname()[1]
        with dial("127.0.0.1", port, TIMEOUT_S, Route(("127.0.0.2", 0))) as sock:
            assert sock.getsockname()[0] == "127.0.0.2"


def test_a_program_that_wraps_the_look_up_is_asked_with_a_str(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own names would be passed over else."""
    pythons, asked = socket.getaddrinfo, []

    @functools.wraps(pythons)
    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(host)
        return pythons("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    resolve("broker.example", 1883)
    assert asked == ["broker.example"]


def test_what_is_no_name_of_a_host() -> None:
    with pytest.raises(OSError, match="no name of a host"):
        resolve("\u00fc" * 64 + ".example", 1883)


def test_an_unknown_host() -> None:
    with pytest.raises(socket.gaierror):
        dial("host.invalid", 1, TIMEOUT_S)


V4, V6 = socket.AF_INET, socket.AF_INET6


def test_families_take_turns_and_the_one_that_answered_last_is_first() -> None:
    addresses = [(V6, ("a", 1)), (V6, ("b", 1)), (V6, ("c", 1)), (V4, ("d", 1)), (V4, ("e", 1))]
    assert [name for _, (name, _) in in_turn(addresses)] == ["a", "d", "b", "e", "c"]
    assert [name for _, (name, _) in in_turn(addresses, (V4, ("e", 1)))] == ["e", "a", "d", "b", "c"]
    assert [name for _, (name, _) in in_turn(addresses, (V4, ("gone", 1)))] == ["a", "d", "b", "e", "c"]
    assert in_turn([]) == []


def test_the_address_that_answered_last_is_tried_before_one_that_does_not(
    swallowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as good:
        port = good.getsockname()[1]
        resolve_to(monkeypatch, swallowed, port)
        connector = Connector()
        tried: list[int] = []
        monkeypatch.setattr(_Race, "_begin", noting(tried, _Race._begin))
        for _ in range(2):
            connector.begin(TIMEOUT_S)
            connector.dial("broker", 1, ("", 0)).close()
        assert tried == [swallowed, port, port]


def noting(tried: list[int], begin: Any) -> Any:
    def note(race: _Race, now_s: float) -> None:
        tried.append(race._waiting[0][1][1])
        begin(race, now_s)

    return note


def test_an_attempt_that_is_ended_fails_at_once(swallowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, *[swallowed] * 2)
    attempt = Attempt()
    with ThreadPoolExecutor(1) as pool:
        dialled = pool.submit(dial, "broker", 1, 600.0, None, attempt)
        while attempt.is_without_socket:
            time.sleep(0.001)
        attempt.end()
        with pytest.raises(ConnectionAbortedError):
            dialled.result(TIMEOUT_S)
    with pytest.raises(ConnectionAbortedError):
        dial("broker", 1, TIMEOUT_S, None, attempt)


def test_those_that_lose_the_race_are_closed(swallowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []

    def keep(sock: socket.socket) -> None:
        made.append(sock)

    with socket.create_server(("127.0.0.1", 0)) as good:
        resolve_to(monkeypatch, swallowed, 1, good.getsockname()[1])
        winner = dial("broker", 1, TIMEOUT_S, Route(prepare=keep))
        assert [sock.fileno() == -1 for sock in made] == [True, True, False]
        assert made[2] is winner
        assert winner.gettimeout() == TIMEOUT_S
        winner.close()


def test_where_each_has_all_of_the_time_the_last_has_it_too(swallowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, *[swallowed] * 3)
    started_s = time.monotonic()
    with pytest.raises(TimeoutError):
        dial("broker", 1, 0.4, Route(for_each=True))
    assert time.monotonic() - started_s >= 0.4 + 2 * ATTEMPT_DELAY_S
