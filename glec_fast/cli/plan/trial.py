"""What the disk is written for a load, tried out: the manager itself over a queue file that is thrown away.

Nothing of it waits for the clock: a transaction is asked for where its time would have come. What the kernel says that
was written (`write_bytes`) is what is told, so that pages of the file, of its log and of the log of images all count.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from glec_fast.cli.plan.acknowledger import Acknowledger
from glec_fast.cli.plan.load import Stream, timeline
from glec_fast.durable.schedule import DONE_COMMIT_DELAY_S
from glec_fast.durable.store import Store
from glec_fast.errors import ConfigError
from glec_fast.fleet.device import disk_written_bytes
from glec_fast.fleet.manager import MQTTManager

if TYPE_CHECKING:
    from glec_fast.fleet.config import MQTTConfig

_MESSAGES_MAX = 2000
_SPAN_S = 600.0
# Of one stream that is seldom.
_ALONE = 8
_REST_S = 0.02
_CLEANUPS = 10
_CLEANUP_PERIOD_S = 300.0
_TIMEOUT_S = 60.0
_FOREVER_S = 3600.0


def _deletes_per_s(streams: list[Stream]) -> float:
    """What the broker has is deleted a second later, and all that it has by then."""
    deletes, due_s, at_s = 0, 0.0, 0.0
    for message in islice(timeline(streams), _MESSAGES_MAX):
        at_s = message.at_s
        if at_s >= due_s:
            deletes += 1
            due_s = at_s + DONE_COMMIT_DELAY_S
    return deletes / at_s


class Written(NamedTuple):
    """Bytes written to the disk a second, with a link and without; what a message takes in the file, and it empty."""

    online_per_s: float
    offline_per_s: float
    row_bytes: float
    empty_bytes: float


def try_out(streams: list[Stream], config: MQTTConfig, directory: Path) -> Written:
    """Writes a few megabytes in a folder of its own under `directory`. Raises ConfigError where nothing can be told."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="glec-fast-plan-") as folder:
        trial = _Trial(config, Path(folder))
        online = trial.cleanups_per_s() + trial.online([stream for stream in streams if stream.qos])
        offline, row_bytes = trial.offline(streams)
        if not offline:
            says = f"the kernel says of no write to {directory}: name a folder on the flash by --directory"
            raise ConfigError(says)
        return Written(online, offline + trial.cleanups_per_s(), row_bytes, trial.empty_bytes())


class _Trial:
    def __init__(self, config: MQTTConfig, folder: Path) -> None:
        self._folder = folder
        self._config = config
        self._count = 0

    def _settings(self, url: str) -> MQTTConfig:
        self._count += 1
        return dataclasses.replace(
            self._config,
            broker_url=url,
            broker_urls=(),
            broker_name=None,
            tls_config=None,
            username=None,
            password=None,
            proxy_url=None,
            local_address=None,
            network_interface=None,
            websocket_headers=(),
            metrics_socket=None,
            status_interval_s=0,
            telemetry_batch_s=0,
            qos0_commit_delay_s=_FOREVER_S,
            queue_max_size=100_000,
            queue_path=self._folder / f"{self._count}.db",
        )

    def online(self, streams: list[Stream]) -> float:
        """Bytes written a second for these streams of QoS 1 and 2, with a link."""
        if not streams:
            return 0.0
        parts = [self._alone(stream) for stream in streams]
        fastest = sum(stream.per_s for stream in streams)
        deleting = sum(after * stream.per_s for (_, after), stream in zip(parts, streams, strict=True)) / fastest
        keeping = sum(before * stream.per_s for (before, _), stream in zip(parts, streams, strict=True))
        return keeping + deleting * _deletes_per_s(streams)

    def _alone(self, stream: Stream) -> tuple[float, float]:
        """Bytes written for one message that is alone: until the broker has it, and for its row's deletion."""
        kept = deleted = 0
        with Acknowledger() as broker, MQTTManager(self._settings(broker.url)) as manager:
            manager.connect()
            for number in range(_ALONE + 1):
                before = disk_written_bytes()
                payload = stream.payloads[number % len(stream.payloads)]
                handle = manager.publish(stream.topic, payload, stream.qos)
                handle.wait_for_publish(_TIMEOUT_S)
                # The network thread is at rest again.
                time.sleep(_REST_S)
                between = disk_written_bytes()
                if not (handle.is_published() and manager.flush(_TIMEOUT_S)):
                    raise ConfigError(f"the disk of {self._folder.parent} is too slow for a trial")
                if number:
                    # But for the first, with which the session is written.
                    kept += between - before
                    deleted += disk_written_bytes() - between
        return kept / _ALONE, deleted / _ALONE

    def offline(self, streams: list[Stream]) -> tuple[float, float]:
        """(bytes written a second, bytes that a message takes in the file), without a link."""
        fastest = sum(stream.per_s for stream in streams)
        span_s = min(_SPAN_S, _MESSAGES_MAX / fastest)
        often = [stream for stream in streams if stream.per_s * span_s >= 2]
        seldom = [stream for stream in streams if stream not in often]
        per_s = 0.0
        rows = 0
        with MQTTManager(self._settings("tcp://127.0.0.1:1")) as manager:
            before = disk_written_bytes()
            delay_s = self._config.qos0_commit_delay_s
            handle, due_s = None, float("inf")
            for message in takewhile(lambda each: each.at_s < span_s, timeline(often) if often else ()):
                if message.at_s >= due_s and handle is not None:
                    handle.wait_durable()
                    due_s = float("inf")
                handle = manager.publish(message.topic, message.payload, message.qos)
                rows += 1
                if message.qos:
                    handle.wait_durable()
                    due_s = float("inf")
                else:
                    due_s = min(due_s, message.at_s + delay_s)
            if handle is not None:
                handle.wait_durable()
                per_s += (disk_written_bytes() - before) / span_s
            for stream in seldom:
                before = disk_written_bytes()
                for number in range(_ALONE):
                    payload = stream.payloads[number % len(stream.payloads)]
                    manager.publish(stream.topic, payload, stream.qos).wait_durable()
                    rows += 1
                per_s += (disk_written_bytes() - before) / _ALONE * stream.per_s
            path = Path(manager.config.queue_path)
        # Once the log is in the file.
        return per_s, (path.stat().st_size - self.empty_bytes()) / max(rows, 1)

    def empty_bytes(self) -> int:
        """Of a queue file without messages."""
        path = self._folder / "empty.db"
        Store(path).close()
        return path.stat().st_size

    def cleanups_per_s(self) -> float:
        """Bytes written a second by what the store does of itself, every five minutes."""
        path = self._folder / "cleaned.db"
        store = Store(path, cleanup_interval_s=0.001)
        try:
            store.append("t", "x", 1)
            store.run(lambda _table: None)
            before, syncs = disk_written_bytes(), store.figures().syncs
            for _ in range(_CLEANUPS):
                store.run(lambda _table: None)
            done = store.figures().syncs - syncs
            return (disk_written_bytes() - before) / max(done, 1) / _CLEANUP_PERIOD_S
        finally:
            store.close()
