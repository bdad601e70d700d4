"""Whose broker's session the exchanges are of, over several brokers: what is kept of one that is left, and given back.

The owner of a session is a name, which all URLs have in common that lead to one session (a cluster, a broker of several
listeners, a host that was renamed). Packet ids are of one owner and one client id. Where another owner comes next, the
exchanges of the one that is left are *kept*, on disk, under its name:

    SENT      the broker may have the message, without our knowing. It waits for this broker, and no other gets it
    RELEASED  the broker has acknowledged it with PUBREC. It waits for this broker's PUBCOMP
    MOVED     it was SENT, and is in doubt: other brokers get it. The packet id may still be in use at this one
    LEFT      it was RELEASED, is in doubt and taken as delivered. This broker is yet to have the PUBREL

`on_owner_away` says which: "wait" keeps SENT and RELEASED, "move" makes MOVED and LEFT of them, and writes the ledger.
Back at the owner, with session present, the exchanges go on as after any other connection. But where one was MOVED,
its session has packet ids that are nobody's: it is discarded, once what is LEFT there has had its PUBREL.

Any broker may be one that was left, under a name that nobody has told, unless it was told that they are two. So
whichever session is to be discarded gets the PUBRELs of all of them first: what a session was left with is never
discarded. To a broker that never knew of them they mean nothing (MQTT 3.1.1, 4.3.3; MQTT 5, 3.6.2.1). If the broker
was never met and has a session all the same, it most likely is the one: what was kept is moved, and forgotten.

Each change is on disk before the next, in an order in which a crash between two of them loses none: the exchanges are
kept first, while the file still names the owner that is left, and what it then names counts for more than what is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from glec_fast.outbox.unanswered import TRIES
from glec_fast.outbox.weaknesses import Weakness
from glec_fast.runtime.log import logger

if TYPE_CHECKING:
    from glec_fast.outbox.stored import DurableOutbox

Identity: TypeAlias = tuple[str, str]
OnOwnerAway: TypeAlias = Literal["wait", "move"]

SENT, RELEASED, MOVED, LEFT = 1, 2, 4, 5
_MOVED_TO = {SENT: MOVED, RELEASED: LEFT}
_ENTRY = struct.Struct(">QHB")
_IMAGE_FORMAT = b"\x01"
# A host that has many names must not fill the file. Of those that are forgotten nothing waits.
_KEPT_MAX = 16


class Owner(NamedTuple):
    """members: what it was, or may have been, called besides. apart: those that are known to be others."""

    name: str
    members: Collection[str] = ()
    apart: Collection[str] = ()


class Exchange(NamedTuple):
    """state: see the module's text."""

    message_id: int
    packet_id: int
    state: int


