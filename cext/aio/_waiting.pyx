"""Who waits on the loop: until a message is on disk, and until the broker has it. In C, as each message has both.

And what the loop is to call, in C as no exception can come within it: a signal's handler raises between Python's steps.

What each is for is in the stub.
"""

from asyncio import CancelledError, _get_running_loop, get_running_loop
from weakref import ref

from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cython cimport freelist
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from glec_fast.runtime._lock cimport Condition

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

# Of one callback of the loop, and the step of a task that exceeds it.
cdef double STEPS_MAX_S = 0.001

cdef object SUCCESS = MQTTErrorCode.MQTT_ERR_SUCCESS


cdef double _monotonic_s() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9


cdef class Ready:
    """Of one loop, the waits that are over, whose tasks go on in the loop's next round: many in one callback of it.

    asyncio's future takes a callback of the loop for each, which costs more than most tasks have to do.
    """

    cdef object __weakref__
    cdef object loop, call_soon
    # From index `gone` on.
    cdef list waits
    cdef Py_ssize_t gone
    cdef bint is_asked
    # From outside, between the steps of asyncio's own `call_soon`.
    cdef object raised

    def __init__(self, loop):
        self.loop = loop
        self.call_soon = loop.call_soon
        self.waits = []

    cdef int add(self, Wait wait) except -1:
        self.waits.append(wait)
        return self.ask()

    cdef int ask(self) except -1:
        cdef int attempt = 0
        if self.is_asked:
            return 0
        self.is_asked = True
        while True:
            try:
                self.call_soon(self.go_on)
                return 0
            except BaseException as error:
                attempt += 1
                if isinstance(error, Exception) or attempt == TORN_MAX:
                    self.is_asked = False
                    raise
                # The loop gets it next: here it would cut into what more there is to let go.
                self.raised = error

    def go_on(self):
        """What the loop calls."""
        cdef Wait wait
        cdef Py_ssize_t count = PyList_GET_SIZE(self.waits) - self.gone
        cdef double deadline_s = _monotonic_s() + STEPS_MAX_S
        self.is_asked = False
        if count > 1 or self.raised is not None:
            # First: a step may raise, or run the loop itself, as in a notebook, until another one has gone on.
            self.ask()
        if self.raised is not None:
            raised, self.raised = self.raised, None
            raise raised
        # Debug mode names what takes long, and so is to see each.
        cdef bint is_debugging = self.loop.get_debug()
        while count > 0 and self.gone < PyList_GET_SIZE(self.waits):
            wait = <Wait>PyList_GET_ITEM(self.waits, self.gone)
            self.gone += 1
            count -= 1
            if self.gone == PyList_GET_SIZE(self.waits):
                self.waits = []
                self.gone = 0
            callback, context = wait.callback, wait.context
            wait.callback = wait.context = None
            if callback is None:
                continue
            if is_debugging:
                self.call_soon(callback, wait, context=context)
                continue
            context.run(callback, wait)
            if _monotonic_s() > deadline_s:
                break


# The loop that was asked for last; the loop, not this, says how long it lives.
cdef object _last_ready = None


cdef Ready _ready_of(loop):
    global _last_ready
    cdef Ready ready = None if _last_ready is None else _last_ready()
    if ready is None or ready.loop is not loop:
        ready = Ready(loop)
        _last_ready = ref(ready)
    return ready


@freelist(256)
cdef class Wait:
    cdef Ready ready
    # None where it is for the disk.
    cdef object handle
    # Another of the same handle.
    cdef Wait before
    cdef object callback, context, message
    cdef bint is_over, is_cancelled, is_unknown
    # As of asyncio's futures: a task that is given this waits for it.
    cdef public bint _asyncio_future_blocking

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if not self.is_over and (self.handle is None or self.handle._fate is None):
            self._asyncio_future_blocking = True
            return self
        if self.handle is not None:
            _raise_for_end(self.handle)
        if self.is_unknown:
            raise StopIteration(True)
        raise StopIteration

    cdef int end(self, bint is_unknown=False) except -1:
        """In the loop's thread."""
        if not self.is_over:
            self.is_over = True
            self.is_unknown = is_unknown
            self.ready.add(self)
        return 0

    def end_it(self):
        self.end()

    cdef int leave(self) except -1:
        """Its handle may be waited for again and again, as with time-outs, and for days."""
        cdef Wait after = self.handle._waits
        if after is self:
            self.handle._waits = self.before
            return 0
        while after is not None:
            if after.before is self:
                after.before = self.before
                return 0
            after = after.before
        return 0

    # ---- what a task asks of a future

    def get_loop(self):
        return self.ready.loop

    def add_done_callback(self, callback, *, context):
        self.callback, self.context = callback, context
        if self.is_over:
            self.ready.add(self)

    def cancel(self, msg=None) -> bool:
        if self.is_over:
            return False
        self.is_cancelled = True
        self.message = msg
        if self.handle is not None:
            self.leave()
        self.end()
        return True

    def done(self) -> bool:
        return self.is_over

    def cancelled(self) -> bool:
        return self.is_cancelled

    def result(self):
        if self.is_cancelled:
            raise CancelledError() if self.message is None else CancelledError(self.message)


