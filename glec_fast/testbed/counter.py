"""An independent subscriber: plain paho-mqtt, a session of its own, every message counted by its identity."""

from __future__ import annotations

import threading
from collections import Counter as Tally
from dataclasses import dataclass
from typing import TYPE_CHECKING

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from glec_fast.testbed import ToolError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

CONNECT_TIMEOUT_S = 10.0
END_TOPIC = "end-of-count"


def payload_identity(topic: str, payload: bytes) -> Hashable:
    """The default: two messages are the same if topic and payload are."""
    return topic, payload


@dataclass(frozen=True)
class Login:
    """What the broker wants to know. `ca_cert` makes the connection a TLS one; "" trusts the system's authorities."""

    username: str | None = None
    password: str | None = None
    ca_cert: str | None = None


class Counter:
    """Counts what arrives under `topic_filter`; `start` returns once the subscription stands.

    The session is persistent, so nothing is missed while the counter itself is away. `tally` maps the identity and
    the QoS of a message to how often it came.
    """

    def __init__(
        self,
        host: str,
        port: int,
        topic_filter: str,
        *,
        client_id: str,
        identity: Callable[[str, bytes], Hashable | None] = payload_identity,
        login: Login | None = None,
    ) -> None:
        self._address = (host, port)
        self._filter = topic_filter
        self._end_topic = f"{topic_filter.split('#')[0].rstrip('/')}/{END_TOPIC}"
        self._identity = identity
        self._changed = threading.Condition()
        self._subscribed = False
        self._refused: str | None = None
        self._ended = False
        self.tally: Tally[tuple[Hashable, int]] = Tally()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=False)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        login = login or Login()
        if login.username is not None:
            self._client.username_pw_set(login.username, login.password)
        if login.ca_cert is not None:
            self._client.tls_set(login.ca_cert or None)

    def start(self) -> None:
        host, port = self._address
        try:
            self._client.connect(host, port)
        except OSError as error:
            raise ToolError(f"cannot connect to the broker at {host}:{port}: {error}") from error
        self._client.loop_start()
        with self._changed:
            answered = self._changed.wait_for(lambda: self._subscribed or self._refused, CONNECT_TIMEOUT_S)
        if not answered or self._refused:
            self._leave()
            raise ToolError(f"the broker at {host}:{port} {self._refused or 'did not answer the subscription'}")

    def wait_for(self, condition: Callable[[Tally[tuple[Hashable, int]]], bool], timeout_s: float) -> bool:
        """Wait until `condition(tally)`, looked at with each message; False when it did not come."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self.tally), timeout_s)

    def wait_for_total(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` different messages have come; False when they did not."""
        return self.wait_for(lambda tally: len({identity for identity, _ in tally}) >= count, timeout_s)

    def wait_for_end(self, timeout_s: float) -> bool:
        """Send a mark through the broker and wait until it is back: all that the broker took before is counted then."""
        self._client.publish(self._end_topic, b"", qos=2)
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout_s)

    def stop(self) -> None:
        """Unsubscribe and leave: the broker keeps nothing more for this session."""
        self._client.unsubscribe(self._filter)
        self._leave()

    def _leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> Counter:
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
            client.subscribe(self._filter, qos=2)

    def _on_subscribe(
        self, _client: paho.Client, _data: object, _mid: int, reasons: list[ReasonCode], _: Properties | None
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            self._note_refusal(f"refused the subscription to {self._filter}")
        with self._changed:
            self._subscribed = True
            self._changed.notify_all()

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            if message.topic == self._end_topic:
                self._ended = True
            elif (identity := self._identity(message.topic, bytes(message.payload))) is not None:
                self.tally[identity, message.qos] += 1
            self._changed.notify_all()

    def _note_refusal(self, text: str) -> None:
        with self._changed:
            self._refused = text
            self._changed.notify_all()
