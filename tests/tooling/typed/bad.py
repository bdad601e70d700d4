"""Each marked line is a finding of every checker, and no other line is."""

from __future__ import annotations

from typing import Any

import glec_fast.mqtt as mqtt
from glec_fast.mqtt import Clinet  # BAD


def takes_too_much(client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage, more: int) -> None:
    print(more)


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "a")
mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "a", stroe="queue.db")  # BAD
mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "a", store=5)  # BAD
mqtt.MQTT_ERR_SUCCES  # BAD
client.on_message = takes_too_much  # BAD
client.on_connect = 5  # BAD
client.publsh("t")  # BAD
client.publish("t", qos="1")  # BAD
client.publish(5)  # BAD
client.publish("t").wait_duration()  # BAD
client.flush("soon")  # BAD
client.connect(host=None)  # BAD
mqtt.install(store="queue.db")  # BAD
