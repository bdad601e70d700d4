"""Several addresses of one host within one time-out."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from glec_fast.transport.dial import dial

TIMEOUT_S = 10.0


def resolve_to(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    """The host has one address for each port."""

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port)) for port in ports]

    monkeypatch.setattr("glec_fast.transport.dial.socket.getaddrinfo", getaddrinfo)


def test_an_address_that_does_not_answer_leaves_time_for_the_next(
    swallowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as good:
        port = good.getsockname()[1]
        resolve_to(monkeypatch, swallowed, port)
        started_s = time.monotonic()
        with dial("broker", 1, 1.0) as sock:
            assert sock.getpeername()[1] == port
        assert time.monotonic() - started_s >= 0.5, "the control: the first address was tried"


def test_the_time_out_is_that_of_all_addresses(swallowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, *[swallowed] * 4)
    started_s = time.monotonic()
    with pytest.raises(TimeoutError):
        dial("broker", 1, 0.4)
    assert 0.39 < time.monotonic() - started_s < 1.2


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
        with dial("127.0.0.1", port, TIMEOUT_S, ("127.0.0.2", 0)) as sock:
            assert sock.getsockname()[0] == "127.0.0.2"


def test_an_unknown_host() -> None:
    with pytest.raises(socket.gaierror):
        dial("host.invalid", 1, TIMEOUT_S)
