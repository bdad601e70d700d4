"""What a server may send (MQTT 3.1, 3.1.1 and 5.0): bytes in, packets out. No I/O, no clock, no log.

`feed` takes what the socket gave, in pieces of any size. `advance` checks the next packets and hands them out by kind:
acknowledgements of our PUBLISH in one run of bytes, for the session; PUBLISH as message objects; every other packet
alone. A packet is checked whole before any of it is handed out: lengths, flags, packet ids, UTF-8, reason codes and
properties (`properties.pxi`), each by the rules of its type and of the protocol version. What breaks a rule raises
ProtocolError with MQTT 5's reason code (section 4.13); what came before it has been handed out by then.

Memory grows with the bytes that arrived, never with a length that was announced.

Not thread-safe: the owner serialises calls.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject_SetAttr
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from mqtt_wire cimport (
    AUTH, CONNACK, DISCONNECT, PINGRESP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, SUBACK, UNSUBACK,
    load_remaining_length, load_u16
)
from mqtt_text cimport has_wildcard, is_mqtt_text

from glec_fast.errors import ProtocolError

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        pass
    object PyType_GenericNew(PyTypeObject* type_, void* args, void* kwargs)

# What `advance` found.
NEED_DATA = 0
ACKS = 1
MESSAGES = 2
PACKET = 3

cdef enum:
    FOUND_NOTHING = 0
    FOUND_ACKS = 1
    FOUND_MESSAGES = 2
    FOUND_PACKET = 3
    # Messages built before the first of them is handed out: enough to spread the cost, few enough to hold.
    MESSAGES_MAX = 256
    MALFORMED = 0x81
    BROKEN = 0x82
    TOO_LARGE = 0x95
    # Of all but PUBLISH. What paho then makes of user properties takes time with the square of their length.
    CONTROL_MAX_BYTES = 65536


cdef int _refuse(uint8_t code, str what) except -1:
    raise ProtocolError(what, code)


include "properties.pxi"


cdef class Inbound:
    """The parser of what a server sends, over a client's connections. One thread feeds it and takes from it.

    message_type: what PUBLISH becomes: a class whose instances take the attributes of paho's MQTTMessage, and
    `_packed`: packed properties (MQTT 5) or None. state: the value of their `state`; state_qos2: that of QoS 2.
    """

    # 3, 4 or 5, as in CONNECT (MQTT 3.1.2.2).
    cdef public int protocol_version
    # Hand out one packet at a time, for an owner that logs each.
    cdef public bint one_by_one
    # Largest packet that was allowed to the server (MQTT 5, 3.1.2.11.4), 0 for any.
    cdef public uint32_t max_packet_bytes
    # Highest alias that was allowed to the server (MQTT 5, 3.1.2.11.5).
    cdef public int topic_alias_maximum
    # What `advance` found.
    cdef readonly bytes acks
    cdef readonly list messages
    cdef readonly int packet_command
    cdef readonly bytes packet_body

    cdef object message_type, state, state_qos2
    # What was fed and not yet handed out.
    cdef bytearray inbox
    cdef size_t at
    cdef double fed_s
    # The server has answered CONNECT.
    cdef readonly bint has_connack
    # alias -> the topic that it stands for on this connection.
    cdef dict aliases
    # The topic of the last PUBLISH, known to be right: most have the same.
    cdef bytes last_topic

    def __init__(self, type message_type not None, state=0, state_qos2=0):
        self.protocol_version = 4
        self.message_type = message_type
        self.state = state
        self.state_qos2 = state_qos2
        self.begin()

    def begin(self):
        """A new connection: forget all of the last one."""
        self.inbox = bytearray()
        self.at = 0
        self.acks = self.packet_body = self.last_topic = b""
        self.messages = []
        self.has_connack = False
        self.aliases = {}

    @property
    def buffered_bytes(self) -> int:
        """Bytes that were fed and not yet handed out."""
        return <size_t>len(self.inbox) - self.at

    @property
    def buffer_bytes(self) -> int:
        """Memory that they take."""
        return self.inbox.__sizeof__()

    def feed(self, bytes data not None, double now_s=0.0):
        """Take what the socket gave. now_s: the `timestamp` of the messages in it."""
        if self.at:
            del self.inbox[:self.at]
            self.at = 0
        self.inbox += data
        self.fed_s = now_s

    def advance(self) -> int:
        """Check and hand out the next packets of one kind.

        ACKS: `acks` is a run of PUBACK, PUBREC and PUBCOMP. MESSAGES: `messages` are PUBLISH packets. PACKET:
        `packet_command` and `packet_body` are another packet. NEED_DATA: nothing is whole. Each is given once.
        Raises ProtocolError where the server breaks the protocol; the connection must then be closed.
        """
        cdef const uint8_t* start
        cdef size_t header = 0
        cdef uint32_t body = 0
        cdef uint8_t kind
        cdef size_t begin = self.at
        cdef size_t end = <size_t>len(self.inbox)
        cdef int found = FOUND_NOTHING
        cdef list messages = []
        while True:
            start = <const uint8_t*><char*>self.inbox + self.at
            try:
                if not self.has_connack and not self._is_told_first(start, end - self.at):
                    break
                if not self._find_packet(start, end - self.at, &header, &body):
                    break
                kind = start[0] & 0xF0
                if found == FOUND_ACKS and not (kind == PUBACK or kind == PUBREC or kind == PUBCOMP):
                    break
                if found == FOUND_MESSAGES and kind != PUBLISH:
                    break
                if kind == PUBLISH:
                    messages.append(self._on_publish(start[0], start + header, body))
                    found = FOUND_MESSAGES
                else:
                    self._check_packet(start[0], start + header, body)
                    found = FOUND_ACKS if kind == PUBACK or kind == PUBREC or kind == PUBCOMP else FOUND_PACKET
            except ProtocolError:
                # What is right before it goes first; the next call comes here again.
                if found == FOUND_NOTHING:
                    raise
                break
            self.at += header + body
            if found == FOUND_PACKET:
                self.packet_command = start[0]
                self.packet_body = PyBytes_FromStringAndSize(<const char*>start + header, body)
                return PACKET
            if self.one_by_one or len(messages) >= MESSAGES_MAX:
                break
        if found == FOUND_ACKS:
            self.acks = PyBytes_FromStringAndSize(<const char*>self.inbox + begin, <Py_ssize_t>(self.at - begin))
        elif found == FOUND_MESSAGES:
            self.messages = messages
        return found

    cdef bint _is_told_first(self, const uint8_t* start, size_t available) except -1:
        """What answers CONNECT may be no MQTT broker at all. False where that takes more bytes to tell."""
        cdef Py_ssize_t shown = <Py_ssize_t>min(available, <size_t>4)
        if available >= 5 and memcmp(start, b"HTTP/", 5) == 0:
            _refuse(BROKEN, "what answers speaks HTTP: a captive portal, or another port than the broker's")
        # A TLS alert (RFC 8446, 5.1), which no packet of MQTT begins like.
        if available >= 2 and start[0] == 0x15 and start[1] == 3:
            _refuse(BROKEN, "what answers speaks TLS: use ssl:// or wss://, or the broker's port without TLS")
        # The first line of a protocol of text: a packet has a length there, and then another.
        if shown and start[0] != CONNACK and all([0x20 <= sign < 0x7F for sign in start[:shown]]):
            if shown < 4:
                return False
            line = PyBytes_FromStringAndSize(<const char*>start, min(<Py_ssize_t>available, 80)).splitlines()[0]
            what = "SSH" if line.startswith(b"SSH-") else "no MQTT"
            said = line.decode("ascii", "backslashreplace")
            _refuse(BROKEN, f"what answers speaks {what}: {said!r}: see whether this is the broker's port")
        return True

    cdef bint _find_packet(self, const uint8_t* start, size_t available, size_t* header, uint32_t* body) except -1:
        """True where a whole packet is there. What its first bytes already say is checked before it is."""
        cdef int used
        if available < 1:
            return False
        self._check_command(start[0])
        used = load_remaining_length(start + 1, available - 1, body)
        if used == 0:
            return False
        if used < 0:
            _refuse(MALFORMED, "a remaining length of more than 4 bytes (MQTT 2.2.3)")
        if used > 1 and start[used] == 0 and self.protocol_version == 5:
            _refuse(MALFORMED, "a remaining length with more bytes than it needs (MQTT 5, 1.5.5)")
        header[0] = 1 + <size_t>used
        if self.max_packet_bytes and header[0] + body[0] > self.max_packet_bytes:
            _refuse(TOO_LARGE, f"a packet of {header[0] + body[0]} bytes; {self.max_packet_bytes} were allowed "
                               "(MQTT 5, 3.1.2.11.4)")
        self._check_length(start[0] & 0xF0, body[0])
        return available >= header[0] + body[0]

    cdef int _check_command(self, uint8_t command) except -1:
        """The first byte: packets that a server sends (section 2.1.2), and their flags (2.1.3)."""
        cdef uint8_t kind = command & 0xF0
        if kind == PUBLISH:
            if command & 0x06 == 0x06:
                _refuse(MALFORMED, "a PUBLISH of QoS 3 (MQTT 3.3.1.2)")
            if command & 0x0E == 0x08:
                _refuse(MALFORMED, "a PUBLISH of QoS 0 with DUP (MQTT 3.3.1.1)")
        elif kind in (CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, PINGRESP) or (
                kind == DISCONNECT and self.protocol_version == 5):
            # MQTT 3.1 has DUP in PUBREL, and QoS in all.
            if command & 0x0F != (2 if kind == PUBREL else 0) and not (
                    self.protocol_version == 3 and kind == PUBREL and command & 0x0F == 0x0A):
                _refuse(MALFORMED, f"packet type {kind >> 4} with flags 0x{command & 0x0F:X} (MQTT 2.1.3)")
        elif kind == AUTH and self.protocol_version == 5:
            _refuse(BROKEN, "AUTH, where no authentication was begun (MQTT 5, 4.12)")
        else:
            _refuse(BROKEN, f"packet type {kind >> 4}, which a server never sends (MQTT 2.1.2)")
        if not self.has_connack and kind != CONNACK and not (kind == DISCONNECT and self.protocol_version == 5):
            _refuse(BROKEN, f"packet type {kind >> 4} before CONNACK (MQTT 3.2)")
        if self.has_connack and kind == CONNACK:
            _refuse(BROKEN, "a second CONNACK (MQTT 3.2)")
        return 0

    cdef int _check_length(self, uint8_t kind, uint32_t body) except -1:
        """The remaining length, before the packet has arrived."""
        cdef bint is_v5 = self.protocol_version == 5
        cdef bint wrong
        if kind != PUBLISH and body > CONTROL_MAX_BYTES:
            _refuse(TOO_LARGE, f"packet type {kind >> 4} of {body} bytes; none needs more than {CONTROL_MAX_BYTES}")
        if kind == PINGRESP:
            wrong = body != 0
        elif kind == PUBLISH or kind == SUBACK:
            wrong = body < 3
        elif kind == DISCONNECT:
            wrong = False
        elif kind == UNSUBACK and is_v5:
            wrong = body < 4
        else:
            wrong = body < 2 or (body > 2 and not is_v5)
        if wrong:
            _refuse(MALFORMED, f"packet type {kind >> 4} of {body} bytes (MQTT 2.2.3)")
        return 0

    cdef int _check_packet(self, uint8_t command, const uint8_t* at, uint32_t size) except -1:
        cdef uint8_t kind = command & 0xF0
        cdef bint is_v5 = self.protocol_version == 5
        cdef uint16_t packet = <uint16_t>(1 << (kind >> 4))
        cdef size_t codes_at = 2
        cdef uint32_t index
        if kind == CONNACK:
            return self._check_connack(at, size)
        if kind == DISCONNECT:
            if size:
                _check_reason(at[0], packet)
            if size > 1:
                self._check_all_properties(at + 1, size - 1, packet)
            return 0
        if kind == PINGRESP:
            return 0
        if load_u16(at) == 0:
            _refuse(BROKEN, f"packet type {kind >> 4} with packet id 0 (MQTT 2.2.1)")
        if kind != SUBACK and kind != UNSUBACK:
            if size > 2:
                _check_reason(at[2], packet)
            if size > 3:
                self._check_all_properties(at + 3, size - 3, packet)
            return 0
        if is_v5:
            codes_at += _check_properties(at + 2, size - 2, packet).size
            if codes_at >= size:
                _refuse(MALFORMED, f"packet type {kind >> 4} without a reason code (MQTT 5, 3.9.3 and 3.11.3)")
        for index in range(<uint32_t>codes_at, size):
            if is_v5:
                _check_reason(at[index], packet)
            elif at[index] > 2 and at[index] != 0x80:
                _refuse(BROKEN, f"SUBACK with return code 0x{at[index]:02X} (MQTT 3.1.1, 3.9.3)")
        return 0

    cdef int _check_all_properties(self, const uint8_t* at, size_t size, uint16_t packet) except -1:
        """Properties with nothing behind them."""
        if _check_properties(at, size, packet).size != size:
            _refuse(MALFORMED, "bytes behind the properties (MQTT 5, 2.2.2)")
        return 0

    cdef int _check_connack(self, const uint8_t* at, uint32_t size) except -1:
        # In 3.1 the first byte has no meaning.
        if at[0] > 1 and self.protocol_version != 3:
            _refuse(MALFORMED, f"CONNACK with flags 0x{at[0]:02X} (MQTT 3.2.2.1)")
        if at[0] and at[1] and self.protocol_version != 3:
            _refuse(BROKEN, "CONNACK with a session and an error (MQTT 3.2.2)")
        # A server that knows no MQTT 5 says so as MQTT 3.1.1 does.
        if self.protocol_version == 5 and not (size == 2 and at[1] == 1):
            _check_reason(at[1], IN_CONNACK)
            self._check_all_properties(at + 2, size - 2, IN_CONNACK)
        self.has_connack = True
        return 0

    cdef object _on_publish(self, uint8_t command, const uint8_t* at, uint32_t size):
        """Section 3.3."""
        cdef size_t topic_size = load_u16(at)
        cdef size_t used = 2 + topic_size
        cdef uint8_t qos = (command >> 1) & 3
        cdef uint16_t packet_id = 0
        cdef bytes packed = None
        cdef Seen seen = Seen(0, 0)
        if used + (2 if qos else 0) > size:
            _refuse(MALFORMED, f"a PUBLISH of {size} bytes with a topic of {topic_size} (MQTT 3.3.2)")
        self._check_topic(at + 2, topic_size)
        if qos:
            packet_id = load_u16(at + used)
            used += 2
            if packet_id == 0:
                _refuse(BROKEN, "a PUBLISH with packet id 0 (MQTT 2.2.1)")
        if self.protocol_version == 5:
            seen = _check_properties(at + used, size - used, IN_PUBLISH)
            packed = PyBytes_FromStringAndSize(<const char*>at + used, <Py_ssize_t>seen.size)
            used += seen.size
        topic = self._resolve(seen.topic_alias, topic_size != 0)
        message = PyType_GenericNew(<PyTypeObject*>self.message_type, NULL, NULL)
        PyObject_SetAttr(message, "_topic", topic)
        PyObject_SetAttr(
            message, "payload", PyBytes_FromStringAndSize(<const char*>at + used, <Py_ssize_t>(size - used)))
        PyObject_SetAttr(message, "qos", qos)
        PyObject_SetAttr(message, "mid", packet_id)
        PyObject_SetAttr(message, "dup", command & 8 != 0)
        PyObject_SetAttr(message, "retain", command & 1 != 0)
        PyObject_SetAttr(message, "timestamp", self.fed_s)
        PyObject_SetAttr(message, "state", self.state_qos2 if qos == 2 else self.state)
        PyObject_SetAttr(message, "_packed", packed)
        return message

    cdef int _check_topic(self, const uint8_t* at, size_t size) except -1:
        if size == <size_t>PyBytes_GET_SIZE(self.last_topic) and size and (
                memcmp(at, PyBytes_AS_STRING(self.last_topic), size) == 0):
            return 0
        if size == 0 and self.protocol_version != 5:
            _refuse(BROKEN, "a PUBLISH without a topic (MQTT 4.7.3)")
        if not is_mqtt_text(at, size):
            _refuse(MALFORMED, "a topic that is not UTF-8, or has U+0000 (MQTT 1.5.4)")
        if has_wildcard(at, size):
            _refuse(MALFORMED, "a PUBLISH with a wildcard in its topic (MQTT 3.3.2.1)")
        self.last_topic = PyBytes_FromStringAndSize(<const char*>at, <Py_ssize_t>size)
        return 0

    cdef bytes _resolve(self, uint16_t alias, bint has_topic):
        """The topic of the last PUBLISH, or what its alias stands for (MQTT 5, 3.3.2.3.4)."""
        if alias > self.topic_alias_maximum:
            _refuse(TOPIC_ALIAS_INVALID, f"topic alias {alias}; {self.topic_alias_maximum} is the highest allowed "
                                         "(MQTT 5, 3.3.2.3.4)")
        if has_topic:
            if alias:
                self.aliases[alias] = self.last_topic
            return self.last_topic
        topic = self.aliases.get(alias)
        if topic is None:
            _refuse(BROKEN, f"a PUBLISH without a topic, and topic alias {alias} was not defined (MQTT 5, 3.3.2.3.4)")
        return topic
