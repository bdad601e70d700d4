"""The processes that bench_footprint.py measures, so that memory, writes and wake-ups are their own.

Called as `footprint_child.py JSON` with {"run": NAME, "path": [...], ...}, without `site`, whose hooks for an editable
install would count. Prints one JSON object. Nothing is imported at the top but what the bare interpreter counts too.
"""

from __future__ import annotations

import json
import sys
import time

CLIENT_ID = "DTG-FOOTPRINT"
TIMEOUT_S = 300.0


def of_proc(name: str, prefix: str) -> int:
    """The sum of the numbers in /proc/self/NAME on lines that start with `prefix`."""
    with open(f"/proc/self/{name}", encoding="ascii") as lines:  # noqa: PTH123 - pathlib would count as memory
        return sum(int(line.split()[1]) for line in lines if line.startswith(prefix))


def anonymous_kib() -> int:
    """Memory that no file backs: unlike private pages of files it does not depend on who else maps them."""
    return of_proc("smaps_rollup", "Anonymous")


def wakeups() -> dict[str, int]:
    """How often each thread but this one has waited and gone on."""
    import os
    import threading

    counts = {}
    for thread in threading.enumerate():
        if thread is threading.current_thread():
            continue
        try:
            with open(f"/proc/self/task/{thread.native_id}/status", encoding="ascii") as lines:  # noqa: PTH123
                counts[thread.name] = sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))
        except OSError:
            os.sched_yield()
    return counts


def manager_of(order: dict, **settings: object) -> object:
    from glec_fast import MQTTConfig, MQTTManager, TLSConfig

    tls = None
    if order.get("pin"):
        tls = TLSConfig.create_server_auth(order.get("ca"), certificate_pins=[order["pin"]])
    return MQTTManager(
        MQTTConfig(
            order["url"], CLIENT_ID, queue_path=order["queue_path"], tls_config=tls, **{**order["settings"], **settings}
        )
    )


def run_import(order: dict) -> dict:
    before = anonymous_kib()
    __import__(order["module"])
    return {"import": anonymous_kib() - before}


def run_stages(order: dict) -> dict:
    """Import, open, queue offline, connect and flush, read the metrics, and connect anew a few times."""
    stages = {"bare": anonymous_kib()}
    import glec_fast

    stages["import"] = anonymous_kib()
    connected = [0]

    class Count(glec_fast.ConnectionCallback):
        def on_connected(self) -> None:
            if not connected[0]:
                stages["connected"] = anonymous_kib()
            connected[0] += 1

    topic, payload = f"glec/dtg/{CLIENT_ID}/inference", '{"note":"' + "x" * 279 + '","n":'
    manager = manager_of(order)
    stages["manager"] = anonymous_kib()
    for number in range(order["messages"]):
        handle = manager.publish(topic, f"{payload}{number:05}}}", order["qos"])
    handle.wait_durable()
    stages["queued"] = anonymous_kib()
    manager.set_connection_callback(Count())
    manager.connect()
    if not manager.flush(TIMEOUT_S):
        raise TimeoutError("the queue was not emptied")
    manager.get_metrics()
    stages["flushed"] = anonymous_kib()
    for number in range(order["reconnects"]):
        # The bench cuts the link once for each line.
        print("cut", flush=True)
        deadline_s = time.monotonic() + TIMEOUT_S
        while connected[0] < number + 2:
            if time.monotonic() > deadline_s:
                raise TimeoutError("it did not connect again")
            time.sleep(0.01)
    if order["reconnects"]:
        stages["reconnected"] = anonymous_kib()
    manager.disconnect()
    return stages


def run_flash(order: dict) -> dict:
    """Bytes written a message. A commit is asked for where its delay would end; no time passes."""
    from glec_fast import Alert, GpsFix, Telemetry

    manager = manager_of(order, status_interval_s=0)

    def telemetry(number: int) -> object:
        speed_kmh, rpm = number % 90 + 0.5, 1500.0 + number % 700
        where = GpsFix(37.5665 + number * 1e-5, 126.978, speed_kmh)
        return manager.publish_telemetry(
            Telemetry(vehicle_speed=speed_kmh, engine_rpm=rpm, throttle_position=20.0, fuel_level=50.0, gps=where)
        )

    def alert(number: int) -> object:
        details = {"deceleration": -4.21, "speed_before": number % 90 + 0.5, "speed_after": 12.5}
        where = GpsFix(37.5665, 126.978, 60.5)
        return manager.publish_alert(Alert("HARSH_BRAKING", "HIGH", location=where, details=details))

    for number in range(order["filled"]):
        handle = telemetry(number)
    if order["filled"]:
        handle.wait_durable()
    before = of_proc("io", "write_bytes")
    publish = alert if order["kind"] == "alert" else telemetry
    for number in range(1, order["messages"] + 1):
        handle = publish(number)
        if order["batch"] and number % order["batch"] == 0:
            # It is a message, and on disk, in one transaction.
            manager.flush(0)
        if number % order["rows_a_commit"] == 0:
            handle.wait_durable()
    manager.get_metrics()
    written = of_proc("io", "write_bytes") - before
    manager.disconnect()
    return {"write_bytes": written / order["messages"]}


