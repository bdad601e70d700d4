"""Steps of a transaction that no exception can cut into. What each function does, for its callers, is in the stub.

An exception that comes from outside (KeyboardInterrupt, PyThreadState_SetAsyncExc, a trace function) is raised between
two steps of Python code, never within C. So what must not come apart is done here.
"""

from array import array

from cpython.list cimport PyList_GET_SIZE
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t


def keep_calling(function, goes_on):
    cdef object error = None
    cdef bint is_over = False
    while not is_over:
        try:
            if error is not None:
                caught, error = error, None
                is_over = not goes_on(caught)
                error = caught if is_over else None
            if not is_over:
                function()
                is_over = True
        except BaseException as raised:
            error = raised
    if error is not None:
        raise error


def raised_by(function, *arguments):
    try:
        function(*arguments)
    except BaseException as error:
        return error


def hand_over(function, list items):
    error = raised_by(function, items.copy())
    items.clear()
    return error


def take_image(outbox, list kept, list in_doubt) -> tuple:
    version, image, entries = outbox.take_image(kept)
    in_doubt += entries
    return version, image


def remove_taken(list waiting, list taken):
    del waiting[:PyList_GET_SIZE(taken)]
    taken.clear()


cdef class Finished:
    # A stream finishes in order: thousands of ids are one range, and the next few make it longer.
    cdef readonly list ranges
    # Eight bytes each: as a list of numbers those of a flush of 10,000 took 400 KiB.
    cdef object in_order

    def __init__(self):
        self.in_order = array("q")
        self.ranges = []

    def __len__(self) -> int:
        return len(self.in_order)

    @property
    def ids(self) -> list:
        return self.in_order.tolist()

    def add(self, list ids not None):
        cdef int64_t first, last, current
        cdef Py_ssize_t followed = 0
        cdef Py_ssize_t last_index = len(self.ranges) - 1
        self.in_order.fromlist(ids)
        if last_index >= 0:
            first, last = self.ranges[last_index]
            for current in ids:
                if current != last + 1:
                    break
                last = current
                followed += 1
            self.ranges[last_index] = (first, last)
        if followed < len(ids):
            self.ranges = merged(self.ranges + ranges_of(ids[followed:]))

    def take_from(self, outbox):
        self.add(outbox.take_finished())

    def first_ranges(self, limit) -> list:
        if limit is None or limit >= len(self.in_order):
            return self.ranges.copy()
        return ranges_of(self.in_order[:limit].tolist())

    def ranges_behind(self, Py_ssize_t count) -> list:
        return ranges_of(self.in_order[count:].tolist())

    def remove_first(self, Py_ssize_t count):
        ids = self.in_order[count:]
        self.ranges = ranges_of(ids.tolist())
        self.in_order = ids

    def remove_taken(self, list taken):
        self.remove_first(count_of(taken))
        taken.clear()


def count_of(list ranges) -> int:
    cdef int64_t first, last, count = 0
    for first, last in ranges:
        count += last - first + 1
    return count


def ranges_of(list ids) -> list:
    cdef list ranges = []
    cdef int64_t first, last, current
    if not ids:
        return ranges
    ids.sort()
    first = last = ids[0]
    for current in ids:
        if current > last + 1:
            ranges.append((first, last))
            first = current
        last = current
    ranges.append((first, last))
    return ranges


def merged(list ranges) -> list:
    cdef list fewest = []
    cdef int64_t first, last, next_first, next_last
    if len(ranges) < 2:
        return ranges
    ranges.sort()
    first, last = ranges[0]
    for next_first, next_last in ranges:
        if next_first > last + 1:
            fewest.append((first, last))
            first, last = next_first, next_last
        elif next_last > last:
            last = next_last
    fewest.append((first, last))
    return fewest


def keep_for_ever(thing):
    Py_INCREF(thing)
