"""asyncio-paho: connects, subscribes and publishes by its awaitables, with listeners of its own."""

import asyncio
import sys
from pathlib import Path

sys.path.remove(str(Path(__file__).parent))
import asyncio_paho

HOST, PORT = sys.argv[1], int(sys.argv[2])


async def main() -> None:
    got, over = [], asyncio.Event()

    async def on_message(client, userdata, message) -> None:
        got.append((message.topic, message.payload))
        if len(got) == 22:
            over.set()

    async with asyncio_paho.AsyncioPahoClient(client_id="compat") as client:
        client.asyncio_listeners.add_on_message(on_message)
        print("RESULT", int(await client.asyncio_connect(HOST, PORT)))
        print("RESULT", (await client.asyncio_subscribe("compat/asyncio", 2))[0])
        for number in range(20):
            await client.asyncio_publish("compat/asyncio", str(number), qos=number % 3)
        await asyncio.gather(*(client.asyncio_publish("compat/asyncio", f"g{number}", qos=2) for number in range(2)))
        await asyncio.wait_for(over.wait(), 20)
        print("RESULT", sorted(payload for _, payload in got))
        print("RESULT", client.is_connected())
    try:
        async with asyncio_paho.AsyncioPahoClient() as client:
            await client.asyncio_connect(HOST, 1)
    except Exception as error:
        print("RESULT", type(error).__name__)


asyncio.run(main())
