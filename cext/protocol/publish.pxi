# PUBLISH out (MQTT 3.1.1 and 5.0, section 3.3): from a message's objects to bytes. Part of `_session.pyx`.
#
# As far as the server allows it (MQTT 5, 3.3.2.3.4), a topic is sent once on a connection and by its number from then
# on. That is decided as a packet is encoded: what is encoded leaves in its order or not at all, the gate holds back all
# that is behind it, and each connection begins without names. So a resend is right wherever it goes.


cdef bytes _as_bytes(data):
    """A copy, unless it is bytes. Raises TypeError, BufferError where it is no buffer."""
    cdef Py_buffer view
    if isinstance(data, bytes):
        return data
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return PyBytes_FromStringAndSize(<const char*>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef inline size_t _publish_body_bytes(size_t topic, bint has_packet_id, bint is_mqtt_5, size_t properties,
                                       size_t payload) noexcept:
    """Of a PUBLISH with so many bytes of each."""
    cdef size_t body = 2 + topic + (2 if has_packet_id else 0) + payload
    return body + remaining_length_bytes(properties) + properties if is_mqtt_5 else body


cdef size_t _write_publish(send_buffer.SendBuffer* out, topic_aliases.Aliases* aliases, bint is_mqtt_5, object topic,
                           object payload, uint8_t flags, uint16_t packet_id, object properties) except 0:
    """Write one PUBLISH packet behind all that is encoded, and return its size for `send_buffer.append`.

    After any error nothing was written.
    """
    cdef const char* topic_at
    cdef Py_ssize_t topic_size
    cdef const char* payload_at
    cdef Py_ssize_t payload_size
    if isinstance(topic, bytes):
        topic_at = PyBytes_AS_STRING(topic)
        topic_size = PyBytes_GET_SIZE(topic)
    else:
        topic_at = PyUnicode_AsUTF8AndSize(topic, &topic_size)
    if isinstance(payload, str):
        payload_at = PyUnicode_AsUTF8AndSize(payload, &payload_size)
    else:
        payload = _as_bytes(payload)
        payload_at = PyBytes_AS_STRING(payload)
        payload_size = PyBytes_GET_SIZE(payload)
    cdef const uint8_t* properties_at = NULL
    cdef size_t properties_size = 0
    cdef uint32_t length = 0
    cdef int used
    cdef bytes packed
    if is_mqtt_5 and properties is not None:
        packed = properties
        properties_at = <const uint8_t*>PyBytes_AS_STRING(packed)
        properties_size = <size_t>PyBytes_GET_SIZE(packed)
        used = load_remaining_length(properties_at, properties_size, &length)
        if used <= 0 or <size_t>used + length != properties_size:
            raise MessageError(f"{properties_size} bytes of properties without their length (MQTT 5, 2.2.2)")
        properties_at += used
        properties_size = length
    cdef size_t named_size = <size_t>topic_size
    cdef size_t body = _publish_body_bytes(named_size, packet_id, is_mqtt_5, properties_size, <size_t>payload_size)
    cdef int alias = 0
    if aliases.maximum and is_mqtt_5 and topic_aliases.ALIAS_BYTES < topic_size <= 65535:
        alias = _alias_of(aliases, topic_at, &named_size, body)
        if alias:
            properties_size += topic_aliases.ALIAS_BYTES
            body = _publish_body_bytes(named_size, packet_id, is_mqtt_5, properties_size, <size_t>payload_size)
    if topic_size > 65535 or body > REMAINING_LENGTH_MAX:
        raise MessageError(f"a PUBLISH of {body} bytes, topic {topic_size}: MQTT carries at most "
                           f"{REMAINING_LENGTH_MAX} and 65535; send less")
    cdef uint8_t* start = send_buffer.reserve(out, FIXED_HEADER_MAX_BYTES + body)
    cdef uint8_t* at = start
    at[0] = PUBLISH | flags
    at += 1
    at += store_remaining_length(at, <uint32_t>body)
    store_u16(at, <uint16_t>named_size)
    memcpy(at + 2, topic_at, named_size)
    at += 2 + named_size
    if packet_id:
        store_u16(at, packet_id)
        at += 2
    if is_mqtt_5:
        at += store_remaining_length(at, <uint32_t>properties_size)
        if alias:
            at[0] = topic_aliases.TOPIC_ALIAS
            store_u16(at + 1, <uint16_t>alias)
            at += topic_aliases.ALIAS_BYTES
            properties_size -= topic_aliases.ALIAS_BYTES
            topic_aliases.on_named(aliases, alias)
        if properties_size:
            memcpy(at, properties_at, properties_size)
            at += properties_size
    if payload_size:
        memcpy(at, payload_at, <size_t>payload_size)
        at += payload_size
    return <size_t>(at - start)


cdef int _alias_of(topic_aliases.Aliases* aliases, const char* topic, size_t* named_size, size_t body) except -1:
    """The number to send this topic by, 0 for none; `named_size` becomes 0 where the server has its name."""
    cdef int alias = topic_aliases.find(aliases, topic, named_size[0])
    cdef size_t longest
    if alias and topic_aliases.is_named(aliases, alias):
        named_size[0] = 0
    elif alias:
        # The lengths of properties and packet may take a byte more each.
        longest = body + topic_aliases.ALIAS_BYTES + 1
        if 1 + remaining_length_bytes(longest) + longest > aliases.packet_max_bytes:
            return 0
    return alias