class Owners:
    """Of one outbox, whose network thread alone calls this. Raises the errors of its store."""

    def __init__(self, outbox: DurableOutbox, on_owner_away: OnOwnerAway) -> None:
        self._outbox = outbox
        self._store = outbox.store
        # Of the connection that is or comes next.
        self._identity: Identity = ("", "")
        # A broker of that owner has accepted a connection of this process: its session is ours.
        self._has_session = False
        # Whether this connection asks the broker to keep the session.
        self.asks_to_keep = True
        self._moves = on_owner_away == "move"
        self._kept = {identity: _decode(kept) for identity, kept in self._store.kept_sessions().items()}
        # Of no other broker than that which is kept.
        self.withheld: frozenset[int] = frozenset()
        if self._kept.pop(self._store.identity, None) is not None:
            # What the file names goes before it.
            self._store.keep_session(*self._store.identity, None)
        self._apart: Collection[str] = ()
        # How often in a row PUBRELs were sent before a session is discarded, and nothing said that they were read.
        self._tries = 0
        self._note_withheld()

    def identify(self, client_id: str, owner: Owner) -> None:
        """See `DurableOutbox.identify`."""
        outbox, identity = self._outbox, (client_id, owner.name)
        if self._identity != identity:
            known, doubt = self._store.identity, outbox.doubt
            is_first = not any(self._identity) and known[0] == client_id and known[1] in (owner.name, *owner.members)
            outbox.blame.turn_to(outbox.session.notes if is_first else [])
            doubt.is_downgrade_recorded = doubt.is_downgrade_recorded and owner.name == self._identity[1]
            self._identity = identity
            self._has_session = False
            outbox.weaknesses.begin(owner.name)
        # It is not also where nothing was written since, so that the file does not name it.
        outbox.is_session_foreign = not (self._has_session or self.turn_to(client_id, owner))

    def begin(self, session_present: bool) -> None:
        """The broker has accepted the connection. See `Doubt.void_session`."""
        outbox, identity = self._outbox, self._identity
        if not session_present:
            if self.asks_to_keep and not outbox.is_session_foreign:
                outbox.weaknesses.note(Weakness.SESSION_FORGOTTEN)
            outbox.doubt.void_session()
        elif not outbox.is_session_foreign:
            outbox.weaknesses.note_session()
        outbox.weaknesses.tell()
        if outbox.is_session_foreign:
            # It has none of an earlier connection.
            self._forget(identity)
            # On disk with the first QoS 2 message, before it leaves.
            self._store.speak_next_for(*identity)
            outbox.is_session_foreign = False
        self._has_session = True

    def turn_to(self, client_id: str, owner: Owner) -> bool:
        """The next connection is to `owner`. True where it has a session of ours. To be called without a connection."""
        identity, members = (client_id, owner.name), owner.members
        self._apart = owner.apart
        known = self._store.identity
        if self._store.next_identity != known:
            # A name that is on its way to the disk, in which nothing has left: from here on it would be a wrong one.
            self._store.speak_for(*known)
        if known != identity and known[0] == client_id and known[1] in members:
            self._store.speak_for(*identity)
            known = identity
        self._unite(identity, members, is_current=known == identity)
        if known != identity:
            if known[1]:
                self._leave(known)
            if self._may_return(identity):
                self._return_to(identity)
            elif any(known) and self._store.identity != (client_id, ""):
                self._store.speak_for(client_id, "")
        if self._moves:
            for other in list(self._kept):
                self._move(other)
        if known != identity or self.withheld:
            self._note_withheld()
            self._outbox.next_rows.rewind()
        return self._store.identity == identity

    def left_packet_ids(self) -> list[int]:
        """Those that the session, which is to be discarded, may hold a message of ours under.

        None where the broker does not read them, however often it was tried: some end the connection over a PUBREL.
        """
        left = [
            exchange.packet_id
            for each in self._may_be()
            for exchange in self._kept[each]
            if exchange.state in (RELEASED, LEFT)
        ]
        self._tries += bool(left)
        if self._tries <= TRIES:
            return left
        logger.warning("the broker takes no PUBREL for %d messages that were left to it", len(left))
        self.on_left_released()
        return []

    def on_left_released(self) -> None:
        """The broker has read a PUBREL for each of `left_packet_ids`."""
        self._tries = 0
        if self._identity in self._kept:
            return
        for each in self._may_be():
            self._move(each)
            self._forget(each)
        self._note_withheld()
        self._outbox.next_rows.rewind()

    def _may_be(self) -> list[Identity]:
        """Whose session it may be that the broker has."""
        return [each for each in self._kept if each[0] == self._identity[0] and each[1] not in self._apart]

    # ---- one owner

    def _unite(self, identity: Identity, members: Collection[str], *, is_current: bool) -> None:
        """What was kept under another name of this owner is kept under this one."""
        for member in members:
            other = identity[0], member
            if other == identity or other not in self._kept:
                continue
            if is_current or identity in self._kept:
                # Of two records of one session the later counts.
                self._move(other)
            else:
                self._keep(identity, self._kept[other])
            self._forget(other)

    def _leave(self, known: Identity) -> None:
        outbox = self._outbox
        with outbox.lock:
            exchanges = [Exchange(*each) for each in outbox.session.parked_exchanges()]
            reserved = [Exchange(*each, MOVED) for each in outbox.session.reserved_ids()]
        gone = set(self._store.supply.missing([each.message_id for each in exchanges]))
        if self._moves:
            exchanges = [each._replace(state=_MOVED_TO[each.state]) for each in exchanges]
        # Given up without an answer: such a packet id is nobody's either.
        self._keep(known, exchanges + reserved)
        with outbox.lock:
            for message_id in gone:
                outbox.session.forget(message_id)
        if self._moves:
            outbox.doubt.void_session()
        else:
            with outbox.lock:
                outbox.session.resume(False)
        self._note_withheld()
        outbox.next_rows.rewind()
        # Of nobody: from here on what is kept counts.
        self._store.speak_for(known[0], "")

    def _may_return(self, identity: Identity) -> bool:
        kept = self._kept.get(identity)
        return kept is not None and all(each.state != MOVED for each in kept)

    def _return_to(self, identity: Identity) -> None:
        outbox, kept = self._outbox, self._kept.pop(identity)
        with outbox.lock:
            outbox.session.load_image(_as_image(kept))
            outbox.session.expect_stale()
        # A crash before that finds an image of nobody, which counts for nothing, and what is kept.
        self._store.speak_for(*identity)
        self._store.keep_session(*identity, None)

    def _move(self, identity: Identity) -> None:
        """What waits for this owner is in doubt, and waits no longer."""
        kept = self._kept[identity]
        waiting = [each for each in kept if each.state in _MOVED_TO]
        if not waiting:
            return
        gone = set(self._store.supply.missing([each.message_id for each in waiting]))
        self._outbox.doubt.leave_owner(
            {each.message_id for each in waiting if each.state == SENT} - gone,
            [each.message_id for each in waiting if each.state == RELEASED and each.message_id not in gone],
        )
        self._keep(identity, [each._replace(state=_MOVED_TO.get(each.state, each.state)) for each in kept])

    def _keep(self, identity: Identity, exchanges: list[Exchange]) -> None:
        self._kept.pop(identity, None)
        self._kept[identity] = exchanges
        self._store.keep_session(*identity, _encode(exchanges))
        for each in [each for each in self._kept if each != identity][: max(len(self._kept) - _KEPT_MAX, 0)]:
            if not any(exchange.state in _MOVED_TO for exchange in self._kept[each]):
                self._forget(each)

    def _forget(self, identity: Identity) -> None:
        if self._kept.pop(identity, None) is not None:
            self._store.keep_session(*identity, None)

    def _note_withheld(self) -> None:
        self.withheld = frozenset(
            each.message_id for kept in self._kept.values() for each in kept if each.state in _MOVED_TO
        )


def _encode(exchanges: Iterable[Exchange]) -> bytes:
    return b"".join(_ENTRY.pack(*each) for each in exchanges)


def _decode(kept: bytes) -> list[Exchange]:
    if len(kept) % _ENTRY.size:
        logger.error("what of QoS 2 was left with a broker cannot be read: it is sent again where it is still queued")
        return []
    return [Exchange(*each) for each in _ENTRY.iter_unpack(kept)]


def _as_image(exchanges: Iterable[Exchange]) -> bytes:
    entries = [each._replace(state=RELEASED if each.state == LEFT else each.state) for each in exchanges]
    return _IMAGE_FORMAT + _encode(entries) if entries else b""
