"""A string's own UTF-8. Header only."""

from cpython.exc cimport PyErr_Clear, PyErr_ExceptionMatches


cdef extern from *:
    """
    /* An ASCII string is its own UTF-8: most need no call. NULL with an exception set on failure. */
    static inline const char *glec_utf8(PyObject *text, Py_ssize_t *size) {
        if (PyUnicode_IS_COMPACT_ASCII(text)) {
            *size = PyUnicode_GET_LENGTH(text);
            return (const char *)PyUnicode_DATA(text);
        }
        return PyUnicode_AsUTF8AndSize(text, size);
    }
    """
    # Borrowed until the string dies. Checked by hand, so that the common case carries no try block.
    const char* utf8_of "glec_utf8"(object text, Py_ssize_t* size) noexcept


cdef inline int take_encode_error() except -1:
    """After utf8_of failed, and before any Python code runs, which must not find an exception set."""
    if not PyErr_ExceptionMatches(UnicodeEncodeError):
        return -1
    PyErr_Clear()
    return 0
