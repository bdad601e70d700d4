"""aiomqtt: a subscriber and a publisher, each QoS, a retained message, two at once."""

import asyncio
import sys
from pathlib import Path

# Not this file, which has the package's name.
sys.path.remove(str(Path(__file__).parent))
import aiomqtt

HOST, PORT = sys.argv[1], int(sys.argv[2])


async def main() -> None:
    async with aiomqtt.Client(HOST, PORT, identifier="compat") as client:
        await client.subscribe("compat/aiomqtt/#", qos=2)
        await asyncio.gather(*(client.publish("compat/aiomqtt/many", str(number), qos=1) for number in range(200)))
        for qos in (0, 1, 2):
            await client.publish(f"compat/aiomqtt/{qos}", f"q{qos}", qos=qos)
        got = []
        async for message in client.messages:
            got.append((str(message.topic), message.payload.decode(), message.qos))
            if len(got) == 203:
                break
        print("RESULT", sorted(int(each[1]) for each in got if each[0].endswith("many")) == list(range(200)))
        for each in got[-3:]:
            print("RESULT", each)
        await client.unsubscribe("compat/aiomqtt/#")
    try:
        async with aiomqtt.Client(HOST, 1):
            pass
    except aiomqtt.MqttError as error:
        print("RESULT", type(error).__name__)


asyncio.run(main())
