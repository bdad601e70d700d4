"""Messages that are out of the way and still on disk, in `glec_set_aside`: which they are, and how long they stay.

A message comes there that a server refused, or ended connections over, as often as it may; and a row of another writer
that no message can be made of. docs/internals/quarantine.md has the whole.
"""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_QUARANTINE_SIZE = 1000
DEFAULT_QUARANTINE_DAYS = 30.0
DAY_MS = 24 * 60 * 60 * 1000
# The newest is kept, however large it is.
QUARANTINE_BYTES_MAX = 32 << 20
# No such message is older. What a clock stamped that was not set yet has no age, and goes by number alone.
CLOCKS_BEGIN_MS = 1_577_836_800_000


class Quarantined(NamedTuple):
    """One entry. number: by which it is asked for; they only grow. time_ms: Unix time at which it came there.

    reason: in words. message_id: that of its handle. payload_bytes: as text in UTF-8. retry_count: refusals.
    """

    number: int
    time_ms: int
    reason: str
    message_id: int
    topic: str
    qos: int
    payload_bytes: int
    retry_count: int


class Bounds(NamedTuple):
    """Of what is kept. size: entries, the oldest go first. age_ms: of an entry."""

    size: int = DEFAULT_QUARANTINE_SIZE
    age_ms: int = int(DEFAULT_QUARANTINE_DAYS * DAY_MS)
