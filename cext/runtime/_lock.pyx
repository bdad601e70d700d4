"""Locks, conditions and events that no exception leaves held, or with a waiter that nobody wakes.

Python runs signal handlers, and delivers exceptions of other threads, between its steps. Each may raise: also when the
block of a with statement has ended and `__exit__` is not yet called. What a frame has on its stack is let go of all
the same. So what stands there for a lock, a `Hold`, gives it back when it goes: a with statement takes the lock by
asking for `__exit__`, which it does before its block begins, and whose value it keeps until it is called or the frame
is unwound.

All here is C from end to end: nothing of Python runs between a step and its note.

With gevent or eventlet in the place of threads there is one thread of the system, and who waits must let the others
run: `be_green`. Who holds what is then a matter of greenlets, which take turns only where one waits.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (
    NOWAIT_LOCK, PY_LOCK_ACQUIRED, PY_LOCK_INTR, WAIT_LOCK, PyLockStatus, PyThread_acquire_lock,
    PyThread_allocate_lock, PyThread_free_lock, PyThread_release_lock, PyThread_type_lock
)
from cpython.object cimport PyObject_SetAttr
from cython cimport freelist, no_gc

from time import monotonic

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock, long long microseconds, int is_interruptible) nogil

cdef enum:
    # Less than what a Python of 32 bits can wait.
    SLICE_S = 1000

cdef double PAUSE_MAX_S = 0.01


# Of green threads: which of them this is, how one makes room for the others, and a lock that does so where it waits.
# None where threads are the system's.
cdef object _get_current = None
cdef object _pause = None
cdef object _new_lock = None


def be_green(get_current, pause, new_lock):
    """See the stub."""
    global _get_current, _pause, _new_lock
    _get_current, _pause, _new_lock = get_current, pause, new_lock


def is_green() -> bool:
    return _get_current is not None


cdef unsigned long _me() except 0:
    """Who asks: a thread, or a greenlet. The first is in C alone."""
    if _get_current is None:
        return PyThread_get_thread_ident()
    current = _get_current()
    return <unsigned long> <void*> current


cdef bint _wait_green(PyThread_type_lock mutex, double timeout_s) except -1:
    """As `_wait`, for a lock that another greenlet has while it waits for something else: seldom, and not for long."""
    cdef double deadline_s = <double>monotonic() + timeout_s
    cdef double pause_s = 0.0
    cdef double remaining_s = PAUSE_MAX_S
    while not PyThread_acquire_lock(mutex, NOWAIT_LOCK):
        if timeout_s >= 0:
            remaining_s = deadline_s - <double>monotonic()
            if remaining_s <= 0:
                return False
        _pause(min(pause_s, remaining_s))
        pause_s = min(2 * pause_s + 0.0001, PAUSE_MAX_S)
    return True


cdef bint _wait(PyThread_type_lock mutex, double timeout_s) except -1:
    """Take it; False after the time-out, below 0 for none. Signal handlers run meanwhile, and may raise."""
    cdef double deadline_s = monotonic() + timeout_s if timeout_s > 0 else 0.0
    cdef double slice_s
    cdef long long slice_us
    cdef PyLockStatus status
    if PyThread_acquire_lock(mutex, NOWAIT_LOCK):
        return True
    if _get_current is not None:
        return _wait_green(mutex, timeout_s)
    while timeout_s != 0:
        slice_s = SLICE_S
        if timeout_s > 0:
            slice_s = min(max(deadline_s - <double>monotonic(), 0.0), slice_s)
        slice_us = <long long>(slice_s * 1e6)
        with nogil:
            status = PyThread_acquire_lock_timed(mutex, slice_us, 1)
        if status == PY_LOCK_ACQUIRED:
            return True
        if status == PY_LOCK_INTR:
            PyErr_CheckSignals()
        elif slice_s == 0:
            break
    return False


# Where the order of locks is noted, None for nowhere; and which each thread has, first to last.
cdef object _orders = None
cdef dict _held = {}


def watch(orders):
    """See the stub."""
    global _orders
    _held.clear()
    _orders = orders


cdef int _note_taken(Lock lock, bint may_wait) except -1:
    cdef list held = _held.setdefault(lock.owner, [])
    cdef Lock each
    for each in held:
        if may_wait and (each.name, lock.name) not in _orders:
            _orders.add((each.name, lock.name))
    held.append(lock)
    return 0


cdef int _note_given(Lock lock) except -1:
    cdef list held = _held.get(lock.owner, [])
    if lock in held:
        held.remove(lock)
    return 0


cdef class Lock:
    """A mutex, for a with statement: `with lock:` waits for it, `with lock.attempt(timeout_s) as is_held:` may not.

    Re-entrant: a signal's handler or a finaliser may need it between two steps of a thread that holds it.
    `name` is for who watches.
    """

    def __cinit__(self, str name=""):
        self.name = name
        self.mutex = PyThread_allocate_lock()
        if self.mutex is NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.mutex is not NULL:
            PyThread_free_lock(self.mutex)

    cdef int take(self) except -1:
        """For C, and sections that are short whoever has them: no handler runs meanwhile."""
        cdef unsigned long caller = _me()
        if self.owner == caller:
            self.depth += 1
            return 0
        if not PyThread_acquire_lock(self.mutex, NOWAIT_LOCK):
            if _get_current is not None:
                _wait_green(self.mutex, -1.0)
            else:
                with nogil:
                    PyThread_acquire_lock(self.mutex, WAIT_LOCK)
        self.owner = caller
        self.depth = 1
        if _orders is not None:
            _note_taken(self, True)
        return 0

    cdef bint take_within(self, double timeout_s) except -1:
        """False after the time-out, below 0 for none. A handler that raises ends the wait."""
        cdef unsigned long caller = _me()
        if self.owner == caller:
            self.depth += 1
            return True
        if not _wait(self.mutex, timeout_s):
            return False
        self.owner = caller
        self.depth = 1
        if _orders is not None:
            _note_taken(self, timeout_s < 0)
        return True

    cdef int give(self) except -1:
        self.depth -= 1
        if self.depth == 0:
            if _orders is not None:
                _note_given(self)
            self.owner = 0
            PyThread_release_lock(self.mutex)
        return 0

    def attempt(self, double timeout_s=0.0) -> Hold:
        """For a with statement, whose value says whether the lock came free within `timeout_s`, below 0 for any time.

        Not re-entrant: False at once where this thread has it.
        """
        cdef Hold hold = Hold.__new__(Hold)
        if self.owner != _me() and self.take_within(timeout_s):
            hold.lock = self
        return hold

    def acquire(self, bint blocking=True, double timeout=-1.0) -> bool:
        """As threading.Lock's, for code that is not ours, or is C: in Python an exception may leave the lock held.

        Re-entrant where it waits without end, as a with statement is; else as `attempt`.
        """
        if blocking and timeout < 0:
            return self.take_within(-1.0)
        return self.owner != _me() and self.take_within(timeout if blocking else 0.0)

    def release(self):
        """As threading.Lock's."""
        if self.depth == 0:
            raise RuntimeError("a lock that nobody holds")
        self.give()

    def locked(self) -> bool:
        """True while a thread holds it."""
        return self.depth > 0

    @property
    def is_mine(self) -> bool:
        """True where the calling thread has it: a signal's handler, or a finaliser, has cut into what it guards."""
        return self.owner == _me()

    def __enter__(self):
        """Does nothing: see `__exit__`."""

    @property
    def __exit__(self):
        """The lock is taken here, and given back when this value is called or goes."""
        cdef Hold hold = Hold.__new__(Hold)
        self.take_within(-1.0)
        hold.lock = self
        return hold


