# Rows of the queue table as tuples: how one is made, and whether one that was read is sound. Part of `_table.pyx`.

cdef extern from "Python.h":
    Py_UCS4 PyUnicode_MAX_CHAR_VALUE(object text)

cdef enum:
    TOPIC_MAX_BYTES = 65535
    # Of a row without extras.
    ROW_COLUMNS = 6
    PAYLOAD_COLUMN = 2
    TIMESTAMP_COLUMN = 4
    EXPIRY_COLUMN = 5

cdef int64_t TIME_BOUND_MS = TIME_MAX_MS
cdef Py_ssize_t PAYLOAD_BYTES = PAYLOAD_MAX_BYTES


cdef object stored_payload(object payload):
    """TEXT where the bytes are UTF-8 without NUL, which SQLite's own functions take for the end; else as they are."""
    if isinstance(payload, str):
        return payload if "\0" not in payload else payload.encode()
    cdef bytes data = payload if PyBytes_CheckExact(payload) else bytes(payload)
    # Many times as fast as `in`.
    if memchr(<const char*>data, 0, <size_t>PyBytes_GET_SIZE(data)) is not NULL:
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


cpdef tuple make_row(int64_t message_id, topic, payload, int qos, int64_t timestamp_ms, int64_t expires_at_ms,
                     extras=None):
    row = (message_id, topic, stored_payload(payload), qos, timestamp_ms, expires_at_ms)
    return row if extras is None else (*row, *extras)


def text_size(list rows not None) -> int:
    cdef Py_ssize_t size = 0
    cdef tuple row
    for row in rows:
        size += _most_bytes(row[1]) + _most_bytes(row[PAYLOAD_COLUMN])
    return size


cdef Py_ssize_t _most_bytes(object text) except -1:
    if not isinstance(text, str):
        return len(text)
    # As many as UTF-8 takes for the highest character.
    cdef Py_UCS4 highest = PyUnicode_MAX_CHAR_VALUE(text)
    return len(text) * (1 if highest < 0x80 else 2 if highest < 0x800 else 3 if highest < 0x10000 else 4)


def is_any_expired(list rows, now_ms) -> bool:
    cdef tuple row
    for row in rows:
        if row[EXPIRY_COLUMN] < now_ms:
            return True
    return False


cdef bint _are_sound(list rows) except -1:
    cdef Py_ssize_t index
    for index in range(PyList_GET_SIZE(rows)):
        if not _is_sound(<tuple>PyList_GET_ITEM(rows, index)):
            return False
    return True


cdef bint _is_sound(tuple row) except -1:
    """True where a row is of the types that are to go out, and can be published."""
    # Borrowed from the row.
    cdef PyObject* topic = PyTuple_GET_ITEM(row, 1)
    cdef PyObject* payload = PyTuple_GET_ITEM(row, 2)
    cdef PyObject* qos = PyTuple_GET_ITEM(row, 3)
    cdef PyObject* timestamp = PyTuple_GET_ITEM(row, TIMESTAMP_COLUMN)
    cdef Py_ssize_t size = 0
    cdef const char* at
    cdef int overflow = 0
    cdef long long time_ms
    cdef long level
    if not (PyUnicode_CheckExact(<object>topic) and PyLong_CheckExact(<object>qos)
            and PyLong_CheckExact(<object>timestamp)
            and PyLong_CheckExact(<object>PyTuple_GET_ITEM(row, EXPIRY_COLUMN))):
        return False
    level = PyLong_AsLongAndOverflow(<object>qos, &overflow)
    if overflow or not 0 <= level <= 2:
        return False
    time_ms = PyLong_AsLongLongAndOverflow(<object>timestamp, &overflow)
    if overflow or not -TIME_BOUND_MS <= time_ms <= TIME_BOUND_MS:
        return False
    at = PyUnicode_AsUTF8AndSize(<object>topic, &size)
    if not 0 < size <= TOPIC_MAX_BYTES or memchr(at, c"+", <size_t>size) is not NULL:
        return False
    if memchr(at, c"#", <size_t>size) is not NULL:
        return False
    if not _is_plain(at, size) and has_forbidden(<object>topic):
        return False
    if PyUnicode_CheckExact(<object>payload):
        # What is longer in UTF-8 than in characters is counted where it can matter.
        if PyUnicode_GET_LENGTH(<object>payload) > PAYLOAD_BYTES // 4 and not _fits_a_packet(<str>payload):
            return False
    elif not PyBytes_CheckExact(<object>payload) or PyBytes_GET_SIZE(<object>payload) > PAYLOAD_BYTES:
        return False
    if PyTuple_GET_SIZE(row) <= ROW_COLUMNS:
        return True
    if PyTuple_GET_SIZE(row) == ROW_COLUMNS + 1:
        return PyLong_CheckExact(<object>PyTuple_GET_ITEM(row, ROW_COLUMNS))
    return row[ROW_COLUMNS] is None or are_extras(*row[ROW_COLUMNS:])


cdef inline bint _is_plain(const char* at, Py_ssize_t size) noexcept:
    """True where all of it is printable ASCII."""
    cdef Py_ssize_t index
    for index in range(size):
        if not 0x20 <= <unsigned char>at[index] < 0x7F:
            return False
    return True


cdef bint _fits_a_packet(str payload) except -1:
    return len(payload.encode()) <= PAYLOAD_BYTES


def known(list rows, int64_t through_id) -> int:
    cdef Py_ssize_t index
    for index in range(len(rows)):
        if <int64_t>(<tuple>rows[index])[0] > through_id:
            return index
    return len(rows)
