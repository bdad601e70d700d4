"""Random lives of a gateway whose clocks are wrong in every way, beside a reference that knows the true time.

A life is a queue file over boots, restarts of the process and cuts of the power, with a wall clock that is ahead,
behind, unset, stepped and slewed, and now and then called right by the kernel, which it then is within half a second.
The reference knows when each message was truly accepted, and so what may have expired and what must have.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glec_fast.durable.clock import Clocks
from glec_fast.durable.extras import Extras
from glec_fast.durable.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.durable._table import QueueTable

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
YEAR_MS = 366 * DAY_MS
TTL_MS = DAY_MS
# 2026-11-24.
TODAY_MS = 1_795_478_400_000
# On disk the queue's time may be so far behind.
ANCHOR_LASTS_MS = MINUTE_MS
# Half a second that the kernel may be wrong by, and a second that the queue's time is left apart, at each of two ends.
EARLY_MS = 3000
LATE_MS = 3000
# Twice the fastest that ntpd slews.
SLEW_PPM = 1000
ACTIONS = {
    "accept": 9,
    "wait": 6,
    "look": 6,
    "read": 2,
    "step": 3,
    "is kept right": 2,
    "is not kept right": 2,
    "restart": 2,
    "kill": 1,
    "boot": 4,
}


class Machine:
    """Its clocks, the true time among them, which it does not know."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.true_ms = TODAY_MS
        # What its process waits by, and which stands while it sleeps.
        self.awake_ms = 0
        self._booted_ms = self.true_ms - chance.randrange(HOUR_MS)
        self._wall_off_by_ms = 0.0
        self._saved_wall_ms = self.wall_ms()
        self.is_right = False
        # The boot's, unless a sandbox hides it: then each process has another.
        self.is_boot_id_hidden = chance.random() < 0.15
        self.boot = 0
        self._set_at_boot()

    def wall_ms(self) -> int:
        # Linux cannot be set to before 1970.
        return max(round(self.true_ms + self._wall_off_by_ms), 0)

    def since_boot_ms(self) -> int:
        return self.true_ms - self._booted_ms

    def clocks(self) -> dict[str, Any]:
        return {
            "wall_ms": self.wall_ms,
            "since_boot_ms": self.since_boot_ms,
            "boot_id": f"boot {self.boot}",
            "is_right": lambda: self.is_right,
        }

    def wait(self) -> None:
        """Time passes, awake or asleep; a clock that nobody keeps right drifts meanwhile, or is slewed."""
        ms = self._chance.choice((5, 3000, 40_000, 7 * MINUTE_MS, HOUR_MS, 5 * HOUR_MS, 11 * HOUR_MS, 30 * HOUR_MS))
        ms = self._chance.randint(1, ms)
        self.true_ms += ms
        self.awake_ms += self._chance.choice((0, ms))
        if not self.is_right:
            self._wall_off_by_ms += ms * self._chance.choice((0, 0, SLEW_PPM, -SLEW_PPM)) / 1_000_000
        if self._chance.random() < 0.5:
            self._saved_wall_ms = self.wall_ms()

    def step(self) -> None:
        """Somebody who does not tell the kernel sets the clock: rightly, or wrongly."""
        self.is_right = False
        chance = self._chance
        kind = chance.choice(("right", "hours", "summer time", "days", "years", "unset", "little"))
        if kind == "right":
            self._wall_off_by_ms = 0
        elif kind == "unset":
            self._wall_off_by_ms = -self.true_ms + chance.randrange(DAY_MS)
        elif kind == "summer time":
            self._wall_off_by_ms += chance.choice((-HOUR_MS, HOUR_MS))
        else:
            ms = {"hours": 12 * HOUR_MS, "days": 10 * DAY_MS, "years": 5 * YEAR_MS, "little": 2500}[kind]
            self._wall_off_by_ms += chance.randint(-ms, ms)

    def keep_right(self) -> None:
        """A time server, or GPS, and whoever listens to it tells the kernel."""
        self._wall_off_by_ms = self._chance.randint(-500, 500)
        self.is_right = True

    def switch_off(self) -> int:
        """And on again; returns for how long it was off."""
        chance = self._chance
        off_ms = chance.choice((4000, 5 * MINUTE_MS, 3 * HOUR_MS, 20 * HOUR_MS, 3 * DAY_MS, 60 * DAY_MS))
        off_ms = chance.randint(1000, off_ms)
        if chance.random() < 0.03:
            off_ms += 3 * YEAR_MS
        self.true_ms += off_ms
        self._booted_ms = self.true_ms - chance.randrange(1000, 60_000)
        self._set_at_boot()
        return off_ms

    def _set_at_boot(self) -> None:
        """By a clock with a battery, right or wrong; by one whose battery is empty; by `fake-hwclock`; by nobody."""
        chance = self._chance
        self.is_right = False
        kind = chance.choice(("battery", "right battery", "wrong battery", "fake-hwclock", "unset", "kept right"))
        if kind == "fake-hwclock":
            self._wall_off_by_ms = self._saved_wall_ms - self.true_ms
        elif kind == "unset":
            self._wall_off_by_ms = self._booted_ms - self.true_ms - self._booted_ms
        elif kind == "right battery":
            self._wall_off_by_ms = chance.randint(-3000, 3000)
        elif kind == "wrong battery":
            ms = chance.choice((HOUR_MS, 30 * HOUR_MS, 40 * DAY_MS, 6 * YEAR_MS))
            self._wall_off_by_ms = chance.randint(-ms, ms)
        elif kind == "kept right":
            self.keep_right()


