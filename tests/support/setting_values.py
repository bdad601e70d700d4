"""For each setting a text and what it stands for, none of them the default: what every place for settings must read."""

from __future__ import annotations

PIN = "sha256/" + "A" * 43 + "="
BACKUP = "sha256/" + "B" * 43 + "="

SETTING_VALUES: dict[str, tuple[str, object]] = {
    "broker_url": ("ssl://other:1", "ssl://other:1"),
    "client_id": ("DTG-other", "DTG-other"),
    "broker_urls": ("ssl://other:1, ssl://b", ("ssl://other:1", "ssl://b")),
    "broker_name": ("fleet, spare", ("fleet", "spare")),
    "on_owner_away": ("wait", "wait"),
    "username": ("someone", "someone"),
    "password": ("pa=ss", "pa=ss"),
    "connection_timeout_s": ("1.5", 1.5),
    "keepalive_s": ("61", 61),
    "protocol_version": ("5", 5),
    "clean_session": ("true", True),
    "auto_reconnect": ("false", False),
    "retry_max_attempts": ("6", 6),
    "retry_initial_delay_ms": ("2001", 2001),
    "retry_max_delay_ms": ("60001", 60_001),
    "queue_max_size": ("9999", 9999),
    "queue_max_bytes": ("1000001", 1_000_001),
    "overflow": ("oldest", "oldest"),
    "queue_order": ("fifo", "fifo"),
    "queue_ttl_hours": ("0.5", 0.5),
    "queue_max_retry": ("4", 4),
    "queue_path": ("/var/lib/q.db", "/var/lib/q.db"),
    "max_in_flight": ("100", 100),
    "max_unreleased": ("21", 21),
    "status_interval_s": ("0", 0),
    "status_retained": ("false", False),
    "qos0_commit_delay_s": ("0.25", 0.25),
    "wait_for_disk": ("false", False),
    "resend_in_doubt": ("true", True),
    "answer_timeout_s": ("5.5", 5.5),
    "ack_timeout_s": ("0", 0),
    "resend_unproven": ("true", True),
    "ca_cert": ("/ca.crt", "/ca.crt"),
    "client_cert": ("/client.crt", "/client.crt"),
    "client_key": ("/client.key", "/client.key"),
    "key_password": ("k", "k"),
    "verify_hostname": ("false", False),
    "crl_file": ("/fleet.crl", "/fleet.crl"),
    "partial_chain": ("true", True),
    "tls_version": ("TLSv1.3", "TLSv1.3"),
    "certificate_pins": (f"{PIN}, {BACKUP}", (PIN, BACKUP)),
}
# What a setting needs beside it.
COMPANIONS = {
    "broker_name": ("broker_url", "broker_urls"),
    "password": ("username",),
    "client_cert": ("ca_cert", "client_key"),
    "client_key": ("ca_cert", "client_cert"),
    "key_password": ("ca_cert", "client_cert", "client_key"),
}
