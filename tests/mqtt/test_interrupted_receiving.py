"""An exception just behind the callbacks of a message of QoS 2, with a store: it is handled once, and acknowledged."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from paho.mqtt.enums import CallbackAPIVersion

from glec_fast import Client
from glec_fast.mqtt.dispatch import Dispatcher
from glec_fast.outbox.received import Received
from support.gateway import eventually
from support.recording_broker import RecordingBroker, payload_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MESSAGES = [("in/2", payload_of(b"in%010d" % number, 12), 2) for number in range(3)]


@pytest.fixture
def broker() -> Iterator[RecordingBroker]:
    with closing(RecordingBroker(MESSAGES)) as broker:
        yield broker


class Program:
    """Its own loop, which Ctrl-C cuts into, as the second message is done with."""

    def __init__(self, broker: RecordingBroker, path: Path) -> None:
        self.came: list[bytes] = []
        self.broker = broker
        self.client = Client(CallbackAPIVersion.VERSION2, client_id="c", store=path)
        self.client.on_message = lambda _client, _userdata, message: self.came.append(message.payload)
        self.client.connect("127.0.0.1", broker.port)

    def run(self) -> bool:
        return eventually(lambda: self.client.loop(0.01) is None or self.broker.is_all_acknowledged)


def cut_into(monkeypatch: pytest.MonkeyPatch, owner: type, step: str, *, is_behind: bool) -> None:
    does, calls = getattr(owner, step), []

    def once(*given: Any) -> Any:
        calls.append(given)
        result = does(*given) if is_behind or len(calls) != 2 else None
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, step, once)


@pytest.mark.parametrize(
    ("owner", "step", "is_behind"),
    [
        (Dispatcher, "_hand_over", True),
        (Dispatcher, "_acknowledge", False),
        (Received, "acknowledge", False),
        (Received, "acknowledge", True),
        (Received, "_end", False),
        (Received, "_end", True),
    ],
)
@pytest.mark.parametrize("goes_on", [True, False])
def test_it_is_handled_once(
    broker: RecordingBroker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    step: str,
    is_behind: bool,
    goes_on: bool,
) -> None:
    program = Program(broker, tmp_path / "queue.db")
    with monkeypatch.context() as patched:
        cut_into(patched, owner, step, is_behind=is_behind)
        with pytest.raises(KeyboardInterrupt):
            program.run()
    came = program.came
    if not goes_on:
        program.client.close()
        broker.on_new_client()
        program = Program(broker, tmp_path / "queue.db")
    assert program.run()
    program.client.close()
    assert sorted(came + (program.came if not goes_on else [])) == [payload for _, payload, _ in MESSAGES]
