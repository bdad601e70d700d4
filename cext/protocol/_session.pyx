"""The MQTT session of one client: bytes in, bytes out, packet ids and QoS states. No I/O, no clock, no log, no lock.

A message enters with `admit` under its message id, is given a packet id, and is encoded at the end of one send buffer.
Acknowledgements come in runs through `on_acks`; `take_done` hands back the message ids that the broker has taken over.

An exchange (MQTT 3.1.1 and 5.0, section 4.3) is in one of these states:

    SENT      PUBLISH is in the send buffer (QoS 2 and durable: perhaps behind the gate) or has left; waits for PUBACK
              or PUBREC
    RELEASED  PUBREC came; PUBREL is in the send buffer or has left; waits for PUBCOMP

This file is the way of a message through a session, and what becomes of it. Each idea that this takes has a file of its
own:

    stream.pxi          what has left, and what is proven to have arrived; send_buffer.pxd: its bytes, and the gate
    all_exchanges.pxi   which exchanges there are, and whether there is room for another
    exchanges.pxd       packet ids, and the exchanges in flight; places.pxd: what QoS 2 takes of the server's room
    publish.pxi         PUBLISH, encoded; topic_aliases.pxd: topics that go by number
    answers.pxi         what a server may answer
    image.pxi           what must survive a crash; inflight_image.pxd: its bytes
    parking.pxi         exchanges between connections
    giving_up.pxi       exchanges whose messages will not be sent again

Not thread-safe: the owner serialises calls.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Size
from cpython.list cimport PyList_GET_SIZE
from cpython.set cimport PySet_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from cython cimport final
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MIN, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cimport exchanges
cimport histogram
cimport places
cimport send_buffer
cimport topic_aliases
cimport vector
from exchanges cimport EXCHANGES_MAX, FREE, ID_FREE, ID_TAKEN, RELEASED, SENT, Exchange
from inflight_image cimport FINISHED, LAST_GIVEN, NOTE, PLACES, RESERVED, add_finished, entries_of, image_of
from mqtt_wire cimport (
    FIXED_HEADER_MAX_BYTES,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    REMAINING_LENGTH_MAX,
    load_remaining_length,
    load_u16,
    remaining_length_bytes,
    store_remaining_length,
    store_u16,
)

from glec_fast.errors import MessageError, ProtocolError

cdef enum:
    WITH_EXTRAS_COLUMNS = 8
    WITH_TIME_COLUMNS = 5
    UNBOUNDED_BYTES = 0x7FFFFFFF
    # QoS 0 is asked about so many times in a window.
    ASKED_OF_WINDOW = 4
    ACK_MAX_BYTES = 5
    MQTT_5 = 5
    # In `kept_until`; what images have had there that knew nothing of it.
    UNKNOWN = 1

cdef int64_t UNBOUNDED_COUNT = <int64_t>1 << 62

cdef enum Outcome:
    DONE
    REFUSED
    # Nobody asks for it any more.
    GIVEN_UP


# As when a message was accepted, where nobody knows.
cdef int64_t NOT_TIMED = INT64_MIN
cdef bytes PINGREQ_PACKET = b"\xc0\x00"

include "stream.pxi"
include "image.pxi"
include "all_exchanges.pxi"
include "publish.pxi"


# Final, so that its C methods are called without a look-up.
@final
cdef class Session(Exchanges):
    """The exchanges of one client, over its connections. The caller sees to it that one thread is in it at a time.

    window: most exchanges in flight, 1 to 65534, 0 for that. durable: QoS 2 waits at the gate.
    max_unreleased: the broker's limit of QoS 2 exchanges without PUBREL, 0 for none; the session keeps below it.
    """

    # True: `take_reasons` has every acknowledgement, also those that carry nothing.
    cdef public bint keeps_all_reasons
    # QoS 2 messages that ended with PUBACK, of a broker that delivers at least once, and the last of them.
    cdef readonly Py_ssize_t downgraded_count
    cdef readonly int64_t downgraded_id
    # PUBACK, PUBREC and PUBCOMP that fitted an exchange.
    cdef readonly uint64_t answered_count
    # First byte of the packet that the last `admit` encoded: PUBLISH with its flags, or PUBREL.
    cdef readonly int admitted_command
    # Milliseconds since boot, as of what `on_acks` is given next: whoever wants `acknowledging` sets it.
    cdef public int64_t now_ms
    # By QoS: PUBLISH packets encoded, and messages acknowledged.
    cdef uint64_t encoded[3]
    cdef uint64_t acknowledged[3]
    cdef histogram.Histogram latency
    # Owned here.
    cdef topic_aliases.Aliases aliases
    cdef bint uses_aliases
    # `admit_rows` takes rows that are bounded only while fewer bytes than that are unanswered.
    cdef public size_t byte_window
    # So many PUBLISH packets `admit_rows` may encode; any that is encoded counts.
    cdef public int64_t publish_quota

    cdef dict reasons
    cdef list refused, doubtful

    def __cinit__(self, *_, **__):
        self.byte_window = UNBOUNDED_BYTES
        self.publish_quota = UNBOUNDED_COUNT

    def __init__(self, int window=20, bint durable=False, int max_unreleased=0):
        Exchanges.__init__(self, window, durable, max_unreleased)
        self.reasons = {}
        self.refused = []
        self.doubtful = []

    def __dealloc__(self):
        topic_aliases.end(&self.aliases)

    def put_packet(self, packet, bint last=False):
        """Append a control packet to what may leave. It does not wait at the gate. `last`: nothing leaves after it."""
        cdef bytes data = _as_bytes(packet)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(data)
        cdef uint64_t cut = self.out.base + self.out.ready
        if size == 0:
            return
        if self._put(data):
            exchanges.shift(&self.table, cut, size)
        if last:
            send_buffer.end_here(&self.out)

    # ---- PUBLISH out

    cdef uint64_t _encode_publish(self, object topic, object payload, uint8_t flags, uint16_t packet_id,
                                  object properties, bint gated) except 0:
        """Append one PUBLISH packet (section 3.3), `gated` behind the gate, and return the stream offset of its end."""
        cdef size_t size = _write_publish(
            &self.out, &self.aliases, self._is_mqtt_5(), topic, payload, flags, packet_id, properties)
        if gated:
            self.dirty = self.out.gate_wanted = True
        self.admitted_command = PUBLISH | flags
        self.publish_quota -= 1
        self.encoded[flags >> 1 & 3] += 1
        self.publish_begin = send_buffer.encoded_to(&self.out)
        send_buffer.append(&self.out, size)
        return send_buffer.encoded_to(&self.out)

    def use_aliases(self, list topics):
        """Send topics by number where the server allows it: as they come, and these, 16 at most, before all others.

        None: none from now on.
        """
        topic_aliases.end(&self.aliases)
        self.uses_aliases = topics is not None
        cdef bytes name
        for topic in (topics or ())[:topic_aliases.OWN_TOPICS_MAX]:
            name = topic.encode()
            topic_aliases.add_own(&self.aliases, PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name))

    def allow_aliases(self, int maximum, size_t packet_max_bytes):
        """The server of this connection takes so many (MQTT 5, 3.2.2.3.8), and packets of at most so many bytes."""
        if self.uses_aliases and self.aliases.maximum == 0:
            topic_aliases.begin_connection(&self.aliases, maximum)
            self.aliases.packet_max_bytes = packet_max_bytes

    cdef int _encode_pubrel(self, uint16_t packet_id, uint8_t reason) except -1:
        """Append PUBREL; `reason` only where MQTT 5 has one to give."""
        cdef uint8_t* at = send_buffer.reserve(&self.out, ACK_MAX_BYTES)
        cdef bint with_reason = reason != 0 and self._is_mqtt_5()
        at[0] = PUBREL | 2
        at[1] = 3 if with_reason else 2
        store_u16(at + 2, packet_id)
        at[4] = reason
        send_buffer.append(&self.out, 5 if with_reason else 4)
        return 0

    cdef Exchange* _ask_released(self, uint16_t packet_id, int64_t message_id, uint8_t qos,
                                 int64_t accepted_ms) except NULL:
        """Open an exchange with its PUBREL, after `exchanges.reserve` and `send_buffer.reserve`."""
        cdef Exchange* exchange = exchanges.open(&self.table, packet_id, message_id, qos, RELEASED, accepted_ms)
        self._encode_pubrel(packet_id, 0)
        self._ask(exchange, send_buffer.encoded_to(&self.out))
        return exchange

    def admit(self, int64_t message_id, topic, payload, int qos, bint retain=False, properties=None,
              uint16_t packet_id=0) -> int:
        """Encode one message; returns `unsent_bytes`. The caller asks `room` first for QoS 1 and 2.

        message_id: the owner's name for it, given back by `take_done`; above 0 for QoS 1 and 2.
        topic: str or UTF-8 bytes. payload: str, bytes or a buffer. properties: packed (MQTT 5, 2.2.2) or None.
        packet_id: 0, or one taken with `reserve_packet_id`.
        Raises MessageError where MQTT cannot carry it. After any error nothing is kept of it.
        """
        self._admit(message_id, topic, payload, qos, retain, properties, packet_id, NOT_TIMED)
        return self.out.tail - self.out.head

    cdef int _admit(self, int64_t message_id, object topic, object payload, int qos, bint retain, object properties,
                    uint16_t packet_id, int64_t accepted_ms) except -1:
        cdef uint8_t flags
        cdef uint64_t end
        cdef Exchange* exchange
        if not 0 <= qos <= 2:
            raise MessageError(f"QoS {qos}; it must be 0, 1 or 2")
        flags = <uint8_t>(qos << 1) | <uint8_t>retain
        if qos == 0:
            vector.reserve(&self.marks)
            end = self._encode_publish(topic, payload, flags, 0, properties, False)
            self._mark(message_id, end)
            return 0
        exchanges.reserve(&self.table)
        if self.parked:
            aside = self.parked.get(message_id)
            if aside is not None:
                _admit_parked(self, message_id, aside, topic, payload, flags, properties, accepted_ms)
                del self.parked[message_id]
                self.places.parked -= qos == 2
                places.on_taken(&self.places, self._places())
                return 0
        if not packet_id:
            packet_id = exchanges.next_packet_id(&self.table)
            if not packet_id:
                raise AssertionError("no packet id is free; the window was exceeded")
        end = self._encode_publish(topic, payload, flags, packet_id, properties, qos == 2 and self.durable)
        exchange = exchanges.open(&self.table, packet_id, message_id, <uint8_t>qos, SENT, accepted_ms)
        self._ask(exchange, end)
        if qos == 2:
            places.on_taken(&self.places, self._places())
        return 0

    def admit_rows(self, list rows, Py_ssize_t start, bint is_bounded=False, queue_offset_ms=None) -> int:
        """`admit` the rows (message id, topic, payload, qos, ...) from index `start` on while they fit.

        None fits once `publish_quota` is used up. is_bounded: they fit only while fewer than `byte_window` bytes are
        unanswered. queue_offset_ms: of the times in column five against the time since boot; None: unknown.
        A row of eight columns or more has retain and packed properties in its seventh and eighth.
        Returns the index of the first that did not fit: behind it none goes, so that the order stays.
        A row that MQTT cannot carry, as another program may have left one, is handed back by `take_refused`.
        """
        cdef tuple row
        cdef Py_ssize_t index
        cdef bint is_timed = queue_offset_ms is not None
        cdef int64_t offset_ms = queue_offset_ms if is_timed else 0
        cdef int64_t accepted_ms
        for index in range(start, len(rows)):
            row = rows[index]
            if self.publish_quota <= 0 or is_bounded and not self._has_byte_room():
                return index
            if len(row) < 4:
                raise ValueError(f"a row of {len(row)} columns; it has at least 4")
            try:
                if not self._fits(row[0], row[3]):
                    return index
                accepted_ms = NOT_TIMED
                if is_timed and len(row) >= WITH_TIME_COLUMNS:
                    accepted_ms = <int64_t>row[4] - offset_ms
                if len(row) < WITH_EXTRAS_COLUMNS:
                    self._admit(row[0], row[1], row[2], row[3], False, None, 0, accepted_ms)
                else:
                    self._admit(row[0], row[1], row[2], row[3], row[6], row[7], 0, accepted_ms)
            except (ValueError, TypeError, OverflowError):
                self.refused.append(row[0])
            except MemoryError:
                # The caller must hear of the rows that went, or it would send them again.
                if index == start:
                    raise
                return index
        return len(rows)

    cdef bint _has_byte_room(self) except -1:
        """True while fewer than `byte_window` bytes are unanswered.

        The server is asked for an answer where it would give none, to QoS 0, or none before the window is used up: it
        reads in order, so that PINGRESP proves all that went before its PINGREQ.
        """
        cdef uint64_t encoded_to = send_buffer.encoded_to(&self.out)
        cdef bint is_used_up = encoded_to - self.proven_to >= self.byte_window
        if (is_used_up and self.pings.count == 0) or (
            (encoded_to - max(self.proven_to, self.asked_to)) * ASKED_OF_WINDOW > self.byte_window
        ):
            self.put_packet(PINGREQ_PACKET)
        return not is_used_up

    # ---- bytes in

    def on_acks(self, bytes packets not None):
        """Take PUBACK, PUBREC and PUBCOMP packets, whole and checked by `glec_fast.protocol._inbound`.

        Raises ProtocolError where one does not fit its exchange: what came before it counts, and the connection must be
        closed. Raises ValueError for any other bytes.
        """
        _on_acks(self, packets)

    cdef int _finish(self, Exchange* exchange, Outcome outcome) except -1:
        cdef Retired* retired
        cdef uint16_t packet_id = exchange.packet_id
        cdef bint durable = self.durable and exchange.qos == 2
        if durable:
            vector.reserve(&self.retired)
        self.answered_count += outcome != GIVEN_UP
        if outcome == DONE:
            (<int64_t*>vector.push(&self.done))[0] = exchange.message_id
            self.acknowledged[exchange.qos] += 1
            if exchange.accepted_ms != NOT_TIMED:
                histogram.note(&self.latency, self.now_ms - exchange.accepted_ms)
        elif outcome == REFUSED:
            self.refused.append(exchange.message_id)
        if durable:
            # The id is the broker's until the row's deletion is on disk: a restart would still speak of it.
            self.dirty = True
            retired = <Retired*>vector.push(&self.retired)
            retired.version = self.version + 1
            retired.packet_id = packet_id
        exchanges.close(&self.table, exchange, ID_TAKEN if durable else ID_FREE)
        return 0

    @property
    def encoded_counts(self) -> tuple:
        """PUBLISH packets that were encoded, of QoS 0, 1 and 2; also those of a message that goes again."""
        return self.encoded[0], self.encoded[1], self.encoded[2]

    @property
    def acknowledged_counts(self) -> tuple:
        """Messages that the server has acknowledged, of QoS 0, 1 and 2; of QoS 0 those that the socket has taken."""
        return self.left_count, self.acknowledged[1], self.acknowledged[2]

    @property
    def acknowledging(self) -> tuple:
        """How long messages took from their acceptance to their acknowledgement: what `Latency.of` takes."""
        return histogram.read(&self.latency)

    @property
    def has_doubtful(self) -> bool:
        """True where `take_doubtful` has any: only with `durable`."""
        return bool(self.doubtful)

    @property
    def has_finished(self) -> bool:
        """True where `take_done` or `take_refused` has any."""
        return self.done.count > 0 or bool(self.refused)

    def take_done(self) -> list:
        """Message ids that are finished: acknowledged, or QoS 0 and handed to the socket. Each is given once."""
        if self.done.count == 0:
            return []
        ids = _done_ids(self)
        vector.clear(&self.done)
        return ids

    @property
    def settling_ids(self) -> list:
        """What `take_done` and `take_refused` have."""
        return _done_ids(self) + self.refused

    def take_refused(self) -> list:
        """Message ids that the broker refused (MQTT 5), and rows that MQTT cannot carry. Each is given once."""
        ids, self.refused = self.refused, []
        return ids

    def take_doubtful(self) -> list:
        """Those ids of `take_done` whose PUBREL the broker answered as if it had never acknowledged them (MQTT 5)."""
        ids, self.doubtful = self.doubtful, []
        return ids

    def take_reasons(self) -> dict:
        """What the last acknowledgements carried (MQTT 5): message id -> (packet type, packet id, reason, properties).

        Packet type as in the first byte, 0x40 for PUBACK; properties packed, with their length in front.
        """
        reasons, self.reasons = self.reasons, {}
        return reasons

    # ---- connections

    def park(self):
        """The connection is gone. Set every exchange aside; forget what was encoded."""
        _park(self)

    def give_up(self, int64_t message_id) -> bool:
        """End an exchange whose PUBREL is not answered, in flight or set aside; nothing is handed back for it.

        False where there is none.
        """
        cdef Exchange* exchange
        if message_id in self.parked:
            self.forget(message_id)
            return True
        exchange = exchanges.of_message(&self.table, message_id)
        if exchange is NULL or exchange.state != RELEASED:
            return False
        self._finish(exchange, GIVEN_UP)
        return True

    def abandon(self, list ids not None) -> list:
        """End the exchanges of these messages, which will not be sent again; see `giving_up.pxi`.

        Returns those that stay as they are: whose PUBREC came, which the server has, and which it acknowledged; and
        those that are encoded and were not offered to the socket yet.
        """
        return _abandon(self, ids)

    def release_parked(self, int64_t message_id):
        """End an exchange set aside whose message is gone: the broker may hold its PUBLISH, and the id, until PUBREL.

        It is finished as any other, by PUBCOMP. QoS 1 has nothing to end.
        """
        _release_parked(self, message_id)

    def resume(self, bint session_present, int receive_maximum=65535) -> list:
        """CONNACK came (section 3.2). Returns the message ids in doubt; the owner then admits from its first message.

        Where the broker lost the session all packet ids are void (3.1.2.4). What it had not received is new again; what
        it had received, and may or may not have passed on, is returned: in doubt, and no longer kept here.
        """
        self.receive_maximum = min(max(receive_maximum, 1), <int>EXCHANGES_MAX)
        return [] if session_present else _begin_new(self)


include "answers.pxi"
include "parking.pxi"
include "giving_up.pxi"
