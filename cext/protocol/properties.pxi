# Properties and reason codes (MQTT 5, 2.2.2 and 2.4): which a server may send, where, and of what value. Part of
# `_inbound.pyx`.

cdef enum:
    TOPIC_ALIAS_INVALID = 0x94
    PROPERTY_MAX = 42

# A set of packet types: bit n is type n of section 2.1.2.
cdef enum:
    IN_CONNACK = 1 << 2
    IN_PUBLISH = 1 << 3
    IN_PUBACK = 1 << 4
    IN_PUBREC = 1 << 5
    IN_PUBREL = 1 << 6
    IN_PUBCOMP = 1 << 7
    IN_SUBACK = 1 << 9
    IN_UNSUBACK = 1 << 11
    IN_DISCONNECT = 1 << 14
    IN_ALL = 0x5AFC

cdef enum PropertyType:
    BYTE
    TWO_BYTES
    FOUR_BYTES
    VARIABLE
    BINARY
    STRING
    PAIR

cdef enum Rule:
    # May stand more than once.
    REPEATS = 1
    # 0 is not among its values.
    ABOVE_ZERO = 2
    # Its values are 0 and 1.
    IS_FLAG = 4

cdef struct Property:
    # Packets from a server in which it may stand; 0 where there is no such property.
    uint16_t packets
    uint8_t kind
    # A set of Rule.
    uint8_t rules

cdef Property[PROPERTY_MAX + 1] PROPERTIES
# REASONS[code]: the packets from a server that may carry it (section 2.4).
cdef uint16_t[256] REASONS
cdef list PROPERTY_NAMES = [None] * (PROPERTY_MAX + 1)


cdef int _define(int identifier, str name, uint8_t kind, uint16_t packets, uint8_t rules=0) except -1:
    PROPERTIES[identifier] = Property(packets, kind, rules)
    PROPERTY_NAMES[identifier] = name
    return 0


cdef int _define_properties() except -1:
    """Section 2.2.2.2, without what only a client sends."""
    memset(PROPERTIES, 0, sizeof(PROPERTIES))
    # Of any value, and a Response Topic of any text: brokers hand on what another client made of them. Where that ends
    # the connection, the message comes again with the next, for ever.
    _define(1, "PayloadFormatIndicator", BYTE, IN_PUBLISH, 0)
    _define(2, "MessageExpiryInterval", FOUR_BYTES, IN_PUBLISH)
    _define(3, "ContentType", STRING, IN_PUBLISH)
    _define(8, "ResponseTopic", STRING, IN_PUBLISH)
    _define(9, "CorrelationData", BINARY, IN_PUBLISH)
    _define(11, "SubscriptionIdentifier", VARIABLE, IN_PUBLISH, REPEATS | ABOVE_ZERO)
    _define(17, "SessionExpiryInterval", FOUR_BYTES, IN_CONNACK)
    _define(18, "AssignedClientIdentifier", STRING, IN_CONNACK)
    _define(19, "ServerKeepAlive", TWO_BYTES, IN_CONNACK)
    _define(21, "AuthenticationMethod", STRING, IN_CONNACK)
    _define(22, "AuthenticationData", BINARY, IN_CONNACK)
    _define(26, "ResponseInformation", STRING, IN_CONNACK)
    _define(28, "ServerReference", STRING, IN_CONNACK | IN_DISCONNECT)
    _define(31, "ReasonString", STRING, IN_ALL & ~IN_PUBLISH)
    _define(33, "ReceiveMaximum", TWO_BYTES, IN_CONNACK, ABOVE_ZERO)
    _define(34, "TopicAliasMaximum", TWO_BYTES, IN_CONNACK)
    _define(35, "TopicAlias", TWO_BYTES, IN_PUBLISH, ABOVE_ZERO)
    _define(36, "MaximumQoS", BYTE, IN_CONNACK, IS_FLAG)
    _define(37, "RetainAvailable", BYTE, IN_CONNACK, IS_FLAG)
    _define(38, "UserProperty", PAIR, IN_ALL, REPEATS)
    _define(39, "MaximumPacketSize", FOUR_BYTES, IN_CONNACK, ABOVE_ZERO)
    _define(40, "WildcardSubscriptionAvailable", BYTE, IN_CONNACK, IS_FLAG)
    _define(41, "SubscriptionIdentifierAvailable", BYTE, IN_CONNACK, IS_FLAG)
    _define(42, "SharedSubscriptionAvailable", BYTE, IN_CONNACK, IS_FLAG)
    return 0


