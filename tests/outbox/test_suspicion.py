"""Which message a broker ends connections over: found soon, and never where it is the link that breaks."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from glec_fast.outbox.suspicion import Suspicion, Verdict

TRIES = 3
SIZE = 1000


def end(suspicion: Suspicion, *exposed: int, size: int = SIZE, by_peer: bool = True, reason: int = 0) -> int:
    suspicion.begin()
    return suspicion.end(list(exposed), size, 2 * size, by_peer=by_peer, reason=reason)


def test_a_message_that_ends_each_connection_is_found_and_judged_once_others_have_passed() -> None:
    suspicion = Suspicion(TRIES)
    assert end(suspicion, 7, 8, 9) == 0
    suspicion.begin()
    assert suspicion.suspects == {7, 8, 9}
    assert [suspicion.end([7], SIZE, SIZE, by_peer=True)] == [1]
    assert [end(suspicion, 7) for _ in range(2)] == [2, 3]
    suspicion.begin()
    assert (suspicion.aside, suspicion.suspects) == ({7}, {8, 9})
    suspicion.on_answered([8, 9])
    assert suspicion.suspects == set()
    assert suspicion.judge(suspicion.control_bytes - 1) == []
    assert suspicion.judge(suspicion.control_bytes) == [Verdict(7, 3, 0)]
    assert suspicion.is_idle
    assert suspicion.control_bytes == 0


def test_an_answer_ends_the_suspicion() -> None:
    suspicion = Suspicion(TRIES)
    for _ in range(TRIES):
        end(suspicion, 7)
    suspicion.on_answered([7])
    suspicion.begin()
    assert (suspicion.aside, suspicion.suspects, suspicion.is_idle) == (set(), set(), True)


def test_many_go_together_once_more_before_they_go_alone() -> None:
    suspicion = Suspicion(TRIES)
    many = list(range(1, 100))
    end(suspicion, *many)
    suspicion.begin()
    assert suspicion.suspects == set()
    suspicion.end(many, SIZE, SIZE, by_peer=True)
    suspicion.begin()
    assert suspicion.suspects == set(many)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_a_link_that_falls_silent_blames_nobody(count: int) -> None:
    suspicion = Suspicion(TRIES)
    for _ in range(20):
        suspicion.begin()
        assert (suspicion.suspects, suspicion.aside) == (set(), set())
        exposed = list(range(1, count + 1))
        assert suspicion.end(exposed, SIZE, SIZE, by_peer=False, is_silent=True) == 0
    assert suspicion.judge(1 << 20) == []


def test_the_oldest_behind_which_links_fall_silent_is_passed_over_every_second_time() -> None:
    suspicion = Suspicion(TRIES)
    passed_over = []
    for _ in range(TRIES + 4):
        suspicion.begin()
        passed_over.append(suspicion.passed_over)
        exposed = [8, 9] if suspicion.passed_over else [7, 8, 9]
        if not suspicion.passed_over:
            suspicion.end(exposed, SIZE, SIZE, by_peer=False, is_silent=True)
        assert not suspicion.is_idle
    assert passed_over == [None] * TRIES + [7, None, 7, None]
    suspicion.on_answered([7])
    suspicion.begin()
    assert (suspicion.passed_over, suspicion.is_idle) == (None, True)


def test_a_link_that_falls_silent_behind_another_message_each_time_is_just_silent() -> None:
    suspicion = Suspicion(TRIES)
    for message_id in range(1, 20):
        suspicion.begin()
        assert suspicion.passed_over is None
        suspicion.end([message_id], SIZE, SIZE, by_peer=False, is_silent=True)


def test_a_reason_code_is_all_the_proof_there_is_to_be_had() -> None:
    suspicion = Suspicion(TRIES)
    for _ in range(TRIES + 1):
        end(suspicion, 7, reason=0x95)
    suspicion.begin()
    assert suspicion.judge(0) == [Verdict(7, 3, 0x95)]


def test_several_messages_are_found_one_after_another() -> None:
    suspicion = Suspicion(TRIES)
    end(suspicion, 7, 8)
    for message_id in (7, 8):
        assert [end(suspicion, message_id) for _ in range(TRIES)] == [1, 2, 3]
    suspicion.begin()
    assert suspicion.aside == {7, 8}
    assert [verdict.message_id for verdict in suspicion.judge(1 << 20)] == [7, 8]


@pytest.mark.parametrize("size", [100, 300, 1000, 2000, 4000, 8000, 15_000])
@pytest.mark.parametrize("seed", range(2))
def test_an_hour_of_a_link_that_cuts_after_0_to_20_kb(size: int, seed: int) -> None:
    """Each connection carries a random number of bytes; messages of one size, sent as the suspicion lets them go."""
    dice = random.Random(f"{size}-{seed}")
    suspicion = Suspicion(TRIES)
    waiting = dict.fromkeys(range(1, 4000))
    quarantined: list[int] = []
    for _ in range(1800):
        left = dice.uniform(0, 20_000)
        carried = 0
        suspicion.begin()
        exposed: list[int] = []
        while not exposed:
            free = (each for each in waiting if each not in suspicion.aside)
            # Alone, or as many as fit on the way before the first answer comes.
            group = list(islice(free, 1 if suspicion.suspects else 20))
            if not group:
                break
            for number, message_id in enumerate(group):
                if left < size:
                    exposed = group[number:]
                    break
                left -= size
                carried += size
                # An answer that is lost with the connection, now and then.
                if left > 50:
                    suspicion.on_answered([message_id])
                    del waiting[message_id]
                else:
                    exposed = group[number:]
                    break
            quarantined += [each.message_id for each in suspicion.judge(carried)]
        suspicion.end(exposed, min(size, int(left) + 1), carried + size, by_peer=True)
    assert quarantined == []
    assert len(waiting) < 4000 or size > 10_000


def test_a_later_process_goes_on_from_what_was_noted() -> None:
    suspicion = Suspicion(TRIES)
    end(suspicion, 6, 7, 8, 9)
    for reason in (0x95, 0x99):
        assert end(suspicion, 7, reason=reason)
    suspicion.on_answered([8])
    later = Suspicion(TRIES)
    later.recall(suspicion.notes(), gone={9})
    assert later.notes() == [note for note in suspicion.notes() if note[0] != 9]
    later.begin()
    assert later.suspects == {6, 7}
    assert end(later, 7, reason=0x95) == 3
    later.begin()
    assert later.aside == {7}
    assert later.judge(0) == [Verdict(7, 3, 0x95)]


def test_what_stood_aside_does_so_in_a_later_process() -> None:
    suspicion = Suspicion(TRIES)
    for _ in range(TRIES + 1):
        end(suspicion, 7)
    later = Suspicion(TRIES)
    later.recall(suspicion.notes(), gone=())
    later.begin()
    assert (later.aside, later.suspects) == ({7}, set())
    assert later.control_bytes >= suspicion.control_bytes


def test_a_later_process_knows_how_bad_links_are() -> None:
    suspicion = Suspicion(TRIES)
    for _ in range(3):
        end(suspicion)
        end(suspicion, 7)
    later = Suspicion(TRIES)
    later.recall(suspicion.notes(), gone=())
    assert later.needed(7) >= suspicion.needed(7) > TRIES


def test_notes_have_a_bound() -> None:
    suspicion = Suspicion(TRIES)
    suspicion.end(list(range(1, 5000)), 1 << 30, 1 << 30, by_peer=True)
    assert len(suspicion.notes()) == 1024
    assert {number for number, _value, _kind in suspicion.notes()} == set(range(1, 1025))
    suspicion = Suspicion(TRIES)
    end(suspicion, 1 << 61, size=1 << 30)
    assert all(0 <= value <= 0xFFFF for _number, value, _kind in suspicion.notes())


def test_a_later_process_knows_behind_which_message_links_fall_silent() -> None:
    suspicion = Suspicion(TRIES)
    for _ in range(TRIES):
        suspicion.begin()
        suspicion.end([7, 8], SIZE, SIZE, by_peer=False, is_silent=True)
    later = Suspicion(TRIES)
    later.recall(suspicion.notes(), gone=())
    later.begin()
    assert later.passed_over == 7
    gone = Suspicion(TRIES)
    gone.recall(suspicion.notes(), gone={7})
    gone.begin()
    assert (gone.passed_over, gone.is_idle) == (None, True)
