"""Why a message was dropped, and which one: nothing is dropped without both being told."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class DropReason(str, Enum):
    """Reason of a drop; the value is the key in `Metrics.drops`."""

    EXPIRED = "expired"
    OVERFLOW = "overflow"
    # As OVERFLOW, of telemetry of which every second message goes.
    THINNED = "thinned"
    # Deleted by `OfflineQueueManager.cleanup_max_retries`.
    GIVEN_UP = "given_up"
    # The broker refused it, or ended connections over it, as often as it may. Kept in the queue file, see `quarantine`.
    QUARANTINED = "quarantined"
    # Deleted by hand, see `MQTTManager.purge`.
    PURGED = "purged"
    DAMAGED_FILE = "damaged_file"
    LINK_LOST = "link_lost"
    # QoS 0 that had left when the link died; nothing proves that it arrived, and it may have.
    LOST_IN_THE_AIR = "lost_in_the_air"
    # Another writer's row that no message can be made of; kept in the queue file's table `glec_set_aside`.
    UNSENDABLE = "unsendable"


class Dropped(NamedTuple):
    """One message that will not be sent (again); immutable. message_id: of its handle. topic, qos: it was accepted with
    them. reason: why.
    """

    message_id: int
    topic: str
    qos: int
    reason: DropReason
