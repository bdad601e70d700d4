"""The messages that every contender flushes: the same topic, the same 300 bytes of JSON text."""

from __future__ import annotations

import json

TOPIC = "glec/dtg/DTG-BENCH/alerts"
PAYLOAD_BYTES = 300


def make_rows(count: int, qos: int) -> list[tuple[str, str, int]]:
    return [(TOPIC, make_payload(index), qos) for index in range(count)]


def make_payload(index: int) -> str:
    event = {
        "timestamp": 1_704_931_200_000 + index,
        "device_id": "DTG-BENCH",
        "alert_type": "HARSH_BRAKING",
        "note": "",
    }
    room = PAYLOAD_BYTES - len(json.dumps(event))
    return json.dumps(event | {"note": "x" * room})