cdef int _define_reasons() except -1:
    """Section 2.4, without what only a client sends, and any failure."""
    memset(REASONS, 0, sizeof(REASONS))
    for packets, codes in (
        (IN_CONNACK, b"\x00"),
        (IN_PUBACK | IN_PUBREC, b"\x00\x10"),
        (IN_PUBREL, b"\x00\x92"),
        (IN_PUBCOMP, b"\x00"),
        # Servers refuse by others too (mosquitto: 0x95), and what is refused must not stop all others.
        (IN_ALL & ~(IN_PUBLISH | IN_PUBREL), bytes(range(0x80, 0x100))),
        (IN_SUBACK, b"\x00\x01\x02"),
        (IN_UNSUBACK, b"\x00\x11"),
        (IN_DISCONNECT, b"\x00"),
    ):
        for code in codes:
            REASONS[<uint8_t>code] |= <uint16_t>packets
    return 0


_define_properties()
_define_reasons()


cdef int _load_variable(const uint8_t* at, size_t available, uint32_t* value) except -1:
    """A Variable Byte Integer (MQTT 5, 1.5.5), which must be as short as it can; returns the bytes used."""
    cdef int used = load_remaining_length(at, available, value)
    if used <= 0:
        _refuse(MALFORMED, "a variable byte integer that does not end (MQTT 5, 1.5.5)")
    if used > 1 and at[used - 1] == 0:
        _refuse(MALFORMED, "a variable byte integer with more bytes than it needs (MQTT 5, 1.5.5)")
    return used


cdef size_t _field_size(uint8_t kind, const uint8_t* at, size_t available) except? 0:
    """Bytes of a property's value; raises where fewer are there."""
    cdef size_t size
    cdef uint32_t value = 0
    if kind == BYTE:
        size = 1
    elif kind == TWO_BYTES:
        size = 2
    elif kind == FOUR_BYTES:
        size = 4
    elif kind == VARIABLE:
        size = <size_t>_load_variable(at, available, &value)
    else:
        size = _text_size(at, available, kind != BINARY)
        if kind == PAIR:
            size += _text_size(at + size, available - size, True)
    if size > available:
        _refuse(MALFORMED, "a property that ends after its packet's properties (MQTT 5, 2.2.2)")
    return size


cdef size_t _text_size(const uint8_t* at, size_t available, bint is_text) except 0:
    """Bytes of a string or binary field with its length in front; a string is checked."""
    cdef size_t size
    if available < 2:
        _refuse(MALFORMED, "a length that is cut off (MQTT 1.5)")
    size = load_u16(at)
    if available - 2 < size:
        _refuse(MALFORMED, f"a field of {size} bytes in {available - 2} (MQTT 1.5)")
    if is_text and not is_mqtt_text(at + 2, size):
        _refuse(MALFORMED, "a string that is not UTF-8, or has U+0000 (MQTT 1.5.4)")
    return size + 2


cdef uint32_t _field_number(uint8_t kind, const uint8_t* at) noexcept:
    """The value of a property that is a number, checked already."""
    cdef uint32_t value = 0
    if kind == BYTE:
        return at[0]
    if kind == TWO_BYTES:
        return load_u16(at)
    if kind == FOUR_BYTES:
        return (<uint32_t>load_u16(at) << 16) | load_u16(at + 2)
    load_remaining_length(at, 4, &value)
    return value


cdef object _field_value(uint8_t kind, const uint8_t* at):
    """The value of a property as paho gives it, checked already."""
    cdef Py_ssize_t size
    if kind <= VARIABLE:
        return _field_number(kind, at)
    size = load_u16(at)
    if kind == BINARY:
        return PyBytes_FromStringAndSize(<const char*>at + 2, size)
    text = (<const char*>at)[2:2 + size].decode("utf-8")
    if kind == STRING:
        return text
    return (text, _field_value(STRING, at + 2 + size))


