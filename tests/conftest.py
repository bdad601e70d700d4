"""Fixtures for every test: brokers, links and subscribers of one's own, on free ports, ended when the test is."""

from __future__ import annotations

import gc
import logging
import os
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from unittest import mock

import pytest

from glec_fast.cli.main import build_parser
from glec_fast.testbed.broker import Broker
from glec_fast.testbed.link import Link
from glec_fast.testbed.subscriber import Subscriber
from support import forked
from support.lock_order import Watch, WatchedHandler
from support.peer import Peer
from support.places import scratch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from glec_fast.testbed.certificates import CertificateAuthority


LONGEST = {"test_model_check.py", "test_power_cut.py"}


class StartBroker(Protocol):
    def __call__(self, **options: Any) -> Broker: ...


class StartSubscriber(Protocol):
    def __call__(self, broker: Broker, topic_filter: str = "#", **options: Any) -> Subscriber: ...


def pytest_configure() -> None:
    """What the tests write is in memory; what asks for a disk has `disk_folder`."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", scratch())


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Have each worker import the tests from another one on: of a fresh clone it then compiles a part, not all."""
    worker = getattr(session.config, "workerinput", None)
    if worker is None:
        return
    places = [Path(each.partition("::")[0]) for each in session.config.args]
    files = [file for place in places for file in (sorted(place.rglob("test_*.py")) if place.is_dir() else [place])]
    first = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for file in files[first:] + files[:first]:
        # Whatever is raised is raised, and told, again.
        with suppress(Exception, pytest.skip.Exception):
            _ = pytest.Module.from_parent(session, path=file.absolute()).obj


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest are begun first: at the end one worker would be at them alone."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """The tests live as long as this process: no search for garbage need look at them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_parser() -> Iterator[None]:
    """The parser of the command line is made once, as in a process of its own: to make it takes 8 ms."""
    with mock.patch("glec_fast.cli.main.build_parser", cache(build_parser)):
        yield


@pytest.fixture(scope="session")
def lock_watch() -> Iterator[Watch]:
    watch = Watch()
    watch.start()
    handler = WatchedHandler()
    logging.getLogger("glec_fast").addHandler(handler)
    yield watch
    logging.getLogger("glec_fast").removeHandler(handler)
    watch.stop()


@pytest.fixture(autouse=True)
def _lock_order(lock_watch: Watch) -> Iterator[None]:
    """No thread takes two locks the other way round than support/lock_order.py has them."""
    yield
    assert not (violations := lock_watch.take_violations()), violations


@pytest.fixture
def own_garbage() -> Iterator[None]:
    """What the test left to be collected is, before the next begins: that would be told of its warnings."""
    yield
    gc.collect()


@pytest.fixture
def forked_starts() -> Iterator[None]:
    """What the product starts with Python is forked."""
    with forked.in_place_of_starts():
        yield


@pytest.fixture
def disk_folder() -> Iterator[Path]:
    """A folder on the disk, or on whatever the one for temporary files is."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def start_broker(tmp_path: Path) -> Iterator[StartBroker]:
    """Start a broker with any options of `Broker`; as many as the test wants."""
    numbers = count()
    with ExitStack() as stack:

        def start(**options: Any) -> Broker:
            directory = tmp_path / f"broker-{next(numbers)}"
            directory.mkdir()
            return stack.enter_context(Broker(directory, **options))

        yield start


@pytest.fixture
def broker(start_broker: StartBroker) -> Broker:
    """A plain broker that saves nothing."""
    return start_broker()


@pytest.fixture
def persistent_broker(start_broker: StartBroker) -> Broker:
    """A plain broker that keeps its state over `kill(save_first=True)` and `restart`."""
    return start_broker(persistence=True)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Signs certificates; `authority.certificate_path` is what clients trust."""
    # Not for every test: cryptography has no complete set of wheels for ARMv7.
    from glec_fast.testbed.certificates import CertificateAuthority

    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def tls_broker(start_broker: StartBroker, authority: CertificateAuthority) -> Broker:
    """A broker with a plain and a TLS listener, for localhost and 127.0.0.1; trust `authority`."""
    return start_broker(certificate=authority.issue_server())


@pytest.fixture
def link(broker: Broker) -> Iterator[Link]:
    """A link to `broker`."""
    with Link((broker.host, broker.port)) as relay:
        yield relay


@pytest.fixture
def tls_link(tls_broker: Broker) -> Iterator[Link]:
    """A link to the TLS listener of `tls_broker`."""
    with Link((tls_broker.host, tls_broker.tls_port)) as relay:
        yield relay


@pytest.fixture
def start_subscriber() -> Iterator[StartSubscriber]:
    """Keep and count what arrives at a broker, straight, not through a link."""
    numbers = count()
    with ExitStack() as stack:

        def start(broker: Broker, topic_filter: str = "#", **options: Any) -> Subscriber:
            options.setdefault("client_id", f"subscriber-{next(numbers)}")
            return stack.enter_context(Subscriber(broker, topic_filter, **options))

        yield start


@pytest.fixture
def swallowed() -> Iterator[int]:
    """A port whose connections are never answered: its listener's queue is full."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
def peer() -> Iterator[Peer]:
    server = Peer()
    yield server
    server.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor
