"""Telemetry in batches: a JSON array under zlib, which any platform reads without this program.

messages = json.loads(zlib.decompress(payload))
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import MQTTProtocolVersion

from glec_fast.durable.extras import Extras
from glec_fast.durable.gathering import Company, Gathered
from glec_fast.errors import MessageError
from glec_fast.fleet.messages import Telemetry
from glec_fast.fleet.topics import topic_of
from glec_fast.validation import packet_bytes

if TYPE_CHECKING:
    from glec_fast.fleet.config import MQTTConfig

CONTENT_TYPE = "application/json+zlib"
# Of JSON. More hardly makes a batch smaller, as zlib looks back over 32 KiB.
BATCH_BYTES_MAX = 64 * 1024
# Of zlib's: a tenth smaller than with its usual one, and 60 messages take no longer.
_LEVEL = 9
# A batch that somebody else made may be larger, and zlib can make a little very large: as empty objects 4 MiB take 100.
_DECODED_BYTES_MAX = 4 << 20
# Identifier of Content Type (MQTT 5, 3.3.2.3.9).
_CONTENT_TYPE = b"\x03"
# Of telemetry, to know how long the length of its packet is.
_USUAL_BYTES = 200


def batch_topic(device_id: str) -> str:
    """Where batches go."""
    return topic_of(device_id, f"{Telemetry.SUFFIX}/batch")


def company_of(config: MQTTConfig) -> Company | None:
    """How telemetry is gathered; None where each goes alone."""
    if not config.telemetry_batch_s:
        return None
    extras = None
    if config.protocol_version == MQTTProtocolVersion.MQTTv5:
        text = CONTENT_TYPE.encode()
        extras = Extras(False, None, _CONTENT_TYPE + len(text).to_bytes(2, "big") + text)
    return Company(batch_topic(config.client_id), encode_batch, config.telemetry_batch_s, BATCH_BYTES_MAX, extras)


def encode_batch(messages: list[bytes]) -> bytes:
    """The payload of these, each of which is JSON."""
    # Of numbers that change in a digit or two: shorter matches cost more than they save, 2 % of it.
    stream = zlib.compressobj(_LEVEL, strategy=zlib.Z_FILTERED)
    return stream.compress(b"[" + b",".join(messages) + b"]") + stream.flush()


def may_be_gathered(payload: str | bytes) -> bool:
    """True for one JSON object, which leaves a batch readable for whoever reads it."""
    import json

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        text = payload if isinstance(payload, str) else payload.decode()
        # Infinity and NaN are Python's, not JSON's.
        return isinstance(json.loads(text, parse_constant=refuse), dict)
    except (ValueError, RecursionError):
        return False


def decode_batch(payload: bytes | bytearray | memoryview) -> list[dict[str, Any]]:
    """The messages of glec/dtg/{device_id}/telemetry/batch, in the order in which they were published.

        for message in decode_batch(payload):
            print(message["timestamp"], message["vehicle_speed"])

    Raises MessageError for what is no batch, or has more than 4 MiB. Any thread may call it.
    """
    import json

    try:
        stream = zlib.decompressobj()
        text = stream.decompress(payload, _DECODED_BYTES_MAX)
        if not stream.eof or stream.unused_data:
            raise MessageError("a batch is cut short, has something behind it, or more than 4 MiB")
        messages = json.loads(text)
    except (TypeError, ValueError, BufferError, RecursionError, zlib.error) as error:
        raise MessageError(f"a batch must be a JSON array under zlib: {error}") from error
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise MessageError("a batch must be a JSON array of objects")
    return messages


def saved_bytes(gathered: Gathered, device_id: str) -> int:
    """What batches have kept from going over the air, before TLS and TCP, which add to each message."""
    alone = f"glec/dtg/{device_id}/{Telemetry.SUFFIX}"
    around_bytes = packet_bytes(alone, bytes(_USUAL_BYTES), 0, None) - _USUAL_BYTES
    around_batch_bytes = packet_bytes(batch_topic(device_id), bytes(_USUAL_BYTES), 0, None) - _USUAL_BYTES
    single_bytes = gathered.message_bytes + gathered.messages * around_bytes
    return single_bytes - gathered.batch_bytes - gathered.batches * around_batch_bytes
