"""The fields of another object, read and set through one's own, and whether it has any of its own by some names.

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


def has_any(dict own not None, tuple names not None) -> bool:
    for name in names:
        if PyDict_Contains(own, name):
            return True
    return False


def version_of(type kind not None) -> int:
    return (<PyTypeObject*>kind).tp_version_tag
