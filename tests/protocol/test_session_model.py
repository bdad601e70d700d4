"""The session against a naive model: any interleaving of what an owner, a broker, a disk and a link can do."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from support.session_model import ALL_BYTES, Driver
from support.wire_reference import PUBACK, PUBCOMP, PUBLISH, PUBREC, parse

PING = b"\xc0\x00"
# Around the buffer's first size, so that it grows and is compacted, and around the steps of the remaining length.
PAYLOAD_BYTES = st.sampled_from([0, 1, 120, 300, 1500, 4090, 16_380])


class SessionMachine(RuleBasedStateMachine):
    """The driver compares after every step."""

    @initialize(durable=st.booleans(), window=st.integers(1, 40), version=st.sampled_from([4, 5]))
    def begin(self, durable: bool, window: int, version: int) -> None:
        self.driver = Driver(window=window, durable=durable, protocol_version=version)

    @rule(qos=st.integers(0, 2), size_bytes=PAYLOAD_BYTES, count=st.integers(1, 6))
    def publish(self, qos: int, size_bytes: int, count: int) -> None:
        for _ in range(count):
            self.driver.publish("glec/dtg", bytes([self.driver.next_message_id % 251]) * size_bytes, qos)
        self.driver.pull()

    @rule(packet=st.sampled_from([PING, b"\x82\x06\x00\x01\x00\x01a\x00", b"\xe0\x00" * 50]))
    def put_packet(self, packet: bytes) -> None:
        self.driver.put_packet(packet)

    @rule(limit_bytes=st.sampled_from([1, 2, 7, 100, 3000, ALL_BYTES]))
    def send(self, limit_bytes: int) -> None:
        self.driver.send(limit_bytes)

    @rule(choice=st.integers(0, 50), reason=st.sampled_from([0, 0, 0, 0x10, 0x92, 0x97]))
    def ack(self, choice: int, reason: int) -> None:
        self.driver.ack_something(choice, reason)
        self.driver.pull()

    @rule(
        kind=st.sampled_from([PUBACK, PUBREC, PUBCOMP]),
        choice=st.integers(0, 300),
        reason=st.sampled_from([0, 0, 0x10, 0x92, 0x95]),
    )
    def ack_anything(self, kind: int, choice: int, reason: int) -> None:
        self.driver.ack_any(kind, choice, reason)
        self.driver.pull()

    @rule()
    def take_image(self) -> None:
        self.driver.take_image()

    @rule(count=st.integers(0, 3))
    def commit(self, count: int) -> None:
        self.driver.commit(count)

    @rule()
    def cut(self) -> None:
        self.driver.cut()

    @rule(session_present=st.booleans(), receive_maximum=st.sampled_from([1, 5, 20, 65_535]))
    def connect(self, session_present: bool, receive_maximum: int) -> None:
        self.driver.connect(session_present, receive_maximum)
        self.driver.pull()


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = settings(
    max_examples=80, stateful_step_count=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def random_step(driver: Driver, rng: random.Random) -> None:
    steps = ["publish", "put", "send", "ack", "odd ack", "image", "commit", "connect"]
    step = rng.choices(steps, [30, 5, 40, 80, 2, 15, 15, 1])[0]
    if step == "publish":
        for _ in range(rng.randrange(1, 12)):
            driver.publish("a" * rng.randrange(1, 9), rng.randbytes(rng.choice([0, 20, 300, 5000])), rng.randrange(3))
        driver.pull()
    elif step == "put":
        driver.put_packet(PING)
    elif step == "send":
        driver.send(rng.choice([1, 50, 2000, ALL_BYTES]))
    elif step == "ack":
        driver.ack_something(rng.randrange(100), rng.choice([0, 0, 0, 0x80]))
        driver.pull()
    elif step == "odd ack":
        driver.ack_any(rng.choice([PUBACK, PUBREC, PUBCOMP]), rng.randrange(300), rng.choice([0, 0, 0x92]))
        if not driver.is_open:
            driver.connect(rng.random() < 0.7, 65_535)
        driver.pull()
    elif step == "image":
        driver.take_image()
    elif step == "commit":
        driver.commit(rng.randrange(3))
    else:
        driver.connect(rng.random() < 0.7, rng.choice([3, 65_535]))
        driver.pull()


@pytest.mark.parametrize("seed", range(6))
def test_long_random_life_is_the_models(seed: int) -> None:
    rng = random.Random(seed)
    driver = Driver(window=rng.choice([1, 10, 60]), durable=seed % 2 == 0, protocol_version=rng.choice([4, 5]))
    for _ in range(1500):
        random_step(driver, rng)
    assert driver.next_message_id > 100


@pytest.mark.parametrize("seed", range(4))
def test_whole_stream_of_one_connection_decodes_to_what_was_put_in(seed: int) -> None:
    """Only the reference decoder looks: order within each kind, nothing lost, nothing torn by a control packet."""
    rng = random.Random(seed)
    driver = Driver(window=50, durable=True, protocol_version=4)
    stream, payloads, pings = b"", [], 0
    for _ in range(400):
        if len(driver.waiting) < 20:
            payload = rng.randbytes(rng.choice([3, 200, 3000]))
            driver.publish("t", payload, rng.choice([0, 1, 2]))
            payloads.append(payload)
            driver.pull()
        if rng.random() < 0.3:
            driver.put_packet(PING)
            pings += 1
        stream += driver.session.peek(size := rng.choice([5, 700, ALL_BYTES]))
        driver.send(size)
        driver.ack_something(rng.randrange(100))
        driver.pull()
        if rng.random() < 0.4:
            driver.take_image()
            driver.commit(rng.randrange(2))
    while driver.waiting or driver.session.in_flight or driver.session.unsent_bytes:
        driver.take_image()
        driver.commit(len(driver.images))
        stream += driver.session.peek(ALL_BYTES)
        driver.send(ALL_BYTES)
        for choice in range(60):
            driver.ack_something(choice)
        driver.pull()
    packets, rest = parse(stream)
    assert rest == b""
    # Behind topic "t" and, above QoS 0, the packet id.
    sent = [each.body[5 if each.flags & 6 else 3 :] for each in packets if each.kind == PUBLISH]
    assert sent == payloads
    assert [each.kind for each in packets].count(0xC) == pings
