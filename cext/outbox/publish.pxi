# The whole of a call of `Client.publish`, so that a caller pays for nothing but the message: its arguments checked, a
# handle made, the message encoded where the window has room, and else kept. Whatever is rare in it is a method of the
# client. Part of `_outbox.pyx`.

cdef enum:
    TOPIC_MAX_BYTES = 65535


cdef Py_ssize_t _check_topic(client, str topic) except -1:
    """Its bytes. paho's rules and errors (section 4.7); MQTT 5 may have an empty one, with an alias."""
    cdef Py_ssize_t size = 0
    cdef const char* at = PyUnicode_AsUTF8AndSize(topic, &size)
    if size == 0 and client._protocol != MQTT_5:
        raise ValueError("Invalid topic.")
    if (size > TOPIC_MAX_BYTES or memchr(at, c"+", <size_t>size) is not NULL
            or memchr(at, c"#", <size_t>size) is not NULL):
        client._raise_for_invalid_topic(topic.encode())
    return size


cdef object _checked_qos(qos):
    """As an int."""
    cdef int overflow = 0
    cdef long level
    if type(qos) is int:
        level = PyLong_AsLongAndOverflow(qos, &overflow)
        if 0 <= level <= 2 and not overflow:
            return qos
    elif not (qos < 0 or qos > 2):
        return index(qos)
    raise ValueError("Invalid QoS level.")


cdef int _check_size(client, Py_ssize_t size, Py_ssize_t payload_size, qos, properties) except -1:
    """`size`: what was given. Once accepted, a packet that is too large would be in the way of all that follows."""
    if payload_size > REMAINING_LENGTH_MAX:
        raise ValueError("Payload too large.")
    size += 2 + (2 if qos else 0)
    if client._protocol == MQTT_5 and properties is None:
        size += 1
    if size > REMAINING_LENGTH_MAX:
        raise ValueError("Packet too large")
    return 0


# Its annotations are for those who ask for them: what is given is checked as paho checks it.
@annotation_typing(False)
def publish(
    self,
    topic: str,
    payload: PayloadType = None,
    qos: int = 0,
    retain: bool = False,
    properties: Properties | None = None,
) -> PublishHandle:
    """Accept a message for the broker, and return its handle at once. From any thread and any callback.

    topic: where it is published, at most 65,535 bytes of UTF-8, without wildcards. Not empty, but in MQTT 5 with an
    alias.
    payload: bytes, bytearray, str (sent as UTF-8), int and float (sent as text), or None for none; at most 268,435,455
    bytes with the topic. It may be changed afterwards.
    qos: 0 at most once, 1 at least once, 2 exactly once.
    retain: the broker keeps it for subscribers that come later.
    properties: those of PUBLISH, MQTT 5 only.

    The handle is a `PublishHandle`, and paho's MQTTMessageInfo: `mid` is what `on_publish` is called with,
    `is_published` and `wait_for_publish` tell when the broker has the message. `rc` is MQTT_ERR_SUCCESS;
    MQTT_ERR_NO_CONN while there is no connection, where QoS 1 and 2 wait for one; MQTT_ERR_QUEUE_SIZE where the message
    was not taken, as `max_queued_messages` wait already. (rc, mid) can be unpacked from it.

    With a store, the message is kept until the broker has it, also over the end of the process. QoS 2 returns once it
    is on disk, see `wait_for_disk`; `wait_durable` of the handle waits for it with any QoS.

        client.publish("vehicles/7/position", b"37.56,126.97", qos=1).wait_for_publish(5.0)

    Raises ValueError for a wrong topic or QoS, or too large a payload, TypeError for a payload of another kind; with a
    store MessageError, QueueStorageError while the disk fails, and QueueClosedError after `close`.
    """
    cdef Py_ssize_t size
    if type(topic) is not str:
        # What is not text has no length or no such method, which are paho's errors for it.
        if self._protocol != MQTT_5 and (topic is None or len(topic) == 0):
            raise ValueError("Invalid topic.")
        topic = topic.encode("utf-8").decode()
    size = _check_topic(self, topic)
    qos = _checked_qos(qos)
    if type(payload) is not bytes:
        # A bytearray may change after this.
        payload = bytes(encode_payload(payload))
    size += <Py_ssize_t>len(payload)
    found = self._glec_outbox
    if not isinstance(found, Outbox):
        # In a forked child, where it refuses.
        return found.publish
    return (<Outbox>found)._take(self, topic, payload, qos, retain, properties, size)


cdef class _Call:
    """What `Client.publish.__call__` is: of what is no function of Python, mock asks that for its arguments."""

    @property
    def __signature__(self):
        # Some memory, for those who ask.
        from inspect import signature

        of_publish = signature(publish)
        return of_publish.replace(parameters=[*of_publish.parameters.values()][1:])

    def __call__(self, *arguments, **named):
        return publish(*arguments, **named)


publish.__call__ = _Call()
