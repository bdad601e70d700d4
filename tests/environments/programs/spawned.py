"""HOST PORT: processes that multiprocessing spawns, each with a client, and messages handed from one to another."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from typing import Any

import glec_fast.mqtt as mqtt

TIMEOUT_S = 30.0
PROCESSES, MESSAGES = 2, 20


def publish(host: str, port: int, number: int) -> None:
    with mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, f"spawned-{number}") as client:
        client.connect(host, port)
        client.loop_start()
        infos = [client.publish("spawned", f"{number}-{each}", 1 + each % 2) for each in range(MESSAGES)]
        for info in infos:
            info.wait_for_publish(TIMEOUT_S)
            assert info.is_published()


def count(messages: Any, counted: Any) -> None:
    counted.put(sorted(messages.get(timeout=TIMEOUT_S).payload.decode() for _ in range(PROCESSES * MESSAGES)))


def main() -> None:
    host, port = sys.argv[1], int(sys.argv[2])
    context = multiprocessing.get_context("spawn")
    messages, counted = context.Queue(), context.Queue()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    subscribed = threading.Event()
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = lambda client, userdata, message: messages.put(message)
    client.connect(host, port)
    client.loop_start()
    client.subscribe("spawned", 2)
    assert subscribed.wait(TIMEOUT_S)
    children = [context.Process(target=publish, args=(host, port, number)) for number in range(PROCESSES)]
    children.append(context.Process(target=count, args=(messages, counted)))
    for child in children:
        child.start()
    assert counted.get(timeout=2 * TIMEOUT_S) == sorted(
        f"{number}-{each}" for number in range(PROCESSES) for each in range(MESSAGES)
    )
    for child in children:
        child.join(TIMEOUT_S)
        assert child.exitcode == 0
    client.close()
    print("done")


if __name__ == "__main__":
    main()
