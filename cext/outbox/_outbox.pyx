"""What waits to be sent, and the session that sends it: what both kinds of outbox share, and the one in memory.

The one over the store has its part in `row_outbox.pxi`, and the rest in `glec_fast.outbox.stored`.

An outbox owns its `Session` and the lock around it. It knows no socket: the client moves the bytes, and says when a
connection begins and ends. No lock is held when a caller's code runs, nor while an object is made whose making could
collect garbage, which runs finalisers.

`publish` is the whole of a call of `Client.publish`, so that a caller pays for nothing but the message: its arguments
checked, a handle made, the message encoded where the window has room, and else kept. Whatever is rare in it is a method
of the client.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem, PyDict_SetItem
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_AsLongAndOverflow
from cpython.object cimport PyObject, PyObject_SetAttr
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from cython cimport annotation_typing, freelist, no_gc
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memchr
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from glec_fast.runtime._lock cimport Condition, Lock
from mqtt_wire cimport PUBACK, PUBREC, REMAINING_LENGTH_MAX, store_u16

from operator import index
from weakref import KeyedRef, WeakValueDictionary, ref

from paho.mqtt.client import PayloadType
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties

from glec_fast._paho import encode_payload
from glec_fast.errors import UnsupportedError
from glec_fast.protocol._session import Session
from glec_fast.durable._steps import Finished, merged
from glec_fast.outbox._pace import Pace
from glec_fast.outbox.handle import PublishHandle
from glec_fast.durable.in_doubt import Decision
from glec_fast.runtime.process import forbid_waiting

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        pass
    object PyType_GenericNew(PyTypeObject* type_, void* args, void* kwargs)

cdef enum:
    TOPIC_MAX_BYTES = 65535
    # The length of the topic, a packet id, and the length of no properties.
    FIELDS_MAX_BYTES = 5
    # Encoded and not yet taken by the socket.
    WORTH_WRITING_BYTES = 65536
    # One of ours in `acks`: a packet id, and no reason.
    ACK_BYTES = 4

cdef bytes PINGREQ = b"\xc0\x00"
cdef object MQTT_5 = MQTTProtocolVersion.MQTTv5
cdef object SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS
cdef object NO_CONNECTION = MQTTErrorCode.MQTT_ERR_NO_CONN
cdef object QUEUE_SIZE = MQTTErrorCode.MQTT_ERR_QUEUE_SIZE
cdef object CONNECTION_LOST = MQTTErrorCode.MQTT_ERR_CONN_LOST
cdef object SENT_AGAIN = Decision.SENT_AGAIN
cdef object LEFT_TO_BROKER = Decision.LEFT_TO_BROKER
cdef object AT_LEAST_ONCE = Decision.AT_LEAST_ONCE


cdef double NEVER_S = float("inf")


cdef double _monotonic_s() noexcept:
    """As `time.monotonic`."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9


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


