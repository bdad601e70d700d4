"""One contender in a process of its own, so that CPU time and memory are: paho's client, ours, ours with a store.

Started by its path, not as part of the package, and with nothing imported that the contender would not need: what the
memory is counted from is the bare interpreter. Reads one JSON object, the job, and writes one, the figures.
"""

from __future__ import annotations

import gc
import json
import sys
import time

# Without typing, which a program would not need.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Job = dict[str, Any]
    Figures = dict[str, float]

PAHO, MEMORY, STORE = "paho", "memory", "store"
# So many are unacknowledged at most: what a program may lose, without a store, and what waits for the last.
OUTSTANDING_MAX, WAIT_EVERY = 1000, 50
# As MQTTManager has it.
WINDOW = 1000
ANSWER_TIMEOUT_S = 30.0


def private_bytes() -> int:
    """What would be free if this process ended; 0 where the kernel does not say."""
    try:
        with open("/proc/self/smaps_rollup") as lines:  # noqa: PTH123 - pathlib would count as memory
            return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
    except OSError:
        return 0


def make_client(job: Job) -> Any:
    """The same program but for the class; connected. Raises what paho raises."""
    kind = job["kind"]
    if kind == PAHO:
        import paho.mqtt.client as mqtt
    else:
        import glec_fast.mqtt as mqtt  # type: ignore[no-redef]
    options = {"store": job["queue_path"]} if kind == STORE else {}
    if job["protocol"] != mqtt.MQTTv5:
        options["clean_session"] = kind != STORE
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2,
        client_id=job["client_id"],
        protocol=mqtt.MQTTProtocolVersion(job["protocol"]),
        transport=job["transport"],
        **options,
    )
    if kind == STORE or (kind == MEMORY and job["qos"] < 2):
        # paho's own 20 are its best, as it looks through them at each acknowledgement. Of QoS 2 a mosquitto takes no
        # more before it has PUBREL, which a client with a store minds by itself.
        client.max_inflight_messages_set(WINDOW)
    if job["transport"] == "websockets":
        client.ws_set_options(job["path"], job["headers"] or None)
    if job["proxy"] is not None:
        client.proxy_set(**job["proxy"])
    if job["username"] is not None:
        client.username_pw_set(job["username"], job["password"])
    if job["tls"] is not None:
        import ssl

        context = ssl.create_default_context(cafile=job["tls"]["ca_cert"])
        if job["tls"]["client_cert"]:
            context.load_cert_chain(job["tls"]["client_cert"], job["tls"]["client_key"], job["tls"]["key_password"])
        if job["tls"]["alpn"]:
            context.set_alpn_protocols(job["tls"]["alpn"])
        context.check_hostname = job["tls"]["verify_hostname"]
        if job["tls"]["partial_chain"]:
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        client.tls_set_context(context)
    return client


def connect(client: Any, job: Job) -> float:
    """Returns the moment of CONNACK, in time.perf_counter's seconds."""
    import threading

    connected, moment = threading.Event(), [0.0]

    def on_connect(*_: object) -> None:
        moment[0] = time.perf_counter()
        connected.set()

    client.on_connect = on_connect
    client.connect(job["host"], job["port"], 60)
    client.loop_start()
    if not connected.wait(ANSWER_TIMEOUT_S):
        raise TimeoutError("the broker did not answer CONNECT")
    return moment[0]


def wait(info: Any) -> None:
    info.wait_for_publish(ANSWER_TIMEOUT_S)
    if not info.is_published():
        raise TimeoutError(f"the broker did not acknowledge a message within {ANSWER_TIMEOUT_S:.0f} s")


def wait_for_mark(client: Any, topic: str) -> None:
    """Of a broker that acknowledges no message: it has read what goes before once it answers this."""
    import threading

    answered = threading.Event()
    client.on_unsubscribe = lambda *_: answered.set()
    client.unsubscribe(topic)
    if not answered.wait(ANSWER_TIMEOUT_S):
        raise TimeoutError(f"the broker did not answer UNSUBSCRIBE within {ANSWER_TIMEOUT_S:.0f} s")


def publish_all(client: Any, job: Job, payload: bytes) -> Figures:
    """As many as go within the time, at most `count`; what is read back is the rate until the last is acknowledged."""
    topic, qos, count = job["topic"], job["qos"], job["count"]
    ends_s = time.perf_counter() + job["seconds"]
    marks, number = [], 0
    start_s, cpu_start_s = time.perf_counter(), time.process_time()
    while number < count:
        info = client.publish(topic, payload, qos)
        number += 1
        if number % WAIT_EVERY == 0:
            marks.append(info)
            if len(marks) > OUTSTANDING_MAX // WAIT_EVERY:
                wait(marks.pop(0))
            if time.perf_counter() > ends_s:
                break
    if qos == 0 and not job["is_marked_by_message"]:
        wait_for_mark(client, topic)
    else:
        if qos == 0:
            # The broker reads in order: once it has this one, it has had all.
            info = client.publish(topic, payload, 1)
        wait(info)
    seconds = time.perf_counter() - start_s
    cpu_s = time.process_time() - cpu_start_s
    return {"rate_msg_s": number / seconds, "cpu_us": cpu_s / number * 1e6, "count": number}


def answer_one_by_one(client: Any, job: Job, payload: bytes) -> Figures:
    """From the call of publish until the broker has acknowledged, one message at a time."""
    topic, took_s = job["topic"], list[float]()
    ends_s = time.perf_counter() + job["seconds"]
    while len(took_s) < job["count"] and (time.perf_counter() < ends_s or len(took_s) < 3):
        start_s = time.perf_counter()
        wait(client.publish(topic, payload, job["qos"]))
        took_s.append(time.perf_counter() - start_s)
        time.sleep(0.005)
    took_s.sort()
    return {"median_ms": took_s[len(took_s) // 2] * 1000, "slowest_ms": took_s[-1] * 1000, "count": len(took_s)}


def fill_and_flush(client: Any, job: Job, payload: bytes) -> Figures:
    """What is published without a link, then sent: from CONNACK until the broker has it all and the file is empty."""
    topic = job["topic"]
    for _ in range(job["count"]):
        client.publish(topic, payload, job["qos"])
    info = client.publish(topic, payload, job["qos"])
    if not info.wait_durable(ANSWER_TIMEOUT_S):
        raise TimeoutError("the queue file was not written in time")
    cpu_start_s = time.process_time()
    start_s = connect(client, job)
    if not client.flush(2 * ANSWER_TIMEOUT_S):
        raise TimeoutError("the broker did not take the queue in time")
    seconds = time.perf_counter() - start_s
    number = job["count"] + 1
    cpu_us = (time.process_time() - cpu_start_s) / number * 1e6
    return {"rate_msg_s": number / seconds, "cpu_us": cpu_us, "count": number}


def main() -> None:
    bare_bytes = private_bytes()
    job = json.load(sys.stdin)
    payload = ("x" * job["payload_bytes"]).encode()
    client = make_client(job)
    if job["action"] == "flush":
        figures = fill_and_flush(client, job, payload)
    else:
        connect(client, job)
        figures = {"publish": publish_all, "answer": answer_one_by_one}[job["action"]](client, job, payload)
    gc.collect()
    figures["memory_bytes"] = private_bytes() - bare_bytes if bare_bytes else 0
    client.disconnect()
    client.loop_stop()
    if job["kind"] == STORE:
        client.close()
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
