"""A log that an operator can live with: what is new is said, what repeats is summed up. For every kind of event alike.

A *kind* is what happens ("messages dropped"), a *cause* is why ("overflow"). A cause that is not the one that was said
last is news, and said at once. What repeats is counted, and said in one line once that is worth it:

    12 messages dropped: overflow (the first: message 7 of topic 'glec/dtg/D/telemetry')
    1,204 messages dropped in the last 5 minutes: 1,200 overflow, 4 expired; the last: overflow

Three rules bound the lines, whatever happens. A kind has a few lines of news at once, and then one an hour. Its sums
come every 5 minutes at first, and half as often each time for as long as it goes on, down to one an hour; where it has
been quiet for 3 minutes, half of that time is enough. All kinds together have a few lines of news a minute. Nothing is
lost: what is not said is counted, and written at DEBUG for those who look for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from glec_fast.runtime._lock import Lock
from glec_fast.runtime.log import logger

SUM_AFTER_S = 300.0
_SUM_AFTER_MAX_S = 3600.0
_QUIET_S = 180.0
# Of one kind: so many at once, and then one in so many seconds.
_NEWS_MAX = 6
_KIND_INTERVAL_S = 3600.0
# Of all kinds: so many at once, and then one in so many seconds.
_BURST_MAX = 20
_NEWS_INTERVAL_S = 15.0
# Causes that a sum tells apart.
_CAUSES_MAX = 6
_OTHERS = "for other causes"
_OURS = logging.getLogger("glec_fast")


def is_in_a_handler() -> bool:
    """True in a thread that has the lock of a handler of our log: whoever else logs waits for it."""
    place: logging.Logger | None = _OURS
    while place is not None:
        for handler in place.handlers:
            # Of an RLock, as `threading.Condition` asks for it.
            is_owned = getattr(getattr(handler, "lock", None), "_is_owned", None)
            if is_owned is not None and is_owned():
                return True
        place = place.parent if place.propagate else None
    return False


class _Kind:
    """What is not said yet of one kind of event."""

    __slots__ = ("began_s", "causes", "counted_s", "last", "last_s", "level", "news_left", "said", "sum_after_s")

    def __init__(self) -> None:
        self.causes: dict[str, int] = {}
        self.last = self.said = ""
        self.level = logging.NOTSET
        self.began_s = self.last_s = float("-inf")
        self.sum_after_s = SUM_AFTER_S
        self.news_left, self.counted_s = float(_NEWS_MAX), float("-inf")

    def begin(self, now_s: float, *, is_going_on: bool) -> None:
        """The time for the next sum begins."""
        self.began_s = now_s
        self.sum_after_s = min(self.sum_after_s * 2, _SUM_AFTER_MAX_S) if is_going_on else SUM_AFTER_S

    def count(self, level: int, cause: str, count: int) -> None:
        known = cause if cause in self.causes or len(self.causes) < _CAUSES_MAX else _OTHERS
        self.causes[known] = self.causes.get(known, 0) + count
        self.level = max(self.level, level)
        self.last = cause

    def due_s(self) -> float:
        """When it is summed up."""
        if not self.causes:
            return float("inf")
        earliest_s = self.began_s + max(self.sum_after_s / 2, SUM_AFTER_S)
        return min(self.began_s + self.sum_after_s, max(earliest_s, self.last_s + _QUIET_S))

    def take_sum(self, name: str, now_s: float) -> tuple[int, str]:
        """(level, text) of what was not said."""
        level, causes = self.level, self.causes
        self.level, self.causes = logging.NOTSET, {}
        self.said = self.last
        span = _span(now_s - self.began_s)
        if len(causes) == 1:
            ((cause, count),) = causes.items()
            return level, f"{count:,} {name} in the last {span}: {cause}"
        parts = ", ".join(f"{count:,} {cause}" for cause, count in causes.items())
        return level, f"{sum(causes.values()):,} {name} in the last {span}: {parts}; the last: {self.last}"


def _span(seconds: float) -> str:
    for unit_s, unit in ((3600, "hour"), (60, "minute"), (1, "second")):
        count = round(seconds / unit_s)
        if count:
            return unit if count == 1 else f"{count} {unit}s"
    return "second"


class SummingLog:
    """Of one queue or client; see the module's text. Thread-safe. It writes to the logger "glec_fast" under no lock.

    monotonic: seconds that it measures by.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = Lock("SummingLog._lock")
        self._kinds: dict[str, _Kind] = {}
        self._news_left = float(_BURST_MAX)
        self._counted_s = monotonic()
        # When `tick` has something to say.
        self._due_s = float("inf")
        # What was noted under a lock.
        self._later: list[tuple[int, str, BaseException | None]] = []

    def note(
        self,
        level: int,
        kind: str,
        cause: str,
        *,
        count: int = 1,
        text: str = "",
        error: BaseException | None = None,
        later: bool = False,
    ) -> None:
        """`count` events of this `kind`, a plural such as "messages dropped", have happened for this `cause`.

        level: of `logging`. text: the line where it is news; made of the others where empty. error: whose traceback
        that line comes with. later: the caller holds a lock that a handler of the log may wait for, as one that
        publishes does; the next `tick` says it.
        """
        now_s = self._monotonic()
        sums = [] if later else self._take_sums(now_s)
        with self._lock:
            known = self._kinds.get(kind)
            if known is None:
                known = self._kinds[kind] = _Kind()
            if not known.causes and now_s >= known.began_s + known.sum_after_s:
                # A while ago, or never: nobody remembers what was said then.
                known.said = ""
                known.begin(now_s, is_going_on=False)
            known.last_s = now_s
            is_news = cause != known.said and self._may_say(known, now_s)
            if is_news:
                known.said = cause
            else:
                known.count(level, cause, count)
                self._due_s = min(self._due_s, known.due_s())
            said = level if is_news else logging.DEBUG
            if later and logger.isEnabledFor(said):
                self._later.append((said, text or f"{count:,} {kind}: {cause}", error))
                self._due_s = now_s
        _say(sums)
        if not later and logger.isEnabledFor(said):
            logger.log(said, "%s", text or f"{count:,} {kind}: {cause}", exc_info=error if is_news else None)

    def _may_say(self, kind: _Kind, now_s: float) -> bool:
        left = min(self._news_left + (now_s - self._counted_s) / _NEWS_INTERVAL_S, float(_BURST_MAX))
        of_kind = min(kind.news_left + (now_s - kind.counted_s) / _KIND_INTERVAL_S, float(_NEWS_MAX))
        self._counted_s = kind.counted_s = now_s
        may_say = left >= 1 and of_kind >= 1
        self._news_left, kind.news_left = left - may_say, of_kind - may_say
        return may_say

    def tick(self) -> None:
        """Say what is due. To be called now and then, by any thread; costs next to nothing where nothing is."""
        if self._due_s != float("inf"):
            _say(self._take_sums(self._monotonic()))

    def due_in_s(self) -> float:
        """Until `tick` has something to say."""
        return self._due_s - self._monotonic()

    def _take_sums(self, now_s: float, *, all_of_them: bool = False) -> list[tuple[int, str, BaseException | None]]:
        if now_s < self._due_s and not all_of_them:
            return []
        with self._lock:
            sums, self._later = self._later, []
            for name, kind in self._kinds.items():
                if kind.causes and (all_of_them or now_s >= kind.due_s()):
                    sums.append((*kind.take_sum(name, now_s), None))
                    kind.begin(now_s, is_going_on=True)
            self._due_s = min((kind.due_s() for kind in self._kinds.values()), default=float("inf"))
        return sums

    def close(self) -> None:
        """Say what was not said yet."""
        _say(self._take_sums(self._monotonic(), all_of_them=True))


def _say(lines: list[tuple[int, str, BaseException | None]]) -> None:
    for level, text, error in lines:
        logger.log(level, "%s", text, exc_info=error)
