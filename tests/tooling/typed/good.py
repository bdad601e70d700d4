"""A program typed against paho: not a finding with `glec_fast.mqtt` in its place."""

from __future__ import annotations

from typing import Any

import glec_fast.mqtt as mqtt
from glec_fast.mqtt import CallbackAPIVersion, Client, MQTTErrorCode, MQTTMessage, MQTTv5
from glec_fast.mqtt import Properties, ReasonCode


def on_connect(
    client: mqtt.Client, userdata: Any, flags: mqtt.ConnectFlags, reason: ReasonCode, properties: Properties | None
) -> None:
    client.subscribe([("commands/#", 1), ("else", 2)])


def on_disconnect(
    client: mqtt.Client, userdata: Any, flags: mqtt.DisconnectFlags, reason: ReasonCode, properties: Properties | None
) -> None:
    print(reason, flags.is_disconnect_packet_from_server)


def on_message(client: mqtt.Client, userdata: Any, message: MQTTMessage) -> None:
    print(message.topic, message.payload.decode(), message.qos, message.retain)


def on_publish(client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties) -> None:
    print(mid)


def on_connect_of_the_first_api(client: mqtt.Client, userdata: Any, flags: dict[str, Any], rc: MQTTErrorCode) -> None:
    print(flags["session present"], rc)


class Gateway(mqtt.Client):
    def __init__(self, name: str) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, name, protocol=MQTTv5)
        self.name = name


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="a", userdata=1, store="queue.db", wait_for_disk=False)
client.on_connect = on_connect
client.on_disconnect = on_disconnect
client.on_message = on_message
client.on_publish = on_publish
client.on_drop = lambda client, userdata, dropped: print(dropped.reason)
client.max_inflight_messages_set(10)
client.reconnect_delay_set(min_delay=1, max_delay=30)
client.message_callback_add("t", on_message)
rc: MQTTErrorCode = client.connect("localhost", 1883, keepalive=60)
info = client.publish("t", payload=b"x", qos=1, retain=False)
code, mid = info.rc, info.mid
info.wait_for_publish(5.0)
assert info.wait_durable(1.0)
assert client.flush(5.0)
print(client.store.size, mqtt.error_string(code), mqtt.topic_matches_sub("#", "a"), mqtt.MQTT_ERR_SUCCESS == rc)
client.loop_start()
client.disconnect()
client.loop_stop()
client.close()

first = Gateway("b")
first.on_connect = None


@first.message_callback()
def hears(client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
    print(message.payload)


older = Client(CallbackAPIVersion.VERSION1)
older.on_connect = on_connect_of_the_first_api
with mqtt.install(store=lambda client_id: f"{client_id}.db") as installed:
    print(installed)
mqtt.uninstall()
