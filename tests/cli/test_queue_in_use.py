"""`glec-fast queue` beside the service that has the file: reading disturbs nobody, and what changes goes through it."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from glec_fast import MQTTManager
from glec_fast.cli import queue_file
from glec_fast.cli.main import main
from glec_fast.cli.service import Service
from support.gateway import eventually, quick_config
from support.queue_files import plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOBODY = "tcp://127.0.0.1:1"


@contextmanager
def serving(directory: Path) -> Iterator[MQTTManager]:
    """A service without a broker; its socket is publish.sock."""
    stop = threading.Event()
    with (
        MQTTManager(quick_config(NOBODY, directory)) as manager,
        closing(Service(manager, directory / "publish.sock")) as service,
    ):

        def serve() -> None:
            while not stop.is_set():
                service.turn(0.05)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield manager
        finally:
            stop.set()
            thread.join()


def test_messages_of_the_running_service_are_purged_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(tmp_path) as manager:
        handles = [manager.publish(f"t/{number % 2}", "x", 2) for number in range(10)]
        dropped: list[int] = []
        manager.set_drop_callback(lambda each: dropped.append(each.message_id))
        arguments = ["queue", "purge", str(tmp_path / "queue.db"), "--topic", "t/1", "--yes"]
        assert main([*arguments, "--socket", str(tmp_path / "publish.sock")]) == 0
        assert capsys.readouterr().out == "the service deletes 5 messages, but for what is on its way already\n"
        assert eventually(lambda: len(dropped) == 5)
        assert sorted(dropped) == [handle.message_id for handle in handles[1::2]]
        metrics = manager.get_metrics()
        assert (metrics.queue_size, metrics.drops) == (5, {"purged": 5})


def test_another_program_than_the_service_has_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    with serving(tmp_path), MQTTManager(quick_config(NOBODY, tmp_path / "other")) as manager:
        manager.publish("t", "x", 2)
        arguments = ["queue", "purge", str(tmp_path / "other/queue.db"), "--qos", "2", "--yes"]
        assert main([*arguments, "--socket", str(tmp_path / "publish.sock")]) == 2
        assert "in use by another program than the service" in capsys.readouterr().err
        assert main([*arguments, "--socket", str(tmp_path / "nobody.sock")]) == 2
        said = capsys.readouterr().err
        assert "in use by another program, and no service answers at" in said
        assert said.count("\n") == 1
        assert manager.get_metrics().queue_size == 1


@pytest.mark.parametrize("order", [["purge", "--qos", "2", "--yes"], ["quarantine", "retry", "1"]], ids=" ".join)
def test_a_program_s_own_socket_changes_nothing(
    tmp_path: Path, order: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, socket = str(tmp_path / "queue.db"), tmp_path / "ask.sock"
    with MQTTManager(quick_config(NOBODY, tmp_path, metrics_socket=socket)) as manager:
        manager.publish("t", "x", 2)
        subject = order[: 2 if order[0] == "quarantine" else 1]
        assert main(["queue", *subject, path, *order[len(subject) :], "--socket", str(socket)]) == 2
        said = capsys.readouterr().err
        assert f"the program that answers at {socket} has {path}, and changes nothing of it when asked" in said
        assert "end it" in said
        assert "update" not in said
        assert said.count("\n") == 1
        assert manager.get_metrics().queue_size == 1


def test_quarantine_of_the_running_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MQTTManager(quick_config(NOBODY, tmp_path)) as manager:
        for number in range(3):
            manager.publish(f"t/{number}", "x", 1).wait_durable(15)
    with plain(tmp_path / "queue.db") as database:
        database.execute("UPDATE mqtt_offline_queue SET retry_count = 99")
    path, socket = str(tmp_path / "queue.db"), str(tmp_path / "publish.sock")
    with serving(tmp_path) as manager:
        manager._store.run(lambda table: manager._store._dropping.choose_given_up(table))
        assert eventually(lambda: len(manager.quarantined()) == 3)
        assert main(["queue", "quarantine", "list", path]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 3
        assert main(["queue", "quarantine", "retry", path, "2", "--socket", socket]) == 0
        assert "2: in the queue as message 4\n" in capsys.readouterr().out
        assert main(["queue", "quarantine", "delete", path, "1", "9", "--socket", socket]) == 1
        said = capsys.readouterr()
        assert (said.out, said.err) == ("1: deleted\n", "9: nothing in quarantine has this number\n")
        assert main(["queue", "quarantine", "delete", path, "--all", "--socket", socket]) == 0
        assert manager.quarantined() == []
        assert manager.get_metrics().queue_size == 1


@pytest.mark.parametrize("command", [["stats"], ["list"], ["export"], ["tail"], ["in-doubt"], ["quarantine", "list"]])
def test_reading_keeps_no_log_from_starting_over(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each look all of the log can be moved into the file: nobody reads behind it."""
    looks = 0
    read = queue_file.read

    with serving(tmp_path) as manager:
        for _ in range(500):
            manager.publish("t", "x" * 300, 1)
        manager.publish("t", "x", 2)

        def watched(path: Path, look: object) -> object:
            nonlocal looks
            found = read(path, look)  # type: ignore[arg-type]
            looks += 1
            with plain(tmp_path / "queue.db") as database:
                database.execute("PRAGMA busy_timeout = 10000")
                is_busy, in_log, in_file = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert (is_busy, in_log, in_file) == (0, 0, 0)
            return found

        monkeypatch.setattr(queue_file, "read", watched)
        assert main(["queue", *command, str(tmp_path / "queue.db")]) == 0
    assert looks >= 1