def unpack_properties(bytes packed not None) -> dict:
    """The properties of a packet that was checked: paho's attribute names and values. `packed` begins with the length.

    Raises ProtocolError where they are cut off.
    """
    cdef const uint8_t* at = <const uint8_t*>PyBytes_AS_STRING(packed)
    cdef size_t end = <size_t>PyBytes_GET_SIZE(packed)
    cdef size_t index
    cdef uint32_t announced = 0
    cdef uint8_t identifier
    cdef Property* known
    cdef dict values = {}
    index = <size_t>_load_variable(at, end, &announced)
    if announced != end - index:
        _refuse(MALFORMED, "properties of another length than announced (MQTT 5, 2.2.2)")
    while index < end:
        identifier = at[index]
        index += 1
        if identifier > PROPERTY_MAX or PROPERTIES[identifier].packets == 0:
            _refuse(MALFORMED, f"a property {identifier} (MQTT 5, 2.2.2.2)")
        known = &PROPERTIES[identifier]
        size = _field_size(known.kind, at + index, end - index)
        value = _field_value(known.kind, at + index)
        name = PROPERTY_NAMES[identifier]
        if known.rules & REPEATS:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
        index += size
    return values


cdef struct Seen:
    # What a PUBLISH's own rules need of its properties.
    uint16_t topic_alias
    # Bytes of the properties with their length.
    size_t size


cdef Seen _check_properties(const uint8_t* at, size_t available, uint16_t packet) except *:
    """Section 2.2.2 and what each property's own section adds."""
    cdef Seen seen = Seen(0, 0)
    cdef uint32_t announced = 0
    cdef uint32_t number
    cdef uint64_t present = 0
    cdef size_t end, size
    cdef uint8_t identifier
    cdef Property* known
    cdef size_t index = <size_t>_load_variable(at, available, &announced)
    if announced > available - index:
        _refuse(MALFORMED, f"properties of {announced} bytes in {available - index} (MQTT 5, 2.2.2.1)")
    end = index + announced
    seen.size = end
    while index < end:
        identifier = at[index]
        index += 1
        # All identifiers are below 128: a longer one is none.
        if identifier > PROPERTY_MAX or not PROPERTIES[identifier].packets & packet:
            if identifier == 17 and packet == IN_DISCONNECT:
                _refuse(BROKEN, "a session expiry interval in a server's DISCONNECT (MQTT 5, 3.14.2.2.2)")
            _refuse(MALFORMED, f"a property {identifier} that this packet cannot have (MQTT 5, 2.2.2.2)")
        known = &PROPERTIES[identifier]
        if not (known.rules & REPEATS):
            if present >> identifier & 1:
                _refuse(BROKEN, f"{PROPERTY_NAMES[identifier]} twice (MQTT 5, 2.2.2.2)")
            present |= <uint64_t>1 << identifier
        size = _field_size(known.kind, at + index, end - index)
        if known.kind <= VARIABLE:
            number = _field_number(known.kind, at + index)
            if known.rules & ABOVE_ZERO and number == 0:
                _refuse(TOPIC_ALIAS_INVALID if identifier == 35 else BROKEN,
                        f"{PROPERTY_NAMES[identifier]} of 0 (MQTT 5, 3.2.2.3 and 3.3.2.3)")
            if known.rules & IS_FLAG and number > 1:
                _refuse(BROKEN, f"{PROPERTY_NAMES[identifier]} of {number}; it is 0 or 1 (MQTT 5, 3.2.2.3, 3.3.2.3)")
            if identifier == 35:
                seen.topic_alias = <uint16_t>number
        index += size
    return seen


cdef int _check_reason(uint8_t code, uint16_t packet) except -1:
    if not REASONS[code] & packet:
        _refuse(BROKEN, f"a reason code 0x{code:02X} that this packet cannot have (MQTT 5, 2.4)")
    return 0
