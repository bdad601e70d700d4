"""What the doctor says of files, queue, disk and clock, none of which it changes."""

from __future__ import annotations

import os
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast import OfflineQueueManager, TLSConfig
from glec_fast.cli.doctor.clock import clock_ahead_s, examine_clock
from glec_fast.protocol._session import Session
from support.doctor import Doctor, Report
from support.properties_file import write_properties
from support.queue_files import plain
from support.tls_cases import Cases, new_authority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capsys)


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    return Cases(new_authority(tmp_path, "trusted"), tmp_path)


class TestFiles:
    def test_a_missing_authority(self, tmp_path: Path, doctor: Doctor) -> None:
        report = doctor(write_properties(tmp_path, "ssl://localhost:1", TLSConfig(str(tmp_path / "nowhere.crt"))))
        assert "tls files" in report.failed()
        assert "nowhere.crt" in report.found("tls files")
        assert report.status_of("tls") == "skipped"

    def test_each_file_that_cannot_be_used_is_told_of(self, cases: Cases, tmp_path: Path, doctor: Doctor) -> None:
        ours = cases.authority.issue_client()
        (tmp_path / "page.html").write_text("<html>404</html>")
        tls = TLSConfig(
            str(tmp_path / "page.html"),
            str(ours.certificate_path),
            str(tmp_path / "nowhere.key"),
            crl_file=str(cases.authority.certificate_path),
        )
        report = doctor(write_properties(tmp_path, "ssl://localhost:1", tls))
        told = [check for check in report.all["checks"] if check["check"] == "tls files"]
        assert [each["status"] for each in told] == ["failed"] * 3
        for each, says in zip(told, ("it is a web page", "nowhere.key", "it is a certificate"), strict=True):
            assert says in each["found"]
            assert each["advice"]
        assert report.status == 1

    def test_a_key_that_everybody_can_read(self, cases: Cases, tmp_path: Path, doctor: Doctor) -> None:
        ours = cases.authority.issue_client()
        ours.key_path.chmod(0o644)
        tls = TLSConfig.create_mutual_tls(cases.authority.certificate_path, ours.certificate_path, ours.key_path)
        report = doctor(write_properties(tmp_path, "ssl://localhost:1", tls))
        assert report.status_of("tls files") == "warning"
        assert "chmod 600" in report.findings["tls files"]["advice"]

    def test_a_wrong_key_password_is_not_repeated(self, cases: Cases, tmp_path: Path, doctor: Doctor) -> None:
        from cryptography.hazmat.primitives import serialization as forms

        ours = cases.authority.issue_client()
        key = forms.load_pem_private_key(ours.key_path.read_bytes(), None)
        encrypted = forms.BestAvailableEncryption(b"right")
        ours.key_path.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, encrypted))
        tls = TLSConfig.create_mutual_tls(
            cases.authority.certificate_path, ours.certificate_path, ours.key_path, "s3cr3t-pa55"
        )
        report = doctor(write_properties(tmp_path, "ssl://localhost:1", tls))
        assert "tls files" in report.failed()
        assert "key_password" in report.found("tls files") + report.findings["tls files"]["advice"]
        assert "s3cr3t" not in report.text


