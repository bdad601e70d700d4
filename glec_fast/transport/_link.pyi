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
    packet: tuple[int, bytes] | None

    def __init__(self, outbox: Outbox, inbound: Inbound) -> None: ...
    @property
    def lock(self) -> Lock: ...
    lacks_connect: bool
    @property
    def is_torn(self) -> bool:
        """An exception has parted a pair: the connection must end."""
    @property
    def has_more(self) -> bool: ...
    @property
    def answer_bytes(self) -> int: ...
    @property
    def sent_bytes(self) -> int:
        """Given to the sockets of all connections, before they are encrypted."""
    @property
    def received_bytes(self) -> int:
        """As `sent_bytes`, of what came."""
    failure: OSError | None
    """What the socket met in `flow`: the connection is to end."""
    left_s: float
    """When bytes last left by `flow`, 0 where none did."""
    came_s: float
    """When bytes last came by it."""
    def flow(self, holder: Any, for_s: float, pause: Callable[[], None], time_s: Callable[[], float]) -> None: ...
    def flow_no_more(self) -> None: ...
    def begin(self, is_tls: bool = False) -> None: ...
    def end(self) -> None: ...
    def do(self, step: Callable[..., T], *arguments: Any) -> T: ...
    def wake(self, writer: socket.socket) -> None: ...
    def hear(self, reader: socket.socket) -> bool: ...
    def write(self, holder: Any, limit: int) -> tuple[int, bool]: ...
    def read(self, sock: Any, limit: int, now_s: float) -> int: ...
    def advance(
        self,
        arrived: deque[InboundMessage],
        finished: deque[PublishHandle],
        reasons: dict[int, tuple[int, int, int, bytes]],
    ) -> int: ...
