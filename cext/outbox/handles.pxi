# Handles of messages: how one is made, found by its message's id, and told. Part of `_outbox.pyx`.

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        pass
    object PyType_GenericNew(PyTypeObject* type_, void* args, void* kwargs)


cdef object _new_handle(condition, qos, kind=PublishHandle):
    """What `PublishHandle.__init__` makes, but for its `mid`. kind: that class, or one of it."""
    handle = PyType_GenericNew(<PyTypeObject*>kind, NULL, NULL)
    PyObject_SetAttr(handle, "rc", SUCCESS)
    PyObject_SetAttr(handle, "qos", qos)
    PyObject_SetAttr(handle, "_condition", condition)
    PyObject_SetAttr(handle, "_iterpos", 0)
    PyObject_SetAttr(handle, "_fate", None)
    return handle


cdef inline int _set_mid(handle, mid) except -1:
    return PyObject_SetAttr(handle, "mid", mid)


cdef object new_reference = ref.__new__


cdef class Registration:
    """Called with the id that the store gave a message: from then on the message's handle is found by it."""

    cdef object handle, reference
    cdef dict references

    def __init__(self, handle, handles):
        # What a WeakValueDictionary keeps, made now: it does so in Python, where it may be cut short.
        # Past its own `__new__` and `__init__`, which are Python too, and do no more.
        self.reference = new_reference(KeyedRef, handle, handles._remove)
        self.reference.key = 0
        self.references = handles.data
        self.handle = handle

    def __call__(self, message_id):
        self.reference.key = message_id
        self.references[message_id] = self.reference
        _set_mid(self.handle, message_id)


def tell(finished, dict reasons not None, call, bint again):
    """`call(handle)` for each of the deque `finished`, then let its waiters go on, as paho does.

    reasons: what the acknowledgements of these carried. again: where `call` raises, the next `tell` calls it again.
    """
    while finished:
        handle = finished.popleft()
        try:
            call(handle)
        except BaseException:
            if again:
                finished.appendleft(handle)
            else:
                set_as_published([handle])
            raise
        set_as_published([handle])
    reasons.clear()


def tell_waiters(finished, dict reasons not None):
    """As `tell`, where there is nothing to call."""
    handles = list(finished)
    finished.clear()
    reasons.clear()
    set_as_published(handles)


def take_up(received, mid, callback, *arguments):
    """A message of `received` goes to its callback, once."""
    received.pop(mid, None)
    callback(*arguments)


def call_once(list left not None, callback, *arguments):
    """`callback`, which is taken from `left` once it has returned; no exception comes between the two."""
    cdef Py_ssize_t at
    callback(*arguments)
    for at in range(len(left)):
        if left[at] is callback:
            del left[at]
            break


def set_as_published(list handles not None):
    """The server has taken these messages over: let those go on who wait for any of them. All are one client's."""
    if not handles:
        return
    for handle in handles:
        PyObject_SetAttr(handle, "_fate", True)
    condition = handles[0]._condition
    with condition:
        condition.notify_all()
