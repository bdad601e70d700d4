"""A platform that asks a vehicle to unlock its doors: `python examples/commands.py --broker tcp://localhost:1883`.

It asks until it has two replies, with one id, as one would who got none. The vehicle unlocks once, and answers each
time: also if it is started again, with the same queue and --id.
"""

import argparse
import threading

from glec_fast import MQTTConfig, MQTTManager

DEVICE = "DTG-COMMANDS"
TOPIC = f"glec/dtg/{DEVICE}/commands/unlock_doors"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--broker", default="tcp://localhost:1883")
    arguments.add_argument("--queue", default="commands.db", help="the vehicle's queue; the platform's is beside it")
    arguments.add_argument("--id", default="c-1", help="the command's id: a new one for each command (default: c-1)")
    options = arguments.parse_args()

    vehicle = MQTTManager(MQTTConfig(options.broker, DEVICE, queue_path=options.queue))
    platform = MQTTManager(MQTTConfig(options.broker, "platform", queue_path=f"{options.queue}-platform"))
    both_came, replies = threading.Event(), []

    @vehicle.command("unlock_doors", on_crash="fail")
    def unlock_doors(arguments, context):
        print(f"unlocking {arguments['doors']} (command {context.id})")
        return {"unlocked": len(arguments["doors"])}

    def on_reply(message):
        replies.append(message.payload.decode())
        if len(replies) == 2:
            both_came.set()

    with vehicle, platform:
        answers = platform.subscribe(f"{TOPIC}/reply", on_reply, qos=2)
        vehicle.connect()
        platform.connect()
        answers.wait_granted(timeout_s=30)
        for _ in range(30):
            platform.publish(TOPIC, {"id": options.id, "doors": ["left", "right"]}, qos=2)
            if both_came.wait(timeout=1):
                break
        else:
            raise SystemExit(f"no reply from {options.broker} within 30 s")
        print(replies[0], "again the same" if replies[0] == replies[1] else f"then {replies[1]}", sep="\n")


if __name__ == "__main__":
    main()