@no_gc
@freelist(16)
cdef class Hold:
    """Gives a lock back once: at the end of a with statement, or where nothing refers to this any more."""

    cdef Lock lock

    def __dealloc__(self):
        if self.lock is not None:
            self.lock.give()

    cdef int end(self) except -1:
        cdef Lock lock = self.lock
        if lock is not None:
            self.lock = None
            lock.give()
        return 0

    @property
    def is_held(self) -> bool:
        return self.lock is not None

    def __enter__(self) -> bool:
        return self.lock is not None

    def __exit__(self, *_):
        self.end()

    def __call__(self, *_):
        self.end()


@no_gc
cdef class Waiter:
    """One thread that waits, by a mutex that is taken until somebody tells it; a greenlet, by a lock of its own too."""

    cdef PyThread_type_lock mutex
    cdef object green

    def __cinit__(self):
        self.mutex = PyThread_allocate_lock()
        if self.mutex is NULL:
            raise MemoryError
        PyThread_acquire_lock(self.mutex, WAIT_LOCK)
        if _new_lock is not None:
            self.green = _new_lock()
            self.green.acquire()

    cdef bint wait(self, double timeout_s) except -1:
        """Until it is told; False after the time-out, below 0 for none."""
        if self.green is None:
            return _wait(self.mutex, timeout_s)
        self.green.acquire(True, timeout_s if timeout_s >= 0 else -1)
        return PyThread_acquire_lock(self.mutex, NOWAIT_LOCK)

    cdef int tell(self) except -1:
        PyThread_release_lock(self.mutex)
        if self.green is not None:
            self.green.release()
        return 0

    def __dealloc__(self):
        if self.mutex is not NULL:
            PyThread_release_lock(self.mutex)
            PyThread_free_lock(self.mutex)