def contents(directory: Path) -> dict[str, bytes]:
    """All that is there, but for what the test itself writes."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".properties"}


class TestQueue:
    """Whatever the doctor finds, it leaves every byte where it was."""

    @pytest.fixture
    def queue(self, tmp_path: Path) -> Path:
        with OfflineQueueManager(tmp_path / "queue.db") as made:
            for number in range(30):
                made.enqueue("t", f"{number}" * 50, 1)
        return tmp_path / "queue.db"

    @contextmanager
    def untouched(self, directory: Path) -> Iterator[None]:
        before = contents(directory)
        yield
        assert contents(directory) == before

    def examine(self, directory: Path, doctor: Doctor, **lines: object) -> Report:
        with self.untouched(directory):
            return doctor(write_properties(directory, "tcp://127.0.0.1:1", **lines))

    def test_none_yet(self, tmp_path: Path, doctor: Doctor) -> None:
        report = self.examine(tmp_path, doctor)
        assert "will be made" in report.found("queue")

    def test_messages_wait(self, queue: Path, doctor: Doctor) -> None:
        report = self.examine(queue.parent, doctor)
        assert report.status_of("queue") == "ok"
        assert "30 of at most 10000 messages wait" in report.found("queue")

    def test_what_is_finished_waits_no_more(self, queue: Path, doctor: Doctor) -> None:
        """Behind a program that was killed as its flush ended."""
        _, image = Session().take_image([(1, 29)])
        with plain(queue) as database:
            database.execute("INSERT INTO glec_session VALUES (1, 'truck', 'broker', ?)", (image,))
        assert "1 of at most 10000 messages waits" in self.examine(queue.parent, doctor).found("queue")

    def test_messages_in_the_log_of_a_killed_process(self, tmp_path: Path, doctor: Doctor) -> None:
        program = (
            "import os, signal, sys\nfrom glec_fast import OfflineQueueManager\n"
            "queue = OfflineQueueManager(sys.argv[1])\nqueue.enqueue('t', 'x', 1)\nos.kill(os.getpid(), signal.SIGKILL)"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "queue.db")], env=environment, check=False)
        assert (tmp_path / "queue.db-wal").stat().st_size
        report = self.examine(tmp_path, doctor)
        assert "1 of at most 10000 messages waits" in report.found("queue")

    def test_full(self, queue: Path, doctor: Doctor) -> None:
        report = self.examine(queue.parent, doctor, queue_max_size=30)
        assert report.status_of("queue") == "warning"

    def test_open_to_others(self, queue: Path, doctor: Doctor) -> None:
        queue.chmod(0o644)
        report = self.examine(queue.parent, doctor)
        assert report.status_of("queue") == "warning"
        assert "chmod 600" in report.findings["queue"]["advice"]

    def test_damaged(self, queue: Path, doctor: Doctor) -> None:
        with queue.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 4096)
        report = self.examine(queue.parent, doctor)
        assert "queue" in report.failed()
        assert "damaged" in report.found("queue")

    def test_another_programs_file(self, tmp_path: Path, doctor: Doctor) -> None:
        with closing(sqlite3.connect(tmp_path / "queue.db")) as connection:
            connection.execute("CREATE TABLE other (x)")
        report = self.examine(tmp_path, doctor)
        assert "another program's database" in report.found("queue")
        (tmp_path / "queue.db").write_text("notes")
        assert "not a queue file" in self.examine(tmp_path, doctor).found("queue")

    def test_no_folder(self, tmp_path: Path, doctor: Doctor) -> None:
        report = self.examine(tmp_path, doctor, queue_path=tmp_path / "nowhere" / "queue.db")
        assert {"queue", "disk"} <= report.failed()

    def test_a_disk_that_is_too_full(self, tmp_path: Path, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.statvfs(tmp_path)

        def with_free(blocks: int, inodes: int = 1000, flags: int = 0) -> Any:
            figures = list(real)
            figures[4], figures[6], figures[7], figures[8] = blocks, max(inodes, 1), inodes, flags
            return os.statvfs_result([*figures, real.f_fsid])

        cases = (
            (with_free(1), "failed", "MiB are free"),
            (with_free(20_000_000 // real.f_frsize), "warning", "10,000 messages may take"),
            (with_free(1 << 30, inodes=0), "failed", "no inodes"),
            (with_free(1 << 30, flags=os.ST_RDONLY), "failed", "read-only"),
            (with_free(1 << 30), "ok", "MiB are free"),
        )
        for figures, status, says in cases:
            monkeypatch.setattr("glec_fast.cli.doctor.local.os.statvfs", lambda _path, figures=figures: figures)
            report = self.examine(tmp_path, doctor)
            assert report.status_of("disk") == status
            assert says in report.found("disk")


class TimeServer:
    """Answers one SNTP request a call of `serve`, `ahead_s` from this clock; `spoil` changes the answer."""

    def __init__(self, ahead_s: float = 0.0, spoil: Callable[[bytearray], None] | None = None) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.settimeout(10)
        self.name = f"127.0.0.1:{self.sock.getsockname()[1]}"
        self._ahead_s, self._spoil = ahead_s, spoil
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> str:
        self._thread.start()
        return self.name

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self.sock.close()

    def _serve(self) -> None:
        request, address = self.sock.recvfrom(1000)
        assert len(request) == 48
        assert request[0] == 0x23
        at_s = time.time() + self._ahead_s + 2_208_988_800
        stamp = struct.pack(">II", int(at_s) & 0xFFFFFFFF, int(at_s % 1 * (1 << 32)))
        answer = bytearray(b"\x24\x02\x00\xec" + bytes(20) + request[40:48] + stamp + stamp)
        if self._spoil is not None:
            self._spoil(answer)
        self.sock.sendto(answer, address)


class TestClock:
    @pytest.mark.parametrize(
        ("ahead_s", "status", "says"),
        [(0.0, "ok", "0.0 s "), (30.0, "warning", "30.0 s behind"), (-7300.0, "failed", "2 h ahead of")],
    )
    def test_against_a_time_server(self, ahead_s: float, status: str, says: str) -> None:
        with TimeServer(ahead_s) as name:
            finding = examine_clock([], name)
        assert finding.status == status
        assert says in finding.found

    def test_the_difference_is_measured(self) -> None:
        with TimeServer(1234.5) as name:
            assert abs(clock_ahead_s(name) + 1234.5) < 0.5

    def test_beyond_the_era_that_ends_in_2036(self) -> None:
        with TimeServer(20 * 365 * 86_400) as name:
            assert abs(clock_ahead_s(name) + 20 * 365 * 86_400) < 0.5

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda answer: answer.__delitem__(slice(40, None)),
            lambda answer: answer.__setitem__(0, 0x23),
            lambda answer: answer.__setitem__(24, answer[24] ^ 1),
            lambda answer: answer.__setitem__(1, 0),
            lambda answer: answer.__setitem__(0, 0xE4),
        ],
        ids=["short", "not a server's", "another question's", "kiss of death", "unsynchronised"],
    )
    def test_answers_that_are_none(self, spoil: Callable[[bytearray], None]) -> None:
        with TimeServer(0, spoil) as name:
            finding = examine_clock([], name)
        assert finding.status == "warning"
        assert "gave no answer" in finding.found

    def test_nobody_answers(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        assert examine_clock([], f"127.0.0.1:{port}").status == "warning"
        assert examine_clock([], "127.0.0.1:x").status == "warning"

    def test_what_must_lie_behind(self) -> None:
        finding = examine_clock([("it", time.time() - 5), ("the latest queued message", time.time() + 3 * 3600)], None)
        assert finding.status == "failed"
        assert "at least 3 h behind: the latest queued message" in finding.found

    @pytest.mark.parametrize(("kept", "status"), [(True, "ok"), (None, "ok"), (False, "warning")])
    def test_what_the_kernel_says(self, kept: bool | None, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("glec_fast.cli.doctor.clock._is_kept_right", lambda: kept)
        assert examine_clock([], None).status == status
