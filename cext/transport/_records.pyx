"""TLS records by the hundred: between a socket of Python's ssl and OpenSSL there is memory.

A broker makes a record of each packet. OpenSSL takes two system calls for each where it has the socket itself: for five
bytes, and for the rest; its read-ahead, which would not, is nothing that Python shows. Here one `recv` brings all that
has come, and what they hold is decrypted until nothing is left of it.

Bounds: of what has come at most RECEIVE_BYTES and the beginning of a record are kept, of what is to leave one record.
"""

from _socket import socket as Socket
from ssl import (
    SSL_ERROR_WANT_READ,
    SSL_ERROR_WANT_WRITE,
    MemoryBIO,
    SSLError,
    SSLWantReadError,
    SSLWantWriteError,
)
from time import monotonic
from weakref import ref

from cpython.buffer cimport PyBUF_WRITE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.string cimport memcpy

cdef enum:
    RECORD_BYTES = 16 * 1024
    RECEIVE_BYTES = 32 * 1024
    # Of the connection, where the caller wants less than that of what it holds.
    RECEIVE_MIN_BYTES = 1024

# Of the class below ssl's, whose own would encrypt.
cdef object _recv = Socket.recv
cdef object _send = Socket.send


def gather(sock, session):
    """Have `sock`, before its handshake, move many records with a system call.

    session: to be resumed, or None.
    """
    sock._sslobj = Records(sock, session)


