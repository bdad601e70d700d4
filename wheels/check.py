"""Install a wheel in a fresh guest, as a gateway would, and test it there against a broker on this machine."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from dependencies import REPOSITORY, WHEELS, download, install, shared_settings
from glec_fast.testbed.broker import Broker
from glec_fast.testbed.certificates import CertificateAuthority
from guest import fresh_guest

if TYPE_CHECKING:
    from pathlib import Path

    from targets import Target


def check(target: Target, wheel: Path, workplace: Path, cache: Path, *, is_tested: bool) -> None:
    """The tests of every wheel unless it `is_tested`, then a gateway's life and the demo. Raises CalledProcessError."""
    test_requires = shared_settings()["test-requires"]
    dependencies = download(target, [str(wheel), *test_requires], cache)
    broker_files = workplace / "broker"
    broker_files.mkdir()
    authority = CertificateAuthority(broker_files)
    with (
        Broker(broker_files, certificate=authority.issue_server()) as broker,
        fresh_guest(target, cache) as guest,
    ):
        (guest.root / WHEELS.lstrip("/")).mkdir()
        shutil.copy(wheel, guest.root / WHEELS.lstrip("/"))
        install(guest, dependencies, [f"{WHEELS}/{wheel.name}", *test_requires], "/venv")
        shutil.copy(authority.certificate_path, guest.root / "ca.crt")
        shutil.copytree(REPOSITORY / "tests", guest.root / "check" / "tests")
        shutil.copytree(REPOSITORY / "wheels" / "guest", guest.root / "check" / "gateway")
        shutil.copy(REPOSITORY / "pyproject.toml", guest.root / "check")
        # CI takes hypothesis's deadlines away: under emulation everything takes ten times as long.
        environment = {"CI": "1", "PATH": "/venv/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
        if not is_tested:
            report(f"{target.name}: the tests of every wheel")
            guest.run("sh", "-euc", shared_settings()["test-command"], directory="/check", environment=environment)
        report(f"{target.name}: durable publish and flush over TLS, kill and restart")
        gateway = {
            "GLEC_MACHINE": target.name,
            "GLEC_BROKER_PORT": str(broker.port),
            "GLEC_BROKER_TLS_URL": broker.tls_url,
            "GLEC_BROKER_CA": "/ca.crt",
        }
        guest.run("pytest", "-q", "gateway", directory="/check", environment={**environment, **gateway})
        report(f"{target.name}: the demo")
        guest.run(
            "glec-fast", "demo", "--broker", broker.tls_url, "--ca-cert", "/ca.crt", environment=environment
        )  # fmt: skip


def report(text: str) -> None:
    sys.stdout.write(f"== {text}\n")
    sys.stdout.flush()
