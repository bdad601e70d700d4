"""Who waits on the loop: until a message is on disk, and until the broker has it. In C, as each message has both.

And what the loop is to call, in C as no exception can come within it: a signal's handler raises between Python's steps.

What each is for is in the stub.
"""

from asyncio import _get_running_loop, get_running_loop

from cpython.list cimport PyList_GET_SIZE
from libc.stdint cimport int64_t

from paho.mqtt.enums import MQTTErrorCode

cdef extern from "Python.h":
    # The descriptor of a slot, asked without a call of Python's.
    ctypedef object (*descrgetfunc)(object, object, object)
    ctypedef int (*descrsetfunc)(object, object, object) except -1
    struct SlotType "_typeobject":
        descrgetfunc tp_descr_get
        descrsetfunc tp_descr_set
    SlotType* slot_type "Py_TYPE"(object)

cdef enum:
    # Those that wait no more are let go of by so many.
    OVER_MAX = 1024

    # A step that fails by itself is not called again for ever.
    TORN_MAX = 8

cdef object SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS


cdef class Undurable:
    # Ascending, and who waits for each; those before `over` wait no more.
    cdef list ids, futures
    cdef Py_ssize_t over
    cdef object new_future

    def __init__(self, loop):
        self.ids = []
        self.futures = []
        self.new_future = loop.create_future

    def wait_for(self, message_id):
        cdef Py_ssize_t count = PyList_GET_SIZE(self.ids)
        future = self.new_future()
        # Again for one that failed: behind those that came since, so that the order holds.
        self.ids.append(max(message_id, self.ids[count - 1]) if count else message_id)
        self.futures.append(future)
        return future

    def let_go(self, int64_t committed_id):
        while self.over < PyList_GET_SIZE(self.ids) and <int64_t>self.ids[self.over] <= committed_id:
            self.over += 1
            _set(self.futures[self.over - 1])
        if self.over == PyList_GET_SIZE(self.ids):
            self.ids.clear()
            self.futures.clear()
            self.over = 0
        elif self.over >= OVER_MAX:
            del self.ids[:self.over]
            del self.futures[:self.over]
            self.over = 0

    def let_all_go(self):
        cdef list futures = self.futures[self.over:]
        self.ids.clear()
        self.futures.clear()
        self.over = 0
        for future in futures:
            _set(future)

    def __len__(self):
        return PyList_GET_SIZE(self.ids) - self.over


cdef class Fate:
    cdef object fate, futures

    def __init__(self, fate, futures):
        self.fate = fate
        self.futures = futures

    def __get__(self, handle, kind):
        return self if handle is None else slot_type(self.fate).tp_descr_get(self.fate, handle, kind)

    def __set__(self, handle, fate):
        cdef object futures = None
        if fate is None:
            # Of a handle that is being made.
            slot_type(self.futures).tp_descr_set(self.futures, handle, None)
        slot_type(self.fate).tp_descr_set(self.fate, handle, fate)
        if fate is not None:
            futures = slot_type(self.futures).tp_descr_get(self.futures, handle, type(handle))
        if futures is not None:
            slot_type(self.futures).tp_descr_set(self.futures, handle, None)
            for future in futures:
                _end(future)


def wait_for_end(handle):
    if handle._fate is None:
        future = get_running_loop().create_future()
        futures = handle._futures
        if futures is None:
            handle._futures = [future]
        else:
            futures.append(future)
        # Unless it ended meanwhile, and did not see who waits.
        if handle._fate is None:
            yield from future
    if handle._fate is not True or handle.rc is not SUCCESS:
        handle._raise_for_end()


cdef int _end(future) except -1:
    loop = future.get_loop()
    if _get_running_loop() is loop:
        return _set(future)
    try:
        loop.call_soon_threadsafe(set_result, future)
    except RuntimeError:
        # Who waited in a loop that is closed waits no longer.
        return 0
    return 0


def set_result(future):
    _set(future)


cdef int _set(future) except -1:
    if not future.done():
        future.set_result(None)
    return 0


cdef class Owed:
    cdef object loop, step
    cdef int torn

    def __init__(self, loop, step):
        self.loop = loop
        self.step = step

    def __call__(self, *arguments):
        cdef object error
        cdef int attempt = 0
        try:
            self.step(*arguments)
            self.torn = 0
            return
        except BaseException as raised:
            error = raised
        self.torn += 1
        if self.torn > TORN_MAX:
            self.torn = 0
            attempt = TORN_MAX
        while attempt < TORN_MAX:
            # Which is cut into as well: what is called twice does no harm.
            try:
                self.loop.call_soon(self, *arguments)
                break
            except BaseException:
                attempt += 1
        raise error
