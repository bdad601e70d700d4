"""`glec-fast pub` and `glec-fast sub`, against a broker, and what they say where they cannot."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from glec_fast import OfflineQueueManager
from glec_fast.cli.main import main
from glec_fast.testbed.subscriber import Subscriber
from support.gateway import TIMEOUT_S
from support.queue_files import child_environment

if TYPE_CHECKING:
    from conftest import StartBroker
    from glec_fast.testbed.broker import Broker

NOBODY = "tcp://127.0.0.1:1"


class Input:
    """Standard input with these bytes."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def test_each_kind_of_message(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"\xff\n")
    with Subscriber(broker, "t/#") as subscriber:
        for number, (options, content) in enumerate(
            [
                (["-m", "caf\u00e9", "-q", "0"], b""),
                (["-f", str(tmp_path / "file"), "-q", "2"], b""),
                (["-l"], b"one\r\n\ntwo"),
                (["-s"], b"a\nb"),
                (["-n"], b""),
            ]
        ):
            monkeypatch.setattr(sys, "stdin", Input(content))
            assert main(["pub", "--broker", broker.url, "-t", f"t/{number}", *options]) == 0
        assert subscriber.wait_for_count(7)
        # In the order of each topic: what has QoS 2 is handed on a round trip later.
        assert sorted(((each.topic, each.payload) for each in subscriber.arrivals), key=lambda each: each[0]) == [
            ("t/0", "caf\u00e9".encode()),
            ("t/1", b"\xff\n"),
            ("t/2", b"one"),
            ("t/2", b""),
            ("t/2", b"two"),
            ("t/3", b"a\nb"),
            ("t/4", b""),
        ]


def test_a_store_keeps_what_is_not_taken(
    broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ["--store", str(tmp_path / "q.db"), "--client-id", "D"]
    monkeypatch.setattr(sys, "stdin", Input(b"1\n2\n"))
    assert main(["pub", "--broker", NOBODY, "-t", "t/x", "-l", "--timeout", "0.1", *store]) == 1
    assert f"2 messages wait in {tmp_path / 'q.db'}" in capsys.readouterr().err
    with OfflineQueueManager(tmp_path / "q.db") as queue:
        assert queue.get_queue_size() == 2
    with Subscriber(broker, "t/#") as subscriber:
        assert main(["pub", "--broker", broker.url, "-t", "t/x", "-m", "3", *store]) == 0
        assert subscriber.wait_for_count(3)
        assert [each.payload for each in subscriber.arrivals] == [b"1", b"2", b"3"]


def test_what_arrives_is_printed_until_the_count_is_full(broker: Broker) -> None:
    arguments = ["--broker", broker.url, "-t", "s/#", "-C", "2", "-W", str(TIMEOUT_S), "--json"]
    command = [sys.executable, "-m", "glec_fast", "sub", *arguments]
    # Retained, so that it does not matter which of the two comes first.
    for topic, payload in (("s/1", "caf\u00e9"), ("s/2", "two")):
        assert main(["pub", "--broker", broker.url, "-t", topic, "-m", payload, "-r", "-q", "1"]) == 0
    done = subprocess.run(command, capture_output=True, env=child_environment(), timeout=4 * TIMEOUT_S)
    assert (done.returncode, done.stderr) == (0, b"")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(each["topic"], each["payload"], each["qos"], each["retain"]) for each in found} == {
        ("s/1", "caf\u00e9", 1, True),
        ("s/2", "two", 1, True),
    }


@pytest.mark.parametrize(("settings", "option"), [("max_qos 1", "-q=2"), ("retain_available false", "-r")])
def test_a_broker_that_ends_the_connection_over_it(
    start_broker: StartBroker, settings: str, option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broker = start_broker(settings=[settings])
    (tmp_path / "c").write_text(f"mqtt.broker.url={broker.url}\nmqtt.client.id=D\nmqtt.protocol.version=4\n")
    arguments = ["--config", str(tmp_path / "c"), "-t", "t", "-m", "x", option, "--timeout", "6"]
    assert main(["pub", *arguments]) == 2
    said = capsys.readouterr().err
    assert re.search(r"the connection ended (once|\d+ times) \(.+\): ask `glec-fast doctor`\n$", said), said


def test_a_store_has_put_aside_what_the_broker_does_not_take(
    start_broker: StartBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = start_broker(settings=["max_qos 1"])
    settings = {"broker.url": broker.url, "client.id": "D", "protocol.version": 4, "queue.max_retry": 1}
    (tmp_path / "c").write_text("".join(f"mqtt.{name}={value}\n" for name, value in settings.items()))
    arguments = ["--config", str(tmp_path / "c"), "-t", "t", "-m", "x", "-q", "2", "--timeout", str(4 * TIMEOUT_S)]
    assert main(["pub", *arguments, "--store", str(tmp_path / "q.db")]) == 1
    said = capsys.readouterr().err
    assert re.search(
        r"1 message was dropped or refused \(quarantined 1\); the connection ended (once|\d+ times)", said
    ), said


def test_too_few_in_time(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sub", "--broker", broker.url, "-t", "nobody/here", "-C", "1", "-W", "0.2"]) == 1
    assert main(["sub", "--broker", broker.url, "-t", "nobody/here", "-W", "0.2"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--broker", NOBODY], "no connection to tcp://127.0.0.1:1: Connection refused; ask `glec-fast doctor`"),
        (["--ca-cert", "x"], "--ca-cert belongs to --broker URL"),
        (["--username", "x"], "--username belongs to --broker URL"),
        (["--broker", NOBODY, "--config", "x"], "--broker and --config name two brokers"),
        (["--broker", "nonsense"], "broker_url must begin with"),
        (["--broker", "ssl://127.0.0.1:1", "--ca-cert", "/no/such"], "ca_cert '/no/such' cannot be read"),
        (["--config", "/no/such"], "/no/such cannot be read"),
    ],
)
@pytest.mark.parametrize("command", [["pub", "-t", "t", "-m", "x"], ["sub", "-t", "t"]])
def test_what_cannot_be_is_said_in_one_line(
    command: list[str], arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *arguments]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    "arguments", [["pub", "-t", "t"], ["pub", "-m", "x"], ["pub", "-t", "t", "-m", "x", "-q", "3"], ["sub"]]
)
def test_wrong_arguments_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
