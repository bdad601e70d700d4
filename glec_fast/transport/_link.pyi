import socket
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from glec_fast.mqtt.inbound_message import InboundMessage
from glec_fast.outbox._outbox import Outbox
from glec_fast.outbox.handle import PublishHandle
from glec_fast.protocol._inbound import Inbound
from glec_fast.runtime._lock import Lock

T = TypeVar("T")

class Link:
    """Between a client's socket, its outbox and its parser. `write` is thread-safe; one thread reads at a time."""

    packet: tuple[int, bytes] | None
    """(first byte, body) of a packet that is neither an acknowledgement nor a message, until it is handled."""

    def __init__(self, outbox: Outbox, inbound: Inbound) -> None: ...
    @property
    def lock(self) -> Lock:
        """Held while bytes are given to the socket and the session is told, and while TLS is read."""
    lacks_connect: bool
    """A connection was begun, and CONNECT is not among its bytes yet."""
    @property
    def is_torn(self) -> bool:
        """An exception has parted a pair: the connection must end."""
    @property
    def has_more(self) -> bool:
        """The parser may have a whole packet."""
    @property
    def answer_bytes(self) -> int:
        """Of the answers to the last acknowledgements."""
    @property
    def sent_bytes(self) -> int:
        """Given to the sockets of all connections, before they are encrypted."""
    @property
    def received_bytes(self) -> int:
        """As `sent_bytes`, of what came."""
    def begin(self, is_tls: bool = False) -> None:
        """A new connection."""
    def end(self) -> None:
        """The connection is gone, and with it what was not handled yet."""
    def do(self, step: Callable[..., T], *arguments: Any) -> T:
        """`step(*arguments)`, which leaves the session and the connection apart where it does not come to its end."""
    def wake(self, writer: socket.socket) -> None:
        """Have the loop, which waits for the other end of `writer`, look for something to send. Raises OSError."""
    def hear(self, reader: socket.socket) -> bool:
        """True where the loop was woken. Whoever wakes it from here on does so anew. Raises OSError."""
    def write(self, holder: Any, limit: int) -> tuple[int, bool]:
        """Give the socket, `holder.sock`, the next bytes: (how many it took, whether the packet put as `last` left).

        Raises BlockingIOError where it takes none, OSError where the connection is to end.
        """
    def read(self, sock: Any, limit: int, now_s: float) -> int:
        """Feed the parser at most `limit` bytes that have come at `now_s`; returns how many, 0 where the peer has left.

        Raises BlockingIOError or ssl's own errors where nothing has come, OSError where the connection is to end.
        """
    def advance(
        self,
        arrived: deque[InboundMessage],
        finished: deque[PublishHandle],
        reasons: dict[int, tuple[int, int, int, bytes]],
    ) -> int:
        """Move the next packets of one kind from the parser to where they are kept; returns as `Inbound.advance`.

        Where there is none, our answers and what now has room are made ready to be sent.
        arrived: extended by messages. finished, reasons: see `Outbox.on_acks`. Raises ProtocolError.
        """