cdef class Outbox:
    """What both kinds share. `on_work` is called, from any thread, when there is something to send."""

    cdef readonly object session
    cdef readonly Lock lock
    # A server has accepted the connection, and it lasts.
    cdef public bint is_open
    # CONNECT, the first packet of a connection (MQTT 3.1), was put, and what is put now goes behind it.
    cdef readonly bint is_linked
    # The server ended the connection in order, or said that it does.
    cdef public bint is_left
    # It broke the connection off.
    cdef public bint is_broken_off
    # It sent what the protocol does not allow, and we end the connection.
    cdef public bint is_violated
    # We did, as it said nothing any more.
    cdef public bint is_silent
    # Of its DISCONNECT (MQTT 5, 3.14.2.1), 0 for none.
    cdef public int left_reason
    # So many PINGREQs of its own are not answered.
    cdef public int probes
    # On this connection, and before the server has accepted it, something was published: paho would have sent it.
    cdef public bint is_awaited
    # The session that the server keeps may be of another queue file, its packet ids of other messages: it must be
    # discarded before `resume`.
    cdef public bint is_session_foreign
    # The network thread has been told of work, and has not looked yet. False where no such thread runs.
    cdef public bint is_woken
    # Its messages outlive the process, and what is to be sent comes from a thread of its own too.
    cdef readonly bint is_stored
    # With more than that encoded a caller writes it himself: the network thread may wait long for the GIL.
    cdef readonly size_t worth_writing_bytes
    # Messages that the server has taken over (QoS 0: the socket).
    cdef public Py_ssize_t sent_count
    # Where it is traced, `trace` grows: (message, first byte of the packet) of all that is encoded. `has_trace` and its
    # like are for those who ask without the lock.
    cdef public bint is_traced
    # The broker is asked for something that is none of the program's business, see `Uptime`.
    cdef public bint is_asking
    cdef readonly bint has_trace
    cdef list trace
    cdef readonly object _published
    cdef readonly object _on_work
    cdef set control_ids
    # Finished when a connection went or came, and not yet handed out by `settle`.
    cdef public list untold
    # Acknowledgements of ours that were not put into the send buffer yet.
    cdef bytearray acks
    cdef bint has_acks
    # Of what may be on its way, where that is bounded; else None.
    cdef readonly object pace
    # Answers to what the server sent, that it has not read; what else it read since counts for it.
    cdef readonly size_t answer_bytes
    # When `pull` has something to do though nothing happens, of `time.monotonic`.
    cdef readonly double pull_at_s
    # Messages of QoS 0 that had left as a connection ended, without proof that they arrived, and were not queued again.
    cdef public Py_ssize_t lost_in_the_air

    def __init__(self, int window, on_work, *, bint durable, int max_unreleased=0):
        self.session = Session(window, durable, max_unreleased)
        self.lock = Lock("Outbox.lock")
        self.is_stored = durable
        self.worth_writing_bytes = WORTH_WRITING_BYTES
        self.trace = []
        self.control_ids = set()
        self.untold = []
        self.acks = bytearray()
        self.pull_at_s = NEVER_S
        self._on_work = on_work
        self._published = Condition()

    def begin_write(self, size_t limit) -> bytes:
        """The next bytes for the socket, at most `limit`."""
        with self.lock:
            # Until `end_write`, and where the socket takes nothing: try again only once there is more.
            self.worth_writing_bytes = <size_t>self.session.unsent_bytes + WORTH_WRITING_BYTES
            return self.session.peek(limit)

    def end_write(self, size_t size) -> bool:
        """The socket took `size` bytes of them. True once the packet put as `last` has left."""
        cdef bint is_last = False
        with self.lock:
            is_last = self.session.on_sent(size)
            if self.pace is not None and size:
                self.pace.on_sent(self.session.sent_to, self.session.answered_to, _monotonic_s())
            self.answer_bytes -= min(size, self.answer_bytes)
            self.worth_writing_bytes = <size_t>self.session.unsent_bytes + WORTH_WRITING_BYTES
        return is_last

    def on_torn(self):
        """In place of `end_write`, where an exception cut in and nobody knows what has left."""
        with self.lock:
            self.session.on_torn()

    def settle_into(self, finished):
        """Extend it by the handles of what is finished."""
        with self.lock:
            finished.extend(self.settle())

    def take_trace(self) -> list:
        """(message, first byte of the packet) of all that was encoded since the last call."""
        with self.lock:
            trace, self.trace = self.trace, []
            self.has_trace = False
        return trace

    def greet(self, bint session_present, int receive_maximum):
        """The server accepted the connection, and on_connect is called next; `resume` follows, with the same values."""

    def on_pong(self):
        """PINGRESP came, one of several that were asked for at once."""
        with self.lock:
            self.session.on_pong()
            self.note_answers()

    def on_pingresp(self):
        """PINGRESP came. What that ends is told with the next that are finished."""
        self.on_pong()

    def on_heard_out(self):
        """The server has ended the connection as our DISCONNECT asked it to: it has read all that was before that."""
        with self.lock:
            self.session.prove_all()

    # ---- control packets

    def put_packet(self, packet, *, bint first=False, bint last=False) -> bool:
        """Append a control packet; nothing leaves before one that is `first` or after one that is `last`.

        False where it would go before the first: it was not taken.
        """
        with self.lock:
            if first:
                self.is_linked = True
                self.is_awaited = False
            elif not (self.is_linked or last):
                return False
            self.flush_acks()
            self.session.put_packet(packet, last)
        return True

    def put_ack(self, bytes ack not None):
        """An acknowledgement of ours. It goes out before whatever is put or published after it."""
        self._put_ack(ack)

    cdef int _put_ack(self, bytes ack) except -1:
        with self.lock:
            self.acks += ack
            self.has_acks = True
            self.answer_bytes += <size_t>PyBytes_GET_SIZE(ack)
        return 0

    def acknowledge(self, arrived, received, bint is_manual):
        """The first of `arrived` has gone through its callbacks; QoS 2 goes to `received`, and has them yet to come.

        received: None for QoS 1. is_manual: the program answers QoS 1 itself.
        """
        cdef uint8_t ack[ACK_BYTES]
        message = arrived.popleft()
        cdef int qos = message.qos
        cdef int mid = message.mid
        if qos == 2:
            received[mid] = message
        if qos == 2 or (qos == 1 and not is_manual):
            ack[0] = PUBREC if qos == 2 else PUBACK
            ack[1] = 2
            store_u16(ack + 2, <uint16_t>mid)
            self._put_ack(PyBytes_FromStringAndSize(<const char*>ack, ACK_BYTES))

    def put_acks(self):
        """What `put_ack` gave may leave."""
        if self.has_acks:
            with self.lock:
                self.flush_acks()

    def drop_acks(self):
        """The connection is gone, and with it whom they were for."""
        with self.lock:
            self.acks = bytearray()
            self.has_acks = False
            self.is_linked = False
            self.answer_bytes = 0

    def on_acks(self, bytes acks not None, finished, dict reasons) -> int:
        """The server acknowledges; returns the bytes of the answers to that, which are encoded.

        finished, reasons: extended by the handles of what that ends, and by what the acknowledgements carried. Raises
        as `Session.on_acks` does, with what came before it settled.
        """
        cdef size_t unsent_bytes
        cdef size_t answer_bytes = 0
        with self.lock:
            unsent_bytes = self.session.unsent_bytes
            try:
                self.session.on_acks(acks)
            finally:
                self.note_answers()
                finished.extend(self.settle())
                carried = self.session.take_reasons()
                if carried:
                    reasons.update(carried)
            answer_bytes = <size_t>self.session.unsent_bytes - unsent_bytes
            self.answer_bytes += answer_bytes
        return answer_bytes

    def note_answers(self):
        """The server has answered; the caller holds the lock."""
        if self.pace is not None:
            self.session.byte_window = self.pace.on_answered(self.session.answered_to, _monotonic_s())

    cdef int flush_acks(self) except -1:
        """The caller holds the lock."""
        if self.has_acks:
            acks, self.acks = self.acks, bytearray()
            self.has_acks = False
            self.session.put_packet(acks)
        return 0

    def reserve_packet_id(self) -> int:
        """An id for SUBSCRIBE or UNSUBSCRIBE, that of nothing else until `release_packet_id`; 0 where all are taken."""
        with self.lock:
            packet_id = self.session.reserve_packet_id()
            self.control_ids.add(packet_id)
        return packet_id

    def release_packet_id(self, int packet_id):
        """SUBACK or UNSUBACK came. An id that was not reserved is left as it is."""
        with self.lock:
            self._release_control_id(packet_id)

    cdef int _release_control_id(self, packet_id) except -1:
        if packet_id in self.control_ids:
            self.control_ids.remove(packet_id)
            self.session.release_packet_id(packet_id)
        return 0

    def _release_control_ids(self):
        """The connection is gone, and with it the answers; the caller holds the lock."""
        for packet_id in list(self.control_ids):
            self._release_control_id(packet_id)

    @property
    def is_to_settle(self) -> bool:
        """True where `settle` has something to hand out."""
        return bool(self.untold) or self.session.has_finished

    def after_settle(self):
        """Pass on what `settle` found. Not under the lock."""

    # ---- for whichever kind has it to do

    cdef object _take(self, client, str topic, bytes payload, qos, retain, properties, Py_ssize_t size):
        """See `publish`, which has checked these; `size` is that of topic and payload."""
        raise NotImplementedError

    def identify(self, client_id, owner, members=(), apart=()):
        """Say whose session comes next, before each connection."""

    def left_packet_ids(self) -> list:
        """Of messages that a session which is to be discarded may hold: it is to have a PUBREL for each before that."""
        return []

    def on_left_released(self):
        """The server has read them."""

    def meet(self, connack, asked_s):
        """The server accepted the connection, and said this of itself; it was asked to keep the session so long."""

    def tell_all(self, bint wanted):
        """Whether `settle` makes a handle for each message that nobody holds one of."""

    @property
    def is_due(self) -> bool:
        """True where `pull` has refused messages to send again."""
        return False

    @property
    def has_timers(self) -> bool:
        """True where something of it is to be looked at again before long, though nothing happens."""
        return False

    def look_for_answers(self):
        """Now and then, on a connection that lasts: ask for acknowledgements that are overdue."""

    def hasten(self):
        """What waits for the disk is wanted on the connection."""

    def wait_direct(self, double deadline_s) -> bool:
        """Wait until the socket has what is kept nowhere else; False at the deadline, of `time.monotonic`."""
        return True

    def begin_close(self):
        """`close` is next: what would be lost by then is still to be waited for, and nothing else."""

    def close(self):
        """No message comes any more."""

    def is_own_thread(self) -> bool:
        """True where the caller is a thread of the outbox, which must not wait for itself."""
        return False

    def forbid(self, int pid):
        """In a forked child of process `pid`: the messages are that one's."""
        forbid_waiting(self._published, pid)

    # ---- for a program that looks at what waits

    def message_ids(self) -> list:
        """Of the unacknowledged messages that a program may look at, in order."""
        return []

    def find(self, message_id):
        """That one of them; None where it is not one."""

    def has_message(self, message_id) -> bool:
        """True for an unacknowledged one."""
        return self.find(message_id) is not None

    def unsent_packets(self) -> int:
        """Those that the socket does not have yet."""
        with self.lock:
            return self.session.unsent_packets + <Py_ssize_t>len(self.acks) // ACK_BYTES

    def waiting_ids(self) -> set:
        """Of those that are not on their way on this connection."""
        return set()

    def drop(self, message_id):
        """Forget that one, and return it; None where it is not one. What is on its way may arrive all the same."""

    def restore(self, mid, topic, payload, qos, retain, properties):
        """Take a message with the packet id that it had. Raises ValueError where that is another's."""
        _refuse_stored("what was published before is in its queue file already")

    # ---- what only one of the two kinds can do

    def clear(self):
        """Forget every unacknowledged message and return them in order."""
        _refuse_stored("its messages are on disk: close(), and open the file as OfflineQueueManager")

    def refuse_renewal(self):
        """Its client is made anew. Raises UnsupportedError where its messages would be left without one."""
        _refuse_stored("it cannot be made anew: close() it, and make another one")

    def set_max_queued(self, Py_ssize_t value):
        """Most unacknowledged messages, 0 for no limit but the store's."""
        raise NotImplementedError

    @property
    def store(self):
        """Where the messages are."""
        raise UnsupportedError("this client keeps its messages in memory: give it a store with store=")

    def handle_for(self, message_id):
        """The handle of a message accepted before."""
        return self.store


