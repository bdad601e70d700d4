"""roombapy: a robot's state in, a command out, over TLS and aiomqtt; the robot is a client of ours at the broker."""

import asyncio
import json
import ssl
import sys
from pathlib import Path

sys.path.remove(str(Path(__file__).parent))
import aiomqtt
from roombapy.roomba import RoombaClient, TransportOptions

HOST, PORT, TLS_PORT, CA = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]


async def main() -> None:
    states = []
    options = TransportOptions(port=TLS_PORT, tls_context=ssl.create_default_context(cafile=CA))
    async with aiomqtt.Client(HOST, PORT) as robot:
        await robot.subscribe("cmd")
        roomba = RoombaClient("localhost", "robot", "secret", transport=options)
        roomba.register_on_message_callback(lambda message: states.append(1))
        async with roomba:
            print("RESULT", roomba.connected)
            for battery in range(100, 80, -1):
                state = {"state": {"reported": {"batPct": battery, "name": "Robby"}}}
                await robot.publish("$aws/things/robot/shadow/update", json.dumps(state), qos=1)
            for _ in range(100):
                if len(states) >= 20:
                    break
                await asyncio.sleep(0.1)
            print("RESULT", len(states) >= 20)
            await roomba.send_command("dock")
            async for message in robot.messages:
                print("RESULT", message.topic, json.loads(message.payload)["command"])
                break
        print("RESULT", roomba.connected)


asyncio.run(main())
