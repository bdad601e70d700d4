# Messages in memory, from `publish` until the broker has them. Part of `_outbox.pyx`.

cdef enum:
    # The length of the topic, a packet id, and the length of no properties.
    FIELDS_MAX_BYTES = 5

cdef object NO_CONNECTION = MQTTErrorCode.MQTT_ERR_NO_CONN
cdef object QUEUE_SIZE = MQTTErrorCode.MQTT_ERR_QUEUE_SIZE
cdef object CONNECTION_LOST = MQTTErrorCode.MQTT_ERR_CONN_LOST


# Its references lead to bytes, str and a handle, none of which leads back.
@no_gc
@freelist(256)
cdef class Message:
    """A QoS 1 or 2 message in memory, as `publish` took it, until the server has taken it over."""

    cdef readonly object topic
    cdef readonly object payload
    cdef readonly object qos
    cdef readonly object retain
    # Packed (MQTT 5, 2.2.2), or None.
    cdef readonly object properties
    cdef readonly object mid
    cdef readonly object handle


cdef Message _new_message(topic, payload, qos, bint retain, properties, handle):
    cdef Message message = Message.__new__(Message)
    message.topic = topic
    message.payload = payload
    message.qos = qos
    message.retain = retain
    message.properties = properties
    message.mid = handle.mid
    message.handle = handle
    return message


