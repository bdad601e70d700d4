"""What of QoS 2 came in, and is to come in once: packet ids that are on disk before PUBREC leaves (4.3.3).

A message is handed on when its PUBLISH comes, and acknowledged once it was handled:

    PUBLISH -> handled -> id on disk -> PUBREC ... PUBREL -> id deleted on disk -> PUBCOMP

A PUBLISH whose id is known is answered, and not handed on. After a crash between the handling and the disk the server
sends the message again, with DUP: the handler gets it twice, rather than never. The id is deleted before PUBCOMP, as
the server may use it for a new message from there on.

Ids are of one session: of another client id or owner they are others, and where the server has no session none is
known. Nobody can always know whether the server's session is the one that they are of: it may have begun another behind
a CONNACK that was lost, or in the last moment of an earlier process. So each has the mark of its message, and one that
has another mark, or that such a server sends for the first time (3.3.1.1), is new.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any
from zlib import crc32

from glec_fast.durable.received_ids import Identity, add_received, delete_received, forget_session, received_ids

if TYPE_CHECKING:
    from glec_fast.durable._table import QueueTable
    from glec_fast.outbox.stored import DurableOutbox

_AT_LEAST_ONCE = 1
# No message's mark: what is on disk is of a session that has ended.
_ENDED = -1
_PUBACK, _PUBREC, _PUBCOMP = b"\x40\x02", b"\x50\x02", b"\x70\x02"


class Received:
    """Of one client with a store. What it knows is guarded by the outbox's lock.

    `begin`, `turn_to`, `resume`, `forget`, `is_new` and `release` are for whoever has the client's loop; the rest for
    any thread.
    """

    def __init__(self, outbox: DurableOutbox) -> None:
        self._outbox = outbox
        self._store = outbox.store
        self.identity: Identity = ("", "")
        # Counts sessions: what was handed on in one is not acknowledged in another.
        self.session_number = 0
        # QoS 1 is acknowledged here too, by `acknowledge`, and what is being handled is not handed on again.
        self.keeps_qos_1 = False
        # Handed on and not acknowledged, of QoS 1 with `keeps_qos_1` alone: packet id -> message.
        self._handed: dict[int, Any] = {}
        # Handed on and being handled, of owners that were turned away from since.
        self._away: list[tuple[Identity, Any]] = []
        # Of QoS 1, acknowledged while there was no connection to say so on, with its mark.
        self._unsaid: dict[int, int] = {}
        # Of QoS 2, with their marks: what is to be on disk, and what is.
        self._known: dict[int, int | None] = {}
        self._on_disk: dict[int, int | None] = {}
        # Of all these, those whose session may have ended without our knowing.
        self._unsure: set[int] = set()
        # What came on this connection, or was released on it, and has no answer yet.
        self._owed: set[int] = set()
        self._owed_pubcomp: set[int] = set()
        # Of what is to be on disk, whom to tell.
        self._then: dict[int, Callable[[], None]] = {}

    # ---- the connection

    def turn_to(self, identity: Identity, members: Collection[str]) -> None:
        """Whose session comes next; members: see `Owner`. Raises QueueStorageError, QueueClosedError."""
        if identity == self.identity:
            return
        found = self._store.run(lambda table: received_ids(table, identity, members))
        with self._outbox.lock:
            left, unwritten = self.identity, self._unwritten()
            self._away += [(left, message) for message in self._handed.values()]
            told = self._begin_session()
            self.identity = identity
            self._known, self._on_disk = found, dict(found)
            # What is being handled still is not handed on again.
            self._handed.update({message.mid: message for whose, message in self._away if whose == identity})
            self._away = [each for each in self._away if each[0] != identity]
        if unwritten:
            self._store.submit(lambda table: add_received(table, left, unwritten), lambda _: None)
        for then in told:
            then()

    def begin(self) -> None:
        """A new connection: the server sends again what it has no answer to."""
        with self._outbox.lock:
            self._owed.clear()
            self._owed_pubcomp.clear()

    def resume(self, *, is_continued: bool) -> None:
        """The server has a session. is_continued: it is known to be that of the connection before."""
        if not is_continued:
            with self._outbox.lock:
                self._unsure.update(self._handed, self._unsaid, self._known)

    def forget(self) -> None:
        """The server has no session: its next packet ids are of new messages.

        That is on disk when this returns. Raises QueueStorageError, QueueClosedError.
        """
        identity = self.identity
        with self._outbox.lock:
            may_be_on_disk = bool(self._known or self._on_disk or self._handed)
            told = self._begin_session()
        for then in told:
            then()
        if not may_be_on_disk:
            return
        self._store.run(lambda table: forget_session(table, identity))
        with self._outbox.lock:
            self._on_disk.clear()

    def _begin_session(self) -> list[Callable[[], None]]:
        """Returns whom to tell that there is nothing to wait for any more. The caller holds the lock."""
        told, self._then = list(self._then.values()), {}
        self.session_number += 1
        for each in (self._handed, self._unsaid, self._known, self._unsure, self._owed, self._owed_pubcomp):
            each.clear()
        return told

    # ---- what comes

    def is_new(self, message: Any) -> bool:
        """True where this PUBLISH is to be handed on; what is not, is answered as it was before."""
        mid, qos = message.mid, message.qos
        if not qos or (qos == _AT_LEAST_ONCE and not self.keeps_qos_1):
            return True
        is_to_be_deleted, then = False, None
        with self._outbox.lock:
            handed = self._handed.get(mid)
            if handed is message:
                # Its handling has raised an exception.
                self._owed.add(mid)
                return True
            if handed is not None and self._is_same(mid, _mark(handed), message):
                self._owed.add(mid)
                return False
            if mid in self._unsaid:
                if self._is_same(mid, self._unsaid.pop(mid), message) and message.dup:
                    self._answer(_PUBACK, mid)
                    return False
            elif mid in self._known:
                if self._is_same(mid, self._known[mid], message):
                    self._owed.add(mid)
                    if not self._is_to_be_written(mid):
                        self._answer_owed(_PUBREC, mid)
                    return False
                # A crash while it is handled would have it taken for the one that is on disk.
                del self._known[mid]
                self._on_disk[mid], is_to_be_deleted = _ENDED, True
                then = self._then.pop(mid, None)
            self._unsure.discard(mid)
            self._handed[mid] = message
            self._owed.add(mid)
        if is_to_be_deleted:
            self._store.submit(self._write, self._on_written)
        if then is not None:
            # Nothing makes the one before come again any more.
            then()
        return True

    def _is_same(self, mid: int, mark: int | None, message: Any) -> bool:
        """True where it is the message that came under this packet id before. The caller holds the lock."""
        if mid in self._unsure and not message.dup:
            return False
        return mark is None or mark == _mark(message)

    def leave(self, message: Any) -> None:
        """It was handed on, and cannot be handled now: it is wanted again when the server sends it again."""
        with self._outbox.lock:
            if self.holds(message):
                del self._handed[message.mid]
                self._owed.discard(message.mid)

    def release(self, mid: int) -> None:
        """PUBREL came."""
        with self._outbox.lock:
            self._handed.pop(mid, None)
            if mid not in self._known and mid not in self._on_disk:
                # Not known (any more): the server must have its answer all the same (4.3.3).
                self._answer(_PUBCOMP, mid)
                return
            self._known.pop(mid, None)
            self._unsure.discard(mid)
            self._owed_pubcomp.add(mid)
        self._store.submit(self._write, self._on_written)

    # ---- what was handled

    def acknowledge(self, mid: int, message: Any = None, then: Callable[[], None] | None = None) -> bool:
        """The message that was handed on under this packet id was handled. One of another session is none.

        message: where given, it is that one alone. then: called by another thread once no crash makes it come again, if
        this returns True; else that is so now, or nobody can say. Raises QueueClosedError.
        """
        with self._outbox.lock:
            handed = self._handed.get(mid)
            is_held = handed is not None and (message is None or handed is message)
            is_recorded = is_held and self._end(handed)
            if is_held and not is_recorded and then is not None:
                self._then[mid] = then
        if not is_held:
            self._acknowledge_away(message)
            if self._unwritten():
                # Where an exception has cut into the first call.
                self._store.submit(self._write, self._on_written)
            return False
        if is_recorded:
            self._send()
        else:
            self._store.submit(self._write, self._on_written)
        return not is_recorded

    def _acknowledge_away(self, message: Any) -> None:
        """It is put on disk, for when its owner is turned to again."""
        with self._outbox.lock:
            whose = next((whose for whose, each in self._away if each is message), None)
            self._away = [each for each in self._away if each[1] is not message]
        if whose is not None and message.qos > _AT_LEAST_ONCE:
            marks: dict[int, int | None] = {message.mid: _mark(message)}
            self._store.submit(lambda table: add_received(table, whose, marks), lambda _: None)

    def holds(self, message: Any) -> bool:
        """True for one that was handed on in this session, and not acknowledged."""
        return self._handed.get(message.mid) is message

    def record(self, table: QueueTable, message: Any) -> None:
        """`acknowledge`, within a transaction of somebody else, who calls `on_recorded` behind it."""
        with self._outbox.lock:
            if message.qos <= _AT_LEAST_ONCE or not self.holds(message):
                return
            identity = self.identity
        add_received(table, identity, {message.mid: _mark(message)})

    def on_recorded(self, message: Any) -> None:
        """The transaction of `record` is on disk. Not of QoS 0."""
        mid = message.mid
        with self._outbox.lock:
            if not self.holds(message):
                return
            if message.qos > _AT_LEAST_ONCE:
                self._on_disk[mid] = _mark(message)
            self._end(message)
        self._send()

    def _end(self, message: Any) -> bool:
        """True where the answer, if one is owed, is given. The caller holds the lock."""
        mid = message.mid
        if message.qos > _AT_LEAST_ONCE:
            # First: cut into, it is not taken for a new one.
            self._known[mid] = _mark(message)
        del self._handed[mid]
        if message.qos > _AT_LEAST_ONCE:
            if self._is_to_be_written(mid):
                return False
            self._answer_owed(_PUBREC, mid)
        elif mid in self._owed and self._outbox.is_linked and not self._outbox.session.has_last:
            self._answer_owed(_PUBACK, mid)
        else:
            self._unsaid[mid] = _mark(message)
        return True

    def _unwritten(self) -> dict[int, int | None]:
        return {mid: mark for mid, mark in self._known.items() if self._is_to_be_written(mid)}

    def _is_to_be_written(self, mid: int) -> bool:
        return mid not in self._on_disk or self._on_disk[mid] != self._known[mid]

    # ---- the disk

    def _write(self, table: QueueTable) -> tuple[int, dict[int, int | None], list[int]]:
        """Have on disk what is known: (session number, added, deleted)."""
        with self._outbox.lock:
            number, identity = self.session_number, self.identity
            added = self._unwritten()
            deleted = [mid for mid in self._on_disk if mid not in self._known]
        if added:
            add_received(table, identity, added)
        if deleted:
            delete_received(table, identity, deleted)
        return number, added, deleted

    def _on_written(self, written: tuple[int, dict[int, int | None], list[int]]) -> None:
        number, added, deleted = written
        with self._outbox.lock:
            if number != self.session_number:
                return
            self._on_disk.update(added)
            for mid in deleted:
                self._on_disk.pop(mid, None)
            # Another message may have come under the id meanwhile, and not be handled yet.
            present = [mid for mid, mark in added.items() if mid in self._known and self._known[mid] == mark]
            told = [self._then.pop(mid) for mid in present if mid in self._then]
            for mid in present:
                self._answer_owed(_PUBREC, mid)
            for mid in deleted:
                if mid in self._owed_pubcomp:
                    self._owed_pubcomp.discard(mid)
                    self._answer(_PUBCOMP, mid)
        self._send()
        for then in told:
            then()

    def _answer_owed(self, kind: bytes, mid: int) -> None:
        if mid in self._owed:
            self._owed.discard(mid)
            self._answer(kind, mid)

    def _answer(self, kind: bytes, mid: int) -> None:
        """The caller holds the lock; on a connection that has ended nobody waits for it."""
        if self._outbox.is_linked:
            self._outbox.put_ack(kind + mid.to_bytes(2, "big"))

    def _send(self) -> None:
        self._outbox.put_acks()
        self._outbox.wake()


def _mark(message: Any) -> int:
    """By which it is told from another message under its packet id."""
    checksum: int = crc32(message.payload, crc32(message.topic.encode()))
    size_bytes: int = len(message.payload)
    return size_bytes << 34 | int(message.qos) << 32 | checksum
