"""What a person can get wrong in a call: each is an error of ours, of one line, with what is wrong and what to do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.enums import CallbackAPIVersion

from glec_fast import (
    Alert,
    GpsFix,
    Inference,
    MQTTConfig,
    MQTTManager,
    OfflineQueueManager,
    Status,
    Telemetry,
    TLSConfig,
    mqtt,
)
from glec_fast.aio import AsyncMQTTManager
from glec_fast.errors import ConfigError, GlecError, MessageError, PayloadTypeError
from support.gateway import quick_config

NOWHERE = "tcp://127.0.0.1:1"
NO_TIME = [math.nan, "3", True, [1]]


def says(error: GlecError) -> str:
    """Its text, which is one line."""
    text = str(error)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("timeout", NO_TIME, ids=repr)
def test_no_wait_is_for_what_is_no_time(timeout: Any, tmp_path: Path) -> None:
    with MQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
        handle = manager.publish("t", "x", 1)
        subscription = manager.subscribe("t", print)
        for wait in (manager.flush, handle.wait_durable, subscription.wait_granted):
            with pytest.raises(ConfigError, match="give seconds, or None") as raised:
                wait(timeout)
            assert raised.value.field in ("timeout_s", "timeout")
            assert says(raised.value).startswith(raised.value.field)
        # paho's own, which waits for ever for NaN, and has its own words for the others.
        with pytest.raises(ConfigError, match="timeout is nan; give seconds, or None"):
            handle.wait_for_publish(math.nan)
        assert handle.wait_durable(math.inf)
        assert not manager.flush(-1)
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "c", store=tmp_path / "client.db")
    with pytest.raises(ConfigError, match="timeout_s is"):
        client.flush(timeout)
    client.close()


@pytest.mark.parametrize("config", [None, {}, "tcp://h", MQTTConfig])
def test_a_manager_is_made_of_settings_alone(config: Any) -> None:
    with pytest.raises(ConfigError, match="give an MQTTConfig"):
        MQTTManager(config)


@pytest.mark.parametrize(
    ("kind", "name", "advice"),
    [
        (MQTTConfig, "quee_path", "did you mean queue_path?"),
        (MQTTConfig, "wxyz", "`glec-fast settings` lists them"),
        (TLSConfig, "ca_crt", "did you mean ca_cert?"),
    ],
)
def test_a_setting_that_is_misspelt(kind: Any, name: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__} has no setting '{name}'") as raised:
        kind(**{name: "x"})
    assert (raised.value.field, says(raised.value).partition("; ")[2]) == (name, advice)


@pytest.mark.parametrize("path", [None, 5, b"q.db", {}, "", "a\0b"], ids=repr)
def test_a_queue_s_path_is_a_path(path: Any) -> None:
    with pytest.raises(ConfigError, match="queue_path must be the path of a file") as raised:
        OfflineQueueManager(path)
    assert raised.value.field == "queue_path"
    with pytest.raises(ConfigError, match="queue_path must be"):
        MQTTConfig(NOWHERE, "D", queue_path=path)
    if path is not None:
        with pytest.raises(ConfigError, match="queue_path must be"):
            mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "c", store=path)


@pytest.mark.parametrize("rows", [5, None, ["abc"], [("t", "x")], [("t", "x", 1, 2)]], ids=repr)
def test_rows_have_three_parts(rows: Any, tmp_path: Path) -> None:
    with OfflineQueueManager(tmp_path / "queue.db") as queue:
        with pytest.raises(MessageError, match=r"give \(topic, payload, qos\) for each message"):
            queue.enqueue_many(rows)
        assert queue.stats().size == 0


@pytest.mark.parametrize("numbers", [5, "12", None, ["x"], [1.0], [True], [2**63]], ids=repr)
def test_entries_are_named_by_their_numbers(numbers: Any, tmp_path: Path) -> None:
    with OfflineQueueManager(tmp_path / "alone.db") as queue, MQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
        calls = (queue.retry_quarantined, queue.delete_quarantined)
        for call in (*calls, manager.retry_quarantined, manager.delete_quarantined, manager.purge):
            with pytest.raises(MessageError, match=r"must be a list of ints, such as \[1, 2\]"):
                call(numbers)
        assert manager.purge(iter(())) == manager.delete_quarantined(range(1, 3)) == 0


@pytest.mark.parametrize("message_id", ["x", None, [], 1.0, True, 2**63], ids=repr)
def test_a_handle_is_asked_for_by_an_id(message_id: Any, tmp_path: Path) -> None:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, "c", store=tmp_path / "alone.db")
    with MQTTManager(quick_config(NOWHERE, tmp_path)) as manager, closing(client):
        for each in (manager, client):
            with pytest.raises(MessageError, match=r"message id is .*; it must be an int that"):
                each.handle_for(message_id)
            with pytest.raises(MessageError):
                each.handle_for(5)


def test_what_the_heartbeat_could_not_say_is_refused_at_once(tmp_path: Path) -> None:
    with MQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
        for wrong in ({"battery_voltage": math.nan}, {"battery_voltage": "12"}, {"can_messages_received": -1}):
            with pytest.raises(MessageError, match=next(iter(wrong))):
                manager.report_vehicle(**wrong)
        manager.report_vehicle(can_messages_received=3, battery_voltage=24)


def test_callbacks_are_functions(tmp_path: Path) -> None:
    with MQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
        wrong: Any = 5
        for call in (manager.set_drop_callback, lambda each: manager.subscribe("t", each), manager.command("c")):
            with pytest.raises(ConfigError, match="is int; it must be a function"):
                call(wrong)
        manager.set_drop_callback(None)
        with pytest.raises(ConfigError, match="without on_connected; derive it from ConnectionCallback"):
            manager.set_connection_callback(wrong)
    with pytest.raises(ConfigError, match="store is int; it must be a function"):
        mqtt.install(store=wrong)


def test_on_asyncio_too(tmp_path: Path) -> None:
    wrong: Any = 5
    with pytest.raises(ConfigError, match="config is int; give an MQTTConfig"):
        AsyncMQTTManager(wrong)

    async def call() -> None:
        async with AsyncMQTTManager(quick_config(NOWHERE, tmp_path)) as manager:
            with pytest.raises(ConfigError, match="timeout_s is nan"):
                await manager.flush(math.nan)
            for call in (manager.set_drop_callback, manager.set_connection_callback):
                with pytest.raises(ConfigError, match="callback is int"):
                    call(wrong)
            with pytest.raises(MessageError, match="battery_voltage"):
                manager.report_vehicle(battery_voltage=math.nan)

    asyncio.run(call())


KINDS = [GpsFix, Telemetry, Inference, Alert, Status]


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_says_what_it_has(kind: Any) -> None:
    fields = kind.__match_args__
    for values, named, blamed in (
        ((), {"spede": 1}, "has no 'spede'"),
        (range(len(fields) + 1), {}, f"was given {len(fields) + 1} values, more than there are"),
        ((1,), {fields[0]: 1}, f"was given {fields[0]} twice, by its place and by its name"),
        ((), {}, f"{fields[0]} is missing: give"),
    ):
        with pytest.raises(PayloadTypeError) as called:
            kind(*values, **named)
        with pytest.raises(PayloadTypeError) as made:
            kind.__new__(kind, *values, **named)
        assert says(called.value) == says(made.value)
        assert blamed in says(called.value)
        if values or named:
            assert says(called.value) == f"{kind.__name__} {blamed}: it takes {', '.join(fields)}"


def test_an_error_of_a_value_s_own_is_not_taken_for_that() -> None:
    class Broken(Mapping[str, int]):
        def __iter__(self) -> Any:
            raise TypeError("of its own") from KeyError("cause")

        def __len__(self) -> int:
            return 1

        def __getitem__(self, key: str) -> int:
            return 1

    with pytest.raises(TypeError, match=r"^of its own$") as raised:
        Alert("A", "HIGH", details=Broken())
    assert isinstance(raised.value.__cause__, KeyError)
