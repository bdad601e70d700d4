"""What deleted rows have left on the disk is given back while the queue file is in use."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import apsw

from glec_fast.durable.database import LOG_BYTES_MAX
from glec_fast.durable.store import Store
from glec_fast.fleet.offline_queue import OfflineQueueManager
from support.clock import Clock
from support.store import WAIT_S, RecordingOutbox, append, ids_on_disk, wait_for

if TYPE_CHECKING:
    from pathlib import Path


class TestSize:
    """What deleted rows have left on the disk is given back."""

    def test_the_log_is_short_again_after_somebody_has_read_for_long(self, path: Path) -> None:
        path.parent.mkdir()
        log = path.with_name("queue.db-wal")
        with OfflineQueueManager(path, max_queue_size=1000) as queue:
            queue.enqueue("t", "x", 1)
            with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as reader:
                reader.execute("BEGIN")
                assert reader.execute("SELECT count(*) FROM mqtt_offline_queue").get == 1
                for _ in range(60):
                    queue.enqueue_many([("t", "x" * 1000, 1)] * 100)
                assert log.stat().st_size > 4 * LOG_BYTES_MAX
            for _ in range(3):
                queue.enqueue_many([("t", "x" * 1000, 1)] * 100)
            assert log.stat().st_size <= LOG_BYTES_MAX

    def test_the_file_is_small_again_after_a_flush(self, path: Path) -> None:
        path.parent.mkdir()
        monotonic = Clock(0.0)
        with closing(Store(path, max_queue_size=10**6, monotonic=monotonic)) as store:
            outbox = RecordingOutbox(store)
            ids = store.append_many([("t", "x" * 1000, 1)] * 6000)
            assert store.wait_durable(ids[-1], WAIT_S)
            assert outbox.read_all(1000) == ids
            outbox.finish(ids, drained=True)
            assert store.wait_empty(WAIT_S)
            kept = append(store, 100)
            assert path.stat().st_size > 4 << 20
            monotonic.now_s += 11
            store.request_commit()
            assert wait_for(lambda: path.stat().st_size < 1 << 20)
            assert path.with_name("queue.db-wal").stat().st_size <= LOG_BYTES_MAX
            assert ids_on_disk(path) == kept
            assert store._writer.took_s < 1
            assert append(store, 1) == [kept[-1] + 1]
            assert outbox.read_all() == [*kept, kept[-1] + 1]
