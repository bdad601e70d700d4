"""An ordinary paho program that loses nothing: `python examples/paho_unchanged.py --broker tcp://localhost:1883`.

The program below the line knows of paho alone. Start it without a broker: what it publishes is in a queue file, and the
next start sends it. With paho's own class it would be gone.
"""

import glec_fast.mqtt

glec_fast.mqtt.install(store=lambda client_id: f"{client_id}.db")

# ---- as it was ----------------------------------------------------------------------------------------------------
import argparse
import json
import time
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--broker", default="tcp://localhost:1883")
    arguments.add_argument("--wait", type=float, default=10.0, help="seconds to wait for the broker (default: 10)")
    options = arguments.parse_args()
    broker = urlsplit(options.broker)

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="thermometer")
    client.connect_async(broker.hostname, broker.port or 1883)
    client.loop_start()
    sent = []
    for number in range(10):
        reading = {"number": number, "celsius": 20.0 + number / 10}
        sent.append(client.publish("house/kitchen/temperature", json.dumps(reading), qos=1))
    sent.append(client.publish("house/kitchen/alarm", "smoke", qos=2))

    ends_s = time.monotonic() + options.wait
    for info in sent:
        info.wait_for_publish(max(0.0, ends_s - time.monotonic()))
    delivered = sum(info.is_published() for info in sent)
    print(f"{delivered} of {len(sent)} delivered")
    client.disconnect()
    client.loop_stop()


if __name__ == "__main__":
    main()
