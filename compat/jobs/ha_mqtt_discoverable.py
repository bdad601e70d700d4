"""ha-mqtt-discoverable: a sensor and a switch announce themselves, and the switch hears a command."""

import sys
import threading
import time
from pathlib import Path

sys.path.remove(str(Path(__file__).parent))
import paho.mqtt.client as mqtt
from ha_mqtt_discoverable import Settings
from ha_mqtt_discoverable.sensors import BinarySensor, BinarySensorInfo, Switch, SwitchInfo

HOST, PORT = sys.argv[1], int(sys.argv[2])
got, subscribed, commanded = [], threading.Event(), threading.Event()
watcher = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "watcher")
watcher.on_message = lambda client, userdata, message: got.append(message.topic)
watcher.on_subscribe = lambda *_: subscribed.set()
watcher.connect(HOST, PORT)
watcher.loop_start()
watcher.subscribe([("homeassistant/#", 1), ("hmd/#", 1)])
subscribed.wait(15)
settings = Settings.MQTT(host=HOST, port=PORT)
sensor = BinarySensor(Settings(mqtt=settings, entity=BinarySensorInfo(name="Door", device_class="door")))
sensor.on()
sensor.off()
switch = Switch(Settings(mqtt=settings, entity=SwitchInfo(name="Lamp")), lambda *_: commanded.set())
switch.on()
for _ in range(100):
    if len(set(got)) >= 4:
        break
    time.sleep(0.1)
topics = sorted(set(got))
for topic in topics:
    print("RESULT", topic)
command = next(
    iter(each.replace("state", "command") for each in topics if "switch" in each.lower() and "state" in each),
    "hmd/switch/Lamp/command",
)
for _ in range(10):
    watcher.publish(command, "ON", 1)
    if commanded.wait(1):
        break
print("RESULT", commanded.is_set())
watcher.disconnect()
watcher.loop_stop()
