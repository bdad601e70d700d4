"""Finished: ids as they come, and the ranges that they make at every moment."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from glec_fast.durable._steps import Finished, merged, ranges_of


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
    finished, expected = Finished(), set()
    coming = chance.sample(range(1, 200), 150)
    while coming:
        count = chance.randint(1, 9)
        ids, coming = coming[:count], coming[count:]
        finished.add(ids + chance.sample(sorted(expected), len(expected) // 20))
        expected.update(ids)
        if chance.random() < 0.2:
            gone = ranges_of(chance.sample(range(1, 200), chance.randint(0, 100)))
            expected.difference_update(each for first, last in gone for each in range(first, last + 1))
            assert finished.without(gone) == ranges_of(sorted(expected))
            finished.remove(gone)
            finished.remove(gone)
        assert finished.ids == sorted(expected)
        assert len(finished) == len(expected)
        assert finished.ranges == ranges_of(sorted(expected))
        assert [each in finished for each in range(201)] == [each in expected for each in range(201)]


def test_a_flush_of_thousands_takes_little_memory() -> None:
    finished = Finished()
    tracemalloc.start()
    try:
        for first in range(1 << 40, (1 << 40) + 100_000, 100):
            finished.add(list(range(first, first + 100)))
        size_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size_bytes < 10_000
    finished.remove(finished.first_ranges(None))
    assert (len(finished), finished.ids) == (0, [])


def test_the_lowest_and_those_behind_them_as_ranges() -> None:
    finished = Finished()
    finished.add([1, 2, 9, 3, 4])
    assert finished.first_ranges(3) == [(1, 3)]
    assert finished.without([(1, 3)]) == [(4, 4), (9, 9)]
    assert finished.first_ranges(5) == finished.ranges == [(1, 4), (9, 9)]
    assert finished.first_ranges(0) == []


@pytest.mark.parametrize(
    ("ids", "ranges"),
    [
        ([], []),
        ([5], [(5, 5)]),
        ([3, 1, 2, 7, 8], [(1, 3), (7, 8)]),
        ([2, 2, 3, 3], [(2, 3)]),
        ([9, -1, 0], [(-1, 0), (9, 9)]),
    ],
)
def test_ranges_cover_just_the_ids(ids: list[int], ranges: list[tuple[int, int]]) -> None:
    assert ranges_of(ids) == ranges
