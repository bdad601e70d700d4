"""An independent subscriber: plain paho, every message kept in the order of its arrival."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast.testbed.broker import Broker
    from support.ejabberd import Ejabberd

CONNECT_TIMEOUT_S = 10.0


class Arrival(NamedTuple):
    topic: str
    payload: bytes
    qos: int


class Subscriber:
    """Its session is persistent: while it is away (`leave`, `come_back`) the broker keeps what it must get.

    Away is where it should be while its broker is killed: what paho's own subscriber makes of that is not asked here.
    """

    def __init__(
        self,
        broker: Broker | Ejabberd,
        topic_filter: str = "#",
        client_id: str = "independent-subscriber",
        credentials: tuple[str, str] | None = None,
    ) -> None:
        self._address = (broker.host, broker.port)
        self._filter = topic_filter
        self._changed = threading.Condition()
        self._is_subscribed = False
        self.arrivals: list[Arrival] = []
        self._client_id = client_id
        self._credentials = credentials

    def come_back(self) -> None:
        """Connect; returns once the subscription stands."""
        self._is_subscribed = False
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=self._client_id, clean_session=False)
        self._client.max_inflight_messages_set(0)
        if self._credentials is not None:
            self._client.username_pw_set(*self._credentials)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.connect(*self._address)
        self._client.loop_start()
        with self._changed:
            assert self._changed.wait_for(lambda: self._is_subscribed, CONNECT_TIMEOUT_S), "no SUBACK"

    def leave(self) -> None:
        """Disconnect in order; the broker keeps the session."""
        self._client.disconnect()
        self._client.loop_stop()

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

    def payloads(self, topic: str | None = None) -> list[bytes]:
        """What came, in order, under one topic or under all."""
        with self._changed:
            return [each.payload for each in self.arrivals if topic is None or each.topic == topic]

    def repeated(self) -> list[bytes]:
        """Payloads that came more than once."""
        return [payload for payload, count in Counter(self.payloads()).items() if count > 1]

    def __enter__(self) -> Subscriber:
        self.come_back()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def _on_connect(self, client: paho.Client, *_: object) -> None:
        client.subscribe(self._filter, qos=2)

    def _on_subscribe(self, *_: object) -> None:
        with self._changed:
            self._is_subscribed = True
            self._changed.notify_all()

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            self.arrivals.append(Arrival(message.topic, bytes(message.payload), message.qos))
            self._changed.notify_all()
