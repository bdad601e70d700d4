"""A manager's figures as Prometheus reads them (text format 0.0.4), for an exporter or node_exporter's textfiles.

Names follow Prometheus's rules: base units, `_total` for what only grows, one name for one thing with labels for its
kinds. Needs no other package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from glec_fast.durable.outcomes import DropReason
from glec_fast.fleet.metrics import LinkState, Metrics
from glec_fast.runtime.latency import Latency

_STATES: tuple[LinkState, ...] = ("idle", "connecting", "connected", "closed")


# Labels, value, and what a histogram has behind its name.
_Sample: TypeAlias = "tuple[Mapping[str, str], float, str]"
# From a millisecond to a day; of each four a factor, as the buckets of a Latency are powers of two of milliseconds.
_BOUNDS_S = tuple(4**power / 1000 for power in range(14))


class _Family(NamedTuple):
    """One name; samples: (labels, value)."""

    name: str
    kind: str
    meaning: str
    samples: Iterable[_Sample]


def prometheus_text(metrics: Metrics, client_id: str, version: str = "") -> str:
    """The snapshot as text, each sample with the label `client_id`.

    A program that has no exporter writes it where node_exporter looks, every minute or so:

        Path("/var/lib/node_exporter/glec.prom.new").write_text(prometheus_text(manager.get_metrics(), "DTG-1"))
    """
    lines: list[str] = []
    for family in _families(metrics, version):
        lines += [f"# HELP {family.name} {family.meaning}", f"# TYPE {family.name} {family.kind}"]
        for labels, value, suffix in family.samples:
            shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in {"client_id": client_id, **labels}.items())
            lines.append(f"{family.name}{suffix}{{{shown}}} {value:.17g}")
    return "\n".join(lines) + "\n"


def _families(metrics: Metrics, version: str) -> Iterable[_Family]:
    def gauge(name: str, meaning: str, value: float) -> _Family:
        return _Family(f"glec_fast_{name}", "gauge", meaning, [({}, value, "")])

    def counter(name: str, meaning: str, value: float) -> _Family:
        return _Family(f"glec_fast_{name}_total", "counter", meaning, [({}, value, "")])

    def by_qos(name: str, meaning: str, counts: Sequence[int]) -> _Family:
        samples = [({"qos": str(qos)}, float(count), "") for qos, count in enumerate(counts)]
        return _Family(f"glec_fast_{name}_total", "counter", meaning, samples)

    yield _Family("glec_fast_info", "gauge", "Always 1; the version of this program.", [({"version": version}, 1, "")])
    states = [({"state": state}, float(metrics.state == state), "") for state in _STATES]
    yield _Family("glec_fast_link_state", "gauge", "1 for the state that the link is in.", states)
    yield gauge("link_state_seconds", "How long it has been in that state.", metrics.in_state_s)
    yield counter("connect_attempts", "Attempts to connect.", metrics.attempts)
    yield counter("connects", "Connections that the broker accepted.", metrics.connects)
    yield counter("pin_failures", "Connections refused as no key was pinned.", metrics.pin_failures)
    yield counter("sent_bytes", "MQTT's bytes sent, before TLS and TCP.", metrics.sent_bytes)
    yield counter("received_bytes", "MQTT's bytes received, before TLS and TCP.", metrics.received_bytes)
    yield by_qos("messages_accepted", "Messages that were accepted.", metrics.accepted)
    yield by_qos("messages_on_disk", "Messages that were synchronised to the disk.", metrics.on_disk)
    yield by_qos("publishes_made", "PUBLISH packets made, also of what is sent again.", metrics.published)
    yield by_qos("messages_acknowledged", "Messages that the broker has answered.", metrics.acknowledged)
    yield counter("messages_sent", "Messages that the broker has taken over.", metrics.messages_sent)
    yield counter("batches", "Batches of telemetry.", metrics.batches)
    yield counter("batched_messages", "Messages of telemetry that went in batches.", metrics.batched_messages)
    yield counter("batch_saved_bytes", "Bytes that batches kept from being sent.", metrics.batch_saved_bytes)
    yield _Family("glec_fast_messages_dropped_total", "counter", "Messages that will not be sent.", _drops(metrics))
    yield gauge("queue_messages", "Messages that are not finished yet.", metrics.queue_size)
    yield gauge("queue_oldest_seconds", "How long the oldest message has waited.", metrics.oldest_s)
    for name, meaning, latency in (
        ("publish_to_disk", "From the acceptance of a message to its being on disk.", metrics.to_disk),
        (
            "publish_to_acknowledgement",
            "From the acceptance of a message to the broker's answer to it.",
            metrics.to_acknowledgement,
        ),
    ):
        yield _Family(f"glec_fast_{name}_seconds", "histogram", meaning, _buckets(latency))
        yield gauge(f"{name}_longest_seconds", "The longest of them.", latency.max_s)
    written = "What this process has had the kernel write to disks."
    yield counter("disk_written_bytes", written, metrics.disk_written_bytes)
    yield counter("disk_syncs", "Times that the queue had the disk synchronise.", metrics.disk_syncs)
    yield counter("clock_steps", "Steps of the wall clock that moved the times of messages.", metrics.clock_steps)
    yield gauge("queue_bytes", "What the queue file and its logs take on the disk.", metrics.queue_bytes)
    yield counter("messages_received", "Messages that came.", metrics.messages_received)
    says = "Messages that came and were dropped: too many, or no handler."
    yield counter("messages_unhandled", says, metrics.messages_unhandled)
    yield gauge("inbox_messages", "Messages that came and are not handled yet.", metrics.inbox_size)
    yield counter("handler_errors", "Exceptions that handlers of messages raised.", metrics.handler_errors)
    yield counter("subscriptions_refused", "Subscriptions that the broker refused.", metrics.subscriptions_refused)
    outcomes = [({"outcome": name}, float(count), "") for name, count in metrics.commands.items()]
    yield _Family("glec_fast_commands_total", "counter", "Commands, by what they came to.", outcomes)
    in_doubt = "QoS 2 messages that a broker had before it lost its session."
    yield counter("messages_in_doubt", in_doubt, metrics.in_doubt)
    weaknesses = [({"weakness": name}, float(count), "") for name, count in metrics.weaknesses.items()]
    says = "What the broker does that makes QoS 2 less than exactly once."
    yield _Family("glec_fast_broker_weaknesses_total", "counter", says, weaknesses)
    ends = [({"owner": each.owner, "subject": each.subject}, each.expires_at_s, "") for each in metrics.certificates]
    says = "Unix time at which a certificate of the last handshake ends."
    yield _Family("glec_fast_certificate_expires_timestamp_seconds", "gauge", says, ends)


def _buckets(latency: Latency) -> Iterable[_Sample]:
    """Always the same, as series that begin later have no rate."""
    below = dict(latency.buckets)
    for bound_s in _BOUNDS_S:
        # One that is not there is above the longest.
        yield {"le": f"{bound_s:g}"}, float(below.get(bound_s, latency.messages)), "_bucket"
    yield {"le": "+Inf"}, float(latency.messages), "_bucket"
    yield {}, latency.sum_s, "_sum"
    yield {}, float(latency.messages), "_count"


def _drops(metrics: Metrics) -> Iterable[_Sample]:
    """By reason and QoS. Those of none are there too: an alarm on one knows that it has not happened yet."""
    for reason in {each.value: None for each in DropReason} | dict.fromkeys(metrics.drops):
        by_qos = metrics.drops_by_qos.get(reason, (0, 0, 0))
        yield from (({"reason": reason, "qos": str(qos)}, float(count), "") for qos, count in enumerate(by_qos))
        # Of what a damaged file lost nobody knows the QoS.
        yield {"reason": reason, "qos": "unknown"}, float(max(metrics.drops.get(reason, 0) - sum(by_qos), 0)), ""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
