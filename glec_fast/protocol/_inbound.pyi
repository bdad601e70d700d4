from typing import Final

NEED_DATA: Final = 0
"""`Inbound.advance` wants more bytes."""
ACKS: Final = 1
"""`Inbound.advance` found acknowledgements: see `acks`."""
MESSAGES: Final = 2
"""`Inbound.advance` found PUBLISH: see `messages`."""
PACKET: Final = 3
"""`Inbound.advance` found another packet: see `packet_command` and `packet_body`."""

class Inbound:
    """What a server may send (MQTT 3.1, 3.1.1 and 5.0): bytes in, checked packets out. Not thread-safe.

    message_type: what PUBLISH becomes: a class whose instances take the attributes of paho's MQTTMessage, and
    `_packed`: packed properties (MQTT 5) or None. state: the value of their `state`; state_qos2: that of QoS 2.
    """

    protocol_version: int
    """3, 4 or 5, as in CONNECT (MQTT 3.1.2.2)."""
    one_by_one: bool
    """Hand out one packet at a time, for an owner that logs each."""
    max_packet_bytes: int
    """Largest packet that was allowed to the server (MQTT 5, 3.1.2.11.4), 0 for any."""
    topic_alias_maximum: int
    """Highest alias that was allowed to the server (MQTT 5, 3.1.2.11.5)."""

    def __init__(self, message_type: type, state: object = 0, state_qos2: object = 0) -> None: ...
    @property
    def has_connack(self) -> bool:
        """The server has answered CONNECT on this connection."""
    @property
    def acks(self) -> bytes:
        """A run of PUBACK, PUBREC and PUBCOMP."""
    @property
    def messages(self) -> list[object]:
        """PUBLISH packets as `message_type`."""
    @property
    def packet_command(self) -> int:
        """First byte of another packet."""
    @property
    def packet_body(self) -> bytes:
        """What follows the remaining length of another packet."""
    @property
    def buffered_bytes(self) -> int:
        """Bytes that were fed and not yet handed out."""
    @property
    def buffer_bytes(self) -> int:
        """Memory that they take."""
    def begin(self) -> None:
        """A new connection: forget all of the last one."""
    def feed(self, data: bytes, now_s: float = 0.0) -> None:
        """Take what the socket gave. now_s: the `timestamp` of the messages in it."""
    def advance(self) -> int:
        """Check and hand out the next packets of one kind: ACKS, MESSAGES, PACKET or NEED_DATA. Each is given once.

        Raises ProtocolError where the server breaks the protocol; the connection must then be closed.
        """

def unpack_properties(packed: bytes) -> dict[str, object]:
    """The properties of a packet that was checked: paho's attribute names and values. `packed` begins with the length.

    Raises ProtocolError where they are cut off.
    """