cdef int _refuse_stored(str why) except -1:
    raise UnsupportedError(f"a client with a store cannot do this: {why}")


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


include "row_outbox.pxi"


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


# ---- handles

cdef object _new_handle(condition, qos, kind=PublishHandle):
    """What `PublishHandle.__init__` makes, but for its `mid`. kind: that class, or one of it."""
    handle = PyType_GenericNew(<PyTypeObject*>kind, NULL, NULL)
    PyObject_SetAttr(handle, "rc", SUCCESS)
    PyObject_SetAttr(handle, "qos", qos)
    PyObject_SetAttr(handle, "_condition", condition)
    PyObject_SetAttr(handle, "_iterpos", 0)
    PyObject_SetAttr(handle, "_fate", None)
    return handle


cdef inline int _set_mid(handle, mid) except -1:
    return PyObject_SetAttr(handle, "mid", mid)


def tell(finished, dict reasons not None, call, bint again):
    """`call(handle)` for each of the deque `finished`, then let its waiters go on, as paho does.

    reasons: what the acknowledgements of these carried. again: where `call` raises, the next `tell` calls it again.
    """
    while finished:
        handle = finished.popleft()
        try:
            call(handle)
        except BaseException:
            if again:
                finished.appendleft(handle)
            else:
                set_as_published([handle])
            raise
        set_as_published([handle])
    reasons.clear()


def tell_waiters(finished, dict reasons not None):
    """As `tell`, where there is nothing to call."""
    handles = list(finished)
    finished.clear()
    reasons.clear()
    set_as_published(handles)


def take_up(received, mid, callback, *arguments):
    """A message of `received` goes to its callback, once."""
    received.pop(mid, None)
    callback(*arguments)


def call_once(list left not None, callback, *arguments):
    """`callback`, which is taken from `left` once it has returned; no exception comes between the two."""
    cdef Py_ssize_t at
    callback(*arguments)
    for at in range(len(left)):
        if left[at] is callback:
            del left[at]
            break


def set_as_published(list handles not None):
    """The server has taken these messages over: let those go on who wait for any of them. All are one client's."""
    if not handles:
        return
    for handle in handles:
        PyObject_SetAttr(handle, "_fate", True)
    condition = handles[0]._condition
    with condition:
        condition.notify_all()


# ---- the call

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
