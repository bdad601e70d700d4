"""DNS, TCP, and everything that TLS can be refused for."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from glec_fast.cli.doctor.crossed import speaks_mqtt
from glec_fast.cli.doctor.finding import Finding
from glec_fast.cli.doctor.peer import Peer, Shown, look_at, look_without_scruples, shown, suite_of, utc
from glec_fast.engine.connector import EXPIRY_NOTICE_S
from glec_fast.errors import CertificateError, PinningError
from glec_fast.tls.config import TLSConfig
from glec_fast.tls.handshake import Failure, RequestWatch, await_verdict, explain, verified_chain
from glec_fast.tls.pinning import CertificatePinner
from glec_fast.transport.dial import Route, dial, resolve
from glec_fast.transport.way_out import parse_proxy, set_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from glec_fast.fleet.config import Broker, MQTTConfig
    from glec_fast.tls.config import TLSContext
    from glec_fast.transport.way_out import Proxy

TLS_CHECKS = ("tls", "chain", "hostname", "expiry", "pins", "client certificate")


class Examined(NamedTuple):
    """The findings, and the certificates that were seen, verified or not."""

    findings: list[Finding]
    chain: tuple[Shown, ...] = ()


def examine_addresses(config: MQTTConfig) -> list[Finding]:
    """DNS and TCP, of the proxy where there is one."""
    peer: Broker | Proxy = config.broker if config.proxy_url is None else parse_proxy(config.proxy_url)
    setting, whose = ("broker_url", "broker") if config.proxy_url is None else ("proxy_url", "proxy")
    timeout_s, route = config.connection_timeout_s, _route(config)
    try:
        addresses = [str(address[0]) for _, address in resolve(peer.host, peer.port)]
    except (OSError, UnicodeError) as error:
        failure = explain(error, peer.host)
        return [
            Finding("dns", "failed", failure.found, f"check the name in {setting} and the DNS"),
            Finding("tcp", "skipped", "there is no address to connect to"),
        ]
    dns = Finding("dns", "ok", f"{peer.host} is {', '.join(addresses)}")
    answers: list[str] = []
    failures: list[tuple[str, OSError]] = []
    for address in addresses:
        started_s = time.monotonic()
        try:
            dial(address, peer.port, timeout_s / len(addresses), route).close()
        except OSError as error:
            failures.append((address, error))
        else:
            answers.append(f"{address} port {peer.port} answers in {(time.monotonic() - started_s) * 1e3:.1f} ms")
    refusals = [f"{address} port {peer.port}: {_cause(error)}" for address, error in failures]
    if not answers:
        advice = f"check the port, whether the {whose} runs, and the firewall"
        return [dns, Finding("tcp", "failed", f"no connection to {'; '.join(refusals)}", advice)]
    if refusals:
        advice = "have the name lead only to addresses that serve: each other one costs time"
        return [dns, Finding("tcp", "warning", "; ".join(answers + refusals), advice)]
    return [dns, Finding("tcp", "ok", "; ".join(answers))]


def _cause(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or str(error)


def examine_tls(config: MQTTConfig, context: TLSContext) -> Examined:
    """The handshake that a manager would make, each part of it a check."""
    broker, settings = config.broker, config.tls_config or TLSConfig()
    return _Handshake(broker, settings, context, config.connection_timeout_s, _route(config)).examine()


def _route(config: MQTTConfig) -> Route:
    """From the interface and the address that are set."""
    return Route((config.local_address or "", 0), prepare=lambda sock: set_options(sock, config.options))


class _Handshake:
    def __init__(
        self, broker: Broker, settings: TLSConfig, context: TLSContext, timeout_s: float, route: Route
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._context = context
        self._timeout_s = timeout_s
        self._route = route
        self._findings: dict[str, Finding] = {}

    def examine(self) -> Examined:
        chain: tuple[Shown, ...] = ()
        watch = RequestWatch(self._context.ssl_context)
        deadline_s = time.monotonic() + self._timeout_s
        try:
            with dial(self._broker.host, self._broker.port, self._timeout_s, self._route) as sock:
                chain = self._talk(sock, watch, deadline_s)
        except (OSError, CertificateError) as error:
            chain = self._on_failure(error, watch, chain)
        for check in TLS_CHECKS:
            self._findings.setdefault(check, Finding(check, "skipped", "not reached"))
        return Examined([self._findings[check] for check in TLS_CHECKS], chain)

    def _talk(self, sock: socket.socket, watch: RequestWatch, deadline_s: float) -> tuple[Shown, ...]:
        host, started_s = self._broker.host, time.monotonic()
        sock.settimeout(max(deadline_s - started_s, 0.001))
        with watch:
            tls = self._context.ssl_context.wrap_socket(sock, server_hostname=host)
            watch.end(tls)
        with tls:
            took_s = time.monotonic() - started_s
            self._note("tls", f"{tls.version()}, {suite_of(tls)}, handshake in {took_s * 1e3:.1f} ms")
            ders = verified_chain(tls)
            chain = shown(ders)
            self._note_verified(chain)
            try:
                self._check_pins(ders)
            except PinningError as error:
                self._add(explain(error, host))
            tls.settimeout(0)
            try:
                if watch.is_verdict_due(tls):
                    await_verdict(tls, took_s)
            except OSError as error:
                # Whatever ends it here is said about our certificate, or about there being none.
                cause = explain(error, host)
                advice = cause.advice if cause.check == "client certificate" else "check client_cert, and see its log"
                self._add(Failure("client certificate", cause.found, advice))
            else:
                self._note_client(watch)
        return chain

    def _note(self, check: str, found: str) -> None:
        self._findings.setdefault(check, Finding(check, "ok", found))

    def _add(self, failure: Failure) -> None:
        self._findings[failure.check] = Finding.of(failure)

    def _note_verified(self, chain: tuple[Shown, ...]) -> None:
        self._note("chain", "trusted: " + " < ".join(each.certificate.subject for each in chain))
        if self._settings.verify_hostname:
            self._note("hostname", f"the certificate is for {self._broker.host}")
        else:
            found = "verify_hostname is off: the certificate of any host is accepted"
            self._findings["hostname"] = Finding("hostname", "warning", found, "turn it on")
        self._findings.setdefault("expiry", self._expiry(chain, self._own()))

    def _own(self) -> tuple[Shown, ...]:
        der = self._context.client_certificate
        return () if der is None else shown([der])

    @staticmethod
    def _expiry(chain: Iterable[Shown], own: Iterable[Shown]) -> Finding:
        now_s = time.time()
        owned = [("broker", each) for each in chain] + [("client", each) for each in own]
        owner, first = min(owned, key=lambda each: each[1].certificate.not_after_s)
        found = f"the first to end is the {owner}'s {first.certificate.subject}, on {first.ends}"
        if first.certificate.not_after_s < now_s:
            return Finding("expiry", "failed", found, "have it renewed, or set this device's clock")
        if first.certificate.not_after_s - now_s <= EXPIRY_NOTICE_S:
            return Finding("expiry", "warning", found, "have it renewed")
        return Finding("expiry", "ok", found)

    def _check_pins(self, ders: list[bytes]) -> None:
        pins = self._settings.certificate_pins
        if not pins:
            self._note("pins", "none are set")
            return
        matched = CertificatePinner(self._broker.host, pins).check(self._broker.host, ders)
        if len(pins) == 1:
            found = f"{matched} is pinned, and there is no backup"
            self._findings["pins"] = Finding("pins", "warning", found, "add the pin of a spare key")
        self._note("pins", f"{matched} is pinned, one of {len(pins)}")

    def _note_client(self, watch: RequestWatch) -> None:
        check, own = "client certificate", self._own()
        if not watch.asked:
            self._note(check, "the broker does not ask for one" + (", though one is set" if own else ""))
        elif own:
            self._note(check, f"{own[0].certificate.subject} was shown, and not refused")
        else:
            self._note(check, "the broker asks for one, and does without")

    # ---- after a failure

    def _on_failure(
        self, error: OSError | CertificateError, watch: RequestWatch, chain: tuple[Shown, ...]
    ) -> tuple[Shown, ...]:
        if isinstance(error, CertificateError):
            self._add(Failure("chain", str(error), "have the broker's certificate issued anew"))
            return chain
        failure = explain(error, self._broker.host)
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._on_refused_chain(failure)
        if failure.check == "tls" and watch.asked and isinstance(error, (ssl.SSLError, ConnectionError)):
            self._add(self._refused_by_peer(failure))
        elif failure.check == "tls" and isinstance(error, ssl.SSLError):
            self._add(self._named(failure))
        elif failure.check in TLS_CHECKS:
            self._add(failure)
        else:
            self._add(Failure("tls", failure.found, failure.advice))
        if "tls" in self._findings and self._broker.transport == "tcp" and speaks_mqtt(self._broker, self._timeout_s):
            found = "the peer does not speak TLS on this port, but MQTT in the clear"
            self._add(Failure("tls", found, "name the broker's TLS port, 8883 as a rule; tcp:// would be open to all"))
        return chain

    def _refused_by_peer(self, failure: Failure) -> Failure:
        """With TLS 1.2 a peer that got no certificate, or a wrong one, may end with a word for anything."""
        if self._context.client_certificate is None:
            advice = "set client_cert and client_key"
            return Failure("client certificate", "the broker wants a client certificate, and none is set", advice)
        return Failure(
            "client certificate",
            f"the broker asked for our certificate and then refused ({failure.found})",
            "have client_cert signed by the authority that the broker trusts, or renewed",
        )

    def _named(self, failure: Failure) -> Failure:
        """The same, with the version and suite that the peer would have."""
        with suppress(OSError, CertificateError):
            peer = look_without_scruples(self._broker.host, self._broker.port, self._timeout_s)
            return Failure("tls", f"{failure.found}: it offers {peer.version} with {peer.suite}", failure.advice)
        return failure

    def _on_refused_chain(self, failure: Failure) -> tuple[Shown, ...]:
        """Look again without trust, to say what was shown and how it stands with what was not reached."""
        self._add(failure)
        peer: Peer | None = None
        with suppress(OSError, CertificateError):
            peer = look_at(self._broker.host, self._broker.port, self._timeout_s)
        if peer is None or not peer.chain:
            return ()
        self._note("tls", f"{peer.version}, {peer.suite}")
        leaf = peer.chain[0]
        found = f"{failure.found}; it showed {leaf.certificate.subject}"
        found += f", from {utc(leaf.certificate.not_before_s)} to {leaf.ends}"
        self._add(Failure(failure.check, found, failure.advice))
        if failure.check != "expiry":
            self._findings["expiry"] = self._expiry(peer.chain, self._own())
        pins = self._settings.certificate_pins
        if pins and not {each.pin for each in peer.chain} & set(pins):
            found = f"none of the keys shown is pinned ({', '.join(each.pin for each in peer.chain)})"
            advice = "run glec-fast pin from a trusted network, compare, and add the new pin"
            self._add(Failure("pins", found, advice))
        return peer.chain
