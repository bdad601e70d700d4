"""The log of repeats: what is new is said at once, what repeats is counted, and the lines have a bound."""

from __future__ import annotations

import logging

import pytest

from glec_fast.runtime.summing_log import SummingLog

DAY_S = 86_400
KIND = "messages dropped"


class Scene:
    """A log with a clock moved by hand, and what it has written."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now_s = 1000.0
        self.log = SummingLog(lambda: self.now_s)
        self._caplog = caplog
        caplog.set_level(logging.INFO, "glec_fast")

    def note(self, cause: str, count: int = 1, kind: str = KIND) -> None:
        self.log.note(logging.WARNING, kind, cause, count=count)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.log.tick()

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self._caplog.records]


@pytest.fixture
def scene(caplog: pytest.LogCaptureFixture) -> Scene:
    return Scene(caplog)


def test_repeats_are_summed_up(scene: Scene) -> None:
    scene.note("overflow", 12)
    for _ in range(300):
        scene.note("overflow", 4)
        scene.wait(1)
    assert scene.lines == ["12 messages dropped: overflow", "1,200 messages dropped in the last 5 minutes: overflow"]


def test_another_cause_is_news_and_a_sum_tells_them_apart(scene: Scene) -> None:
    scene.note("overflow")
    scene.note("expired", 2)
    scene.note("expired", 3)
    scene.wait(290)
    # Within the lines that a kind has between two sums.
    for cause in ("overflow", "expired", "overflow", "expired", "overflow", "expired"):
        scene.note(cause)
    scene.wait(10)
    assert scene.lines[:2] == ["1 messages dropped: overflow", "2 messages dropped: expired"]
    assert len(scene.lines) == 7
    assert scene.lines[-1] == ("5 messages dropped in the last 5 minutes: 4 expired, 1 overflow; the last: expired")


def test_what_comes_back_after_a_while_is_news_again(scene: Scene) -> None:
    scene.note("overflow")
    scene.wait(301)
    scene.note("overflow")
    assert scene.lines == ["1 messages dropped: overflow"] * 2


def test_sums_of_what_goes_on_come_less_and_less_often(scene: Scene) -> None:
    for _ in range(DAY_S // 60):
        scene.note("refused", kind="attempts to connect failed")
        scene.wait(60)
    assert len(scene.lines) < 30
    assert scene.lines[-1] == "60 attempts to connect failed in the last hour: refused"


def test_the_sum_comes_soon_once_it_is_quiet(scene: Scene) -> None:
    for _ in range(DAY_S // 60):
        scene.note("refused")
        scene.wait(60)
    scene.note("overflow")
    written = len(scene.lines)
    scene.wait(1800)
    assert len(scene.lines) == written + 1


@pytest.mark.parametrize("seconds", [10, 60, 250, 310, 600, 1300])
def test_however_often_and_for_whatever_causes_a_day_has_few_lines(scene: Scene, seconds: int) -> None:
    """As of two brokers, neither of which answers, and a queue that is full."""
    for number in range(DAY_S // seconds):
        scene.note(f"no connection to {number % 2}", kind="attempts to connect failed")
        scene.note("overflow")
        scene.wait(seconds)
    assert len(scene.lines) < 200


def test_whatever_happens_a_few_lines_a_minute(scene: Scene) -> None:
    for number in range(3600):
        for kind in range(20):
            scene.note(f"cause {number}", kind=f"events of kind {kind}")
        scene.wait(1)
    assert len(scene.lines) < 5 * 60


def test_what_is_noted_under_a_lock_is_said_by_the_next_tick(scene: Scene) -> None:
    for _ in range(3):
        scene.log.note(logging.WARNING, KIND, "overflow", later=True)
    assert scene.lines == []
    scene.wait(0)
    assert scene.lines == ["1 messages dropped: overflow"]
    scene.wait(300)
    assert scene.lines[1:] == ["2 messages dropped in the last 5 minutes: overflow"]
    scene.log.note(logging.WARNING, KIND, "expired", later=True)
    scene.log.close()
    assert scene.lines[-1] == "1 messages dropped: expired"


def test_nothing_is_lost(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "glec_fast")
    for number in range(100):
        scene.note(f"cause {number}", number + 1)
    scene.log.close()
    said = [line for line, level in ((r.getMessage(), r.levelno) for r in caplog.records) if level > logging.DEBUG]
    counted = sum(int(line.split()[0].replace(",", "")) for line in said)
    assert counted == sum(range(101))
    assert "for other causes" in said[-1]
    assert len(caplog.records) == 101, "what was not said at once is there at DEBUG"


def test_a_sum_has_the_highest_level_of_what_is_in_it(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for level in (logging.WARNING, logging.WARNING, logging.ERROR, logging.WARNING):
        scene.log.note(level, KIND, "x")
    scene.log.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]


def test_news_comes_with_its_traceback(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        scene.log.note(logging.ERROR, "errors in callbacks", "on_drop", error=ValueError("why"))
    scene.log.close()
    assert caplog.text.count("ValueError: why") == 1
    assert scene.lines[-1].startswith("2 errors in callbacks in the last ")
