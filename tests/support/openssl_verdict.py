"""What OpenSSL's own command finds in a file, and what this client makes of it in each role."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

from glec_fast import TLSConfig, TLSFileError
from glec_fast.errors import ConfigError
from glec_fast.tls.config import build_ssl_context

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from glec_fast.testbed.certificates import Certificate

PKCS12_SUFFIXES = (".p12", ".pfx")


def openssl(*arguments: str, **options: Any) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, stdin=subprocess.DEVNULL, **options)


def found_by_openssl(path: Path, passwords: Sequence[str]) -> set[str]:
    """Certificate, CRL, Pkey and whatever else a file holds, opened with the first password that does."""
    for password in passwords:
        command = ["openssl", "storeutl", "-noout", "-passin", f"pass:{password}", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
        found = {line.partition(": ")[2] for line in done.stdout.splitlines() if line[:1].isdigit()}
        if found or not any(word in done.stderr for word in ("ecrypt", "mac verify", "password")):
            return found
    return set()


def refusal_of(**settings: Any) -> str:
    """Empty where a context can be made of these. Every refusal is of our family, and one line."""
    try:
        build_ssl_context(TLSConfig(**settings))
    except (TLSFileError, ConfigError) as error:
        said = str(error)
    else:
        return ""
    assert said
    assert "\n" not in said
    return said


def refusals_of(path: Path, another: Certificate, passwords: Sequence[str | None]) -> dict[str, str]:
    """For each kind of thing that a file may hold: what is said where the file is to be one. Empty where it is one."""
    said = {"Certificate": refusal_of(ca_cert=path), "CRL": refusal_of(crl_file=path)}
    certificate = path if path.suffix in PKCS12_SUFFIXES else another.certificate_path
    for password in passwords:
        said["Pkey"] = refusal_of(client_cert=certificate, client_key=path, key_password=password)
        if "is not the key of client_cert" in said["Pkey"]:
            said["Pkey"] = ""
        if "key_password" not in said["Pkey"]:
            break
    return said
