# A growing array of fixed-size items, used first in, first out. Header only.
#
# Zeroed memory is an empty one. Its memory belongs to whoever holds the struct, who ends it with `free_items`.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

cdef struct Vector:
    uint8_t* items
    size_t item_bytes
    size_t first
    size_t count
    size_t capacity


cdef inline void free_items(Vector* vector) noexcept:
    free(vector.items)
    vector.items = NULL
    vector.first = vector.count = vector.capacity = 0


cdef inline int reserve(Vector* vector) except -1:
    # Makes the next push one that cannot fail.
    cdef uint8_t* grown
    cdef size_t capacity
    if vector.first + vector.count == vector.capacity:
        if vector.first > vector.capacity // 2:
            memmove(vector.items, vector.items + vector.first * vector.item_bytes, vector.count * vector.item_bytes)
            vector.first = 0
        else:
            capacity = vector.capacity * 2 if vector.capacity else 64
            grown = <uint8_t*>realloc(vector.items, capacity * vector.item_bytes)
            if grown is NULL:
                raise MemoryError
            vector.items = grown
            vector.capacity = capacity
    return 0


cdef inline void* at(Vector* vector, size_t index) noexcept:
    return vector.items + (vector.first + index) * vector.item_bytes


cdef inline void* push(Vector* vector) except NULL:
    # The address of a new last item, valid until the next push.
    reserve(vector)
    vector.count += 1
    return at(vector, vector.count - 1)


cdef inline void pop(Vector* vector) noexcept:
    vector.first += 1
    vector.count -= 1
    if vector.count == 0:
        vector.first = 0


cdef inline void clear(Vector* vector) noexcept:
    vector.first = vector.count = 0
