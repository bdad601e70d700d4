"""Lengths of time in the buckets of C, against the list of all of them."""

from __future__ import annotations

import math
import random

import pytest

from glec_fast.durable._table import DiskTimes
from glec_fast.runtime.latency import Latency

LONGEST_MS = (1 << 35) - 1


def latency_of(lengths_ms: list[int]) -> Latency:
    times = DiskTimes()
    times.note([(1, "t", "x", 1, -each, 0) for each in lengths_ms], 0)
    return Latency.of(*times.writing)


def exactly(lengths_ms: list[int], share: int) -> int:
    return sorted(lengths_ms)[-(-len(lengths_ms) * share // 100) - 1]


@pytest.mark.parametrize("seed", range(20))
def test_counts_sums_and_quantiles(seed: int) -> None:
    rng = random.Random(seed)
    highest = rng.choice((3, 20, 1000, 10**6, LONGEST_MS))
    lengths = [min(int(rng.paretovariate(0.5)), highest) for _ in range(rng.randint(1, 3000))]
    found = latency_of(lengths)
    assert (found.messages, round(found.sum_s * 1000), found.max_s) == (len(lengths), sum(lengths), max(lengths) / 1000)
    for share, told_s in ((50, found.p50_s), (99, found.p99_s)):
        true_ms = exactly(lengths, share)
        assert true_ms <= told_s * 1000 <= max(true_ms * 1.126, true_ms + 1)
    for end_s, count in found.buckets:
        assert count == sum(each < end_s * 1000 for each in lengths)
        assert math.log2(end_s * 1000) == int(math.log2(end_s * 1000))
    assert found.buckets[-1][1] == len(lengths)


@pytest.mark.parametrize("length_ms", [0, 7, 8, 15, 16, 17, 1023, 1024, LONGEST_MS - 1, LONGEST_MS])
def test_each_alone(length_ms: int) -> None:
    found = latency_of([length_ms])
    assert (found.max_s, found.p50_s, found.p99_s) == (length_ms / 1000,) * 3
    assert found.buckets[-1] == (2 ** math.ceil(math.log2(length_ms + 1)) / 1000, 1)


def test_what_cannot_be_is_not_counted() -> None:
    # A clock that stepped between acceptance and now; a little backwards is the resolution of a clock.
    assert latency_of([-10, LONGEST_MS + 1, -2000]) == Latency(1, 0.0, 0.0, 0.0, 0.0, ((0.001, 1),))
    assert latency_of([]) == Latency()


def test_rows_are_counted_by_qos() -> None:
    times = DiskTimes()
    # That of another program's row may be any number.
    times.note([(1, "t", "x", qos, 0, 0) for qos in (0, 1, 1, 2, 2, 2, 9, -1)], 0)
    assert times.counts == (2, 2, 4)
