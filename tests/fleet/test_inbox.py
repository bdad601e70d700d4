"""The inbox alone: filters come and go, over years."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any, cast

import pytest

from glec_fast.fleet.inbox import Inbox
from glec_fast.fleet.subscriptions import identifier_of
from glec_fast.mqtt.inbound_message import kept_message
from glec_fast.runtime.summing_log import SummingLog

if TYPE_CHECKING:
    from glec_fast.fleet.inbox import Arrival


@pytest.fixture
def inbox() -> Inbox:
    # QoS 0 alone is taken here, of which nothing is received but once.
    return Inbox(cast("Any", None), SummingLog(), 1000, 1_000_000)


def nowhere(_arrival: Arrival) -> None:
    """A route that is never done."""


def come_and_go(inbox: Inbox, name: str, count: int) -> None:
    for number in range(count):
        inbox.add_route(f"answers/{name}/{number}", nowhere)
        assert inbox.remove_route(f"answers/{name}/{number}")


def test_a_filter_for_each_answer_takes_no_memory_once_it_has_ended(inbox: Inbox) -> None:
    come_and_go(inbox, "first", 3000)
    tracemalloc.start()
    try:
        come_and_go(inbox, "later", 20_000)
        # 2.7 MB where each is kept.
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


def message_for(topic_filter: str) -> Any:
    identifier, packed = identifier_of(topic_filter), b"\x0b"
    while identifier >= 0x80:
        packed += bytes([identifier & 0x7F | 0x80])
        identifier >>= 7
    packed += bytes([identifier])
    return kept_message("a/b", b"x", bytes([len(packed)]) + packed)


def test_a_copy_for_a_filter_that_has_just_ended_is_no_other_handler_s(inbox: Inbox) -> None:
    taken: list[Arrival] = []
    inbox.add_route("a/+", taken.append)
    inbox.add_route("a/#", nowhere)
    inbox.remove_route("a/#")
    inbox.take(message_for("a/#"))
    assert not taken
    inbox.take(message_for("a/+"))
    assert len(taken) == 1
