"""HOST PORT FOLDER: a program to be frozen. It publishes through a store, and over paho's name, and hears itself."""

import sys
import threading
from pathlib import Path

import paho.mqtt.client

import glec_fast.mqtt

TIMEOUT_S = 30.0

glec_fast.mqtt.install(store=lambda client_id: Path(sys.argv[3]) / f"{client_id}.db")
assert getattr(sys, "frozen", False), "this program is not frozen"
client = paho.mqtt.client.Client(paho.mqtt.client.CallbackAPIVersion.VERSION2, "frozen")
subscribed, heard = threading.Event(), threading.Event()
client.on_connect = lambda client, *_: client.subscribe("frozen", 2)
client.on_subscribe = lambda *_: subscribed.set()
client.on_message = lambda *_: heard.set()
client.connect(sys.argv[1], int(sys.argv[2]))
client.loop_start()
assert subscribed.wait(TIMEOUT_S)
client.publish("frozen", "x", 2)
assert heard.wait(TIMEOUT_S)
client.disconnect()
client.loop_stop()
print("done")
