"""The pairs of a system call and its note: what a socket took and the session's mark, what it gave and the parser.

Python runs signal handlers, and delivers exceptions of other threads, between its steps, and each may raise. So a pair
is one call of C. With the system's own sockets, and those of ssl, nothing of Python runs between the two.

Where something does, an exception may part them: a socket of another kind, or a step that goes to the store. Nobody
knows then what has left, or what is missing. The connection is *torn*: nothing more is written to it or taken from it,
the loop ends it, and what was in flight goes again on the next one.
"""

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from ssl import SSLEOFError, SSLSocket, SSLWantReadError, SSLWantWriteError

from glec_fast.protocol._inbound import ACKS, MESSAGES, NEED_DATA, PACKET
from glec_fast.runtime._lock cimport Lock
from glec_fast.errors import ProtocolError
from glec_fast.transport.dial import acknowledge_at_once

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int poll(pollfd* watched, unsigned long count, int timeout_ms)

cdef object NOT_NOW = (BlockingIOError, SSLWantReadError, SSLWantWriteError)
cdef bytes WAKE = b"0"
cdef int WAKE_BYTES_MAX = 10_000
cdef int FOUND_ACKS = ACKS
cdef int FOUND_MESSAGES = MESSAGES
cdef int FOUND_PACKET = PACKET
cdef int FOUND_NOTHING = NEED_DATA

cdef enum:
    # Of one write, and of one read.
    SEND_BYTES_MAX = 256 * 1024
    RECEIVE_BYTES_MAX = 64 * 1024
    # Acknowledgements that come in a stream: more is there as a rule.
    STREAM_BYTES = 64

cdef double NEVER_S = float("inf")


cdef double monotonic_s() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec / 1e9


cdef object _in_c(sock, str of_socket, str of_ssl):
    """The method that moves its bytes, past ssl's in Python where that has nothing to add."""
    if type(sock) is SSLSocket and sock._sslobj is not None:
        return getattr(sock._sslobj, of_ssl)
    return getattr(sock, of_socket)


