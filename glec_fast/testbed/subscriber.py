"""An independent subscriber: plain paho-mqtt, a session of its own, every message kept in the order of its arrival."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from glec_fast.testbed import ToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

CONNECT_TIMEOUT_S = 10.0
END_TOPIC = "end-of-count"


def whole(topic: str, payload: bytes) -> Iterable[tuple[str, bytes]]:
    """The default: what arrives is one message."""
    return ((topic, payload),)


def payload_identity(topic: str, payload: bytes) -> Hashable:
    """The default: two messages are the same if topic and payload are."""
    return topic, payload


class Listener(Protocol):
    """Whatever has an address."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


class Login(NamedTuple):
    """What the broker wants to know. `ca_cert` makes the connection a TLS one; "" trusts the system's authorities."""

    username: str | None = None
    password: str | None = None
    ca_cert: str | None = None


class Arrival(NamedTuple):
    """A message as it came."""

    topic: str
    payload: bytes
    qos: int


class Subscriber:
    """Keeps what arrives under `topic_filter`, and counts it. In a with statement it has subscribed when that begins.

    Its session is persistent: while it is away (`leave`, `start`) the broker keeps what it must get. Away is where it
    should be while its broker is killed: what paho's own subscriber makes of that is not asked here. `tally` maps the
    identity and the QoS of a message to how often it came; an identity of None does not count. `split` takes what
    arrives apart, where it is several messages. Thread-safe.
    """

    def __init__(
        self,
        broker: Listener,
        topic_filter: str = "#",
        *,
        client_id: str = "independent-subscriber",
        identity: Callable[[str, bytes], Hashable | None] = payload_identity,
        split: Callable[[str, bytes], Iterable[tuple[str, bytes]]] = whole,
        login: Login | None = None,
    ) -> None:
        self.host, self.port = broker.host, broker.port
        self._end_topic = f"{topic_filter.removesuffix('#').removesuffix('/')}/{END_TOPIC}"
        self._filters = [topic_filter] if topic_filter.endswith("#") else [topic_filter, self._end_topic]
        self._client_id = client_id
        self._identity = identity
        self._split = split
        self._login = login or Login()
        self._changed = threading.Condition()
        self._is_subscribed = False
        self._refused: str | None = None
        self._ends = 0
        self.arrivals: list[Arrival] = []
        self.tally: Counter[tuple[Hashable, int]] = Counter()

    def start(self) -> None:
        """Connect, also after `leave`; returns once the subscription stands. Raises ToolError where it does not."""
        self._is_subscribed = False
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=self._client_id, clean_session=False)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        login = self._login
        if login.username is not None:
            self._client.username_pw_set(login.username, login.password)
        if login.ca_cert is not None:
            self._client.tls_set(login.ca_cert or None)
        try:
            self._client.connect(self.host, self.port)
        except OSError as error:
            raise ToolError(f"cannot connect to the broker at {self.host}:{self.port}: {error}") from error
        self._client.loop_start()
        with self._changed:
            answered = self._changed.wait_for(lambda: self._is_subscribed or self._refused, CONNECT_TIMEOUT_S)
        if not answered or self._refused:
            self.leave()
            reason = self._refused or "did not answer the subscription"
            raise ToolError(f"the broker at {self.host}:{self.port} {reason}")

    def leave(self) -> None:
        """Disconnect in order; the broker keeps the session."""
        self._client.disconnect()
        self._client.loop_stop()

    def stop(self) -> None:
        """Unsubscribe and leave: the broker keeps nothing more for this session."""
        self._client.unsubscribe(self._filters)
        self.leave()

    def wait_for(self, condition: Callable[[list[Arrival]], bool], timeout_s: float) -> bool:
        """Wait until `condition(arrivals)`, looked at with each arrival; False when it did not come."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self.arrivals), timeout_s)

    def wait_for_count(self, count: int, timeout_s: float = 20.0) -> bool:
        """Wait until `count` messages have come, repeated ones among them."""
        return self.wait_for(lambda arrivals: len(arrivals) >= count, timeout_s)

    def wait_for_all(self, payloads: set[bytes], timeout_s: float = 30.0) -> bool:
        """Wait until each of `payloads` has come at least once."""
        return self.wait_for(
            lambda arrivals: len(arrivals) >= len(payloads) and payloads <= {each.payload for each in arrivals},
            timeout_s,
        )

    def publish(self, topic: str, payload: bytes, qos: int, timeout_s: float = 20.0) -> None:
        """Send a message to the broker, straight; returns once it has it, or after the time-out.

        Raises ToolError where there is no connection.
        """
        try:
            self._client.publish(topic, payload, qos).wait_for_publish(timeout_s)
        except RuntimeError as error:
            raise ToolError(f"the broker at {self.host}:{self.port} does not take a message: {error}") from error

    def wait_for_end(self, timeout_s: float) -> bool:
        """Send a mark through the broker and wait until it is back: all that the broker took before has come then."""
        with self._changed:
            ends = self._ends
        self._client.publish(self._end_topic, b"", qos=2)
        with self._changed:
            return self._changed.wait_for(lambda: self._ends > ends, timeout_s)

    def payloads(self, topic: str | None = None) -> list[bytes]:
        """What came, in order, under one topic or under all."""
        with self._changed:
            return [each.payload for each in self.arrivals if topic is None or each.topic == topic]

    def repeated(self) -> list[bytes]:
        """Payloads that came more than once."""
        return [payload for payload, count in Counter(self.payloads()).items() if count > 1]

    def __enter__(self) -> Subscriber:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _on_connect(
        self, client: paho.Client, _data: object, _flags: paho.ConnectFlags, reason: ReasonCode, _: Properties | None
    ) -> None:
        if reason.is_failure:
            self._note_refusal(f"refused the connection: {reason}")
        else:
            client.subscribe([(each, 2) for each in self._filters])

    def _on_subscribe(
        self, _client: paho.Client, _data: object, _mid: int, reasons: list[ReasonCode], _: Properties | None
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self._note_refusal(f"refused the subscription to {self._filters[0]}")
        with self._changed:
            self._is_subscribed = True
            self._changed.notify_all()

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            if message.topic == self._end_topic:
                self._ends += 1
            else:
                arrival = Arrival(message.topic, bytes(message.payload), message.qos)
                self.arrivals.append(arrival)
                for topic, payload in self._split(arrival.topic, arrival.payload):
                    if (identity := self._identity(topic, payload)) is not None:
                        self.tally[identity, arrival.qos] += 1
            self._changed.notify_all()

    def _note_refusal(self, text: str) -> None:
        with self._changed:
            self._refused = text
            self._changed.notify_all()
