"""PUBLISH properties from keywords, and what a queue file keeps of them."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import apsw
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

if TYPE_CHECKING:
    from pathlib import Path


def properties_of(**values: Any) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def kept(path: Path) -> list[int]:
    """Ids of messages whose extras another connection sees."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as database:
        return [number for (number,) in database.execute("SELECT message_id FROM glec_extras ORDER BY message_id")]
