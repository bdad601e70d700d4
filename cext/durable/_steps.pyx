"""Steps of a transaction that no exception can cut into. What each function does, for its callers, is in the stub.

An exception that comes from outside (KeyboardInterrupt, PyThreadState_SetAsyncExc, a trace function) is raised between
two steps of Python code, never within C. So what must not come apart is done here.
"""

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
    cdef Py_ssize_t count

    def __init__(self, list ranges=None):
        self._set([] if ranges is None else ranges)

    cdef int _set(self, list ranges) except -1:
        self.ranges, self.count = ranges, count_of(ranges)
        return 0

    def __len__(self) -> int:
        return self.count

    @property
    def ids(self) -> list:
        cdef int64_t first, last
        cdef list ids = []
        for first, last in self.ranges:
            ids += range(first, last + 1)
        return ids

    @property
    def longest(self) -> tuple:
        cdef int64_t first, last, most = 0
        cdef tuple longest = (0, -1)
        for first, last in self.ranges:
            if last - first >= most:
                most, longest = last - first + 1, (first, last)
        return longest

    def __contains__(self, int64_t message_id) -> bool:
        cdef Py_ssize_t low = 0, high = len(self.ranges), middle
        cdef int64_t first, last
        while low < high:
            middle = (low + high) // 2
            first, last = self.ranges[middle]
            if message_id < first:
                high = middle
            elif message_id > last:
                low = middle + 1
            else:
                return True
        return False

    def add(self, list ids not None):
        cdef int64_t first, last, current
        cdef Py_ssize_t followed = 0
        cdef Py_ssize_t last_index = len(self.ranges) - 1
        if last_index >= 0:
            first, last = self.ranges[last_index]
            for current in ids:
                if current != last + 1:
                    break
                last = current
                followed += 1
            self.ranges[last_index] = (first, last)
            self.count += followed
        if followed < len(ids):
            self._set(merged(self.ranges + ranges_of(ids[followed:])))

    def take_from(self, outbox):
        self.add(outbox.take_finished())

    def first_ranges(self, limit) -> list:
        cdef int64_t first, last, left
        cdef list ranges = []
        if limit is None or limit >= self.count:
            return self.ranges.copy()
        left = limit
        for first, last in self.ranges:
            if left <= 0:
                break
            ranges.append((first, min(last, first + left - 1)))
            left -= last - first + 1
        return ranges

    def without(self, list ranges not None) -> list:
        cdef int64_t first, last, gone_first, gone_last
        cdef Py_ssize_t at = 0, end = len(ranges)
        cdef list staying = []
        for first, last in self.ranges:
            while at < end and ranges[at][1] < first:
                at += 1
            while at < end and ranges[at][0] <= last:
                gone_first, gone_last = ranges[at]
                if first < gone_first:
                    staying.append((first, gone_first - 1))
                first = gone_last + 1
                if gone_last >= last:
                    break
                at += 1
            if first <= last:
                staying.append((first, last))
        return staying

    def remove(self, list ranges):
        self._set(self.without(ranges))


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