cdef class Link:
    """Between a client's socket, its outbox and its parser. `write` is thread-safe; one thread reads at a time."""

    cdef object outbox
    cdef object inbound
    # Held while bytes are given to the socket and the session is told, and while TLS is read.
    cdef readonly Lock lock
    cdef bint is_tls
    cdef bint is_writing
    cdef readonly bint is_torn
    # (first byte, body) of a packet that is neither an acknowledgement nor a message, until it is handled.
    cdef public object packet
    # The parser may have a whole packet.
    cdef readonly bint has_more
    # A connection was begun, and CONNECT is not among its bytes yet.
    cdef public bint lacks_connect
    # Of the answers to the last acknowledgements.
    cdef readonly size_t answer_bytes
    # Of all connections, before they are encrypted. Whoever holds the lock, and whoever reads.
    cdef readonly long long sent_bytes
    cdef readonly long long received_bytes
    # Of the last read.
    cdef Py_ssize_t read_bytes
    # See `flow`.
    cdef double flows_until_s
    cdef object holder
    cdef object pause
    cdef object time_s
    # What ended that, where it was the socket; and when bytes last left and came by it, 0 where none did.
    cdef public object failure
    cdef public double left_s
    cdef public double came_s

    def __init__(self, outbox, inbound):
        self.outbox = outbox
        self.inbound = inbound
        self.lock = Lock("Link.lock")

    def begin(self, bint is_tls=False):
        """A new connection."""
        self.is_tls = is_tls
        self.is_torn = False
        self.failure = None
        self.lacks_connect = True

    def end(self):
        """The connection is gone, and with it what was not handled yet."""
        # Another thread may be giving bytes to the socket: they have left before anything is set aside.
        self.lock.take()
        self.lock.give()
        self.outbox.park()
        self.inbound.begin()
        self.packet = None
        self.has_more = False
        self.outbox.drop_acks()

    cdef int _refuse_if_torn(self) except -1:
        if self.is_torn:
            raise ConnectionAbortedError("a write or read on this connection was cut short by an exception")
        return 0

    def do(self, step, *arguments):
        """`step(*arguments)`, which leaves the session and the connection apart where it does not come to its end."""
        try:
            return step(*arguments)
        except BaseException:
            self.is_torn = True
            raise

    def wake(self, writer):
        """Have the loop, which waits for the other end of `writer`, look for something to send. Raises OSError."""
        if self.outbox.is_woken:
            return
        self.outbox.is_woken = True
        try:
            writer.send(WAKE)
        except BlockingIOError:
            # Its buffer is full of wake-ups already.
            return
        except BaseException:
            # Nobody has been woken, and the next must not think so.
            self.outbox.is_woken = False
            raise

    def hear(self, reader) -> bool:
        """True where the loop was woken. Whoever wakes it from here on does so anew. Raises OSError."""
        try:
            return len(reader.recv(WAKE_BYTES_MAX)) > 0
        except BlockingIOError:
            return False
        finally:
            self.outbox.is_woken = False

    def write(self, holder, size_t limit) -> tuple:
        """Give the socket, `holder.sock`, the next bytes: (how many it took, whether the packet put as `last` left).

        Raises BlockingIOError where it takes none, OSError where the connection is to end.
        """
        self.lock.take()
        try:
            if self.is_writing:
                # In a signal's handler or a finaliser: whoever is writing writes on until nothing is left.
                return 0, False
            # Before the bytes are taken: those of a connection that ends meanwhile must not go out on the next.
            sock = holder.sock
            if sock is None:
                return 0, False
            self._refuse_if_torn()
            return self._write(sock, limit)
        finally:
            self.lock.give()

    cdef tuple _write(self, sock, size_t limit):
        cdef size_t sent = 0
        self.is_writing = True
        try:
            chunk = self.outbox.begin_write(limit)
            # With nothing to send too: another thread may have written DISCONNECT, and left what follows to us.
            if chunk:
                sent = _in_c(sock, "send", "write")(chunk)
                self.sent_bytes += sent
            return sent, self.outbox.end_write(sent)
        except NOT_NOW as error:
            raise BlockingIOError from error
        except BaseException:
            self.is_torn = True
            self.outbox.on_torn()
            raise
        finally:
            self.is_writing = False

    cdef object _read(self, sock, Py_ssize_t limit):
        if not self.is_tls:
            return _in_c(sock, "recv", "read")(limit)
        # What OpenSSL keeps of a connection is for one thread at a time.
        self.lock.take()
        try:
            return _in_c(sock, "recv", "read")(limit)
        finally:
            self.lock.give()

    def read(self, sock, Py_ssize_t limit, double now_s) -> int:
        """Feed the parser at most `limit` bytes that have come at `now_s`; returns how many, 0 where the peer has left.

        Raises BlockingIOError or ssl's own errors where nothing has come, OSError where the connection is to end.
        """
        self._refuse_if_torn()
        try:
            data = self._read(sock, limit)
            self.read_bytes = len(data)
            self.received_bytes += self.read_bytes
            self.inbound.feed(bytes(data), now_s)
            self.has_more = True
            return self.read_bytes
        except NOT_NOW:
            raise
        except SSLEOFError:
            self.read_bytes = 0
            return 0
        except BaseException:
            self.is_torn = True
            raise

    def flow(self, holder, double for_s, pause, time_s):
        """Let `advance` send what is ready to `holder.sock`, for so long, and go on with what comes behind it.

        As long as that is acknowledgements: a turn of the loop costs more than the answers of a small window. It stops
        where anything else is to be done: the loop is woken, nothing is in flight, DISCONNECT is to go.
        pause: called ahead of each read in a stream. time_s: the clock of `left_s` and `came_s`.
        """
        self.holder, self.pause, self.time_s = holder, pause, time_s
        self.flows_until_s = monotonic_s() + for_s

    def flow_no_more(self):
        """Bytes are moved by `write` and `read` alone."""
        self.flows_until_s = 0

    cdef bint _goes_on(self) except -1:
        """The parser has no whole packet: see to what its last made possible. True where it has one by now."""
        # Nothing else may come that would call for it.
        self.outbox.put_acks()
        if not self.outbox.session.has_last:
            self.outbox.pull()
        return self.flows_until_s != 0 and not self.inbound.one_by_one and self._flow()

    cdef bint _flow(self) except -1:
        """Send what is ready, and feed the parser what comes behind it. False where the rest is the loop's."""
        cdef object outbox = self.outbox
        cdef object session = outbox.session
        cdef object sock = self.holder.sock
        cdef bint is_stream = self.read_bytes >= STREAM_BYTES
        if sock is not None and session.in_flight and not session.sendable_bytes:
            # What is sent acknowledges as well.
            acknowledge_at_once(sock)
        try:
            while sock is not None and self.holder.sock is sock and monotonic_s() < self.flows_until_s:
                if outbox.is_woken or session.has_last or outbox.pull_at_s != NEVER_S:
                    return False
                if session.sendable_bytes:
                    if self.write(self.holder, SEND_BYTES_MAX)[0] == 0:
                        return False
                    self.left_s = self.time_s()
                    outbox.pull()
                    continue
                if not session.in_flight:
                    return False
                if is_stream:
                    self.pause()
                elif not self.is_tls and not self._wait(sock):
                    return False
                try:
                    self.read(sock, RECEIVE_BYTES_MAX, self.time_s())
                except NOT_NOW:
                    if not self._wait(sock):
                        return False
                    is_stream = False
                    continue
                if self.read_bytes == 0:
                    # The loop's next read finds the same.
                    return False
                self.came_s = self.time_s()
                return True
        except NOT_NOW:
            return False
        except OSError as error:
            self.failure = error
        return False

    cdef bint _wait(self, sock) except -1:
        """True once the socket can be read; False where the loop was woken, or the time is over."""
        cdef pollfd[2] watched
        cdef double wait_s = self.flows_until_s - monotonic_s()
        cdef int count
        if wait_s <= 0:
            return False
        wake_reader = self.holder.wake_reader
        watched[0].fd = sock.fileno()
        watched[1].fd = -1 if wake_reader is None else wake_reader.fileno()
        watched[0].events = watched[1].events = POLLIN
        with nogil:
            count = poll(watched, 2, <int>(wait_s * 1000) + 1)
        return count > 0 and watched[1].revents == 0

    def advance(self, arrived, finished, dict reasons not None) -> int:
        """Move the next packets of one kind from the parser to where they are kept; returns as `Inbound.advance`.

        Where there is none, our answers and what now has room are made ready to be sent.
        arrived: extended by messages. finished, reasons: see `Outbox.on_acks`. Raises ProtocolError.
        """
        cdef int found
        try:
            found = self.inbound.advance()
            while found == FOUND_NOTHING and self._goes_on():
                found = self.inbound.advance()
            if found == FOUND_ACKS:
                self.outbox.put_acks()
                # Also of what another thread has sent and not yet noted: for the session it was asked once offered.
                self.answer_bytes = self.outbox.on_acks(self.inbound.acks, finished, reasons)
            elif found == FOUND_MESSAGES:
                arrived.extend(self.inbound.messages)
            elif found == FOUND_PACKET:
                self.packet = self.inbound.packet_command, self.inbound.packet_body
            else:
                self.has_more = False
            return found
        except ProtocolError:
            raise
        except BaseException:
            self.is_torn = True
            raise
