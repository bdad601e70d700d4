"""Streams of a server's packets, right and damaged.

FUZZ_STREAMS says how many of each kind, FUZZ_SEED which.
"""

from __future__ import annotations

import os
import random

from support.wire_reference import publish, remaining_length

STREAMS = int(os.environ.get("FUZZ_STREAMS", "1500"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
# Exchanges that a stream's acknowledgements may be for.
IN_FLIGHT = 8
TAILS = (b"", b"\x00", b"\x10", b"\x92\x00", b"\x80\x07\x1f\x00\x04why?", b"\x00\x05\x26\x00\x00\x00\x00")
# The values of a property by its identifier, in every packet that a server may send it in.
PROPERTIES = {
    **dict.fromkeys((1, 36, 37, 40, 41, 42), b"\x01"),
    **dict.fromkeys((19, 33, 34, 35), b"\x00\x01"),
    **dict.fromkeys((2, 17, 39), b"\x00\x00\x00\x09"),
    **dict.fromkeys((3, 8, 9, 18, 21, 22, 26, 28, 31), b"\x00\x03why"),
    11: b"\xff\x7f",
    38: b"\x00\x01k\x00\x02\xc3\xbc",
}
# The first four bits of the packet -> what may stand in it; the others have a reason string and user properties.
FITTING = {
    0x20: (17, 18, 19, 21, 22, 26, 28, 31, 33, 34, 36, 37, 38, 39, 40, 41, 42),
    0x30: (1, 2, 3, 8, 9, 11, 35, 38),
    0xE0: (28, 31, 38),
}


def properties(dice: random.Random, kind: int) -> bytes:
    """None most of the time, or some that mostly belong to such a packet."""
    fitting = FITTING.get(kind, (31, 38)) if dice.random() < 0.95 else tuple(PROPERTIES)
    chosen = dice.sample(fitting, dice.choice((0, 0, 0, 1, 1, 2)))
    packed = b"".join(bytes((identifier,)) + PROPERTIES[identifier] for identifier in chosen)
    return remaining_length(len(packed)) + packed


def packet(dice: random.Random, version: int) -> bytes:
    """One that may be right, more often than not."""
    kind = dice.choice((0x30, 0x32, 0x34, 0x40, 0x50, 0x62, 0x70, 0x90, 0xB0, 0xD0) * 3 + (0xE0, 0x20))
    mid = dice.randrange(IN_FLIGHT + 2) if dice.random() < 0.05 else dice.randrange(1, IN_FLIGHT + 1)
    if kind & 0xF0 == 0x30:
        packed = properties(dice, 0x30) if version == 5 else b""
        topic = dice.choice(("t", "a/b", "\u00e9" * dice.randrange(1, 40), "t", "t", "t", ""))
        return publish(topic, dice.randbytes(dice.randrange(40)), kind >> 1 & 3, mid, properties=packed)
    tail = dice.choice((*TAILS, b"\x00" + properties(dice, kind & 0xF0))) if version == 5 else b""
    body = mid.to_bytes(2, "big") + tail
    if kind in (0x90, 0xB0):
        body = mid.to_bytes(2, "big") + (properties(dice, kind) if version == 5 else b"")
        body += dice.choice((b"\x00", b"\x01\x80", b"\x02", b""))
    elif kind == 0x20:
        body = b"\x00\x00" + (properties(dice, kind) if version == 5 else b"")
    elif kind == 0xE0 and version == 5:
        body = dice.choice((b"", b"\x8b", b"\x00" + properties(dice, kind)))
    elif kind in (0xD0, 0xE0):
        body = b""
    return bytes((kind,)) + remaining_length(len(body)) + body


def damaged(dice: random.Random, stream: bytes) -> bytes:
    """The stream with a few of its bytes changed, taken out, put in or said twice."""
    data = bytearray(stream)
    for _ in range(dice.randrange(4)):
        at = dice.randrange(len(data))
        how = dice.randrange(5)
        if how == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif how == 1:
            data[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif how == 2:
            del data[at : at + dice.randrange(1, 6)]
            data += b"\xd0"
        elif how == 3:
            data[at:at] = dice.randbytes(dice.randrange(1, 6))
        else:
            data[at:at] = data[at : at + dice.randrange(1, 20)]
    return bytes(data)
