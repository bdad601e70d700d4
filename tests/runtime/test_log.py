"""A log handler of the program's that raises at each line keeps nothing from being done, and is told of."""

from __future__ import annotations

import logging
import os
from contextlib import closing
from typing import TYPE_CHECKING

import apsw
import pytest

from glec_fast import MQTTManager
from glec_fast.durable.store import Store
from glec_fast.runtime.log import logger
from support.gateway import Recorder, quick_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from glec_fast.testbed.broker import Broker
    from glec_fast.testbed.link import Link

WAIT_S = 15.0
HAPPENS: dict[str, Callable[[Path], object]] = {
    "the queue is full": lambda _path: None,
    "the file is deleted": lambda path: path.unlink(),
    "the log is emptied": lambda path: os.truncate(f"{path}-wal", 0),
}


class Raising(logging.Handler):
    def __init__(self, kind: type[BaseException]) -> None:
        super().__init__()
        self.kind = kind
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        raise self.kind(record.getMessage())


@pytest.fixture(params=[RuntimeError, SystemExit])
def handler(request: pytest.FixtureRequest) -> Iterator[Raising]:
    handler = Raising(request.param)
    logging.getLogger("glec_fast").addHandler(handler)
    yield handler
    logging.getLogger("glec_fast").removeHandler(handler)


@pytest.mark.parametrize("what", HAPPENS)
def test_what_is_said_stops_nothing(
    handler: Raising, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "queue.db"
    with closing(Store(path, max_queue_size=5 if what == "the queue is full" else 100)) as store:
        for number in range(5):
            assert store.wait_durable(store.append("t", f"{number}", 2), WAIT_S)
        HAPPENS[what](path)
        for number in range(5, 9):
            assert store.wait_durable(store.append("t", f"{number}", 2), WAIT_S)
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        rows = [payload for (payload,) in connection.execute("SELECT payload FROM mqtt_offline_queue ORDER BY id")]
    assert rows == [str(number) for number in range(9)][-len(rows) :]
    assert len(rows) == (5 if what == "the queue is full" else 9)
    assert handler.count > 0
    assert handler.kind.__name__ in capsys.readouterr().err


def test_the_log_of_packets_stops_nothing_either(
    handler: Raising, broker: Broker, link: Link, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder()
    with MQTTManager(quick_config(f"tcp://127.0.0.1:{link.port}", tmp_path)) as manager:
        manager.set_connection_callback(recorder)
        manager.enable_debug_logging()
        manager.connect()
        assert recorder.wait_for_connections()
        link.drop()
        assert recorder.wait_for_connections(2)
        manager.enable_debug_logging(False)
    assert handler.kind.__name__ in capsys.readouterr().err


def test_a_record_says_whose_line_it_is(caplog: pytest.LogCaptureFixture) -> None:
    logger.warning("%s of %d", "one", 2)
    (record,) = caplog.records
    assert record.getMessage() == "one of 2"
    assert (record.filename, record.funcName) == ("test_log.py", "test_a_record_says_whose_line_it_is")


def test_an_exception_from_outside_goes_through_it() -> None:
    """As Ctrl-C, in a thread of the program's."""
    handler = Raising(KeyboardInterrupt)
    logging.getLogger("glec_fast").addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            logger.warning("x")
    finally:
        logging.getLogger("glec_fast").removeHandler(handler)