cdef class MemoryOutbox(Outbox):
    """Messages in memory, as in paho: they have their packet id from `publish` on, and end with the process.

    To the session a message is named by its packet id, and one of QoS 0 by 0.
    """

    # Most unacknowledged messages, 0 for no limit.
    cdef readonly Py_ssize_t max_queued
    # packet id -> Message, in the order of `publish`: what waits and what is in flight.
    cdef dict messages
    # What waits, from index `gone` on.
    cdef list waiting
    cdef Py_ssize_t gone
    cdef bint has_waiting
    # Handles of QoS 0, in the order of the send buffer: a lost connection ends them.
    cdef list unsent
    cdef Py_ssize_t unsent_gone
    # Between `greet` and `resume`, and what `resume` is to return.
    cdef bint is_greeting
    cdef list doubtful

    def __init__(self, int window, on_work):
        super().__init__(window, on_work, durable=False)
        self.messages = {}
        self.waiting = []
        self.unsent = []
        self.doubtful = []

    def __len__(self):
        return len(self.messages)

    def unfinished(self, stops_by_s) -> int:
        """So many messages keep the network thread after `loop_stop`: those that would be lost with it.

        stops_by_s: until when, of `time.monotonic`.
        """
        return len(self.messages)

    def set_max_queued(self, Py_ssize_t value):
        """See `Outbox`."""
        self.max_queued = value

    def refuse_renewal(self):
        """See `Outbox`: they end with their client."""

    cdef object _take(self, client, str topic, bytes payload, qos, retain, properties, Py_ssize_t size):
        """See `Outbox`."""
        cdef size_t unsent_bytes = 0
        cdef bint is_retained = retain
        cdef bint is_linked
        if properties is not None:
            properties = bytes(properties.pack()) if client._protocol == MQTT_5 else None
            size += <Py_ssize_t>len(properties or b"")
        if size > REMAINING_LENGTH_MAX - FIELDS_MAX_BYTES:
            _check_size(client, size, len(payload), qos, properties)
        handle = _new_handle(self._published, qos)
        is_linked = client._sock is not None
        self.lock.take()
        try:
            is_linked = is_linked and self.is_linked
            self.flush_acks()
            if qos:
                unsent_bytes = self._publish_acknowledged(handle, topic, payload, qos, is_retained, properties)
            elif is_linked:
                unsent_bytes = self._publish_unacknowledged(handle, topic, payload, is_retained, properties)
            else:
                _set_mid(handle, self.session.next_packet_id())
            if not is_linked and handle.rc is SUCCESS:
                handle.rc = NO_CONNECTION
        except BaseException:
            self._withdraw(handle)
            raise
        finally:
            self.lock.give()
        if self.has_trace:
            client._glec_log_sent()
        # A thread that was woken looks for all that came until it looked.
        if unsent_bytes > self.worth_writing_bytes or (
                unsent_bytes and not (self.is_woken and client._thread is not None)):
            rc = client._glec_after_publish(unsent_bytes > self.worth_writing_bytes)
            if rc is not SUCCESS:
                handle.rc = rc
        return handle

    cdef size_t _publish_unacknowledged(self, handle, topic, payload, bint retain, properties) except? 0:
        """QoS 0, right into the send buffer; the caller holds the lock. Returns the bytes that wait for the socket."""
        cdef size_t unsent_bytes
        _set_mid(handle, self.session.next_packet_id())
        unsent_bytes = self.session.admit(0, topic, payload, 0, retain, properties)
        self.unsent.append(handle)
        if self.is_traced:
            message = _new_message(topic, payload, 0, retain, properties, handle)
            self._note(message)
        return unsent_bytes

    cdef size_t _publish_acknowledged(self, handle, topic, payload, qos, bint retain, properties) except? 0:
        """QoS 1 and 2; the caller holds the lock. Returns the bytes that it made wait for the socket, 0 where none."""
        cdef Message message
        if 0 < self.max_queued <= len(self.messages):
            _set_mid(handle, self.session.next_packet_id())
            handle.rc = QUEUE_SIZE
            return 0
        mid = self.session.reserve_packet_id()
        _set_mid(handle, mid)
        if not mid:
            handle.rc = QUEUE_SIZE
            return 0
        message = _new_message(topic, payload, qos, retain, properties, handle)
        PyDict_SetItem(self.messages, mid, message)
        if self.is_greeting and self.session.room() > 0:
            # As paho's: on_connect may subscribe or disconnect right behind it.
            return self._admit(message)
        self.waiting.append(message)
        self.has_waiting = True
        if self.is_open:
            return self._admit_waiting()
        self.is_awaited = self.is_linked
        return 0

    cdef int _withdraw(self, handle) except -1:
        """Its `publish` raises: nothing is kept of it. The caller holds the lock."""
        mid = getattr(handle, "mid", 0)
        message = self.messages.get(mid)
        if message is None or (<Message>message).handle is not handle:
            return 0
        del self.messages[mid]
        if self.waiting and self.waiting[PyList_GET_SIZE(self.waiting) - 1] is message:
            self.waiting.pop()
        self.session.release_packet_id(mid)
        return 0

    cdef size_t _admit_waiting(self) except? 0:
        """As many as the window has room for; the caller holds the lock. Returns the bytes that wait for the socket."""
        cdef Py_ssize_t count = PyList_GET_SIZE(self.waiting) - self.gone
        cdef size_t unsent_bytes = 0
        cdef Py_ssize_t room
        if count == 0:
            self.has_waiting = False
            return 0
        room = self.session.room()
        while room > 0 and count > 0:
            unsent_bytes = self._admit(<Message>PyList_GET_ITEM(self.waiting, self.gone))
            self.gone += 1
            count -= 1
            room -= 1
        if count == 0 or self.gone > 1024 and self.gone > count:
            del self.waiting[:self.gone]
            self.gone = 0
        self.has_waiting = count > 0
        return unsent_bytes

    cdef size_t _admit(self, Message message) except? 0:
        """The caller holds the lock. Returns the bytes that wait for the socket."""
        cdef size_t unsent_bytes
        PyObject_SetAttr(message.handle, "rc", SUCCESS)
        unsent_bytes = self.session.admit(message.mid, message.topic, message.payload, message.qos, message.retain,
                                          message.properties, message.mid)
        if self.is_traced:
            self._note(message)
        return unsent_bytes

    cdef int _note(self, message) except -1:
        self.trace.append((message, self.session.admitted_command))
        self.has_trace = True
        return 0

    cdef int _wait_again(self) except -1:
        """All messages, in order; the caller holds the lock."""
        self.waiting = list(self.messages.values())
        self.gone = 0
        self.has_waiting = PyList_GET_SIZE(self.waiting) > 0
        return 0

    def has_to_send(self) -> bool:
        """True where something was published that is yet to leave on this connection, and can before long."""
        return not self.is_open and (self.is_awaited or (self.is_greeting and self.has_waiting))

    def pull(self):
        """Admit what the window has room for."""
        if self.is_open and self.has_waiting:
            with self.lock:
                self._admit_waiting()

    def settle(self) -> list:
        """The handles of what is finished, in that order; the caller holds the lock."""
        cdef list finished
        cdef PyObject* message
        cdef Py_ssize_t counted
        finished, self.untold = self.untold, []
        counted = PyList_GET_SIZE(finished)
        for mid in self.session.take_done() + self.session.take_refused():
            if mid == 0:
                finished.append(self.unsent[self.unsent_gone])
                self.unsent_gone += 1
                continue
            message = PyDict_GetItem(self.messages, mid)
            # Not where the program has dropped it meanwhile.
            if message is not NULL:
                finished.append((<Message>message).handle)
                del self.messages[mid]
        if self.unsent_gone == PyList_GET_SIZE(self.unsent) or self.unsent_gone > 1024:
            del self.unsent[:self.unsent_gone]
            self.unsent_gone = 0
        self.sent_count += PyList_GET_SIZE(finished) - counted
        return finished

    def park(self) -> list:
        """The connection is gone. Returns the handles of QoS 0 messages that went with it."""
        with self.lock:
            self.is_open = self.is_greeting = self.is_linked = False
            # What has left is not lost: another thread may have told the session, and not yet asked what is finished.
            self.untold = self.settle()
            finished = self.untold[:]
            self.lost_in_the_air += <Py_ssize_t>(self.session.left_count - self.session.proven_count)
            self.session.park()
            self._release_control_ids()
            self._wait_again()
            lost = self.unsent[self.unsent_gone:]
            self.unsent = []
            self.unsent_gone = 0
        for handle in lost:
            handle.rc = CONNECTION_LOST
        set_as_published(finished)
        set_as_published(lost)
        return lost

    def greet(self, bint session_present, int receive_maximum):
        """See `Outbox.greet`. What is published from now on goes before what is sent again."""
        with self.lock:
            if self.is_greeting:
                # An exception came before `resume`, and CONNACK is handled again: what was published since has left.
                return
            for mid in self.session.resume(session_present, receive_maximum):
                # Not where the program has dropped it meanwhile.
                message = self.messages.pop(mid, None)
                if message is not None:
                    self.doubtful.append(message.handle)
            # What the program dropped in flight. A server that kept its session may yet have an id of QoS 2.
            for mid in self.session.parked_ids(1 if session_present else 0):
                if mid not in self.messages:
                    self.session.forget(mid)
            self._wait_again()
            self.is_greeting = True

    def resume(self, bint session_present, int receive_maximum):
        """The broker accepted the connection: send again what was not acknowledged, then what waits.

        QoS 2 messages that the broker had received before it lost its session are its own: `settle` hands them out.
        """
        if not self.is_greeting:
            self.greet(session_present, receive_maximum)
        with self.lock:
            self.untold += self.doubtful
            self.doubtful = []
            self.is_greeting = False
            self.is_open = True
        self.pull()

    def clear(self) -> list:
        """Forget every unacknowledged message and return them in order."""
        with self.lock:
            dropped = list(self.messages.values())
            for message in self.waiting[self.gone:]:
                self.session.forget(message.mid)
                self.session.release_packet_id(message.mid)
            self.messages.clear()
            self._wait_again()
        return dropped

    def message_ids(self) -> list:
        """See `Outbox`."""
        with self.lock:
            return list(self.messages)

    def find(self, message_id):
        """See `Outbox`."""
        return self.messages.get(message_id)

    def waiting_ids(self) -> set:
        """See `Outbox`."""
        with self.lock:
            return {(<Message>message).mid for message in self.waiting[self.gone:]}

    def drop(self, message_id):
        """See `Outbox`."""
        with self.lock:
            message = self.messages.pop(message_id, None)
            if message is not None and message in self.waiting[self.gone:]:
                del self.waiting[:self.gone]
                self.gone = 0
                self.waiting.remove(message)
                self.has_waiting = PyList_GET_SIZE(self.waiting) > 0
                self.session.forget(message_id)
                self.session.release_packet_id(message_id)
        return message

    def restore(self, mid, topic, payload, qos, retain, properties):
        """See `Outbox`."""
        handle = _new_handle(self._published, qos)
        _set_mid(handle, mid)
        with self.lock:
            if not self.session.take_packet_id(mid):
                raise ValueError(f"packet id {mid} is in use")
            message = _new_message(topic, payload, qos, retain, properties, handle)
            self.messages[mid] = message
            self.waiting.append(message)
            self.has_waiting = True
        self.pull()
