"""`glec-fast service install` puts into a root what systemd takes, and leaves alone what is there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from glec_fast.cli import service_install
from glec_fast.cli.environment import config_from
from glec_fast.cli.main import main

PROGRAM = "/opt/glec-fast/bin/glec-fast"
UNITS = "etc/systemd/system"


def install(root: Path, *options: str, program: str = PROGRAM) -> int:
    return main(["service", "install", "--root", str(root), "--program", program, *options])


def content(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() if path.is_file() else "" for path in sorted(root.rglob("*"))}


def test_all_that_the_service_needs_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "image"
    assert install(root) == 0
    assert set(content(root)) >= {
        f"{UNITS}/glec-fast.service",
        f"{UNITS}/glec-fast-credentials.path",
        f"{UNITS}/glec-fast-credentials.service",
        "etc/sysusers.d/glec-fast.conf",
        "etc/glec-fast/credentials",
        "etc/glec-fast/service.env",
    }
    assert (root / "etc/glec-fast/credentials").stat().st_mode & 0o777 == 0o700
    assert (root / "etc/glec-fast/service.env").stat().st_mode & 0o777 == 0o600
    assert f"ExecStart={PROGRAM} service\n" in (root / UNITS / "glec-fast.service").read_text()
    said = capsys.readouterr().out
    assert all(f"{root}/{path}" in said for path in content(root) if path.count("/") > 1 and path != UNITS)
    assert "systemctl enable --now glec-fast" in said


def test_the_program_is_the_one_that_is_named(tmp_path: Path) -> None:
    assert install(tmp_path, program="/usr/bin/glec-fast") == 0
    assert "ExecStart=/usr/bin/glec-fast service\n" in (tmp_path / UNITS / "glec-fast.service").read_text()


def test_without_a_name_it_is_the_one_that_is_installed_also_within_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "opt/venv/bin"))
    assert main(["service", "install", "--root", str(tmp_path)]) == 0
    assert "ExecStart=/opt/venv/bin/glec-fast service\n" in (tmp_path / UNITS / "glec-fast.service").read_text()


def test_a_dry_run_does_nothing_and_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "image"
    assert install(root, "--dry-run") == 0
    assert not root.exists()
    would = capsys.readouterr().out
    install(root)
    done = capsys.readouterr().out.split("Next:")[0]
    assert would == done.replace("wrote       ", "would write ").replace("made        ", "would make  ")


def test_a_second_time_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path)
    (tmp_path / "etc/glec-fast/service.env").write_text("GLEC_CLIENT_ID=DTG-1\n")
    (tmp_path / "etc/glec-fast/credentials/password").write_text("secret")
    before = content(tmp_path)
    capsys.readouterr()
    assert install(tmp_path) == 0
    assert content(tmp_path) == before
    assert {line.split()[0] for line in capsys.readouterr().out.split("Next:")[0].splitlines()} == {"is"}


def test_a_unit_that_somebody_changed_is_kept_beside_ours(tmp_path: Path) -> None:
    install(tmp_path)
    unit = tmp_path / UNITS / "glec-fast.service"
    ours = unit.read_text()
    unit.write_text("[Service]\nExecStart=/bin/mine\n")
    assert install(tmp_path) == 0
    assert (unit.read_text(), unit.with_name("glec-fast.service.old").read_text()) == (
        ours,
        "[Service]\nExecStart=/bin/mine\n",
    )


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("/home/me/venv/bin/glec-fast", "is in /home, which the service cannot see: install into /opt/glec-fast"),
        ("/tmp/venv/bin/glec-fast", "is in /tmp, which the service cannot see"),
        ("/opt/my venv/bin/glec-fast", "is no path that a unit can name"),
        ("/opt/%n/glec-fast", "is no path that a unit can name"),
        ("glec-fast", "is no path that a unit can name"),
    ],
)
def test_what_the_service_could_not_start_is_refused(
    program: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "image"
    assert install(root, program=program) == 2
    said = capsys.readouterr()
    assert (says in said.err, said.err.count("\n"), root.exists()) == (True, 1, False)


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, outside = tmp_path / "image", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "etc").symlink_to(outside)
    assert install(root) == 2
    assert "leads out of" in capsys.readouterr().err
    assert list(outside.iterdir()) == []


def test_a_path_that_cannot_be_written_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "etc").write_text("a file")
    assert install(tmp_path) == 2
    said = capsys.readouterr().err
    assert (str(tmp_path / "etc") in said, said.count("\n")) == (True, 1)


def test_the_settings_are_those_of_the_service(tmp_path: Path) -> None:
    install(tmp_path)
    lines = (tmp_path / "etc/glec-fast/service.env").read_text().splitlines()
    settings = dict(line.removeprefix("#").split("=", 1) for line in lines if line.startswith("#GLEC_"))
    config = config_from({**settings, "STATE_DIRECTORY": str(tmp_path)})
    assert (config.broker_url, config.client_id) == ("ssl://mqtt.example.com:8883", "DTG-SN-12345")


def test_the_paths_that_are_watched_are_those_that_are_installed() -> None:
    watched = (service_install.UNITS / "glec-fast-credentials.path").read_text()
    unit = (service_install.UNITS / "glec-fast.service").read_text()
    for path in (service_install.CREDENTIALS, service_install.SETTINGS):
        assert f"PathChanged=/{path}\n" in watched
        assert f"/{path}\n" in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    # A unit's program must be there; this one does nothing.
    install(tmp_path, program="/bin/true")
    units = [str(tmp_path / UNITS / name) for name in service_install.UNIT_NAMES]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line or line.startswith("glec-fast")]
    assert (done.returncode, complaints) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd is not installed")
def test_systemd_makes_the_group(tmp_path: Path) -> None:
    install(tmp_path)
    done = subprocess.run(["systemd-sysusers", f"--root={tmp_path}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "etc/group").read_text().startswith("glec-fast:")


def test_the_service_itself_takes_no_other_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["service", "instal"])
    assert (left.value.code, capsys.readouterr().err.count("\n")) == (2, 1)