def run_alert(order: dict) -> dict:
    """Seconds that `publish_alert` takes to the disk, by turns with a write of the same bytes and its fdatasync."""
    import os

    from glec_fast import Alert, GpsFix

    manager = manager_of(order, status_interval_s=0)
    file = os.open(f"{order['queue_path']}.bare", os.O_WRONLY | os.O_CREAT)
    taken: dict[str, list[float]] = {"bare_s": [], "alert_s": []}
    for number in range(order["messages"]):
        details = {"deceleration": -4.21, "speed_before": number % 90 + 0.5, "speed_after": 12.5}
        alert = Alert("HARSH_BRAKING", "HIGH", location=GpsFix(37.5665, 126.978, 60.5), details=details)
        payload = alert.encode(CLIENT_ID, 1_700_000_000_000)
        started_s = time.perf_counter()
        os.write(file, payload)
        os.fdatasync(file)
        between_s = time.perf_counter()
        manager.publish_alert(alert)
        taken["bare_s"].append(between_s - started_s)
        taken["alert_s"].append(time.perf_counter() - between_s)
    manager.disconnect()
    return taken


def run_air(order: dict) -> dict:
    """Publish a drive's telemetry over a live link."""
    from glec_fast import GpsFix, Telemetry
    from glec_fast.cli.demo.drive import Drive

    samples = list(Drive(order["drive"]).samples())[: order["messages"]]
    manager = manager_of(order, status_interval_s=0)
    manager.connect()
    deadline_s = time.monotonic() + TIMEOUT_S
    while not manager.is_connected():
        if time.monotonic() > deadline_s:
            raise TimeoutError("no connection")
        time.sleep(0.01)
    print("connected", flush=True)
    sys.stdin.readline()
    for number, sample in enumerate(samples, 1):
        gps = None if sample.lat_deg is None else GpsFix(sample.lat_deg, sample.lon_deg, sample.speed_kmh)
        handle = manager.publish_telemetry(
            Telemetry(
                vehicle_speed=sample.speed_kmh,
                engine_rpm=sample.engine_rpm,
                throttle_position=sample.throttle_pct,
                fuel_level=sample.fuel_pct,
                gps=gps,
                timestamp_ms=1_700_000_000_000 + round(sample.t_s * 1000),
            )
        )
        if order["batch"] and number % order["batch"] == 0:
            manager.flush(TIMEOUT_S)
        elif not order["batch"]:
            # Each leaves alone, as once a second.
            handle.wait_for_publish(TIMEOUT_S)
    manager.flush(TIMEOUT_S)
    print("sent", flush=True)
    sys.stdin.readline()
    manager.disconnect()
    return {"messages": len(samples)}


def run_idle(order: dict) -> dict:
    """Connected, with nothing to do, for a few keep-alive intervals."""
    manager = manager_of(order)
    manager.connect()
    deadline_s = time.monotonic() + TIMEOUT_S
    while not manager.is_connected():
        if time.monotonic() > deadline_s:
            raise TimeoutError("no connection")
        time.sleep(0.01)
    keepalive_s = order["settings"]["keepalive_s"]
    time.sleep(keepalive_s / 2)
    before = wakeups()
    time.sleep(keepalive_s * order["intervals"])
    after = wakeups()
    manager.disconnect()
    return {name: (count - before.get(name, count)) / order["intervals"] for name, count in after.items()}


RUNS = {
    "import": run_import,
    "stages": run_stages,
    "flash": run_flash,
    "alert": run_alert,
    "air": run_air,
    "idle": run_idle,
}


def main() -> None:
    order = json.loads(sys.argv[1])
    sys.path += order["path"]
    print(json.dumps(RUNS[order["run"]](order)), flush=True)


if __name__ == "__main__":
    main()
