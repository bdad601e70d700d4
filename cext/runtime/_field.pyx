"""The fields of another object, read and set through one's own, and the methods that it has its own of.

A turn of the network loop asks for some thirty of them.
"""

from cpython.dict cimport PyDict_Contains
from cpython.object cimport PyObject_GetAttr, PyObject_SetAttr

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        unsigned int tp_version_tag


cdef class Facade:
    """Stands in front of `client`."""

    cdef readonly object client

    def __init__(self, client):
        self.client = client


cdef class Field:
    """In a subclass of `Facade`: the client's field of that name."""

    cdef str name

    def __init__(self, str name not None):
        self.name = name

    def __get__(self, Facade facade, kind):
        return self if facade is None else PyObject_GetAttr(facade.client, self.name)

    def __set__(self, Facade facade not None, value):
        PyObject_SetAttr(facade.client, self.name, value)


cdef class Overrides:
    cdef tuple names
    cdef tuple ours
    # The class that was last found without any, and the state it was in.
    cdef type kind
    cdef unsigned int version

    def __init__(self, type ours not None, tuple names not None):
        self.names = names
        self.ours = self.methods_of(ours)

    cdef tuple methods_of(self, type kind):
        return tuple([getattr(kind, name) for name in self.names])

    cdef bint has_any(self, dict own) except -1:
        for name in self.names:
            if PyDict_Contains(own, name):
                return True
        return False

    def of(self, client) -> dict:
        cdef type kind = type(client)
        cdef dict own = client.__dict__
        # Before it is looked at: what changes meanwhile is seen next time.
        cdef unsigned int version = (<PyTypeObject*>kind).tp_version_tag
        cdef tuple theirs
        if not self.has_any(own):
            if version and version == self.version and kind is self.kind:
                return {}
            if self.methods_of(kind) == self.ours:
                self.kind, self.version = kind, version
                return {}
        theirs = self.methods_of(kind)
        pairs = zip(self.names, theirs, self.ours, strict=True)
        return {name: getattr(client, name) for name, method, base in pairs if method is not base or name in own}
