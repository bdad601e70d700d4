"""What a manager counts, and where its parts have it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from glec_fast.durable.outcomes import Dropped, DropReason
from glec_fast.fleet.batches import saved_bytes
from glec_fast.fleet.device import disk_written_bytes
from glec_fast.fleet.metrics import Metrics
from glec_fast.mqtt.client import Client, parts_of
from glec_fast.runtime.latency import Latency
from glec_fast.runtime.log import shown
from glec_fast.runtime.thread import is_kept_in

if TYPE_CHECKING:
    from glec_fast.durable.store import Store
    from glec_fast.engine.connector import SecureConnector
    from glec_fast.fleet.connection import Reports
    from glec_fast.fleet.policy import FleetPolicy
    from glec_fast.outbox.stored import DurableOutbox
    from glec_fast.runtime._lock import Lock
    from glec_fast.runtime.summing_log import SummingLog


class Drops:
    """Messages that went unsent: counted, and told to the program, by whichever thread found them. `counts` is for any.

    lock: guards what is counted. callback: the program's, see `MQTTManager.set_drop_callback`.
    """

    def __init__(self, log: SummingLog, lock: Lock) -> None:
        self._log = log
        self._lock = lock
        self._counts: Counter[tuple[str, int]] = Counter()
        self.callback: Callable[[Dropped], None] | None = None

    def on_dropped(self, dropped: list[Dropped]) -> None:
        """These were."""
        with self._lock:
            for each in dropped:
                self._counts[each.reason.value, each.qos] += 1
        callback = self.callback
        if callback is None:
            return
        for each in dropped:
            try:
                callback(each)
            except BaseException as error:  # noqa: PERF203 - each message is told of, whatever became of the others
                if not is_kept_in(error):
                    raise
                self._log.note(logging.ERROR, "errors in the drop callback", shown(error), error=error)

    def counts(self) -> dict[tuple[str, int], int]:
        """By reason and QoS."""
        with self._lock:
            return dict(self._counts)


class Figures:
    """Of one manager; from any thread."""

    def __init__(
        self,
        client: Client,
        store: Store,
        outbox: DurableOutbox,
        connector: SecureConnector,
        policy: FleetPolicy,
        reports: Reports,
        drops: Drops,
        device_id: str,
    ) -> None:
        self._client = client
        self._store = store
        self._outbox = outbox
        self._connector = connector
        self._policy = policy
        self._reports = reports
        self._drops = drops
        self._device_id = device_id

    def snapshot(self, now_unix_s: float, incoming: Mapping[str, Any], *, is_connected: bool) -> Metrics:
        """The counters as they are. incoming: those of what comes in, by their names in `Metrics`."""
        store, outbox, reports = self._store, self._outbox, self._reports
        drops, drops_by_qos = self._dropped()
        try:
            queue_bytes = store.disk_bytes()
        except OSError:
            # Its name is gone; it is put back, or `is_queue_damaged` says so.
            queue_bytes = 0
        gathered, stored = store.gathered, store.figures()
        link, session = parts_of(self._client).dispatcher.link, outbox.session
        return Metrics(
            state=reports.state,
            in_state_s=reports.in_state_s,
            last_failure=reports.last_failure,
            attempts=reports.attempts,
            connects=reports.connects,
            sent_bytes=link.sent_bytes,
            received_bytes=link.received_bytes,
            queue_bytes=queue_bytes,
            is_connected=is_connected,
            messages_sent=outbox.sent_count,
            messages_failed=sum(drops.values()) + outbox.refused_count,
            queue_size=outbox.stored_count,
            reconnect_count=reports.reconnect_count,
            in_doubt=outbox.in_doubt_count,
            drops=drops,
            drops_by_qos=drops_by_qos,
            pin_failures=self._policy.pin_failures,
            expiring_certificates=self._connector.expiring(now_unix_s),
            weaknesses=outbox.weaknesses.counts(),
            lost_in_the_air=outbox.lost_in_the_air,
            accepted=(stored.accepted[0] + outbox.direct.count, *stored.accepted[1:]),
            on_disk=stored.on_disk,
            published=session.encoded_counts,
            acknowledged=session.acknowledged_counts,
            to_disk=stored.writing,
            to_acknowledgement=Latency.of(*session.acknowledging),
            oldest_s=stored.oldest_s,
            disk_written_bytes=disk_written_bytes(),
            disk_syncs=stored.syncs,
            clock_steps=stored.clock_steps,
            certificates=self._connector.certificates,
            **incoming,
            batches=gathered.batches,
            batched_messages=gathered.messages,
            batch_saved_bytes=saved_bytes(gathered, self._device_id),
        )

    def _dropped(self) -> tuple[dict[str, int], dict[str, list[int]]]:
        drops: Counter[str] = Counter()
        by_qos: dict[str, list[int]] = {}
        for (reason, qos), count in self._drops.counts().items():
            drops[reason] += count
            by_qos.setdefault(reason, [0, 0, 0])[qos] += count
        if self._store.rows_lost:
            # Some of them were told of: where somebody waited for them.
            told = drops.get(DropReason.DAMAGED_FILE.value, 0)
            drops[DropReason.DAMAGED_FILE.value] = max(told, self._store.rows_lost)
        if self._outbox.lost_in_the_air:
            # Of them, only so many were told of as memory is kept for.
            drops[DropReason.LOST_IN_THE_AIR.value] = self._outbox.lost_in_the_air
        return dict(drops), by_qos
