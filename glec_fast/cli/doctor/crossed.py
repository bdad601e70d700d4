"""A port that is spoken to in the wrong way: a TLS port in the clear, and the other way round."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from glec_fast.cli.doctor.conversation import MQTT_3, hello
from glec_fast.cli.doctor.peer import look_without_scruples
from glec_fast.errors import CertificateError
from glec_fast.transport.dial import dial

if TYPE_CHECKING:
    from glec_fast.fleet.config import Broker

_TIMEOUT_MAX_S = 3.0
_CONNACK = 0x20
# What OpenSSL says of an answer that is none of TLS, and of none.
_NO_TLS = ("WRONG_VERSION_NUMBER", "UNEXPECTED_EOF", "RECORD_LAYER", "PACKET_LENGTH", "HTTP")


def speaks_tls(broker: Broker, timeout_s: float) -> bool:
    """True where the peer answers a handshake, whatever it thinks of us. Nothing of MQTT is sent."""
    try:
        look_without_scruples(broker.host, broker.port, min(timeout_s, _TIMEOUT_MAX_S))
    except CertificateError:
        return True
    except ssl.SSLError as error:
        # An alert is TLS.
        return not isinstance(error, ssl.SSLEOFError) and not any(each in str(error) for each in _NO_TLS)
    except OSError:
        return False
    return True


def speaks_mqtt(broker: Broker, timeout_s: float) -> bool:
    """True where the peer answers CONNECT in the clear. It has neither our name nor a password in it."""
    try:
        with dial(broker.host, broker.port, min(timeout_s, _TIMEOUT_MAX_S)) as sock:
            sock.settimeout(min(timeout_s, _TIMEOUT_MAX_S))
            sock.sendall(hello(MQTT_3))
            return sock.recv(1)[:1] == bytes((_CONNACK,))
    except OSError:
        return False