cdef Wait _new_wait(Ready ready, handle):
    cdef Wait wait = Wait.__new__(Wait)
    wait.ready = ready
    wait.handle = handle
    return wait


cdef class Undurable:
    # Ascending, and who waits for each; those before `over` wait no more.
    cdef list ids, waits
    cdef Py_ssize_t over
    cdef Ready ready

    def __init__(self, loop):
        self.ids = []
        self.waits = []
        self.ready = Ready(loop)

    def wait_for(self, message_id):
        cdef Py_ssize_t count = PyList_GET_SIZE(self.ids)
        cdef Wait wait = _new_wait(self.ready, None)
        # Again for one that failed: behind those that came since, so that the order holds.
        self.ids.append(max(message_id, self.ids[count - 1]) if count else message_id)
        self.waits.append(wait)
        return wait

    def let_go(self, int64_t committed_id):
        while self.over < PyList_GET_SIZE(self.ids) and <int64_t>self.ids[self.over] <= committed_id:
            self.over += 1
            (<Wait>self.waits[self.over - 1]).end()
        if self.over == PyList_GET_SIZE(self.ids):
            self.ids.clear()
            self.waits.clear()
            self.over = 0
        elif self.over >= OVER_MAX:
            del self.ids[:self.over]
            del self.waits[:self.over]
            self.over = 0

    def let_all_go(self):
        cdef list waits = self.waits[self.over:]
        cdef Wait wait
        self.ids.clear()
        self.waits.clear()
        self.over = 0
        for wait in waits:
            wait.end(True)

    def __len__(self):
        return PyList_GET_SIZE(self.ids) - self.over


cdef class Fate:
    cdef object fate, waits

    def __init__(self, fate, waits):
        self.fate = fate
        self.waits = waits

    def __get__(self, handle, kind):
        return self if handle is None else slot_type(self.fate).tp_descr_get(self.fate, handle, kind)

    def __set__(self, handle, fate):
        cdef Wait wait, before, first = None
        if fate is None:
            # Of a handle that is being made.
            slot_type(self.waits).tp_descr_set(self.waits, handle, None)
        slot_type(self.fate).tp_descr_set(self.fate, handle, fate)
        if fate is None:
            return
        wait = slot_type(self.waits).tp_descr_get(self.waits, handle, type(handle))
        if wait is None:
            return
        slot_type(self.waits).tp_descr_set(self.waits, handle, None)
        # The first first.
        while wait is not None:
            before, wait.before = wait.before, first
            first, wait = wait, before
        while first is not None:
            wait, first = first, first.before
            wait.before = None
            _end(wait)


def wait_for_end(handle):
    cdef Wait wait
    cdef Condition condition
    if handle._fate is None:
        condition = handle._condition
        if condition.refuse is not None:
            # In a forked child, where nobody ends it.
            condition.refuse()
        wait = _new_wait(_ready_of(get_running_loop()), handle)
        wait.before = handle._waits
        handle._waits = wait
        # It may have ended meanwhile, and not have seen who waits: which `__next__` asks for.
        return wait
    _raise_for_end(handle)
    return iter(())


cdef int _raise_for_end(handle) except -1:
    if handle._fate is not True or handle.rc is not SUCCESS:
        handle._raise_for_end()
    return 0


cdef int _end(Wait wait) except -1:
    loop = wait.ready.loop
    if _get_running_loop() is loop:
        return wait.end()
    try:
        loop.call_soon_threadsafe(wait.end_it)
    except RuntimeError:
        # Who waited in a loop that is closed waits no longer.
        return 0
    return 0


def set_result(future):
    if not future.done():
        future.set_result(None)


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
