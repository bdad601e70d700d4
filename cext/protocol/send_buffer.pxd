# The bytes of one connection on their way to its socket, and the gate that holds some of them back. Header only.
#
# The socket has what is before `head`, what is before `ready` may leave, what is before `tail` is encoded. An offset in
# the stream only grows, over connections too; `base` is that of the first byte in memory.
#
# The memory of a SendBuffer belongs to whoever holds the struct: `begin` makes it, `end` frees it.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

cimport vector
from mqtt_wire cimport load_remaining_length

cdef enum:
    START_BYTES = 4096
    # A buffer that grew past this for one burst is given back when it runs empty.
    KEEP_BYTES = 1 << 20

cdef struct Gate:
    # What is before `end` may leave once the image of this version is on disk.
    uint64_t version
    uint64_t end

cdef struct SendBuffer:
    uint8_t* memory
    size_t capacity
    size_t head
    size_t ready
    size_t tail
    uint64_t base
    # Up to where bytes were offered to the socket on this connection.
    uint64_t offered
    # Where the first packet begins of which nothing has left, or the next one will.
    uint64_t next_packet
    # Nothing leaves behind it.
    uint64_t last_end
    bint has_last
    vector.Vector gates
    # Bytes wait for a image that was not yet taken.
    bint gate_wanted


cdef inline int begin(SendBuffer* buffer) except -1:
    buffer.memory = <uint8_t*>realloc(NULL, START_BYTES)
    if buffer.memory is NULL:
        raise MemoryError
    buffer.capacity = START_BYTES
    buffer.gates.item_bytes = sizeof(Gate)
    return 0


cdef inline void end(SendBuffer* buffer) noexcept:
    free(buffer.memory)
    vector.free_items(&buffer.gates)


cdef inline uint64_t sent_to(SendBuffer* buffer) noexcept:
    return buffer.base + buffer.head


cdef inline uint64_t encoded_to(SendBuffer* buffer) noexcept:
    return buffer.base + buffer.tail


cdef inline size_t sendable_bytes(SendBuffer* buffer) noexcept:
    cdef size_t limit = buffer.ready
    if buffer.has_last and buffer.last_end < buffer.base + limit:
        limit = <size_t>(buffer.last_end - buffer.base)
    return limit - buffer.head


# ---- bytes in

cdef inline uint8_t* reserve(SendBuffer* buffer, size_t size) except NULL:
    # Room for `size` bytes at the tail; valid until the next call that writes.
    cdef size_t capacity, used = buffer.tail - buffer.head
    cdef uint8_t* grown
    if buffer.tail + size <= buffer.capacity:
        return buffer.memory + buffer.tail
    if buffer.head > buffer.capacity // 2 and used + size <= buffer.capacity:
        memmove(buffer.memory, buffer.memory + buffer.head, used)
        buffer.base += buffer.head
        buffer.ready -= buffer.head
        buffer.tail = used
        buffer.head = 0
        return buffer.memory + buffer.tail
    capacity = buffer.capacity
    while buffer.tail + size > capacity:
        capacity *= 2
    grown = <uint8_t*>realloc(buffer.memory, capacity)
    if grown is NULL:
        raise MemoryError
    buffer.memory = grown
    buffer.capacity = capacity
    return buffer.memory + buffer.tail


cdef inline void append(SendBuffer* buffer, size_t size) noexcept:
    # What was written after `reserve`.
    buffer.tail += size
    if buffer.gates.count == 0 and not buffer.gate_wanted:
        buffer.ready = buffer.tail


cdef inline size_t insert(SendBuffer* buffer, const uint8_t* packet, size_t size) except? 0:
    # A packet that does not wait at the gate. Returns how many bytes were moved back by `size` for it.
    cdef size_t gated, index
    cdef uint64_t cut
    cdef Gate* gate
    reserve(buffer, size)
    gated = buffer.tail - buffer.ready
    if gated:
        cut = buffer.base + buffer.ready
        memmove(buffer.memory + buffer.ready + size, buffer.memory + buffer.ready, gated)
        for index in range(buffer.gates.count):
            gate = <Gate*>vector.at(&buffer.gates, index)
            if gate.end > cut:
                gate.end += size
    memcpy(buffer.memory + buffer.ready, packet, size)
    buffer.ready += size
    buffer.tail += size
    return gated


