"""Messages that go past the queue: QoS 0 while there is a link and no backlog, and what is of one connection alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glec_fast.durable.outcomes import Dropped, DropReason
from glec_fast.errors import QueueClosedError, QueueStorageError
from glec_fast.outbox._outbox import UNSENT_BYTES_MAX, Registration
from glec_fast.outbox.in_the_air import SAID

if TYPE_CHECKING:
    from glec_fast.durable.extras import Extras
    from glec_fast.outbox.handle import PublishHandle
    from glec_fast.outbox.stored import DurableOutbox

_PINGREQ = b"\xc0\x00"
# The broker is asked to answer as often: once in half a minute of telemetry.
_UNASKED_BYTES_MAX = 16_000


class Direct:
    """Of one outbox. Thread-safe, but for `queue`."""

    def __init__(self, outbox: DurableOutbox) -> None:
        self._outbox = outbox
        # The last id, all of which are negative.
        self._last_id = 0
        # Of those, what was said, and what was queued after all.
        self.uncounted = 0

    @property
    def count(self) -> int:
        """Messages that `publish` has taken."""
        return -self._last_id - self.uncounted

    def publish(self, topic: str, payload: str | bytes, extras: Extras | None) -> PublishHandle | None:
        """See `DurableOutbox.publish`; None where it goes to the queue, which is there in order."""
        outbox, limits = self._outbox, self._outbox.server.limits
        columns = () if extras is None else (extras.retain, extras.packed())
        if limits is not None and not limits.allow((0, topic, payload, 0, 0, 0, *columns)):
            # The queue refuses it, and tells of it.
            return None
        with outbox.lock:
            session = outbox.session
            if not outbox.is_open or session.unsent_bytes > UNSENT_BYTES_MAX:
                return None
            # An alert can overtake what is in the queue.
            if outbox.pace.is_measured and session.unanswered_bytes > session.byte_window:
                return None
            if (session.bounds_unproven and not session.has_room_unproven) or not outbox._fill_quota():
                return None
            self._last_id -= 1
            handle = outbox.handle_type(self._last_id, outbox._published, 0)
            outbox._direct[self._last_id] = (topic, payload, extras, handle)
            outbox._admit_direct((self._last_id, topic, payload, 0, 0, 0, *columns))
            if session.unasked_bytes > max(session.byte_window // 4, _UNASKED_BYTES_MAX):
                session.put_packet(_PINGREQ)
        outbox.wake()
        return handle

    def say(self, topic: str, payload: str | bytes, *, retain: bool = False) -> bool:
        """Send a message on this connection alone, ahead of all that waits; False where there is none.

        It has QoS 1, or 0 while the window is full or where the server takes no more. Nothing of it is kept: it is
        neither queued nor sent again.
        """
        outbox, limits = self._outbox, self._outbox.server.limits
        with outbox.lock:
            session = outbox.session
            if not outbox.is_linked or session.has_last:
                return False
            is_kept = retain and (limits is None or limits.retain_available)
            self._last_id -= 1
            self.uncounted += 1
            qos = min(session.room(), 1 if limits is None else limits.qos_max, 1)
            if qos:
                outbox._said.add(self._last_id)
                session.admit(self._last_id, topic, payload, qos, is_kept, None)
            else:
                outbox._admit_direct((self._last_id, topic, payload, SAID, 0, 0, is_kept, None))
        outbox.wake()
        return True

    def queue(self, topic: str, payload: str | bytes, extras: Extras | None, handle: PublishHandle) -> None:
        """The connection ended before it had left."""
        outbox, store = self._outbox, self._outbox.store
        handle._wait_durable = store.wait_durable
        register = Registration(handle, outbox._handles)
        try:
            store.append(topic, payload, 0, urgent=False, extras=extras, register=register)
            self.uncounted += 1
        except (QueueStorageError, QueueClosedError):
            handle._set_as_dropped(DropReason.LINK_LOST)
            outbox._tell_dropped([Dropped(handle.message_id, topic, 0, DropReason.LINK_LOST)])
