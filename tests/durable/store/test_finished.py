"""Finished: ids as they come, and the ranges that they make at every moment."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from glec_fast.durable._steps import Finished, count_of, merged, ranges_of


@pytest.mark.parametrize(
    ("ranges", "fewest"),
    [
        ([], []),
        ([(1, 5)], [(1, 5)]),
        ([(1, 5), (6, 6)], [(1, 6)]),
        ([(1, 5), (7, 9)], [(1, 5), (7, 9)]),
        ([(7, 9), (1, 8)], [(1, 9)]),
        ([(1, 9), (2, 3), (11, 11)], [(1, 9), (11, 11)]),
    ],
)
def test_merged_ranges_are_the_fewest(ranges: list[tuple[int, int]], fewest: list[tuple[int, int]]) -> None:
    assert merged(ranges) == fewest


@pytest.mark.parametrize("seed", range(20))
def test_the_ranges_are_those_of_the_ids(seed: int) -> None:
    chance = random.Random(seed)
    finished, expected = Finished(), []
    coming = chance.sample(range(1, 200), 150)
    while coming:
        count = chance.randint(1, 9)
        ids, coming = coming[:count], coming[count:]
        finished.add(ids)
        expected += ids
        if chance.random() < 0.2:
            count = chance.randint(0, len(expected))
            finished.remove_first(count)
            del expected[:count]
        assert finished.ids == expected, "in the order in which they finished"
        assert len(finished) == len(expected)
        assert finished.ranges == ranges_of(expected.copy())


def test_a_flush_of_thousands_takes_little_memory() -> None:
    finished = Finished()
    tracemalloc.start()
    try:
        for first in range(1 << 40, (1 << 40) + 10_000, 100):
            finished.add(list(range(first, first + 100)))
        taken = finished.first_ranges(None)
        size_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size_bytes < 150_000
    finished.remove_taken(taken)
    assert (len(finished), finished.ids, taken) == (0, [], [])


def test_the_first_and_those_behind_them_as_ranges() -> None:
    finished = Finished()
    finished.add([1, 2, 9, 3, 4])
    assert finished.first_ranges(3) == [(1, 2), (9, 9)]
    assert finished.ranges_behind(3) == [(3, 4)]
    assert count_of(finished.first_ranges(5)) == 5
