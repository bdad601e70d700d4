"""What tools see of the client: its arguments are paho's, and the same with each way of asking."""

from __future__ import annotations

import inspect
from typing import get_type_hints
from unittest import mock

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from glec_fast import Client

OF_PAHO = inspect.signature(paho.Client).parameters


def test_its_arguments_are_paho_s_and_then_ours() -> None:
    parameters = list(inspect.signature(Client).parameters.values())
    count = len(OF_PAHO)
    assert [(each.name, each.default, each.kind) for each in parameters[:count]] == [
        (each.name, each.default, each.kind) for each in OF_PAHO.values()
    ]
    assert {each.kind for each in parameters[count:]} == {inspect.Parameter.KEYWORD_ONLY}


def test_those_of_publish_are_paho_s() -> None:
    of_paho = inspect.signature(paho.Client.publish).parameters
    of_ours = inspect.signature(Client.publish).parameters
    assert [(each.name, each.default, each.annotation) for each in of_ours.values()] == [
        (each.name, each.default, each.annotation) for each in of_paho.values()
    ]
    assert list(inspect.signature(Client(CallbackAPIVersion.VERSION2).publish).parameters) == list(of_paho)[1:]


def test_its_annotations_have_a_meaning() -> None:
    assert set(get_type_hints(Client.publish)) == {*inspect.signature(Client.publish).parameters, "return"} - {"self"}


def test_a_mock_of_it_takes_what_it_takes() -> None:
    made = mock.create_autospec(Client)
    with pytest.raises(TypeError):
        made(CallbackAPIVersion.VERSION2, client="x")
    client = made(CallbackAPIVersion.VERSION2, client_id="x", store="queue.db")
    client.publish("t", b"x", qos=1)
    for arguments, named in [((), {}), (("t", b"x", 1, False, None, 6), {}), (("t",), {"quality": 1})]:
        with pytest.raises(TypeError):
            client.publish(*arguments, **named)


def test_called_in_another_way_it_is_the_same() -> None:
    client = Client(CallbackAPIVersion.VERSION2)
    assert Client.publish.__call__(client, "t", b"x", qos=1).rc == MQTTErrorCode.MQTT_ERR_NO_CONN


@pytest.mark.parametrize("described", [Client, Client.publish])
def test_each_argument_is_described(described: object) -> None:
    text = inspect.getdoc(described) or ""
    names = set(inspect.signature(described).parameters) - {"self"}  # type: ignore[arg-type]
    assert not [name for name in names if f"{name}:" not in text and f"{name}," not in text]
