"""From a CAN bus to the fleet: frames are decoded with a DBC file and published as telemetry once a second.

`python examples/can_bus.py --broker tcp://localhost:1883` plays both sides on a virtual bus. On a gateway:
`--interface socketcan --channel can0`, with the vehicle's own DBC file. Needs `pip install python-can cantools`.
"""

import argparse
import math
import threading
from pathlib import Path

import can
import cantools

from glec_fast import MQTTConfig, MQTTManager, Telemetry

DBC = Path(__file__).with_name("vehicle.dbc")


def drive(bus: can.BusABC, database: cantools.database.Database, seconds: int, rate_hz: int) -> None:
    """The vehicle's side: what its control units send, as fast as the bus takes it."""
    engine, body = database.get_message_by_name("ENGINE"), database.get_message_by_name("BODY")
    for tick in range(seconds * rate_hz):
        speed_kmh = 40 + 20 * math.sin(tick / rate_hz / 10)
        data = engine.encode({"EngineSpeed": 900 + 25 * speed_kmh, "Throttle": 15 + speed_kmh / 4})
        bus.send(can.Message(arbitration_id=engine.frame_id, data=data, is_extended_id=False))
        data = body.encode({"VehicleSpeed": speed_kmh, "FuelLevel": 78.0, "Tick": tick})
        bus.send(can.Message(arbitration_id=body.frame_id, data=data, is_extended_id=False))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--broker", default="tcp://localhost:1883")
    arguments.add_argument("--queue", default="can_bus.db")
    arguments.add_argument("--interface", default="virtual", help="of python-can: virtual, socketcan, …")
    arguments.add_argument("--channel", default="glec-example")
    arguments.add_argument("--dbc", default=str(DBC))
    arguments.add_argument("--seconds", type=int, default=10, help="of the drive that is played on a virtual bus")
    options = arguments.parse_args()

    database = cantools.database.load_file(options.dbc)
    rate_hz = 10
    config = MQTTConfig(broker_url=options.broker, client_id="DTG-CAN", queue_path=options.queue)
    with (
        can.Bus(interface=options.interface, channel=options.channel) as bus,
        MQTTManager(config) as manager,
    ):
        manager.connect()
        vehicle = None
        if options.interface == "virtual":
            vehicle_bus = can.Bus(interface="virtual", channel=options.channel)
            vehicle = threading.Thread(target=drive, args=(vehicle_bus, database, options.seconds, rate_hz))
            vehicle.start()
        latest: dict[str, float] = {}
        published = 0
        # A silent bus ends the example; a gateway's program would go on.
        while (frame := bus.recv(timeout=5.0)) is not None:
            try:
                latest.update(database.decode_message(frame.arbitration_id, frame.data))
            except KeyError:
                continue  # a frame that the DBC file does not know
            is_whole = {"VehicleSpeed", "EngineSpeed", "Throttle", "FuelLevel"} <= latest.keys()
            if is_whole and "Tick" in latest and latest.pop("Tick") % rate_hz == 0:
                manager.publish_telemetry(
                    Telemetry(latest["VehicleSpeed"], latest["EngineSpeed"], latest["Throttle"], latest["FuelLevel"])
                )
                published += 1
            if vehicle is not None and published == options.seconds:
                break
        if vehicle is not None:
            vehicle.join()
            vehicle_bus.shutdown()
        delivered = manager.flush(timeout_s=30)
        print(f"{published} seconds of telemetry published, {'all' if delivered else 'not all'} delivered")


if __name__ == "__main__":
    main()
