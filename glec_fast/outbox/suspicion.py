"""Which message a broker ends connections over, if it is any, and when that is certain. No I/O, no clock, no lock.

A broker may end the connection over a message and say nothing of why: it is too large, its QoS or its topic are not
allowed. Sent again first on the next connection, it would be in the way of all others for ever. But connections also
end because links break, and then no message is to blame. So it takes proof:

- *Exposed* is what was on its way, without an answer, as the peer ended the connection. Some of it may have arrived,
  and its answers been lost by that end. So it goes *alone* on the next connection: nothing else is on its way until it
  is answered, and no other is sent a third time. That takes a round trip for each; where many were exposed, it is done
  once they were so twice.
- A connection that the peer ends over what is alone is a *try*. Each message has `tries_max` of them in a row, or more
  where links are known to break: `needed` is as many as a link like that would have to break just then, by chance, less
  often than once in a million. What is known of links comes from messages that ended connections and got through later.
- Then it stands *aside*, and the others go. Until now they may still turn out to be no better off without it: only once
  a connection has carried several times the bytes that it was tried with, and lasts, is it for quarantine.
- Where the server says in DISCONNECT that it is the message (MQTT 5), its tries are all the proof there is to be had.

Each of many such messages ends a connection before anything is known of it. So once one was *found*, as it stood aside,
what is *suspicious* goes last, alone, behind all that is not: what was exposed, and what has a trait of one that was
found, or tried since, unless the broker has answered a suspicious one with that trait.

A link that dies without a word ends no connection here: we do, and blame nobody. But where it does so behind the same
message again and again, as where a path loses what is large, all others would wait until that one's age ends. So after
`tries_max` of these it goes last on every second connection. So does at once what a broker was seen to read, and never
answers.

All of it outlives the process, as `notes` that the in-flight image carries: a gateway that restarts often would begin
to count anew each time, and what was exposed would go together with all else once more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import ceil, log
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from zlib import crc32

from glec_fast.durable.extras import ROW_COLUMNS
from glec_fast.validation import packet_bytes

if TYPE_CHECKING:
    from glec_fast.durable.transaction import Row

# So many messages may go one by one at once: it takes as many round trips.
_FEW = 32
# The others do once they were exposed so often.
_EXPOSURES_MAX = 2
# Less likely than that a link breaks by chance just where a message is alone, so often in a row.
_CHANCE = 1e-6
_TRIES_MAX = 48
# A message that a link has little chance to carry at all.
_FAILS_MAX = 0.75
# A connection without what stands aside has to carry so many times its bytes, or so many.
_CONTROL_FACTOR = 8
_CONTROL_BYTES_MAX = 32 * 1024
# What was learned of a link counts half after so much more.
_REMEMBERED_BYTES = 1 << 20
# Kinds of notes. Of a message: connections that ended while it was exposed, and while it was alone; the most bytes that
# went then, in units; tries that the server has named it in, and its reason. Of links: what they carried, and ends;
# the message that they fell silent behind, and how often in a row. A trait of what was found, and if it still tells;
# the least bytes of what was found, and the most of a suspicious message that was answered.
_EXPOSED, _TRIED, _SIZED, _NAMED, _LINK, _SILENCED, _TRAIT, _FOUND_BYTES, _ANSWERED_BYTES = range(0x80, 0x89)
_UNIT_BYTES = 16
_VALUE_MAX = 0xFFFF
# More are not noted: the image goes to disk before each message of QoS 2.
_NOTED_MAX = 1024
_TRAITS_MAX = 64
# Traits that have a number of their own, behind that of the QoS; that of a topic comes from the topic.
_RETAINED, _WITH_PROPERTIES, _TOPICS = 3, 4, 5

Note: TypeAlias = tuple[int, int, int]
# Of what goes last, the lowest first: tries, traits that it shares with what was found, about how large, message id.
Rank: TypeAlias = tuple[int, int, int, int]


class Verdict(NamedTuple):
    """message_id: for quarantine. tries: connections that were ended over it alone. reason: of DISCONNECT, or 0."""

    message_id: int
    tries: int
    reason: int


class Traits(NamedTuple):
    """What a broker may end connections over. numbers: of its QoS, its topic, ...; size_bytes: of the packet."""

    numbers: tuple[int, ...]
    size_bytes: int


def traits_of(row: Row) -> Traits:
    """Of a row as `Store.read` gives it."""
    topic, payload, qos = row[1:4]
    retain, packed = row[ROW_COLUMNS : ROW_COLUMNS + 2] or (False, None)
    numbers = [qos, *(_TOPICS + crc32(each.encode()) for each in (topic, topic.partition("/")[0] + "/#"))]
    numbers += [_RETAINED] * bool(retain) + [_WITH_PROPERTIES] * (packed is not None and len(packed) > 1)
    return Traits(tuple(numbers), packet_bytes(topic, payload, qos, packed))


class Suspicion:
    """Over the connections to one broker. The owner serialises calls."""

    def __init__(self, tries_max: int) -> None:
        self._tries_max = tries_max
        # Message id -> connections that ended while it was exposed; while it was alone; the most bytes that went then.
        self._exposures: dict[int, int] = {}
        self._tries: dict[int, int] = {}
        self._bytes: dict[int, int] = {}
        # Tries that the server has named the message in, with the last reason.
        self._named: dict[int, tuple[int, int]] = {}
        # Go alone on this connection.
        self.suspects: set[int] = set()
        # Are not sent for now.
        self.aside: set[int] = set()
        # The oldest that was exposed as a link fell silent, and how many of these in a row it was.
        self._silenced: int | None = None
        self._silent_ends = 0
        # Goes last on this connection.
        self.passed_over: int | None = None
        # Traits of what was found, and whether they still tell. Not empty from then on.
        self.traits: dict[int, bool] = {}
        self._found_bytes = self._answered_bytes = 0
        # The last connection ended over a suspicious message before anything was answered on it.
        self._is_none_the_wiser = False
        # It ended, and not over a suspicious message: none may have had its turn.
        self.is_overdue = False
        # Of those of `suspects` that were met on this connection.
        self._met: dict[int, Traits] = {}
        # Connections that ended over nothing, and what all of them carried.
        self._innocent_ends = 0.0
        self._carried_bytes = 0.0

    @property
    def is_idle(self) -> bool:
        """True where nothing is suspected, nor was any message ever found."""
        return not (self._exposures or self._silent_ends or self.traits)

    def notes(self) -> list[Note]:
        """For `recall`, by a later process: (number, value, kind)."""
        exposures = list(self._exposures.items())[:_NOTED_MAX]
        notes = [(message_id, min(count, _VALUE_MAX), _EXPOSED) for message_id, count in exposures]
        notes += [(message_id, min(tries, _VALUE_MAX), _TRIED) for message_id, tries in self._tries.items()]
        for message_id, size in self._bytes.items():
            notes.append((message_id, min(ceil(size / _UNIT_BYTES), _VALUE_MAX), _SIZED))
        for message_id, (named, reason) in self._named.items():
            notes.append((message_id, min(named, 0xFF) << 8 | reason, _NAMED))
        if self._silenced is not None:
            notes.append((self._silenced, min(self._silent_ends, _VALUE_MAX), _SILENCED))
        if self._innocent_ends:
            notes.append((max(int(self._carried_bytes), 1), min(ceil(self._innocent_ends), _VALUE_MAX), _LINK))
        notes += [(trait, tells, _TRAIT) for trait, tells in self.traits.items()]
        sizes = (self._found_bytes, _FOUND_BYTES), (self._answered_bytes, _ANSWERED_BYTES)
        return notes + [(size, 0, kind) for size, kind in sizes if size]

    def recall(self, notes: Iterable[Note], gone: Collection[int]) -> None:
        """Go on from what an earlier process noted; before anything else. gone: messages that have no row any more."""
        for number, value, kind in notes:
            if kind == _LINK:
                self._carried_bytes, self._innocent_ends = number, value
            elif kind == _TRAIT:
                self.traits[number] = bool(value)
            elif kind == _FOUND_BYTES:
                self._found_bytes = number
            elif kind == _ANSWERED_BYTES:
                self._answered_bytes = number
            elif number in gone:
                continue
            elif kind == _EXPOSED:
                self._exposures[number] = value
            elif kind == _TRIED:
                self._tries[number] = value
            elif kind == _SIZED:
                self._bytes[number] = value * _UNIT_BYTES
            elif kind == _NAMED:
                self._named[number] = value >> 8, value & 0xFF
            elif kind == _SILENCED:
                self._silenced, self._silent_ends = number, value
        self.aside = {each for each, tries in self._tries.items() if tries >= self.needed(each)}

    def begin(self) -> None:
        """A connection begins."""
        self.aside = {each for each in self.aside if self._tries.get(each, 0) >= self.needed(each)}
        is_due = self._silent_ends >= self._tries_max and self.passed_over is None
        self.passed_over = self._silenced if is_due else None
        often = {each for each, count in self._exposures.items() if count >= _EXPOSURES_MAX}
        self.suspects = set() if self.traits else often - self.aside - {self.passed_over}
        self._met.clear()

    def rank(self, row: Row) -> Rank | None:
        """The place of a row among those that go last on this connection; None where it goes in its turn."""
        message_id = row[0]
        if message_id in self.suspects:
            self._met[message_id] = traits_of(row)
            return None
        traits = traits_of(row)
        is_exposed = bool(self.traits) and self._exposures.get(message_id, 0) >= _EXPOSURES_MAX
        is_alike = row[3] > 0 and self._are_shared(traits) and not self._is_none_the_wiser
        if is_exposed or is_alike or message_id == self.passed_over:
            shared = int(self._answered_bytes < self._found_bytes <= traits.size_bytes)
            shared += sum(self.traits.get(each, False) for each in traits.numbers)
            return self._tries.get(message_id, 0), shared, traits.size_bytes.bit_length(), message_id
        return None

    def _are_shared(self, traits: Traits) -> bool:
        """True where they are like those of what was found. As large is what is larger than any that was answered."""
        is_large = self._answered_bytes < min(traits.size_bytes, self._found_bytes)
        return is_large or any(self.traits.get(each, False) for each in traits.numbers)

    def _learn(self, traits: Traits) -> None:
        """The broker has ended a connection over a message with these."""
        if traits.size_bytes > self._answered_bytes:
            self._found_bytes = min(self._found_bytes or traits.size_bytes, traits.size_bytes)
        for each in traits.numbers:
            self.traits[each] = self.traits.pop(each, True)
        while len(self.traits) > _TRAITS_MAX:
            del self.traits[next(iter(self.traits))]

    def _clear(self, traits: Traits) -> bool:
        """A suspicious message with these was answered. True where they told anything."""
        told = self._are_shared(traits)
        self._answered_bytes = max(self._answered_bytes, traits.size_bytes)
        self.traits.update(dict.fromkeys(self.traits.keys() & traits.numbers, False))
        return told

    def on_answered(self, ids: Iterable[int]) -> bool:
        """The broker has answered these. True where what was suspicious may be so no more."""
        has_cleared = False
        for message_id in ids:
            if message_id == self._silenced:
                self._silenced, self._silent_ends, self.passed_over = None, 0, None
            if self._exposures.pop(message_id, None) is not None:
                self._innocent_ends += self._tries.pop(message_id, 0)
                self._bytes.pop(message_id, None)
                self._named.pop(message_id, None)
                self.aside.discard(message_id)
            self.suspects.discard(message_id)
            traits = self._met.pop(message_id, None)
            if traits is not None and self.traits:
                has_cleared = self._clear(traits) or has_cleared
        return has_cleared

    def on_ignored(self, message_id: int | None) -> None:
        """The broker has read what goes alone, and does not answer it: others go now, and before it next time.

        message_id: None where it is none of the queue's.
        """
        self.suspects = set()
        if message_id is not None:
            self._silenced, self._silent_ends = message_id, self._tries_max

    def on_gone(self, ids: Iterable[int]) -> None:
        """They will not be sent, whatever the broker thinks of them."""
        for message_id in ids:
            self._met.pop(message_id, None)
        self.on_answered(ids)

    def end(
        self,
        exposed: list[int],
        exposed_bytes: int,
        carried_bytes: int,
        *,
        by_peer: bool,
        is_silent: bool = False,
        has_answers: bool = True,
        reason: int = 0,
    ) -> int:
        """A connection ended. Returns the number of the try that this was, 0 where it was none.

        exposed: see the module's text, the oldest first. exposed_bytes: of the last of them, as far as they left.
        carried_bytes: sent on the connection. by_peer: it ended the connection, is_silent: we did, as nothing came.
        has_answers: something was answered on it.
        reason: of a DISCONNECT that is about a message, or 0.
        """
        self._carried_bytes += carried_bytes
        if self._carried_bytes > _REMEMBERED_BYTES:
            self._carried_bytes /= 2
            self._innocent_ends /= 2
        was_alone = bool(self.suspects)
        self.suspects = set()
        self._is_none_the_wiser = bool(self.traits) and was_alone and not has_answers
        self.is_overdue = bool(self.traits) and not was_alone
        if is_silent and exposed:
            self._silent_ends = self._silent_ends + 1 if exposed[0] == self._silenced else 1
            self._silenced = exposed[0]
        if not by_peer:
            return 0
        if not exposed:
            self._innocent_ends += 1
            return 0
        count = _EXPOSURES_MAX if len(exposed) <= _FEW else 1
        for message_id in exposed:
            self._exposures[message_id] = self._exposures.get(message_id, 0) + count
        if len(exposed) > 1:
            return 0
        (message_id,) = exposed
        self._bytes[message_id] = max(self._bytes.get(message_id, 0), exposed_bytes)
        if not was_alone:
            return 0
        self._tries[message_id] = tries = self._tries.get(message_id, 0) + 1
        if reason:
            self._named[message_id] = self._named.get(message_id, (0, 0))[0] + 1, reason
        if tries >= self.needed(message_id):
            self.aside.add(message_id)
        if message_id in self._met and (self.traits or message_id in self.aside):
            self._learn(self._met[message_id])
        return tries

    def needed(self, message_id: int) -> int:
        """So many tries in a row are no chance."""
        if not self._innocent_ends:
            return self._tries_max
        fails = min(self._innocent_ends / max(self._carried_bytes, 1) * self._bytes.get(message_id, 0), _FAILS_MAX)
        if fails <= 0:
            return self._tries_max
        return max(self._tries_max, min(ceil(log(_CHANCE) / log(fails)), _TRIES_MAX))

    @property
    def control_bytes(self) -> int:
        """So many are still to be carried by a connection without what is aside, at most; 0 where nothing is."""
        return max((self._control_bytes(each) for each in self.aside), default=0)

    def _control_bytes(self, message_id: int) -> int:
        return min(self._bytes[message_id] * _CONTROL_FACTOR, _CONTROL_BYTES_MAX)

    def judge(self, carried_bytes: int) -> list[Verdict]:
        """What is for quarantine, once a connection has carried so much and lasts; it is suspected no more."""
        verdicts = []
        for message_id in sorted(self.aside):
            named, reason = self._named.get(message_id, (0, 0))
            if named >= self._tries_max or carried_bytes >= self._control_bytes(message_id):
                verdicts.append(Verdict(message_id, self._tries[message_id], reason))
        for verdict in verdicts:
            self.aside.discard(verdict.message_id)
            for known in (self._exposures, self._tries, self._bytes, self._named):
                known.pop(verdict.message_id, None)
        return verdicts
