"""`glec-fast pin`, against an independent library's reckoning."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from glec_fast.cli.main import main
from support.tls_cases import TLS_1_2, Cases, new_authority
from support.tls_peer import TLSPeer, server_context

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    return Cases(new_authority(tmp_path, "trusted"), tmp_path)


class TestPin:
    @pytest.mark.parametrize("versions", [None, TLS_1_2])
    def test_the_chain_that_is_shown(
        self, cases: Cases, tmp_path: Path, versions: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        middle = new_authority(tmp_path, "middle", issuer=cases.authority)
        server = middle.issue_server()
        with TLSPeer(server_context(server, versions=versions)) as peer:
            assert main(["pin", f"localhost:{peer.port}", "--json"]) == 0
            report = json.loads(capsys.readouterr().out)
            assert main(["pin", f"localhost:{peer.port}"]) == 0
        shown = capsys.readouterr()
        expected = [independent_pin(server.certificate_path), independent_pin(middle.certificate_path)]
        assert [each["pin"] for each in report["chain"]] == expected
        assert [each["subject"] for each in report["chain"]] == ["CN=server", "CN=middle"]
        assert report["chain"][0]["not_after"] - report["chain"][0]["not_before"] == 4 * 86_400
        assert [line.split()[0] for line in shown.out.splitlines()] == expected
        assert "CN=server, until 20" in shown.out
        assert "Not verified" in shown.err

    @pytest.mark.parametrize("name", ["plain_tcp", "tls_1_1", "closes_at_once"])
    def test_what_has_no_chain(self, cases: Cases, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        with getattr(cases, name)().peer as peer:
            assert main(["pin", f"localhost:{peer.port}"]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert len(shown.err.splitlines()) == 1
        assert f"localhost port {peer.port}" in shown.err

    @pytest.mark.parametrize("address", ["localhost:0", "localhost:x", "a b", "", "user@host", "host/path"])
    def test_addresses_that_are_none(self, address: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["pin", address]) == 2
        assert "glec-fast: " in capsys.readouterr().err


def independent_pin(path: Path) -> str:
    """By a library that has no part in the product."""
    import base64
    import hashlib

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization as forms

    key = x509.load_pem_x509_certificates(path.read_bytes())[0].public_key()
    der = key.public_bytes(forms.Encoding.DER, forms.PublicFormat.SubjectPublicKeyInfo)
    return "sha256/" + base64.b64encode(hashlib.sha256(der).digest()).decode()
