"""A broker_config.properties for settings that were made in a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from glec_fast import TLSConfig


def write_properties(directory: Path, url: str, tls: TLSConfig | None = None, **lines: object) -> Path:
    """`lines` are further keys, with _ for each dot after "mqtt"."""
    keys: dict[str, object] = {
        "mqtt.broker.url": url,
        "mqtt.queue.path": directory / "queue.db",
        "mqtt.connection.timeout": 5,
    }
    if tls is not None:
        keys |= {
            "mqtt.tls.ca_cert": tls.ca_cert,
            "mqtt.tls.client_cert": tls.client_cert,
            "mqtt.tls.client_key": tls.client_key,
            "mqtt.tls.key_password": tls.key_password,
            "mqtt.tls.crl": tls.crl_file,
            "mqtt.tls.partial_chain": str(tls.partial_chain).lower(),
            "mqtt.tls.version": tls.tls_version,
            "mqtt.tls.certificate_pins": ",".join(tls.certificate_pins) or None,
            "mqtt.tls.verify_hostname": str(tls.verify_hostname).lower(),
        }
    keys |= {f"mqtt.{name.replace('_', '.', 1)}": value for name, value in lines.items()}
    path = directory / "broker_config.properties"
    path.touch(0o600)
    path.write_text("".join(f"{key}={value}\n" for key, value in keys.items() if value is not None))
    return path
