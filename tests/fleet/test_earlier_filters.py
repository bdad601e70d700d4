"""What a broker kept for an earlier process, and for filters that it had: one delivery of each."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast.fleet import inbox
from support.gateway import BOTH_VERSIONS, TIMEOUT_S, eventually, quick_config
from support.subscribing import Handled, publishing, running

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Link


class LaterTime:
    """The clock of the inbox, `later_s` ahead of the others."""

    later_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.later_s


@BOTH_VERSIONS
def test_what_the_broker_kept_while_the_process_was_away_comes_once(
    broker: Broker, tmp_path: Path, protocol_version: int
) -> None:
    config = quick_config(broker.url, tmp_path, protocol_version=protocol_version)
    with running(config) as (manager, _):
        subscription = manager.subscribe("a", Handled(), 2)
        manager.connect()
        assert subscription.wait_granted(TIMEOUT_S)
    with publishing(broker, tmp_path / "platform") as platform:
        for qos in (1, 2):
            platform.publish("a", f"kept-{qos}", qos)
        assert platform.flush(TIMEOUT_S)
    handled = Handled()
    with running(config) as (manager, recorder):
        manager.connect()
        # The broker has sent it before the program says who wants it.
        assert recorder.wait_for_connections()
        assert eventually(lambda: manager.get_metrics().messages_received == 2)
        manager.subscribe("a", handled, 2)
        assert handled.wait_for([b"kept-1", b"kept-2"])
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)
    again = Handled()
    with running(config) as (manager, _):
        assert not manager.subscribe("a", again, 2).wait_granted(0)
        manager.connect()
        with publishing(broker, tmp_path / "platform") as platform:
            platform.publish("a", "new", 2)
            assert again.wait_for([b"new"]), again.messages


def test_a_filter_that_is_subscribed_to_once_there_is_a_link_at_last(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As programs do whose first link is long in coming: what the broker kept waits for it all the same."""
    config, clock = quick_config(broker.url, tmp_path), LaterTime()
    with running(config) as (manager, _):
        subscription = manager.subscribe("a", Handled(), 2)
        manager.connect()
        assert subscription.wait_granted(TIMEOUT_S)
    with publishing(broker, tmp_path / "platform") as platform:
        platform.publish("a", "kept", 2)
        assert platform.flush(TIMEOUT_S)
    handled = Handled()
    monkeypatch.setattr(inbox, "time", clock)
    with running(config) as (manager, _):
        manager.subscribe("b", Handled(), 2)
        clock.later_s = 1000.0
        manager.connect()
        assert eventually(lambda: manager.get_metrics().messages_received == 1)
        manager.subscribe("a", handled, 2)
        assert handled.wait_for([b"kept"])
        assert manager.get_metrics().messages_unhandled == 0


def test_nobody_is_waited_for_for_ever_by_who_subscribes_behind_a_cut(
    broker: Broker, link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, clock = quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path), LaterTime()
    with running(config) as (manager, _):
        earlier = manager.subscribe("earlier", Handled(), 2)
        manager.connect()
        assert earlier.wait_granted(TIMEOUT_S)
    monkeypatch.setattr(inbox, "time", clock)
    with running(config) as (manager, recorder), publishing(broker, tmp_path / "platform") as platform:
        manager.connect()
        assert recorder.wait_for_connections()
        link.cut()
        assert recorder.wait_for_losses()
        manager.subscribe("a", Handled(), 2)
        platform.publish("earlier", "x", 2)
        assert platform.flush(TIMEOUT_S)
        link.restore()
        assert eventually(lambda: manager.get_metrics().messages_received == 1)
        clock.later_s = 1000.0
        assert eventually(lambda: manager.get_metrics().messages_unhandled == 1)
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)