cdef class Condition:
    """As threading.Condition. For a with statement; `wait` and `notify_all` are for whoever holds its lock.

    lock: one of its own where None.
    """

    def __init__(self, Lock lock=None):
        self.lock = Lock("Condition.lock") if lock is None else lock
        self.waiters = []

    def forbid(self, refuse):
        """Have `refuse()`, which raises, be called by whoever wants it from now on."""
        self.refuse = refuse

    def __enter__(self):
        """Does nothing: see `Lock.__exit__`."""

    @property
    def __exit__(self):
        if self.refuse is not None:
            self.refuse()
        return self.lock.__exit__

    def wait(self, timeout_s=None) -> bool:
        """Let go of the lock until `notify_all`; False after the time-out. It is held again, also where this raises."""
        cdef Waiter waiter = Waiter.__new__(Waiter)
        cdef Lock lock = self.lock
        cdef int depth = lock.depth
        cdef bint is_told = False
        cdef double limit_s = -1.0 if timeout_s is None else max(<double>timeout_s, 0.0)
        if lock.owner != _me():
            raise RuntimeError("a wait without the lock")
        self.waiters.append(waiter)
        lock.depth = 1
        lock.give()
        try:
            is_told = waiter.wait(limit_s)
        finally:
            lock.take()
            lock.depth = depth
            # Also where it was told after the time-out. It ends as it began.
            if PyThread_acquire_lock(waiter.mutex, NOWAIT_LOCK):
                is_told = True
            if waiter in self.waiters:
                self.waiters.remove(waiter)
        return is_told

    def wait_for(self, predicate, timeout_s=None) -> object:
        """Wait until `predicate()` is true, or the time-out; returns its last value."""
        deadline_s = None if timeout_s is None else monotonic() + timeout_s
        found = predicate()
        while not found:
            remaining_s = None if deadline_s is None else deadline_s - monotonic()
            if remaining_s is not None and remaining_s <= 0:
                break
            self.wait(remaining_s)
            found = predicate()
        return found

    def change(self, owner, str name not None, value):
        """Set an attribute of `owner`, and wake all who wait: in one step."""
        self.lock.take()
        try:
            PyObject_SetAttr(owner, name, value)
            self.tell_all()
        finally:
            self.lock.give()

    cdef int tell_all(self) except -1:
        """Whoever holds the lock."""
        cdef list waiters
        cdef Waiter waiter
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.tell()
        return 0

    def notify_all(self):
        """Wake all who wait."""
        self.tell_all()


cdef class Event:
    """As threading.Event."""

    cdef Condition condition
    cdef bint flag

    def __init__(self):
        self.condition = Condition()

    def is_set(self) -> bool:
        return self.flag

    def set(self):
        self.condition.lock.take()
        try:
            self.flag = True
            self.condition.tell_all()
        finally:
            self.condition.lock.give()

    def clear(self):
        self.flag = False

    def wait(self, timeout_s=None) -> bool:
        """Until it is set; False after the time-out."""
        cdef double deadline_s = 0.0 if timeout_s is None else <double>monotonic() + <double>timeout_s
        self.condition.lock.take()
        try:
            while not self.flag:
                remaining_s = None if timeout_s is None else deadline_s - <double>monotonic()
                if remaining_s is not None and remaining_s <= 0:
                    break
                self.condition.wait(remaining_s)
        finally:
            self.condition.lock.give()
        return self.flag


cdef class CallbackMark:
    """Stands where paho holds a lock during a callback: it only says which threads are in one."""

    # Thread -> how many callbacks deep.
    cdef dict depths

    def __init__(self):
        self.depths = {}

    cdef int leave(self, unsigned long thread) except -1:
        cdef int depth = self.depths.pop(thread) - 1
        if depth:
            self.depths[thread] = depth
        return 0

    def __enter__(self):
        """Does nothing: see `Lock.__exit__`."""

    @property
    def __exit__(self):
        cdef Mark mark = Mark.__new__(Mark)
        mark.thread = _me()
        self.depths[mark.thread] = self.depths.get(mark.thread, 0) + 1
        mark.owner = self
        return mark

    @property
    def is_anywhere(self) -> bool:
        """True while any thread is in one."""
        return len(self.depths) > 0

    def acquire(self, blocking=True, timeout=-1) -> bool:
        """False in a callback: paho then leaves the writing to the loop."""
        return _me() not in self.depths

    def release(self):
        """Does nothing: `acquire` took nothing."""


@no_gc
@freelist(8)
cdef class Mark:
    """Ends one `CallbackMark`, as a `Hold` ends a lock."""

    cdef CallbackMark owner
    cdef unsigned long thread

    def __dealloc__(self):
        if self.owner is not None:
            self.owner.leave(self.thread)

    def __call__(self, *_):
        cdef CallbackMark owner = self.owner
        if owner is not None:
            self.owner = None
            owner.leave(self.thread)
