"""tb-mqtt-client, ThingsBoard's SDK: a device's telemetry and attributes, against a broker that knows no ThingsBoard."""

import json
import sys
import threading
import time

import paho.mqtt.client as mqtt
from tb_device_mqtt import TBDeviceMqttClient

HOST, PORT = sys.argv[1], int(sys.argv[2])
got, subscribed = [], threading.Event()
watcher = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "watcher")
watcher.on_message = lambda client, userdata, message: got.append((message.topic, json.loads(message.payload)))
watcher.on_subscribe = lambda *_: subscribed.set()
watcher.connect(HOST, PORT)
watcher.loop_start()
watcher.subscribe("v1/devices/me/#", 1)
subscribed.wait(15)
device = TBDeviceMqttClient(
    HOST, PORT, "token", messages_rate_limit="0:0,", telemetry_rate_limit="0:0,", telemetry_dp_rate_limit="0:0,"
)
device.max_inflight_messages_set(100)
device.connect()
for _ in range(150):
    if device.is_connected():
        break
    time.sleep(0.1)
print("RESULT", device.is_connected())
infos = [device.send_telemetry({"number": number}) for number in range(10)]
infos.append(device.send_attributes({"colour": "red"}))
print("RESULT", sorted({int(info.get()) for info in infos}))
for _ in range(150):
    if len([each for each in got if each[0].endswith(("telemetry", "attributes"))]) >= 11:
        break
    time.sleep(0.1)
print("RESULT", sorted({each[0] for each in got if each[0].endswith(("telemetry", "attributes"))}))
device.disconnect()
watcher.disconnect()
watcher.loop_stop()