@BOTH_VERSIONS
@pytest.mark.parametrize(
    ("before", "behind"),
    [(["a/#"], ["a/b"]), (["a/b"], ["a/#", "+/b"]), (["$share/g/a/b"], ["a/b"]), (["a/#", "a/b"], ["a/b"])],
)
def test_what_was_kept_for_an_earlier_filter_goes_to_whoever_wants_its_topic(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol_version: int, before: Any, behind: Any
) -> None:
    """A new version of a program may have other filters. The session has the old ones still, so that copies come."""
    config, clock = quick_config(broker.url, tmp_path, protocol_version=protocol_version), LaterTime()
    with running(config) as (manager, _):
        earlier = [manager.subscribe(each, Handled(), 2) for each in before]
        manager.connect()
        assert all(each.wait_granted(TIMEOUT_S) for each in earlier)
    monkeypatch.setattr(inbox, "time", clock)
    with publishing(broker, tmp_path / "platform") as platform:
        for number in range(5):
            # Alike, but for one.
            platform.publish("a/b", f"kept-{number // 4}", 2)
        assert platform.flush(TIMEOUT_S)
        with running(config) as (manager, _):
            handlers = {each: Handled() for each in behind}
            subscriptions = [manager.subscribe(each, handler, 2) for each, handler in handlers.items()]
            manager.connect()
            assert all(each.wait_granted(TIMEOUT_S) for each in subscriptions)
            for number in range(2):
                platform.publish("a/b", f"new-{number}", 2)
            assert all(eventually(lambda each=each: b"new-1" in each.payloads) for each in handlers.values())
            clock.later_s += 1000.0
            expected = sorted([b"kept-0"] * 4 + [b"kept-1", b"new-0", b"new-1"])
            assert all(eventually(lambda each=each: sorted(each.payloads) == expected) for each in handlers.values())
            # From here on the copies come one behind the other.
            platform.publish("a/b", "kept-0", 2)
            platform.publish("a/b", "end", 2)
            assert all(eventually(lambda each=each: b"end" in each.payloads) for each in handlers.values())
            assert eventually(lambda: manager.get_metrics().inbox_size == 0)
            expected = sorted([*expected, b"kept-0", b"end"])
            assert [sorted(each.payloads) for each in handlers.values()] == [expected] * len(handlers)
            assert manager.get_metrics().messages_unhandled == 0


def test_what_is_alike_is_handled_each_time_where_an_earlier_filter_has_no_copy_of_it(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a command that is sent again: the first was kept for the earlier filter, the second comes for ours alone."""
    config, clock, handled = quick_config(broker.url, tmp_path, protocol_version=5), LaterTime(), Handled()
    with running(config) as (manager, _):
        earlier = manager.subscribe("a/#", Handled(), 2)
        manager.connect()
        assert earlier.wait_granted(TIMEOUT_S)
    monkeypatch.setattr(inbox, "time", clock)
    with publishing(broker, tmp_path / "platform") as platform:
        platform.publish("a/b", "unlock", 2)
        assert platform.flush(TIMEOUT_S)
        with running(config) as (manager, _):
            subscription = manager.subscribe("a/b", handled, 2)
            manager.connect()
            assert subscription.wait_granted(TIMEOUT_S)
            assert eventually(lambda: manager.get_metrics().messages_received == 1)
            manager.unsubscribe("a/#")
            assert eventually(lambda: "a/#" not in manager._incoming._subscriptions._held)
            clock.later_s = 10.0
            platform.publish("a/b", "unlock", 2)
            platform.publish("a/b", "end", 2)
            assert eventually(lambda: b"end" in handled.payloads)
            clock.later_s = 1000.0
            assert eventually(lambda: sorted(handled.payloads) == [b"end", b"unlock", b"unlock"])


@pytest.mark.parametrize("levels", [(1, 2), (2, 1), (0, 2), (2, 2)])
def test_a_copy_for_an_earlier_filter_is_none_whenever_the_first_comes_and_with_whatever_qos(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: tuple[int, int]
) -> None:
    config, clock, handled = quick_config(broker.url, tmp_path, protocol_version=5), LaterTime(), Handled()
    with running(config) as (manager, _):
        earlier = manager.subscribe("a/#", Handled(), levels[0])
        manager.connect()
        assert earlier.wait_granted(TIMEOUT_S)
    monkeypatch.setattr(inbox, "time", clock)
    with publishing(broker, tmp_path / "platform") as platform, running(config) as (manager, _):
        subscription = manager.subscribe("a/b", handled, levels[1])
        manager.connect()
        assert subscription.wait_granted(TIMEOUT_S)
        clock.later_s = 1000.0
        platform.publish("a/b", "x", 2)
        platform.publish("a/b", "end", 2)
        assert eventually(lambda: manager.get_metrics().messages_received == 4)
        assert eventually(lambda: manager.get_metrics().inbox_size == 0)
    assert sorted(handled.payloads) == [b"end", b"x"]
