"""Age, order and expiry of queued messages over clocks that start in 1970 and jump either way, also across restarts.

test_clock_lives.py has them at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from glec_fast.durable._table import clock_error_us
from glec_fast.durable.clock import Anchor, Clocks, QueueClock
from glec_fast.durable.store import Store
from support.clock import Clock

DAY_S = 24 * 3600.0
TTL_S = DAY_S
# 2026-11-24.
TODAY_S = 1_795_478_400.0
UNSET_S = 12.0
NO_MORE_S = 1.0
# The queue's time on disk may be so far behind.
ANCHOR_LASTS_MS = 60_000
# In an anchor, with the message id below which times are true; and where those of all are.
TRUE_BEFORE = 1 << 61
ALL = (1 << 62) - 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def on_disk(path: Path, query: str) -> Any:
    """The one row, or value, of a query."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as database:
        return database.execute(query).get


class Gateway:
    """A store on a machine whose clocks a test moves."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self.store = Store(path, clocks=clock.clocks)

    def restart(self) -> None:
        self.store.close()
        self.store = Store(self.path, clocks=self.clock.clocks)

    def boot(self, off_s: float = 0.0, wall_s: float | None = None) -> None:
        """Nothing says that the clock is right then."""
        self.store.close()
        self.clock.boot(off_s, wall_s)
        self.clock.is_right = False
        self.store = Store(self.path, clocks=self.clock.clocks)

    def accept(self, count: int = 1, **settings: Any) -> list[int]:
        ids = [self.store.append("t", b"x", 1, **settings) for _ in range(count)]
        self.store.wait_durable(ids[-1])
        return ids

    def pass_time(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def look_at_the_clock(self) -> None:
        """A transaction, as every few minutes."""
        self.store.run(lambda _table: None)

    def set_clock(self, seconds: float) -> None:
        self.clock.step(seconds)
        self.look_at_the_clock()

    def set_right(self, seconds: float = 0.0) -> None:
        """By somebody who tells the kernel that it is."""
        self.clock.is_right = True
        self.set_clock(seconds)

    def unsent(self) -> list[int]:
        """What a sender would be given from the start, in its order."""
        self.store.supply.rewind([], [])
        rows: list[int] = []
        is_last = False
        while not is_last:
            some, is_last = self.store.supply.read(2)
            rows += [row[0] for row in some]
        # Given back: what a sender has does not expire.
        self.store.supply.rewind([], [])
        return rows

    def age_s(self, message_id: int) -> float:
        """Of a row on disk, by the wall clock."""
        stamp_ms = on_disk(self.path, f"SELECT timestamp FROM mqtt_offline_queue WHERE id = {message_id}")
        return self.clock.now_s - stamp_ms / 1000


@pytest.fixture
def make_gateway(path: Path) -> Iterator[Callable[[float], Gateway]]:
    made: list[Gateway] = []

    def make(wall_s: float) -> Gateway:
        made.append(Gateway(path, Clock(wall_s)))
        return made[-1]

    yield make
    for gateway in made:
        gateway.store.close()


@pytest.fixture
def gateway(make_gateway: Callable[[float], Gateway]) -> Gateway:
    return make_gateway(TODAY_S)


@pytest.fixture
def kept_right(gateway: Gateway) -> Gateway:
    """In its first boot the kernel says that the clock is right."""
    gateway.set_right()
    return gateway


@pytest.fixture
def unset(make_gateway: Callable[[float], Gateway]) -> Gateway:
    """Without a clock battery: 1970 until somebody tells the time."""
    return make_gateway(UNSET_S)


def expire(gateway: Gateway) -> int:
    """Drop what is over; returns how many."""
    return gateway.store.drop_expired()


class TestOneBoot:
    def test_what_was_accepted_in_1970_lives_its_time_when_the_clock_is_set(self, unset: Gateway) -> None:
        (first,) = unset.accept()
        unset.pass_time(3600)
        unset.set_clock(TODAY_S)
        (second,) = unset.accept()
        assert unset.unsent() == [first, second]
        assert unset.age_s(first) == pytest.approx(3600)
        unset.pass_time(TTL_S - 3600 + NO_MORE_S)
        assert expire(unset) == 1
        assert unset.unsent() == [second]

    @pytest.mark.parametrize("by_s", [-400 * DAY_S, -2 * DAY_S, -3600.0, 3600.0, 2 * DAY_S, 400 * DAY_S])
    def test_a_step_changes_neither_age_nor_order(self, gateway: Gateway, by_s: float) -> None:
        before = gateway.accept(3)
        gateway.pass_time(1800)
        gateway.set_clock(by_s)
        after = gateway.accept(3)
        assert gateway.unsent() == before + after
        assert [round(gateway.age_s(each)) for each in (before[0], after[0])] == [1800, 0]
        assert expire(gateway) == 0
        gateway.pass_time(TTL_S - 1800 + NO_MORE_S)
        assert expire(gateway) == 3
        assert gateway.unsent() == after

    @pytest.mark.parametrize("by_s", [-3 * DAY_S, 3 * DAY_S])
    def test_what_comes_before_the_step_was_noticed_counts_by_the_old_time(self, gateway: Gateway, by_s: float) -> None:
        gateway.clock.step(by_s)
        (first,) = gateway.accept()
        gateway.pass_time(TTL_S - NO_MORE_S)
        assert expire(gateway) == 0
        gateway.pass_time(2 * NO_MORE_S)
        assert expire(gateway) == 1
        assert gateway.unsent() == []
        assert first == 1

    @pytest.mark.parametrize("by_s", [-3600.0, 3600.0])
    def test_a_reader_in_the_middle_goes_on_from_there(self, gateway: Gateway, by_s: float) -> None:
        ids = gateway.accept(6)
        assert [row[0] for row in gateway.store.supply.read(4)[0]] == ids[:4]
        gateway.set_clock(by_s)
        later = gateway.accept()
        assert [row[0] for row in gateway.store.supply.read(9)[0]] == ids[4:] + later

    @pytest.mark.parametrize("by_s", [-3600.0, 3600.0])
    def test_what_waits_in_memory_is_moved_with_the_rows_on_disk(self, gateway: Gateway, by_s: float) -> None:
        durable = gateway.accept()
        with gateway.store._writer.lock:
            waiting = gateway.store.append("t", b"x", 1)
            gateway.clock.step(by_s)
        gateway.look_at_the_clock()
        later = gateway.accept()
        assert gateway.unsent() == [*durable, waiting, *later]
        assert gateway.age_s(waiting) == pytest.approx(0, abs=0.01)

    def test_a_slewed_clock_moves_nothing(self, gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
        (first,) = gateway.accept()
        gateway.set_clock(0.9)
        assert gateway.age_s(first) == pytest.approx(0.9)
        assert "stepped" not in caplog.text

    def test_a_clock_that_is_lost_again_moves_nothing(self, gateway: Gateway) -> None:
        (first,) = gateway.accept()
        gateway.set_clock(-TODAY_S + UNSET_S)
        (second,) = gateway.accept()
        assert [round(gateway.age_s(each) + TODAY_S - UNSET_S) for each in (first, second)] == [0, 0]
        gateway.set_clock(TODAY_S - UNSET_S)
        assert gateway.unsent() == [first, second]
        assert gateway.age_s(first) == pytest.approx(0, abs=0.01)

    def test_times_that_mean_never_stay(self, gateway: Gateway, path: Path) -> None:
        gateway.store.close()
        with closing(apsw.Connection(str(path))) as database:
            database.execute(
                "INSERT INTO mqtt_offline_queue (topic, payload, qos, timestamp, ttl) VALUES ('t', 'x', 1, 1, ?)",
                ((1 << 63) - 1,),
            )
        gateway.restart()
        gateway.accept()
        gateway.set_clock(400 * DAY_S)
        gateway.pass_time(400 * DAY_S)
        assert expire(gateway) == 1
        assert gateway.unsent() == [1]


class TestRestart:
    """Of the process, without a boot."""

    @pytest.mark.parametrize("by_s", [-3 * DAY_S, 3 * DAY_S, 400 * DAY_S])
    def test_a_step_while_it_did_not_run(self, gateway: Gateway, by_s: float) -> None:
        before = gateway.accept(2)
        gateway.store.close()
        gateway.pass_time(1800)
        gateway.clock.step(by_s)
        gateway.restart()
        after = gateway.accept(2)
        gateway.look_at_the_clock()
        assert gateway.unsent() == before + after
        assert [round(gateway.age_s(each)) for each in (before[0], after[0])] == [1800, 0]

    def test_in_1970_too_its_own_time_off_counts(self, unset: Gateway) -> None:
        (first,) = unset.accept()
        unset.store.close()
        unset.pass_time(TTL_S + NO_MORE_S)
        unset.restart()
        assert unset.unsent() == []
        assert first == 1

    def test_rows_of_before_that_boot_are_not_moved(self, kept_right: Gateway) -> None:
        gateway = kept_right
        (old,) = gateway.accept()
        gateway.boot(off_s=3600)
        (new,) = gateway.accept()
        gateway.restart()
        gateway.set_right(1800)
        assert gateway.unsent() == [old, new]
        assert [round(gateway.age_s(each)) for each in (old, new)] == [3600 + 1800, 0]


class TestBoot:
    def test_the_time_it_was_off_counts_between_two_right_clocks(self, kept_right: Gateway) -> None:
        gateway = kept_right
        (old,) = gateway.accept()
        gateway.boot(off_s=TTL_S - 10)
        gateway.set_right()
        (new,) = gateway.accept()
        assert gateway.unsent() == [old, new]
        gateway.pass_time(11)
        assert expire(gateway) == 1
        assert gateway.unsent() == [new]

    def test_nothing_expires_by_a_clock_that_is_not_set_yet(self, kept_right: Gateway) -> None:
        gateway = kept_right
        (old,) = gateway.accept()
        gateway.pass_time(3600)
        gateway.look_at_the_clock()
        gateway.boot(off_s=3600, wall_s=UNSET_S)
        (new,) = gateway.accept()
        assert gateway.unsent() == [old, new]
        gateway.set_right(TODAY_S + 7200 - UNSET_S)
        assert gateway.unsent() == [old, new]
        assert [round(gateway.age_s(each)) for each in (old, new)] == [7200, 0]

    def test_unset_at_each_boot_until_a_late_one(self, unset: Gateway) -> None:
        ids = unset.accept()
        for _ in range(3):
            unset.pass_time(600)
            unset.boot(off_s=60, wall_s=UNSET_S)
            ids += unset.accept()
        unset.set_clock(TODAY_S)
        ids += unset.accept()
        assert unset.unsent() == ids
        ages_s = [unset.age_s(each) for each in ids]
        assert ages_s == sorted(ages_s, reverse=True)
        assert ages_s[0] < 3600

    def test_unset_it_counts_how_long_it_ran_before(self, unset: Gateway) -> None:
        unset.accept()
        unset.pass_time(TTL_S / 2)
        unset.boot(wall_s=UNSET_S)
        unset.pass_time(TTL_S / 2 + NO_MORE_S)
        assert expire(unset) == 1

    def test_a_clock_that_goes_on_from_where_it_was_last_saved(self, kept_right: Gateway) -> None:
        """As `fake-hwclock` has it: up to an hour early, until the network tells the time."""
        gateway = kept_right
        (old,) = gateway.accept()
        gateway.pass_time(1800)
        gateway.boot(off_s=600, wall_s=TODAY_S - 900)
        (new,) = gateway.accept()
        gateway.look_at_the_clock()
        gateway.set_right(900 + 1800 + 600)
        assert gateway.unsent() == [old, new]
        assert [round(gateway.age_s(each)) for each in (old, new)] == [1800 + 600, 0]

    def test_the_first_message_of_a_boot_by_a_clock_that_is_set_back(self, gateway: Gateway) -> None:
        """Between its acceptance and the first transaction."""
        (old,) = gateway.accept()
        gateway.boot(off_s=60)
        with gateway.store._writer.lock:
            new = gateway.store.append("t", b"x", 1)
            gateway.clock.step(-600)
        gateway.look_at_the_clock()
        assert gateway.unsent() == [old, new]
        assert [round(gateway.age_s(each)) for each in (old, new)] == [0, 0]

    def test_a_clock_that_is_set_wrong_and_then_right_ages_nothing(self, gateway: Gateway) -> None:
        (old,) = gateway.accept()
        gateway.boot(off_s=60)
        gateway.set_clock(-2 * DAY_S)
        (new,) = gateway.accept()
        gateway.set_clock(2 * DAY_S)
        assert [round(gateway.age_s(each)) for each in (old, new)] == [0, 0]

    @pytest.mark.parametrize("by_s", [-20.0, 3600.0])
    def test_a_reader_in_the_rows_of_an_earlier_boot_stays_there(self, gateway: Gateway, by_s: float) -> None:
        old = gateway.accept(4)
        gateway.boot(off_s=60)
        new = gateway.accept(2)
        assert [row[0] for row in gateway.store.supply.read(2)[0]] == old[:2]
        gateway.set_clock(by_s)
        assert [row[0] for row in gateway.store.supply.read(9)[0]] == old[2:] + new

    def test_the_first_boot_with_a_clock(self, unset: Gateway) -> None:
        (old,) = unset.accept()
        unset.pass_time(600)
        unset.boot(wall_s=TODAY_S)
        (new,) = unset.accept()
        assert unset.unsent() == [old, new]
        unset.look_at_the_clock()
        assert unset.age_s(old) < 3600
        assert expire(unset) == 0

    def test_a_clock_that_was_years_ahead(self, make_gateway: Callable[[float], Gateway]) -> None:
        gateway = make_gateway(TODAY_S + 2000 * DAY_S)
        (old,) = gateway.accept()
        gateway.boot(wall_s=TODAY_S)
        (new,) = gateway.accept()
        assert gateway.unsent() == [old, new]
        gateway.pass_time(TTL_S + NO_MORE_S)
        assert expire(gateway) == 2

    def test_a_jump_of_years_at_a_boot_expires_nothing(self, gateway: Gateway) -> None:
        (old,) = gateway.accept()
        gateway.boot(off_s=400 * DAY_S)
        (new,) = gateway.accept()
        gateway.look_at_the_clock()
        assert gateway.unsent() == [old, new]
        assert gateway.age_s(old) < DAY_S
        gateway.pass_time(TTL_S + NO_MORE_S)
        assert expire(gateway) == 2

    def test_killed_at_once_after_the_first_message_of_a_boot(self, unset: Gateway, path: Path) -> None:
        """The anchor is in the transaction of that message; what close would write is missing."""
        unset.accept()
        assert on_disk(path, "SELECT boot_id FROM glec_clock") == unset.clock.boot_id
        unset.boot(wall_s=UNSET_S)
        unset.accept()
        assert on_disk(path, "SELECT boot_id FROM glec_clock") == unset.clock.boot_id

    @pytest.mark.parametrize("is_empty", [True, False], ids=["all are sent", "asleep while one waits"])
    def test_killed_at_once_after_the_first_message_in_a_long_time(
        self, unset: Gateway, path: Path, is_empty: bool
    ) -> None:
        """No clean-up has told the disk how late it is: of an empty queue none does, and none comes in sleep."""
        unset.accept()
        unset.look_at_the_clock()
        unset.pass_time(TTL_S + NO_MORE_S if is_empty else TTL_S / 2)
        assert expire(unset) == is_empty
        unset.pass_time(TTL_S / 2)
        unset.accept()
        behind = "(SELECT MAX(timestamp) FROM mqtt_offline_queue) - (SELECT queue_time FROM glec_clock)"
        assert on_disk(path, f"SELECT {behind}") <= ANCHOR_LASTS_MS


class TestCertainty:
    """The time that it was switched off counts where the clock is known to have been right before and after."""

    @pytest.mark.parametrize("is_right_then", [False, True])
    @pytest.mark.parametrize("behind_s", [-400 * DAY_S, -3 * DAY_S, 23 * 3600.0, 25 * 3600.0, 3 * DAY_S, 300 * DAY_S])
    def test_a_clock_that_was_wrong_and_is_right_in_the_next_boot(
        self, make_gateway: Callable[[float], Gateway], behind_s: float, is_right_then: bool
    ) -> None:
        gateway = make_gateway(TODAY_S - behind_s)
        (old,) = gateway.accept()
        gateway.boot(off_s=600, wall_s=TODAY_S + 600)
        gateway.clock.is_right = is_right_then
        assert expire(gateway) == 0
        assert gateway.unsent() == [old]
        gateway.pass_time(TTL_S + NO_MORE_S)
        assert expire(gateway) == 1

    @pytest.mark.parametrize("ahead_s", [-2 * DAY_S, 2 * DAY_S])
    def test_a_clock_that_was_right_and_is_wrong_in_the_next_boot(self, kept_right: Gateway, ahead_s: float) -> None:
        (old,) = kept_right.accept()
        kept_right.boot(off_s=600, wall_s=TODAY_S + ahead_s)
        (new,) = kept_right.accept()
        kept_right.set_clock(-ahead_s)
        kept_right.set_clock(ahead_s)
        assert expire(kept_right) == 0
        assert kept_right.unsent() == [old, new]

    def test_what_was_right_makes_up_for_the_time_off_once_it_is_again(self, kept_right: Gateway) -> None:
        """Over a boot between in which it was not; what was accepted there keeps the age that is certain."""
        (old,) = kept_right.accept()
        kept_right.boot(off_s=3600, wall_s=UNSET_S)
        kept_right.pass_time(60)
        (between,) = kept_right.accept()
        kept_right.pass_time(60)
        kept_right.boot(off_s=3600, wall_s=TODAY_S + 7320)
        (new,) = kept_right.accept()
        kept_right.set_right()
        assert kept_right.unsent() == [old, between, new]
        assert [round(kept_right.age_s(each)) for each in (old, between, new)] == [7320, 60, 0]
        kept_right.boot(off_s=3600)
        kept_right.set_right()
        assert [round(kept_right.age_s(each)) for each in (old, between, new)] == [10920, 3660, 3600]

    @pytest.mark.parametrize("by_s", [-3 * DAY_S, 3 * DAY_S])
    def test_a_wrong_step_after_it_was_right_is_not_followed(self, kept_right: Gateway, by_s: float) -> None:
        (old,) = kept_right.accept()
        kept_right.clock.is_right = False
        kept_right.set_clock(by_s)
        kept_right.pass_time(60)
        (new,) = kept_right.accept()
        kept_right.set_right(-by_s)
        assert [round(kept_right.age_s(each)) for each in (old, new)] == [60, 0]

    @pytest.mark.parametrize("by_s", [-3 * DAY_S, 3 * DAY_S])
    def test_a_clock_that_was_called_right_and_was_not(self, kept_right: Gateway, by_s: float) -> None:
        """Who corrects it cannot know which messages were stamped by the same wrong clock before."""
        (old,) = kept_right.accept()
        kept_right.boot(off_s=600)
        kept_right.set_right()
        (new,) = kept_right.accept()
        kept_right.set_right(by_s)
        assert [round(kept_right.age_s(each)) for each in (old, new)] == [600, 0]
        assert kept_right.unsent() == [old, new]

    def test_a_right_clock_that_is_earlier_than_the_last(self, kept_right: Gateway) -> None:
        (old,) = kept_right.accept()
        kept_right.boot(off_s=600, wall_s=TODAY_S - DAY_S)
        kept_right.set_right()
        (new,) = kept_right.accept()
        assert [round(kept_right.age_s(each)) for each in (old, new)] == [0, 0]
        assert kept_right.unsent() == [old, new]

    def test_off_for_years_is_not_believed(self, kept_right: Gateway) -> None:
        (old,) = kept_right.accept()
        kept_right.boot(off_s=1024 * 7 * DAY_S)
        kept_right.set_right()
        assert expire(kept_right) == 0
        assert kept_right.unsent() == [old]

    def test_what_an_earlier_version_wrote_is_certain_of_nothing(self, kept_right: Gateway, path: Path) -> None:
        (old,) = kept_right.accept()
        kept_right.store.close()
        with closing(apsw.Connection(str(path))) as database:
            database.execute("UPDATE glec_clock SET first_id = 2")
        kept_right.boot(off_s=2 * DAY_S)
        kept_right.set_right()
        assert expire(kept_right) == 0
        assert kept_right.unsent() == [old]

    def test_a_damaged_file_that_has_lost_its_clock_is_certain_of_nothing(
        self, kept_right: Gateway, path: Path
    ) -> None:
        (old,) = kept_right.accept()
        kept_right.store.close()
        with closing(apsw.Connection(str(path))) as database:
            database.execute("DELETE FROM glec_clock")
        path.with_name(path.name + "-salvage").touch()
        kept_right.boot(off_s=2 * DAY_S)
        kept_right.set_right()
        assert expire(kept_right) == 0
        assert kept_right.unsent() == [old]
        assert kept_right.age_s(old) == pytest.approx(0, abs=0.01)

    def test_an_empty_queue_remembers_no_clock(self, kept_right: Gateway) -> None:
        kept_right.accept()
        kept_right.pass_time(TTL_S + NO_MORE_S)
        assert expire(kept_right) == 1
        kept_right.boot(off_s=10 * DAY_S)
        (new,) = kept_right.accept()
        assert kept_right.age_s(new) == pytest.approx(0, abs=0.01)


class TestDisk:
    def test_a_move_that_the_disk_refuses_is_made_later_and_holds_up_nothing(
        self, unset: Gateway, caplog: pytest.LogCaptureFixture
    ) -> None:
        (first,) = unset.accept()
        writer = unset.store._writer.connection
        with unset.store._writer.lock:
            writer.execute(
                "CREATE TEMP TRIGGER full BEFORE UPDATE OF timestamp ON mqtt_offline_queue"
                " BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
            )
        unset.set_clock(TODAY_S)
        (second,) = unset.accept()
        assert unset.unsent() == [first, second]
        assert expire(unset) == 0
        assert round(unset.age_s(first)) == TODAY_S
        with unset.store._writer.lock:
            writer.execute("DROP TRIGGER temp.full")
        unset.look_at_the_clock()
        assert unset.unsent() == [first, second]
        assert [round(unset.age_s(each)) for each in (first, second)] == [0, 0]
        assert "stepped" in caplog.text

    def test_one_transaction_moves_all_rows_and_says_so(self, unset: Gateway, path: Path) -> None:
        """Killed between the two, the rows would be moved again, or never."""
        unset.accept(3)
        seen: list[str] = []
        with unset.store._writer.lock:
            unset.store._writer.connection.trace_v2(
                apsw.SQLITE_TRACE_STMT, lambda event: seen.append(event["sql"].split()[0])
            )
        unset.set_clock(TODAY_S)
        moved = seen[seen.index("UPDATE") : seen.index("COMMIT")]
        assert moved.count("UPDATE") == 1
        assert "INSERT" in moved


class TestQueueClock:
    """What a store cannot show."""

    def test_a_boot_id_that_is_hidden_makes_each_start_a_boot(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("glec_fast.durable.clock._BOOT_ID", tmp_path / "hidden")
        assert Clocks().boot_id != Clocks().boot_id

    def test_the_machines_own_clocks(self) -> None:
        one, other = Clocks(), Clocks()
        assert one.boot_id == other.boot_id
        assert 0 < one.since_boot_ms() <= other.since_boot_ms()
        assert one.wall_ms() <= other.wall_ms()

    def test_others_are_told_the_wall_clocks_time_once_it_was_set(self) -> None:
        """The file's last user was a month ahead."""
        clock = Clock(TODAY_S)
        ahead_ms = round((TODAY_S + 30 * DAY_S) * 1000)
        anchor = Anchor("another boot", ahead_ms, ahead_ms, ahead_ms, 1)
        queue_clock = QueueClock(clock.clocks, anchor, 2)
        assert [queue_clock.unix_ms(), queue_clock.now_ms()] == [TODAY_S * 1000, ahead_ms]
        clock.step(UNSET_S - TODAY_S)
        assert queue_clock.unix_ms() == ahead_ms

    def test_a_time_namespace_is_a_boot_of_its_own(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        offsets = tmp_path / "timens_offsets"
        monkeypatch.setattr("glec_fast.durable.clock._NAMESPACE", offsets)
        seen = set()
        for text in ("", "monotonic 0 0\nboottime 0 0\n", "boottime 86400 0\n", "boottime -86400 0\n", "odd"):
            offsets.write_text(text)
            seen.add(Clocks().boot_id)
        assert len(seen) == 3

    def test_a_boot_id_that_comes_again_with_less_time_is_another_boot(self) -> None:
        """As of a machine that goes on from a snapshot."""
        clock = Clock(TODAY_S)
        anchor = Anchor(clock.boot_id, 0, 0, 10**6, ALL)
        again = QueueClock(clock.clocks, anchor, 7)
        fresh = again.anchor(fresh=False)
        assert fresh is not None
        assert fresh.first_id == TRUE_BEFORE + 7
        assert again.now_ms() >= 10**6

    def test_the_kernels_word_holds_for_its_own_clock_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("glec_fast.durable.clock.clock_error_us", lambda: 400_000)
        assert Clocks().is_wall_right()
        assert not Clocks(wall_ms=lambda: round(TODAY_S * 1000)).is_wall_right()

    @pytest.mark.parametrize("error_us", [16_000_000, 500_001, OSError("not permitted")])
    def test_a_clock_that_the_kernel_does_not_call_right(
        self, monkeypatch: pytest.MonkeyPatch, error_us: int | OSError
    ) -> None:
        def say() -> int:
            if isinstance(error_us, OSError):
                raise error_us
            return error_us

        monkeypatch.setattr("glec_fast.durable.clock.clock_error_us", say)
        assert not Clocks().is_wall_right()

    def test_what_the_kernel_says(self) -> None:
        assert 0 <= clock_error_us() <= 16_000_000

    @pytest.mark.parametrize("is_right", [False, True])
    def test_how_long_ago_a_moment_was(self, is_right: bool) -> None:
        clock = Clock(TODAY_S)
        clock.is_right = is_right
        moment = QueueClock(clock.clocks, None, 1).moment()
        clock.now_s += 3600
        assert QueueClock(clock.clocks, None, 1).seconds_since(moment) == 3600
        clock.boot(off_s=60, wall_s=TODAY_S + 3660)
        assert QueueClock(clock.clocks, None, 1).seconds_since(moment) == (3660 if is_right else None)
        clock.is_right = False
        assert QueueClock(clock.clocks, None, 1).seconds_since(moment) is None
        assert QueueClock(clock.clocks, None, 1).seconds_since(1) is None

    def test_a_pause_between_two_clocks_is_no_step(self) -> None:
        """Suspended for an hour after the one was read, and before the other."""
        clock = Clock(TODAY_S)
        clock.is_right = True
        began_ms = clock.clocks.since_boot_ms()
        hour_ms = 3_600_000
        since_boot_ms = iter([began_ms, began_ms, began_ms + hour_ms, *[began_ms + hour_ms] * 3])
        wall_ms = iter([*[round(TODAY_S * 1000)] * 2, round(TODAY_S * 1000) + hour_ms])
        clocks = replace(clock.clocks, since_boot_ms=lambda: next(since_boot_ms), wall_ms=lambda: next(wall_ms))
        queue_clock = QueueClock(clocks, None, 1)
        assert [queue_clock.step(), queue_clock.step()] == [None, None]

    def test_a_start_in_the_same_boot_says_how_late_it_is(self) -> None:
        """The process may have been away for long, and may be killed before the next clean-up would say so."""
        clock = Clock(TODAY_S)
        anchor = QueueClock(clock.clocks, None, 1).anchor(fresh=False)
        clock.now_s += 3600
        again = QueueClock(clock.clocks, anchor, 2).anchor(fresh=False)
        assert anchor is not None
        assert again == anchor._replace(queue_ms=anchor.queue_ms + 3_600_000)

    def test_a_word_that_is_taken_back_while_the_clock_is_read(self) -> None:
        """As whoever sets the clock wrong does."""
        clock = Clock(TODAY_S)
        true_ms = round(TODAY_S * 1000)
        anchor = Anchor("another boot", 0, 0, true_ms, ALL)
        says = iter([True, False])
        queue_clock = QueueClock(replace(clock.clocks, is_right=lambda: next(says)), anchor, 2)
        clock.step(2 * DAY_S)
        assert queue_clock.step() is None
