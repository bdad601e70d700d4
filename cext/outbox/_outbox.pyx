"""What waits to be sent, and the session that sends it: what both kinds of outbox share.

An outbox owns its `Session` and the lock around it. It knows no socket: the client moves the bytes, and says when a
connection begins and ends. No lock is held when a caller's code runs, nor while an object is made whose making could
collect garbage, which runs finalisers.

One extension, as each costs memory; beside this file:

    handles.pxi         what `publish` returns: made, found by its message's id, told
    memory_outbox.pxi   the outbox in memory
    rows.pxi            rows of a store, before they go and while they are in the air
    doubt.pxi           what becomes of messages that may have arrived, or not
    row_outbox.pxi      the outbox over a store, as far as each turn of a flush goes through it; the rest is
                        `glec_fast.outbox.stored`
    publish.pxi         the call of `Client.publish`
"""

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem, PyDict_SetItem
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_AsLongAndOverflow
from cpython.object cimport PyObject, PyObject_SetAttr
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from cython cimport annotation_typing, freelist, no_gc
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint64_t
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
from glec_fast.outbox.weaknesses import Weakness
from glec_fast.durable.in_doubt import Decision
from glec_fast.runtime.process import forbid_waiting

cdef enum:
    # Encoded and not yet taken by the socket.
    WORTH_WRITING_BYTES = 65536
    # One of ours in `acks`: a packet id, and no reason.
    ACK_BYTES = 4

cdef bytes PINGREQ = b"\xc0\x00"
cdef object MQTT_5 = MQTTProtocolVersion.MQTTv5
cdef object SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS
cdef double NEVER_S = float("inf")


cdef double _monotonic_s() noexcept:
    """As `time.monotonic`."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9

include "handles.pxi"


cdef class Outbox:
    """What both kinds share."""

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
    # Called, from any thread, when there is something to send.
    cdef readonly object wake
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
        self.wake = on_work
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

    cpdef put_ack(self, bytes ack):
        """An acknowledgement of ours. It goes out before whatever is put or published after it."""
        with self.lock:
            self.acks += ack
            self.has_acks = True
            self.answer_bytes += <size_t>PyBytes_GET_SIZE(ack)

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
            Outbox.put_ack(self, PyBytes_FromStringAndSize(<const char*>ack, ACK_BYTES))

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
            if packet_id in self.control_ids:
                self.control_ids.remove(packet_id)
                self.session.release_packet_id(packet_id)

    cdef int _release_control_ids(self) except -1:
        """The connection is gone, and with it the answers."""
        for packet_id in list(self.control_ids):
            Outbox.release_packet_id(self, packet_id)
        return 0

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


include "memory_outbox.pxi"
include "rows.pxi"
include "doubt.pxi"
include "row_outbox.pxi"
include "publish.pxi"
