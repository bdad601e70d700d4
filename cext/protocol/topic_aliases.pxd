# Topics that a connection sends by number (MQTT 5, 3.3.2.3.4): named once, beside the number, and left out after that.
# Header only.
#
# A number is a topic's place in the table. They are given as topics come; own topics may take that of another, as a
# number may be given anew (MQTT 5, 3.3.2.3.4), so that topics that come once do not keep them from theirs. Which have
# been named is a matter of one connection, and of the order of its bytes: whoever encodes says `on_named` once the
# packet is in the stream.
#
# The memory of an Aliases belongs to whoever holds the struct: zeroed at first, `end` frees it.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

cdef enum:
    # Of one connection: few topics are most of the traffic, and each is looked for in all of them.
    ALIASES_MAX = 32
    OWN_TOPICS_MAX = 16
    # Identifier and number.
    ALIAS_BYTES = 3
    TOPIC_ALIAS = 0x23

cdef struct Topic:
    uint8_t* name
    size_t size
    bint is_own
    bint is_named

cdef struct Aliases:
    Topic own[OWN_TOPICS_MAX]
    int own_count
    Topic given[ALIASES_MAX]
    int count
    # What the server allows on this connection; 0 for none.
    int maximum
    # No packet grows beyond it by naming an alias.
    size_t packet_max_bytes


cdef inline void end(Aliases* aliases) noexcept:
    begin_connection(aliases, 0)
    while aliases.own_count:
        aliases.own_count -= 1
        free(aliases.own[aliases.own_count].name)


cdef inline void begin_connection(Aliases* aliases, int maximum) noexcept:
    # The server has no names yet, and takes numbers up to `maximum`.
    while aliases.count:
        aliases.count -= 1
        free(aliases.given[aliases.count].name)
    aliases.maximum = min(maximum, <int>ALIASES_MAX)


cdef inline int keep(Topic* topic, const char* name, size_t size, bint is_own) except -1:
    topic.name = <uint8_t*>malloc(size)
    if topic.name is NULL:
        raise MemoryError
    memcpy(topic.name, name, size)
    topic.size = size
    topic.is_own = is_own
    topic.is_named = False
    return 0


cdef inline int add_own(Aliases* aliases, const char* name, size_t size) except -1:
    # Fewer than OWN_TOPICS_MAX are there.
    keep(&aliases.own[aliases.own_count], name, size, True)
    aliases.own_count += 1
    return 0


cdef inline int index_of(Topic* topics, int count, const char* name, size_t size) noexcept:
    cdef int index
    for index in range(count):
        if topics[index].size == size and memcmp(topics[index].name, name, size) == 0:
            return index
    return -1


cdef inline int find(Aliases* aliases, const char* name, size_t size) except -1:
    # The topic's number, a new one where it has none; 0 where there is none for it.
    cdef int index = index_of(aliases.given, aliases.count, name, size)
    cdef bint is_own
    cdef Topic topic
    if index >= 0:
        return index + 1
    is_own = index_of(aliases.own, aliases.own_count, name, size) >= 0
    if aliases.count < aliases.maximum:
        keep(&aliases.given[aliases.count], name, size, is_own)
        aliases.count += 1
        return aliases.count
    index = aliases.count - 1
    while is_own and index >= 0:
        if not aliases.given[index].is_own:
            keep(&topic, name, size, True)
            free(aliases.given[index].name)
            aliases.given[index] = topic
            return index + 1
        index -= 1
    return 0


cdef inline bint is_named(Aliases* aliases, int number) noexcept:
    return aliases.given[number - 1].is_named


cdef inline void on_named(Aliases* aliases, int number) noexcept:
    aliases.given[number - 1].is_named = True
