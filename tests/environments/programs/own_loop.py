"""LOOP HOST PORT: a client in a loop of asyncio's, or uvloop's, by add_reader and add_writer."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import glec_fast.mqtt as mqtt

name, host, port = sys.argv[1:]
TIMEOUT_S = 30.0
MESSAGES = 90


async def main() -> None:
    loop = asyncio.get_running_loop()
    assert type(loop).__module__.partition(".")[0] == name, type(loop)
    got: list[bytes] = []
    subscribed, over, gone = loop.create_future(), loop.create_future(), loop.create_future()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)

    def on_message(client: Any, userdata: Any, message: Any) -> None:
        got.append(message.payload)
        if len(got) == MESSAGES:
            over.set_result(None)

    client.on_connect = lambda client, *_: client.subscribe("loop", 2)
    client.on_subscribe = lambda *_: subscribed.set_result(None)
    client.on_message = on_message
    client.on_disconnect = lambda *_: gone.set_result(None)
    client.on_socket_open = lambda client, userdata, sock: loop.add_reader(sock, client.loop_read)
    client.on_socket_close = lambda client, userdata, sock: loop.remove_reader(sock)
    client.on_socket_register_write = lambda client, userdata, sock: loop.add_writer(sock, client.loop_write)
    client.on_socket_unregister_write = lambda client, userdata, sock: loop.remove_writer(sock)

    async def look() -> None:
        while client.loop_misc() == mqtt.MQTT_ERR_SUCCESS:
            await asyncio.sleep(1)

    client.connect(host, int(port))
    looking = asyncio.create_task(look())
    await asyncio.wait_for(subscribed, TIMEOUT_S)
    for number in range(MESSAGES):
        client.publish("loop", str(number), number % 3)
    await asyncio.wait_for(over, TIMEOUT_S)
    assert {int(each) for each in got} == set(range(MESSAGES))
    client.disconnect()
    await asyncio.wait_for(gone, TIMEOUT_S)
    looking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await looking
    print("done")


if name == "uvloop":
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
