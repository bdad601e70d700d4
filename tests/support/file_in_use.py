"""What the tests of a queue file in use share."""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from glec_fast.durable.store import Store
from support.scripted_broker import ScriptedBroker
from support.scripted_gateway import ScriptedGateway
from support.store import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def flush(gateway: ScriptedGateway, broker: ScriptedBroker) -> Counter[str]:
    """Over the connection that there is."""
    deadline_s = time.monotonic() + WAIT_S
    gateway.store.request_commit()
    while gateway.store.size or gateway.session.in_flight:
        assert time.monotonic() < deadline_s, f"{gateway.store.size} messages are stuck, {broker.counts()} came"
        gateway.commit()
        broker.feed(gateway.send())
        gateway.receive(broker.handle(broker.waiting_packets()))
    return Counter(broker.counts())


@contextmanager
def damaged(path: Path) -> Iterator[Store]:
    """An open queue of 1200 messages, of which the log had more than is in memory, until somebody emptied that."""
    path.parent.mkdir()
    with closing(Store(path)) as store:
        store.append_many([("t", "x" * 1000, 2)] * 500)
        store.run(lambda _table: None)
        with store._writer.lock:
            store._writer.connection.wal_checkpoint()
        store.append_many([("t", "x" * 1000, 2)] * 700)
        store.run(lambda _table: None)
        os.truncate(path.with_name("queue.db-wal"), 0)
        yield store
