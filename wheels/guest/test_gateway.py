"""A gateway's life from the installed wheel, against a broker on another machine: run in the guest by cross_build.py.

GLEC_MACHINE is what the CPU must call itself. GLEC_BROKER_TLS_URL and GLEC_BROKER_CA are the broker's for the gateway;
GLEC_BROKER_PORT is its plain listener, for an independent subscriber.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sqlite3
import subprocess
import sys
import sysconfig
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import glec_fast
from glec_fast import MQTTManager, TLSConfig
from glec_fast.durable import _table
from glec_fast.fleet import _payload
from glec_fast.protocol import _session
from glec_fast.testbed.subscriber import Subscriber
from support import publisher_child
from support.gateway import quick_config

if TYPE_CHECKING:
    from collections.abc import Iterator

TLS_URL = os.environ["GLEC_BROKER_TLS_URL"]
CA = os.environ["GLEC_BROKER_CA"]
# Under emulation a second is worth a tenth of one.
TIMEOUT_S = 120.0


class PlainListener(NamedTuple):
    host: str
    port: int


@pytest.fixture
def topic(tmp_path: Path) -> str:
    return f"guest/{tmp_path.name}"


@pytest.fixture
def subscriber(topic: str) -> Iterator[Subscriber]:
    listener = PlainListener("127.0.0.1", int(os.environ["GLEC_BROKER_PORT"]))
    with Subscriber(listener, topic, client_id=topic) as subscriber:
        yield subscriber


def rows(queue: Path) -> int:
    with closing(sqlite3.connect(queue)) as connection:
        return connection.execute("SELECT count(*) FROM mqtt_offline_queue").fetchone()[0]


def test_it_is_the_installed_wheel_on_the_machine_it_is_for() -> None:
    assert platform.machine() == os.environ["GLEC_MACHINE"]
    installed = Path(sysconfig.get_path("platlib")) / "glec_fast"
    assert Path(glec_fast.__file__).parent == installed
    for extension in (_payload, _session, _table):
        assert installed in Path(extension.__file__).parents
        assert extension.__file__.endswith(sysconfig.get_config_var("EXT_SUFFIX"))


def test_what_was_published_without_a_link_is_on_disk_and_flushed_over_tls(
    tmp_path: Path, topic: str, subscriber: Subscriber
) -> None:
    config = quick_config(TLS_URL, tmp_path, client_id=tmp_path.name, tls_config=TLSConfig.create_server_auth(CA))
    payloads = {b"%d-%d" % (1 + number % 2, number) for number in range(600)}
    with MQTTManager(config) as manager:
        handles = [manager.publish(topic, payload, int(payload[:1])) for payload in sorted(payloads)]
        assert all(handle.wait_durable(TIMEOUT_S) for handle in handles)
        assert rows(config.queue_path) == len(payloads)
        manager.connect()
        assert manager.flush(TIMEOUT_S)
    assert rows(config.queue_path) == 0
    assert subscriber.wait_for_all(payloads, TIMEOUT_S)
    assert subscriber.repeated() == []


def test_killed_and_started_again_nothing_accepted_is_lost(tmp_path: Path, topic: str, subscriber: Subscriber) -> None:
    dice = random.Random(6)
    accepted: set[str] = set()
    settings = {
        "url": TLS_URL, "ca_cert": CA, "client_id": tmp_path.name, "queue_path": str(tmp_path / "queue.db"),
        "topic": topic, "qos": [1, 2], "max_in_flight": 20,
    }  # fmt: skip
    with ExitStack() as stack:

        def start(**more: int) -> subprocess.Popen[str]:
            command = [sys.executable, publisher_child.__file__, json.dumps({**settings, **more})]
            # It finds the modules that this one does.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            pipe = subprocess.PIPE
            child = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True))
            stack.callback(child.kill)
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            return child

        for run in range(3):
            child = start(first=run * 10_000, count=10_000)
            enough = len(accepted) + dice.randrange(20, 200)
            while len(accepted) < enough:
                accepted.add(child.stdout.readline().rstrip())
            child.kill()
            # What was accepted between our last look and the kill is in the pipe; half a line was never said.
            accepted.update(line.rstrip() for line in child.stdout if line.endswith("\n"))
        assert rows(tmp_path / "queue.db") > 0, "nothing was left to be killed over"
        last = start(first=0, count=0)
        assert [last.stdout.readline() for _ in range(2)] == ["published\n", "flushed\n"]
        last.stdin.close()
        assert last.wait(TIMEOUT_S) == 0
    assert rows(tmp_path / "queue.db") == 0
    assert subscriber.wait_for_all({payload.encode() for payload in accepted}, TIMEOUT_S)
    assert [payload for payload in subscriber.repeated() if payload.startswith(b"2-")] == []
