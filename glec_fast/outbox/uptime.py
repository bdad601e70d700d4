"""Whether a broker that still has our session has gone back: asked of mosquitto, over MQTT 3.1.1, where it matters.

A broker that was restored from an older save may hold QoS 2 messages of then, which nobody will release; so on a
session that is resumed as many places count as taken as ever were (`Session.stale`). What a broker keeps in memory does
not go back. So if it has run for longer than since the session was last known to hold nothing stale, it holds nothing
stale. mosquitto says in `$SYS/broker/uptime`, a retained message, for how many seconds it has run: some time ago, never
too many.

It is asked only while a message waits for such a place. SUBSCRIBE and UNSUBSCRIBE leave as one, so that the session
keeps no subscription; the filter ends in `/#`, so that it is none of the program's own; and the program hears of
neither answer, nor of the message. A broker that has nothing to say is not asked again on that connection.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glec_fast.outbox.stored import DurableOutbox

TOPIC = "$SYS/broker/uptime"
_FILTER = f"{TOPIC}/#".encode()
_SUBSCRIBE, _UNSUBSCRIBE = 0x82, 0xA2
_MQTT_5 = 5
# What it says is up to ten seconds old, and may prove more a while later.
_PAUSE_S, _TRIES = 5.0, 4
# Connections that the broker ended before an answer, in a row: it may do so over the question.
_ENDS_MAX = 2
# How far two clocks may be apart from the start, and drift.
_APART_S, _DRIFT = 2.0, 0.001


class Uptime:
    """Of one outbox, for whoever has its loop. No lock may be held."""

    def __init__(self, outbox: DurableOutbox) -> None:
        self._outbox = outbox
        self._store = outbox.store
        # Packet ids of the question that is on its way.
        self._ids: frozenset[int] = frozenset()
        # It leads to one broker alone.
        self.is_of_one = False
        # The session is known to hold nothing stale.
        self._is_kept = False
        self._tries_left = self._ends = 0
        self._again_s = 0.0
        self._has_said = False
        # What a packet that was sent at a moment will prove once it is answered: up to where, and when.
        self._asked_to, self._asked_at = 0, 0

    def on_connecting(self) -> None:
        """A connection is made next: what CONNACK says may be as old as this when it is read."""
        self._asked_at = self._store.clock.moment()

    def begin(self, session_present: bool) -> None:
        """The broker has accepted a connection, and said whether it has the session."""
        session = self._outbox.session
        self._is_kept = not session_present
        self._tries_left = _TRIES if self.is_of_one and self._ends < _ENDS_MAX else 0
        self._again_s = 0.0
        self._asked_to = 0
        if self._is_kept:
            with self._outbox.lock:
                session.kept_until = self._asked_at

    def end(self) -> None:
        """The connection has ended."""
        outbox = self._outbox
        # A link that dies without a word says nothing of the question.
        self._ends += outbox.is_asking and (outbox.is_left or outbox.is_broken_off)
        outbox.is_asking = False
        # They are given back, and may be the program's next.
        self._ids = frozenset()

    def look(self) -> None:
        """Now and then: ask, or note how long the session is known to be what it was."""
        outbox, session = self._outbox, self._outbox.session
        if session.protocol_version == _MQTT_5 or not outbox.is_open:
            return
        if self._is_kept:
            self._note()
        elif session.is_held_by_stale and self._tries_left and time.monotonic() >= self._again_s:
            self._tries_left -= 1
            self._again_s = time.monotonic() + _PAUSE_S
            if self._store.clock.seconds_since(session.kept_until) is not None:
                self._ask()

    def _note(self) -> None:
        """The broker has answered what was asked at a moment, and so ran then with the session as it was."""
        session = self._outbox.session
        if self._asked_to and session.answered_to < self._asked_to:
            return
        with self._outbox.lock:
            if self._asked_to:
                session.kept_until = self._asked_at
            # Anything that is encoded from now on.
            self._asked_to = session.sent_to + session.unsent_bytes + 1
        self._asked_at = self._store.clock.moment()

    def _ask(self) -> None:
        outbox = self._outbox
        subscribe_id, unsubscribe_id = outbox.reserve_packet_id(), outbox.reserve_packet_id()
        if not (subscribe_id and unsubscribe_id):
            return
        self._ids = frozenset((subscribe_id, unsubscribe_id))
        self._has_said, outbox.is_asking = False, True
        self._asked_at = self._store.clock.moment()
        of_filter = len(_FILTER).to_bytes(2, "big") + _FILTER
        packets = b"".join(
            bytes((kind, 2 + len(body))) + packet_id.to_bytes(2, "big") + body
            for kind, packet_id, body in (
                (_SUBSCRIBE, subscribe_id, of_filter + b"\0"),
                (_UNSUBSCRIBE, unsubscribe_id, of_filter),
            )
        )
        outbox.put_packet(packets)
        outbox.wake()

    def take_answer(self, packet_id: int) -> bool:
        """True where SUBACK or UNSUBACK of this id is ours."""
        if packet_id not in self._ids:
            return False
        self._ids -= {packet_id}
        if not self._ids:
            self._outbox.is_asking = False
            self._ends = 0
            if not self._has_said:
                self._tries_left = 0
        return True

    def take_message(self, payload: bytes | bytearray) -> bool:
        """True where a retained message of that topic is the answer; what it has to say is taken."""
        if self._has_said:
            return False
        self._has_said = True
        outbox, session = self._outbox, self._outbox.session
        count = bytes(payload).split(b" ")[0]
        gone_s = self._store.clock.seconds_since(session.kept_until)
        if count.isdigit() and gone_s is not None and int(count[:12]) > gone_s * (1 + _DRIFT) + _APART_S:
            self._is_kept = True
            self._tries_left = 0
            with outbox.lock:
                session.prove_kept()
                # The broker may have said so long before it is read.
                session.kept_until = self._asked_at
            outbox.wake()
        return True
