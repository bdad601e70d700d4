"""How long something took, as `cext/runtime/histogram.pxd` has counted it: what is told of it."""

from __future__ import annotations

from typing import NamedTuple

# As there: eight buckets to each power of two of milliseconds.
_SHARES = 8


class Latency(NamedTuple):
    """Lengths of time, in seconds; each is known to a millisecond, and `p50_s` and `p99_s` to an eighth.

    messages: how many; sum_s: of all. max_s: the longest. p50_s, p99_s: so many per cent took no longer. buckets: (so
    many seconds, how many took less), each twice as long as the one before, up to the longest.
    """

    messages: int = 0
    sum_s: float = 0.0
    max_s: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    buckets: tuple[tuple[float, int], ...] = ()

    @classmethod
    def of(cls, counts: list[int], sum_ms: int, longest_ms: int) -> Latency:
        """Of what `histogram.read` returns."""
        count = sum(counts)
        if not count:
            return cls()
        ends = [_end_ms(index) for index in range(len(counts))]
        buckets: list[tuple[float, int]] = []
        below, power_ms = 0, 1
        for end_ms, each in zip(ends, counts, strict=True):
            below += each
            if end_ms == power_ms:
                buckets.append((power_ms / 1000, below))
                power_ms *= 2
        if below != (buckets[-1][1] if buckets else 0):
            buckets.append((power_ms / 1000, below))
        p50_s, p99_s = (
            min(_quantile_ms(counts, ends, -(-count * share // 100)), longest_ms) / 1000 for share in (50, 99)
        )
        return cls(count, sum_ms / 1000, longest_ms / 1000, p50_s, p99_s, tuple(buckets))


def _end_ms(index: int) -> int:
    """The first length that is too long for this bucket."""
    power, share = divmod(index, _SHARES)
    return index + 1 if power == 0 else (_SHARES + share + 1) << (power - 1)


def _quantile_ms(counts: list[int], ends: list[int], rank: int) -> int:
    """No more than the `rank` shortest took longer."""
    for count, end_ms in zip(counts, ends, strict=True):
        rank -= count
        if rank <= 0:
            return end_ms
    return ends[-1]


NONE_YET = Latency()