@dataclass
class Accepted:
    message_id: int
    accepted_ms: int
    lasts_ms: int
    interval_s: int | None
    boot: int


@dataclass
class Uncertain:
    """Between two boots: for how long the machine was off, and its process since what it had last on disk."""

    ms: int
    # What no clock may make up for.
    is_lost: bool = False


@dataclass
class Outcome:
    """Of a life, or of many. late: looks at a message that was too old. made_up: expired by time that it was off."""

    expired: int = 0
    late: int = 0
    made_up: int = 0
    early: list[str] = field(default_factory=list)
    later_than_promised: list[str] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.expired} messages expired, {self.made_up} of them by time that it was off; {len(self.early)} early,"
            f" {self.late} times one was too old, {len(self.later_than_promised)} of them more than is promised"
        )

    def add(self, other: Outcome) -> None:
        for each in dataclasses.fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


class Life:
    """One queue file, from its first boot on. `settings` are the store's."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._seed = seed
        self._folder = folder
        self._path = folder / "queue.db"
        self._chance = random.Random(seed)
        self._machine = Machine(self._chance)
        self._waiting: dict[int, Accepted] = {}
        # Before each boot but the first; and which boots the store has seen a right clock in.
        self._uncertain: list[Uncertain] = []
        self._right_boots: set[int] = set()
        self._next_start()
        self.outcome = Outcome()
        self._store = self._open()

    def live(self) -> Outcome:
        actions = self._chance.choices(list(ACTIONS), list(ACTIONS.values()), k=self._chance.randint(10, 60))
        try:
            for action in actions:
                getattr(self, "_" + action.replace(" ", "_"))()
            self._look()
        finally:
            self._store.close()
        return self.outcome

    def _open(self) -> Store:
        known = {each.name for each in dataclasses.fields(Clocks)}
        clocks = {name: value for name, value in self._machine.clocks().items() if name in known}
        return Store(
            self._path,
            ttl_ms=TTL_MS,
            clocks=Clocks(**clocks),
            monotonic=lambda: self._machine.awake_ms / 1000,
        )

    def _accept(self) -> None:
        chance = self._chance
        interval_s = chance.choice((None, None, chance.randint(1, 30 * 3600)))
        ttl_ms = chance.choice((None, None, chance.randint(1000, 2 * TTL_MS)))
        extras = None if interval_s is None else Extras(retain=False, expiry_interval_s=interval_s)
        lasts_ms = min(TTL_MS if ttl_ms is None else ttl_ms, (interval_s or 10**9) * 1000)
        message_id = self._store.append("t", b"x", 1, ttl_ms=ttl_ms, extras=extras)
        self._store.wait_durable(message_id)
        machine = self._machine
        self._waiting[message_id] = Accepted(message_id, machine.true_ms, lasts_ms, interval_s, machine.boot)
        self._seen()

    def _wait(self) -> None:
        self._machine.wait()

    def _step(self) -> None:
        self._machine.step()

    def _is_kept_right(self) -> None:
        self._machine.keep_right()

    def _is_not_kept_right(self) -> None:
        self._machine.is_right = False

    def _look(self) -> None:
        """What is dropped by now, and what is left."""
        self._store.drop_expired()
        self._seen()
        rows = self._store.run(_all_ids)
        self._judge_order(rows)
        self._judge_gone(set(self._waiting).difference(rows))
        for message in self._waiting.values():
            self._judge_left(message)

    def _read(self) -> None:
        """As a sender does, which is told how long a message still lasts."""
        self._store.run(_nothing)
        self._seen()
        self._store.supply.rewind([], [])
        rows, _ = self._store.supply.read(1000)
        self._store.supply.rewind([], [])
        # What has expired goes with the next transaction.
        self._judge_gone(set(self._waiting).difference(row[0] for row in rows))
        self._judge_order([row[0] for row in rows])
        for row in rows:
            message = self._waiting.get(row[0])
            if message is not None and message.interval_s is not None:
                left_s = int.from_bytes(row[-1][-4:], "big")
                truly_left_ms = message.interval_s * 1000 - self._age_ms(message)
                if left_s * 1000 < truly_left_ms - EARLY_MS:
                    self.outcome.early.append(f"{self._tell(message)} is sent with {left_s} s left")

    def _restart(self) -> None:
        self._store.close()
        self._seen()
        self._restarted(self._machine.true_ms)

    def _kill(self) -> None:
        last_ms = self._looked_ms - ANCHOR_LASTS_MS
        self._cut()
        self._restarted(last_ms)

    def _restarted(self, last_ms: int) -> None:
        if self._chance.random() < 0.5:
            self._machine.wait()
        uncertain_ms = self._machine.true_ms - last_ms
        if self._machine.is_boot_id_hidden:
            self._next_boot(uncertain_ms)
        elif not self._has_looked and self._uncertain:
            # Nothing on disk is of this boot yet.
            self._uncertain[-1].ms += uncertain_ms
            self._next_start()
        self._reopen()

    def _boot(self) -> None:
        if self._chance.random() < 0.5:
            self._store.close()
            self._seen()
            last_ms = self._machine.true_ms
        else:
            last_ms = self._looked_ms - ANCHOR_LASTS_MS
            self._cut()
        self._machine.switch_off()
        self._next_boot(self._machine.true_ms - last_ms)
        self._reopen()

    def _next_boot(self, uncertain_ms: int) -> None:
        self._machine.boot += 1
        self._uncertain.append(Uncertain(uncertain_ms))
        self._next_start()

    def _next_start(self) -> None:
        """Up to here the time is accounted for."""
        self._has_looked = False
        self._looked_ms = self._machine.true_ms + ANCHOR_LASTS_MS

    def _reopen(self) -> None:
        self._store = self._open()
        if not self._store.size:
            # An empty queue remembers nothing of its clock; a clean-up may have emptied it since we looked.
            self._right_boots.clear()

    def _cut(self) -> None:
        """The process is killed, or the power cut: what was on disk by then stays, and nothing that `close` writes."""
        kept = self._folder / "kept"
        kept.mkdir()
        for each in self._folder.glob("queue.db*"):
            shutil.copy(each, kept)
        self._store.close()
        for each in self._folder.glob("queue.db*"):
            each.unlink()
        for each in kept.iterdir():
            if not each.name.endswith("-shm"):
                each.rename(self._folder / each.name)
        shutil.rmtree(kept)

    # ---- the reference

    def _seen(self) -> None:
        """A transaction: the store has looked at the clocks."""
        machine = self._machine
        self._looked_ms = machine.true_ms
        self._has_looked = True
        if machine.is_right and machine.boot not in self._right_boots:
            since = max(self._right_boots, default=0)
            off = self._uncertain[since:]
            if sum(each.ms for each in off) > YEAR_MS - DAY_MS:
                for each in off:
                    each.is_lost = True
            self._right_boots.add(machine.boot)

    def _age_ms(self, message: Accepted) -> int:
        return self._machine.true_ms - message.accepted_ms

    def _may_be_late_by_ms(self, message: Accepted) -> int:
        """All that it was off, but what lies between two boots with a right clock since the message was accepted."""
        late_ms = 0
        right = [boot for boot in self._right_boots if boot >= message.boot]
        first, last = min(right, default=self._machine.boot), max(right, default=self._machine.boot)
        for boot in range(message.boot, self._machine.boot):
            off = self._uncertain[boot]
            is_made_up = right and first <= boot < last and not off.is_lost
            late_ms += LATE_MS if is_made_up else off.ms
        return late_ms

    def _judge_order(self, ids: list[int]) -> None:
        if ids != sorted(ids):
            self.outcome.misplaced.append(f"life {self._seed}: {ids}")

    def _judge_gone(self, gone: set[int]) -> None:
        for message_id in gone:
            message = self._waiting.pop(message_id)
            self.outcome.expired += 1
            off_ms = sum(each.ms for each in self._uncertain[message.boot : self._machine.boot])
            if self._age_ms(message) - off_ms < message.lasts_ms - EARLY_MS:
                self.outcome.made_up += 1
            if self._age_ms(message) < message.lasts_ms - EARLY_MS:
                self.outcome.early.append(f"{self._tell(message)} is gone")

    def _judge_left(self, message: Accepted) -> None:
        over_ms = self._age_ms(message) - message.lasts_ms
        if over_ms > LATE_MS:
            self.outcome.late += 1
        may_be_ms = self._may_be_late_by_ms(message)
        if over_ms > may_be_ms + LATE_MS:
            self.outcome.later_than_promised.append(f"{self._tell(message)} is left; {may_be_ms / 1000} s more")

    def _tell(self, message: Accepted) -> str:
        return (
            f"life {self._seed}: message {message.message_id}, {self._age_ms(message) / 1000} s old,"
            f" of {message.lasts_ms / 1000} s,"
        )


def _all_ids(table: QueueTable) -> list[int]:
    return [row[0] for row in table.read_all()]


def _nothing(_table: QueueTable) -> None:
    pass
