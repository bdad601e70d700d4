"""A broker's refusal of CONNECT (MQTT 3.1.1, 3.2.2.3; MQTT 5, 3.2.2.2), in words for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glec_fast.errors import BrokerRefusalError

if TYPE_CHECKING:
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

# By MQTT 5's codes, in which paho also gives those of 3.1.1.
_ADVICE = {
    132: "update the broker, or set protocol_version: it speaks another version of MQTT",
    133: "check client_id, and which ones the broker lets in",
    134: "check username and password, and that the broker knows them",
    135: "check username and password, and what the broker allows this user and client_id",
    136: "see the broker's log: it is up but takes nobody",
    138: "the broker has banned this client: see its log",
    156: "set broker_url to another server for now",
    157: "set broker_url to the server that it has moved to",
}
# Of a text of the broker's, which may be 64 KiB.
_TEXT_MAX = 200


def refusal(reason: ReasonCode, url: str, properties: Properties | None = None) -> BrokerRefusalError:
    """The error for a CONNACK that is a refusal. properties: of that."""
    advice = _ADVICE.get(reason.value, "see the broker's log")
    says = f"the broker at {url} refused the login: {in_its_words(reason, properties)}; {advice}"
    return BrokerRefusalError(says, reason.value)


def in_its_words(reason: ReasonCode, properties: Properties | None) -> str:
    """A reason code of the broker's, with its Reason String and Server Reference (MQTT 5, 3.2.2.3.9, 3.2.2.3.16)."""
    said = (("it says", "ReasonString"), ("names the server", "ServerReference"))
    words = [f"{how} {text[:_TEXT_MAX]!r}" for how, name in said if (text := getattr(properties, name, ""))]
    return f"{reason} ({', and '.join(words)})" if words else str(reason)