cdef inline void end_here(SendBuffer* buffer) noexcept:
    # What may leave by now is the last of this connection.
    if not buffer.has_last:
        buffer.has_last = True
        buffer.last_end = buffer.base + buffer.ready


# ---- bytes out

cdef inline size_t offer(SendBuffer* buffer, size_t limit) noexcept:
    # How many of at most `limit` bytes from `head` on the socket is given next.
    cdef size_t size = min(sendable_bytes(buffer), limit)
    buffer.offered = max(buffer.offered, sent_to(buffer) + size)
    return size


cdef inline bint take(SendBuffer* buffer, size_t size) noexcept:
    # The socket took so many. False where they are of a connection that has ended since they were offered.
    if size > buffer.offered - min(sent_to(buffer), buffer.offered):
        return False
    buffer.head += size
    if buffer.head == buffer.tail:
        buffer.base += buffer.head
        buffer.head = buffer.ready = buffer.tail = 0
        buffer.next_packet = buffer.base
        if buffer.capacity > KEEP_BYTES:
            shrink(buffer)
    else:
        while buffer.next_packet < sent_to(buffer):
            buffer.next_packet += packet_bytes(buffer, buffer.next_packet)
    return True


cdef inline size_t packet_bytes(SendBuffer* buffer, uint64_t at) noexcept:
    # Of the packet that begins there.
    cdef size_t index = <size_t>(at - buffer.base)
    cdef uint32_t body = 0
    cdef int used = load_remaining_length(buffer.memory + index + 1, buffer.tail - index - 1, &body)
    # A program's own bytes may be no packet: then all the rest counts as one.
    return 1 + <size_t>used + body if used > 0 else buffer.tail - index


cdef inline size_t unsent_packets(SendBuffer* buffer) noexcept:
    # Those that the socket does not have in whole.
    cdef uint64_t at = buffer.next_packet
    cdef size_t count = 1 if at > sent_to(buffer) else 0
    while at < encoded_to(buffer):
        at += packet_bytes(buffer, at)
        count += 1
    return count


cdef inline void shrink(SendBuffer* buffer) noexcept:
    cdef uint8_t* smaller = <uint8_t*>realloc(buffer.memory, START_BYTES)
    if smaller is not NULL:
        buffer.memory = smaller
        buffer.capacity = START_BYTES


cdef inline void discard(SendBuffer* buffer) noexcept:
    # The connection is gone, and with it what it had not taken.
    buffer.base += buffer.tail
    buffer.head = buffer.ready = buffer.tail = 0
    buffer.next_packet = buffer.base
    buffer.has_last = False
    buffer.gate_wanted = False
    vector.clear(&buffer.gates)


# ---- the gate

cdef inline void shut(SendBuffer* buffer, uint64_t version) noexcept:
    # After `vector.reserve(&buffer.gates)`: what is encoded waits for the image of this version.
    cdef Gate* gate
    if buffer.gate_wanted:
        gate = <Gate*>vector.push(&buffer.gates)
        gate.version = version
        gate.end = encoded_to(buffer)
        buffer.gate_wanted = False


cdef inline void open_to(SendBuffer* buffer, uint64_t version) noexcept:
    # The image of this version is on disk.
    cdef Gate* gate
    while buffer.gates.count:
        gate = <Gate*>vector.at(&buffer.gates, 0)
        if gate.version > version:
            break
        buffer.ready = <size_t>(gate.end - buffer.base)
        vector.pop(&buffer.gates)
    if buffer.gates.count == 0 and not buffer.gate_wanted:
        buffer.ready = buffer.tail