cdef class Records:
    """In the place of the object of OpenSSL's connection in an SSLSocket, which it has all methods of.

    For one thread at a time. An exception that is no OSError may come out of a step that was done: nobody knows then
    what was read, or has left.
    """

    # The SSLSocket, weakly, as it has us.
    cdef object sock
    # Of ssl, over the two that follow: what has come, and what is to leave.
    cdef object tls
    cdef object incoming
    cdef object outgoing
    # What was taken from `outgoing`, and how much of that the socket has taken.
    cdef bytes unsent
    cdef Py_ssize_t unsent_at
    # So many bytes of the caller's are encrypted, and not all of that has left. They are given again.
    cdef Py_ssize_t offered_bytes
    cdef bint is_flushing
    # Whole records may be there that no poll of the socket tells of.
    cdef bint may_have_more
    # What is raised once that which came before it is read.
    cdef object failure

    def __init__(self, sock, session):
        self.sock = ref(sock)
        self.unsent = b""
        self.incoming, self.outgoing = MemoryBIO(), MemoryBIO()
        self.tls = sock.context._wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=False,
            server_hostname=sock.server_hostname,
            owner=sock,
            session=session,
        )

    def __getattr__(self, name):
        return getattr(self.tls, name)

    def __setattr__(self, name, value):
        setattr(self.tls, name, value)

    # ---- between memory and the socket

    cdef int _receive(self, Py_ssize_t limit) except -1:
        """Raises as the socket does, ssl's own error where nothing has come."""
        try:
            data = _recv(self.sock(), limit)
        except BlockingIOError:
            raise SSLWantReadError(SSL_ERROR_WANT_READ, "The operation did not complete (read)") from None
        if data:
            self.incoming.write(data)
            self.may_have_more = True
        else:
            self.incoming.write_eof()
        return 0

    cdef bint _flush(self) except -1:
        """True where the socket has taken all that is encrypted. Raises as the socket does."""
        if self.is_flushing:
            # In a signal's handler: what that one has begun with goes first.
            return False
        self.is_flushing = True
        try:
            while True:
                if self.unsent_at == len(self.unsent):
                    self.unsent, self.unsent_at = self.outgoing.read(), 0
                    if not self.unsent:
                        return True
                self.unsent_at += _send(self.sock(), memoryview(self.unsent)[self.unsent_at :])
        except BlockingIOError:
            return False
        finally:
            self.is_flushing = False

    # ---- what an SSLSocket calls

    def read(self, Py_ssize_t limit, buffer=None):
        """At most `limit` bytes of as many records as are there; into `buffer`, where there is one: how many.

        Empty where the peer has left in order. Raises as ssl's.
        """
        if buffer is not None:
            with memoryview(buffer) as room, room.cast("B") as room_bytes:
                data = self._read(min(limit, len(room_bytes)) if limit > 0 else len(room_bytes))
                room_bytes[: len(data)] = data
                return len(data)
        return self._read(limit)

    cdef bytes _read(self, Py_ssize_t limit):
        cdef bytes data, record
        cdef Py_ssize_t size = 0
        cdef Py_ssize_t record_bytes
        if limit < 0:
            raise ValueError("size should not be negative")
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        # Nobody else has them yet. A view for each place in `data` would cost as much as reading a byte.
        data = PyBytes_FromStringAndSize(NULL, limit)
        record = PyBytes_FromStringAndSize(NULL, RECORD_BYTES)
        room = PyMemoryView_FromMemory(PyBytes_AS_STRING(record), RECORD_BYTES, PyBUF_WRITE)
        read = self.tls.read
        while size < limit:
            try:
                record_bytes = read(min(limit - size, RECORD_BYTES), room)
            except SSLWantReadError:
                self.may_have_more = False
                # An answer may be due: to a new key, or to a request for our certificate.
                self._speak()
                if size:
                    break
                self._receive(min(max(limit, RECEIVE_MIN_BYTES), RECEIVE_BYTES))
                continue
            except SSLError as error:
                self._speak()
                if not size:
                    raise
                self.failure = error
                break
            if record_bytes == 0:
                break
            memcpy(PyBytes_AS_STRING(data) + size, PyBytes_AS_STRING(record), <size_t>record_bytes)
            size += record_bytes
        return data[:size]

    def write(self, data):
        """How many bytes of `data` have left, as whole records. The others are given again, more behind them or not.

        Raises as ssl's.
        """
        cdef Py_ssize_t sent_bytes = 0
        with memoryview(data) as view, view.cast("B") as rest:
            while True:
                if not self.offered_bytes and sent_bytes < len(rest):
                    try:
                        self.offered_bytes = self.tls.write(rest[sent_bytes : sent_bytes + RECORD_BYTES])
                    except SSLError as error:
                        self._speak()
                        if sent_bytes:
                            return sent_bytes
                        if not isinstance(error, SSLWantReadError):
                            raise
                        # The peer has begun a handshake within the connection.
                        self._receive(RECEIVE_MIN_BYTES)
                        continue
                if not self._flush():
                    break
                if not self.offered_bytes:
                    return sent_bytes
                sent_bytes += self.offered_bytes
                self.offered_bytes = 0
        if sent_bytes:
            return sent_bytes
        raise SSLWantWriteError(SSL_ERROR_WANT_WRITE, "The operation did not complete (write)")

    cdef int _speak(self) except -1:
        """Send what OpenSSL has to say on its own, as far as that leaves now; the rest goes with the next."""
        try:
            self._flush()
        except OSError:
            # Nobody hears it. That the connection is gone is seen by whoever needs it next.
            return 0
        return 0

    def pending(self):
        """Bytes that are decrypted; at least 1 where a poll of the socket does not tell of what can be read."""
        return self.tls.pending() or int(self.may_have_more or self.failure is not None)

    def do_handshake(self):
        """Raises as ssl's."""
        self._drive(self.tls.do_handshake)

    def shutdown(self):
        """End TLS in order; returns the socket. Raises as ssl's."""
        self._drive(self.tls.shutdown)
        return self.sock()

    cdef int _drive(self, step) except -1:
        """Within the socket's time-out for all of it."""
        cdef double ends_s = 0
        cdef double remaining_s
        sock = self.sock()
        timeout_s = sock.gettimeout()
        if timeout_s:
            ends_s = <double>monotonic() + <double>timeout_s
        is_done = False
        try:
            while not is_done:
                try:
                    step()
                    is_done = True
                except SSLWantReadError:
                    pass
                except SSLError:
                    self._speak()
                    raise
                if not self._flush():
                    raise SSLWantWriteError(SSL_ERROR_WANT_WRITE, "The operation did not complete (write)")
                if is_done:
                    break
                if timeout_s:
                    remaining_s = ends_s - <double>monotonic()
                    if remaining_s <= 0:
                        raise TimeoutError("The handshake operation timed out")
                    sock.settimeout(remaining_s)
                self._receive(RECEIVE_BYTES)
        finally:
            sock.settimeout(timeout_s)
        return 0
