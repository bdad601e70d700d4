"""What an operator reads in the log: each change with its cause, and a line for what repeats."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from glec_fast import ConnectionCallback, MQTTManager
from support.gateway import TIMEOUT_S, Recorder, eventually, quick_config

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Link


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    found = [each for each in caplog.records if each.levelno > logging.DEBUG and text in each.getMessage()]
    return [each.getMessage() for each in found]


def test_a_full_queue_without_a_link_is_a_few_lines(
    link: Link, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link.cut()
    told: list[object] = []
    with MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path, queue_max_size=20)) as manager:
        manager.set_drop_callback(told.append)
        manager.connect()
        for number in range(60):
            manager.publish("t", str(number)).wait_durable(TIMEOUT_S)
        assert eventually(lambda: len(told) == 40)
        assert eventually(lambda: manager._reports.attempts > 5)
    drops = lines(caplog, "messages dropped")
    assert len(drops) == 2, "the first, and the sum of the others"
    assert sum(int(line.split()[0]) for line in drops) == 40
    assert len(lines(caplog, "no connection to")) == 1
    assert len(lines(caplog, "")) <= 6


def test_each_change_of_the_connection_is_a_line(link: Link, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "glec_fast")
    recorder = Recorder()
    url = f"tcp://127.0.0.1:{link.port}"
    with MQTTManager(quick_config(url, tmp_path)) as manager:
        manager.set_connection_callback(recorder)
        manager.connect()
        assert recorder.wait_for_connections()
        link.cut()
        assert recorder.wait_for_losses()
        assert eventually(lambda: manager._reports.attempts > 2)
        link.restore()
        assert recorder.wait_for_connections(2)
    said = lines(caplog, url)
    assert [said[0], said[-2], said[-1]] == [f"connected to {url}", f"connected to {url}", f"left {url}"]
    assert f"the connection to {url} was lost" in said[1]
    assert f"no connection to {url}: " in said[2]


def test_a_callback_that_fails_each_time_is_one_traceback(
    broker: Broker, link: Link, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(ConnectionCallback):
        def on_reconnecting(self) -> None:
            raise ValueError("the program's own fault")

    link.cut()
    with MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager:
        manager.set_connection_callback(Failing())
        manager.connect()
        assert eventually(lambda: manager._reports.attempts > 10)
    assert caplog.text.count("Traceback") == 1
    assert lines(caplog, "errors in the connection callback in the last ")
