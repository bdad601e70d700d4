"""HOST PORT CA TLS_PORT FOLDER: all that a client does in its life, with a store and without; and the fleet's."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import glec_fast
import glec_fast.mqtt as mqtt

TIMEOUT_S = 30.0


def live(client: mqtt.Client, host: str, port: int) -> None:
    subscribed, arrived = threading.Event(), threading.Semaphore(0)
    client.on_connect = lambda client, *_: client.subscribe([("life/#", 2)])
    client.on_subscribe = lambda *_: subscribed.set()
    client.message_callback_add("life/+", lambda *_: arrived.release())
    client.will_set("will", "gone", 1)
    client.connect(host, port)
    client.loop_start()
    assert subscribed.wait(TIMEOUT_S)
    infos = [client.publish(f"life/{qos}", "x", qos, retain=True) for qos in (0, 1, 2) * 5]
    for info in infos:
        info.wait_for_publish(TIMEOUT_S)
    assert all(arrived.acquire(timeout=TIMEOUT_S) for _ in infos)
    client.unsubscribe("life/#")
    client.disconnect()
    client.loop_stop()
    client.reconnect()
    client.loop_start()
    client.close()


def main(host: str, port: str, ca: str, tls_port: str, folder: str) -> None:
    for number, protocol in enumerate((mqtt.MQTTv311, mqtt.MQTTv5)):
        given: Any = {"protocol": protocol}
        live(mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, **given), host, int(port))
        store = Path(folder) / f"{number}.db"
        secure = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, f"life-{number}", store=store, **given)
        secure.tls_set(ca)
        live(secure, host, int(tls_port))
    # One that has never connected, and one that nobody closes.
    mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    config = glec_fast.MQTTConfig(f"tcp://{host}:{port}", client_id="life", queue_path=str(Path(folder) / "fleet.db"))
    with glec_fast.MQTTManager(config) as manager:
        manager.connect()
        manager.publish("life", {"a": 1}, 2)
        assert manager.flush(TIMEOUT_S)
    print("done")


main(*sys.argv[1:])
