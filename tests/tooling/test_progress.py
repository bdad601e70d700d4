"""`.ci/progress` says at once what a long command is at, and hides neither its failure nor its words."""

from __future__ import annotations

import subprocess

from support.places import REPOSITORY

PIP_SAYS = """\
Collecting rich>=13 (from glec-fast==0.1.0)
  a line that nobody needs
  [ 1/11] Cythonizing cext/durable/_table.pyx
[11/11] Cythonizing cext/transport/_link.pyx
  building 'glec_fast.durable._table' extension
  gcc -O2 and so on
Installing collected packages: rich
"""


def progress(script: str) -> subprocess.CompletedProcess[str]:
    command = [str(REPOSITORY / ".ci" / "progress"), "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_each_step_is_a_line() -> None:
    done = progress(f"cat <<'END'\n{PIP_SAYS}END")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "  Collecting rich",
        "  translating cext/durable/_table.pyx (1/11)",
        "  translating cext/transport/_link.pyx (11/11)",
        "  compiling glec_fast.durable._table",
        "  Installing collected packages",
    ]


def test_a_failure_keeps_its_status_and_is_shown_whole() -> None:
    done = progress("echo Collecting rich; echo error: no compiler >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "  Collecting rich\n")
    assert done.stderr == "Collecting rich\nerror: no compiler\n"


def test_a_step_is_shown_while_the_command_still_runs() -> None:
    command = [str(REPOSITORY / ".ci" / "progress"), "sh", "-c", "echo Collecting rich; read wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stdout.readline() == "  Collecting rich\n"
        running.stdin.write("\n")
        running.stdin.close()
        assert running.wait(60) == 0
