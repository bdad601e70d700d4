"""A truck's telemetry and an alert, through a queue on disk: `python examples/quickstart.py --broker tcp://localhost:1883`.

Start it without a broker, end it with Ctrl-C, start a broker, start it again: what was published before arrives.
"""

import argparse

from glec_fast import Alert, GpsFix, MQTTConfig, MQTTManager, Telemetry


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--broker", default="tcp://localhost:1883")
    arguments.add_argument("--queue", default="quickstart.db", help="the file that keeps what is not delivered yet")
    arguments.add_argument("--wait", type=float, default=30.0, help="seconds to wait for the broker (default: 30)")
    options = arguments.parse_args()

    config = MQTTConfig(broker_url=options.broker, client_id="DTG-QUICKSTART", queue_path=options.queue)
    with MQTTManager(config) as manager:
        manager.connect()  # returns at once, and goes on trying for ever
        here = GpsFix(lat=37.5665, lon=126.978, speed=60.2)
        for second in range(10):
            manager.publish_telemetry(Telemetry(60.5 - second, 1800, 25.3, 78.2, here))
        alert = manager.publish_alert(Alert("HARSH_BRAKING", "HIGH", here, {"deceleration": -6.5}))
        print("the alert is on disk")  # an alert waits for the disk, not for the network
        if manager.flush(timeout_s=options.wait):
            print(f"the broker has everything; the alert was message {alert.message_id}")
        else:
            print(f"no broker at {options.broker} yet: it is all in {options.queue}, for the next start")


if __name__ == "__main__":
    main()
