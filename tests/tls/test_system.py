"""The system's authorities: looked up one by one where its folder has all of its file, else read."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from glec_fast import TLSConfig, build_ssl_context
from glec_fast.testbed.certificates import CertificateAuthority
from support.loopback import TIMEOUT_S
from support.tls_peer import TLSPeer, server_context

if TYPE_CHECKING:
    from collections.abc import Callable


class System:
    """Two authorities, in a file and a folder that OpenSSL looks in."""

    def __init__(self, directory: Path) -> None:
        self.authorities = []
        self.folder, self.file = directory / "certs", directory / "all.pem"
        self.folder.mkdir()
        for number, name in enumerate(("one", "two")):
            place = directory / name
            place.mkdir()
            self.authorities.append(CertificateAuthority(place, name))
            shutil.copy(self.authorities[-1].certificate_path, self.folder / f"{name}.pem")
            # The name that it is looked up by is OpenSSL's to give.
            (self.folder / f"0000000{number}.0").symlink_to(f"{name}.pem")
        self.file.write_text("# both\n" + "".join(each.certificate_path.read_text() for each in self.authorities))


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    made = System(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    monkeypatch.setenv("SSL_CERT_DIR", str(made.folder))
    return made


def read() -> int:
    """So many are in the memory of a context that has met nobody yet."""
    return len(build_ssl_context(TLSConfig()).get_ca_certs())


def test_none_is_read_where_the_folder_has_all_of_the_file(system: System) -> None:
    assert read() == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="it gives a folder the names that it looks by")
def test_each_of_them_is_trusted_and_no_other(system: System, tmp_path: Path) -> None:
    subprocess.run(["openssl", "rehash", str(system.folder)], check=True, capture_output=True)
    context = build_ssl_context(TLSConfig())
    for authority in system.authorities:
        with (
            TLSPeer(server_context(authority.issue_server())) as peer,
            socket.create_connection(("127.0.0.1", peer.port), TIMEOUT_S) as sock,
        ):
            context.wrap_socket(sock, server_hostname="localhost").close()
    with (
        TLSPeer(server_context(CertificateAuthority(tmp_path, "stranger").issue_server())) as peer,
        socket.create_connection(("127.0.0.1", peer.port), TIMEOUT_S) as sock,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(sock, server_hostname="localhost")


@pytest.mark.parametrize(
    "change",
    [
        lambda system: (system.folder / "00000001.0").unlink(),
        lambda system: (system.folder / "two.pem").unlink(),
        lambda system: (system.folder / "two.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAA"),
        lambda system: system.file.write_text(system.file.read_text().replace(" CERT", " TRUSTED CERT")),
        lambda system: shutil.rmtree(system.folder),
        lambda system: os.environ.update(SSL_CERT_DIR=""),
    ],
    ids=["not looked up", "link to nowhere", "cut short", "of another kind in the file", "no folder", "none named"],
)
def test_else_all_are_read(system: System, change: Callable[[System], object]) -> None:
    change(system)
    assert read() == 2
