"""The one family of errors. Each says what happened, what to do, and whether a retry can help."""

from __future__ import annotations

from typing import Any, ClassVar


class GlecError(Exception):
    """Root of every error that glec_fast raises of its own accord.

    `retryable` is True where the same call may succeed later without a change by the caller. `advice` is what to do
    about errors of this kind; what to do about this one is in its text.
    """

    advice: ClassVar[str] = "see the message"
    retryable: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker's pool hands it to the parent. What its class was called with is in its attributes, not in `args`.
        return _again, (type(self), self.args), vars(self)


def _again(kind: type[GlecError], arguments: tuple[object, ...]) -> GlecError:
    # `kind.__new__` may be that of a base beside the one that has its layout.
    error: GlecError = (OSError if issubclass(kind, OSError) else Exception).__new__(kind)
    error.args = arguments
    return error


class ConfigError(GlecError, ValueError):
    """A setting is malformed or contradicts another. Nothing was started.

    `field` names the setting of MQTTConfig or TLSConfig that is to blame; None where it is no single one.
    """

    advice = "mend the setting that `field` names; `glec-fast settings` lists what it may be"

    def __init__(self, *arguments: object, field: str | None = None) -> None:
        super().__init__(*arguments)
        self.field = field


class UnsupportedError(GlecError, RuntimeError):
    """The call means nothing for this object, such as a client without a store; the message says what to do instead."""

    advice = "use the call that the message names"


class ForkedError(GlecError, RuntimeError):
    """The client or queue was made by the process that this one was forked from, and belongs to that alone.

    `pid` is that process. Nothing was accepted or sent.
    """

    advice = "make a new client after the fork"

    def __init__(self, pid: int) -> None:
        super().__init__(f"made in another process (pid {pid}): make a new client after the fork")
        self.pid = pid


class TLSFileError(ConfigError, OSError):
    """A certificate or key cannot be read or used. It is read again at the next connection."""

    advice = "mend the file; it is read again at the next connection"
    retryable = True


class MessageError(GlecError, ValueError):
    """A topic, QoS or payload that MQTT or this client cannot carry. Nothing was queued."""

    advice = "mend the message; nothing of it was queued"


class PayloadTypeError(MessageError, TypeError):
    """A payload of a type that has no defined encoding. Nothing was queued."""

    advice = "give a type that the message names; nothing was queued"


class QueueError(GlecError):
    """The queue file could not be used."""

    advice = "check queue_path and the folder that it is in"


class QueueLockedError(QueueError):
    """Another process holds this queue file. Close it there, or give this one its own path."""

    advice = "end the other program that has the file, or give this one a queue_path of its own"
    retryable = True


class QueueFormatError(QueueError):
    """The file is not a queue, or was written by a newer version. It was left untouched."""

    advice = "give queue_path another name, or update this program"


class QueueStorageError(QueueError, OSError):
    """The disk is full, read-only or failing. What was accepted is kept; try again when that is mended."""

    advice = "mend the disk or make room, then try again: what was accepted is kept"
    retryable = True


class QueueReplacedError(QueueStorageError):
    """Another file has the queue's name while it was open; the message says where its messages are. Start anew."""

    advice = "start the program anew"
    retryable = False


class QueueClosedError(QueueError, RuntimeError):
    """The queue or the client was closed before the call."""

    advice = "make another client or queue to go on"


class PublishError(GlecError, RuntimeError):
    """A message was dropped; `reason` is one of `glec_fast.DropReason`."""

    advice = "look at `reason`; publish it again if it still matters"

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ProtocolError(GlecError):
    """The peer broke the MQTT protocol; the connection is closed and made again.

    `reason_code` is MQTT 5's code for it (section 2.4), sent in DISCONNECT where the protocol has one.
    """

    advice = "look at the broker's log; the connection is made again by itself"
    retryable = True

    def __init__(self, message: str, reason_code: int) -> None:
        super().__init__(message)
        self.reason_code = reason_code


class ConnectionLostError(GlecError, ConnectionError):
    """The link to the broker ended. Messages stay queued; the manager connects again by itself."""

    advice = "wait: it is made again by itself, and nothing is lost; `glec-fast doctor` looks why"
    retryable = True


class BrokerRefusalError(GlecError, ConnectionError):
    """The broker answered CONNECT with a refusal, such as of the password. The manager goes on trying.

    `reason_code` is MQTT 5's code for it (section 2.4), also where the broker speaks MQTT 3.1.1.
    """

    advice = "check user name, password and client id, and what the broker allows them"
    retryable = True

    def __init__(self, message: str, reason_code: int) -> None:
        super().__init__(message)
        self.reason_code = reason_code


# Of MQTT 5, 3.9.3; before it 0x80 is all that there is.
_SUBACK_REASONS = {
    0x83: ", implementation specific error",
    0x87: ", not authorized",
    0x8F: ", topic filter invalid",
    0x91: ", packet identifier in use",
    0x97: ", quota exceeded",
    0x9E: ", shared subscriptions not supported",
    0xA1: ", subscription identifiers not supported",
    0xA2: ", wildcard subscriptions not supported",
}


class SubscriptionRefusedError(GlecError):
    """The broker does not let this client have a filter's messages. It is asked again on the next connection.

    `topic_filter` is the one; `reason_code` is that of SUBACK (MQTT 3.1.1, 3.9.3; MQTT 5, 3.9.3), None where the broker
    ends the connection over it instead: then it is asked again ten minutes later.
    """

    advice = "check what the broker's access rules let this client subscribe to"
    retryable = True

    def __init__(self, topic_filter: str, reason_code: int | None) -> None:
        if reason_code is None:
            text = f"the broker ends the connection over the subscription to {topic_filter!r}"
        else:
            name = _SUBACK_REASONS.get(reason_code, "")
            text = f"the broker refused the subscription to {topic_filter!r} (reason code 0x{reason_code:02X}{name})"
        super().__init__(text)
        self.topic_filter = topic_filter
        self.reason_code = reason_code


class TLSError(GlecError, ConnectionError):
    """No TLS connection to the broker: it was refused, by us or by it, before a byte of MQTT was sent."""

    advice = "let `glec-fast doctor` look why"
    retryable = True


class PinningError(TLSError):
    """No certificate of the peer has a pinned key: someone is in between, or the broker has a key not yet pinned.

    Nothing of MQTT was sent. A retry at once cannot help; the manager tries again after `retry_max_delay_ms`.
    """

    advice = "run `glec-fast pin` from a trusted network, compare, and add the new pin if it is the broker's"
    retryable = False


class CertificateError(GlecError, ValueError):
    """What should be an X.509 certificate is not."""

    advice = "give the certificate as it was issued, in PEM or DER"
