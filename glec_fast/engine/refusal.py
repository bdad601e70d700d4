"""A broker's refusal of CONNECT (MQTT 3.1.1, 3.2.2.3; MQTT 5, 3.2.2.2), in words for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glec_fast.errors import BrokerRefusalError

if TYPE_CHECKING:
    from paho.mqtt.reasoncodes import ReasonCode

# By MQTT 5's codes, in which paho also gives those of 3.1.1.
_ADVICE = {
    132: "update the broker, or set protocol_version: it speaks another version of MQTT",
    133: "check client_id, and which ones the broker lets in",
    134: "check username and password, and that the broker knows them",
    135: "check username and password, and what the broker allows this user and client_id",
    136: "see the broker's log: it is up but takes nobody",
    138: "the broker has banned this client: see its log",
}


def refusal(reason: ReasonCode, url: str) -> BrokerRefusalError:
    """The error for a CONNACK that is a refusal."""
    advice = _ADVICE.get(reason.value, "see the broker's log")
    return BrokerRefusalError(f"the broker at {url} refused the login: {reason}; {advice}", reason.value)
