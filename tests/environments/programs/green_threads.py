"""LIBRARY HOST PORT CA STORE: a program whose threads are those of gevent or eventlet; "-" for no TLS, and no store."""

from __future__ import annotations

import sys
import warnings
from typing import Any

library, host, port, ca, store = sys.argv[1:]
if library == "gevent":
    from gevent import monkey

    monkey.patch_all()
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import eventlet
    eventlet.monkey_patch()

import threading
import time

import glec_fast.mqtt as mqtt

TIMEOUT_S = 30.0
MESSAGES, THREADS = 18, 4
ticks: list[float] = []
got: list[bytes] = []
told: list[int] = []


def tick() -> None:
    """The rest of the program."""
    while True:
        ticks.append(time.monotonic())
        time.sleep(0.005)


def wait(condition: Any) -> None:
    ends_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends_s, (len(got), len(told))
        time.sleep(0.005)


def publish(number: int) -> None:
    for each in range(MESSAGES):
        client.publish("green", f"{number}-{each}", each % 3).wait_for_publish(TIMEOUT_S)


threading.Thread(target=tick, daemon=True).start()
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, f"green-{library}", store=None if store == "-" else store)
if ca != "-":
    client.tls_set(ca)
client.on_message = lambda client, userdata, message: got.append(message.payload)
client.on_publish = lambda client, userdata, mid, reason, properties: told.append(mid)
subscribed = threading.Event()
client.on_subscribe = lambda *_: subscribed.set()

# While it waits for what cannot come, the rest goes on.
waiting, before = client.publish("green", "first", 1), len(ticks)
if store != "-":
    for _ in range(200):
        waiting.wait_for_publish(0.05)
        if len(ticks) > before + 1:
            break
    else:
        raise AssertionError("nothing ran during the wait")

client.connect(host, int(port))
client.loop_start()
wait(client.is_connected)
client.subscribe("green", 2)
assert subscribed.wait(TIMEOUT_S)
threads = [threading.Thread(target=publish, args=(number,)) for number in range(THREADS)]
for each in threads:
    each.start()
for each in threads:
    each.join()
wait(lambda: len(got) >= MESSAGES * THREADS and len(told) == MESSAGES * THREADS + 1)
expected = {f"{number}-{each}".encode() for number in range(THREADS) for each in range(MESSAGES)}
assert expected <= set(got) <= expected | {b"first"}
client.disconnect()
client.loop_stop()
client.close()

# While it waits between two attempts, too.
lost = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
lost.connect_async(host, 1)
failed = threading.Event()
lost.on_connect_fail = lambda *_: failed.set()
lost.loop_start()
assert failed.wait(TIMEOUT_S)
before = len(ticks)
wait(lambda: len(ticks) > before + 1)
lost.close()
print("done")
