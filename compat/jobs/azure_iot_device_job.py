"""azure-iot-device: its MQTT transport over TLS, to a port of ours in place of 8883; telemetry out, a command in."""

import sys
import threading
from pathlib import Path

sys.path.remove(str(Path(__file__).parent))
import paho.mqtt.client as mqtt
from azure.iot.device.common import mqtt_transport

HOST, PORT, TLS_PORT, CA = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
connect = mqtt.Client.connect
mqtt.Client.connect = lambda self, host, port=1883, **more: connect(
    self, host, TLS_PORT if port == 8883 else port, **more
)
transport = mqtt_transport.MQTTTransport(
    client_id="device",
    hostname="localhost",
    username="hub/device",
    server_verification_cert=Path(CA).read_text(),
    keep_alive=60,
)
connected, disconnected, arrived = threading.Event(), threading.Event(), threading.Event()
got = []


def on_message(topic, payload) -> None:
    got.append((topic, payload))
    arrived.set()


causes = []
transport.on_mqtt_connected_handler = connected.set
transport.on_mqtt_disconnected_handler = lambda cause: (causes.append(type(cause).__name__), disconnected.set())
transport.on_mqtt_message_received_handler = on_message
transport.connect(password="token")
print("RESULT", connected.wait(20))
done = threading.Event()
transport.subscribe("devices/device/messages/devicebound/#", qos=1, callback=lambda **_: done.set())
print("RESULT", done.wait(20))
published = []
for number in range(20):
    sent = threading.Event()
    transport.publish("devices/device/messages/events/", f"{number}", qos=1, callback=lambda sent=sent, **_: sent.set())
    published.append(sent)
print("RESULT", [each.wait(20) for each in published])
transport.publish("devices/device/messages/devicebound/x", "command", qos=1)
print("RESULT", arrived.wait(20), got)
gone = threading.Event()
transport.unsubscribe("devices/device/messages/devicebound/#", callback=lambda **_: gone.set())
print("RESULT", gone.wait(20))
transport.disconnect()
print("RESULT", disconnected.wait(20), causes)
transport.shutdown()
