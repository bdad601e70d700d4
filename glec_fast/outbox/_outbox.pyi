from collections import deque
from collections.abc import Callable, Collection
from typing import Any
from weakref import WeakValueDictionary

from paho.mqtt.client import PayloadType
from paho.mqtt.properties import Properties

from glec_fast.durable._steps import Finished
from glec_fast.durable.extras import Extras
from glec_fast.durable.in_doubt import Decision
from glec_fast.durable.store import Store
from glec_fast.durable.transaction import Row
from glec_fast.mqtt.inbound_message import InboundMessage
from glec_fast.outbox._pace import Pace
from glec_fast.outbox.handle import PublishHandle
from glec_fast.outbox.quota import Quota
from glec_fast.protocol._session import Session
from glec_fast.runtime._lock import Condition, Lock

class Message:
    """A QoS 1 or 2 message in memory, as `publish` took it, until the server has taken it over."""

    @property
    def topic(self) -> str:
        """Its topic."""
    @property
    def payload(self) -> bytes:
        """Its payload."""
    @property
    def qos(self) -> int:
        """0 only where it is traced."""
    @property
    def retain(self) -> bool:
        """The flag of that name (MQTT 3.3.1.3)."""
    @property
    def properties(self) -> bytes | None:
        """Packed (MQTT 5, 2.2.2), or None."""
    @property
    def mid(self) -> int:
        """Its packet id."""
    @property
    def handle(self) -> PublishHandle:
        """What `publish` returned."""

class Outbox:
    """What both kinds share. Thread-safe. `on_work` is called, from any thread, when there is something to send.

    window: most exchanges in flight, 1 to 65534, 0 for that. durable, max_unreleased: see Session.
    """

    is_open: bool
    """A server has accepted the connection, and it lasts."""
    is_left: bool
    """The server ended the connection in order, or said that it does."""
    is_broken_off: bool
    """It broke the connection off."""
    is_violated: bool
    """It sent what the protocol does not allow, and we end the connection."""
    is_silent: bool
    """We did, as it said nothing any more."""
    left_reason: int
    """Of the server's DISCONNECT (MQTT 5, 3.14.2.1), 0 for none."""
    probes: int
    """So many PINGREQs of its own are not answered."""
    is_awaited: bool
    """On this connection, and before the server has accepted it, something was published."""
    is_session_foreign: bool
    """The session that the server keeps may be of another queue file: it must be discarded before `resume`."""
    is_woken: bool
    """The network loop has been told of work, and has not looked yet."""
    is_traced: bool
    """Keep what is encoded for `take_trace`."""
    is_asking: bool
    """The broker is asked for something that is none of the program's business, see `Uptime`."""
    sent_count: int
    """Messages that the server has taken over (QoS 0: the socket)."""
    lost_in_the_air: int
    """Messages of QoS 0 that had left as a connection ended, without proof that they arrived, and not queued again."""
    untold: list[PublishHandle]
    """Finished when a connection went, and not yet handed out by `settle`."""
    _published: Condition
    _on_work: Callable[[], None]

    def __init__(self, window: int, on_work: Callable[[], None], *, durable: bool, max_unreleased: int = 0) -> None: ...
    @property
    def is_linked(self) -> bool:
        """CONNECT was put, and the connection lasts."""
    @property
    def session(self) -> Session:
        """Used with `lock` held."""
    @property
    def worth_writing_bytes(self) -> int:
        """With more than that encoded and not sent, a caller of `publish` writes it himself."""
    @property
    def lock(self) -> Lock:
        """Around the session and what waits for it."""
    @property
    def has_trace(self) -> bool:
        """True where `take_trace` has something to give."""
    def begin_write(self, limit: int) -> bytes:
        """The next bytes for the socket, at most `limit`."""
    def end_write(self, size: int) -> bool:
        """The socket took `size` bytes of them. True once the packet put as `last` has left."""
    def on_torn(self) -> None:
        """In place of `end_write`, where an exception cut in and nobody knows what has left."""
    def settle_into(self, finished: deque[PublishHandle]) -> None:
        """Extend it by the handles of what is finished."""
    def take_trace(self) -> list[tuple[Message, int]]:
        """(message, first byte of the packet) of all that was encoded since the last call."""
    def greet(self, session_present: bool, receive_maximum: int) -> None:
        """The server accepted the connection, and on_connect is called next; `resume` follows, with the same values."""
    def note_answers(self) -> None:
        """The session was given answers of the server; the caller holds the lock."""
    def on_heard_out(self) -> None:
        """The server has ended the connection as our DISCONNECT asked it to: it has read all that was before that."""
    def on_pong(self) -> None:
        """PINGRESP came, one of several that were asked for at once."""
    def on_pingresp(self) -> None:
        """PINGRESP came. What that ends is told with the next that are finished."""
    def put_packet(self, packet: bytes | bytearray, *, first: bool = False, last: bool = False) -> bool:
        """Append a control packet; nothing leaves before one that is `first` or after one that is `last`.

        False where it would go before the first: it was not taken.
        """
    def put_ack(self, ack: bytes) -> None:
        """An acknowledgement of ours. It goes out before whatever is put or published after it."""
    def acknowledge(self, arrived: deque[InboundMessage], received: dict[int, Any] | None, is_manual: bool) -> None:
        """The first of `arrived` has gone through its callbacks; QoS 2 goes to `received`, and has them yet to come.

        is_manual: the program answers QoS 1 itself.
        """
    def put_acks(self) -> None:
        """What `put_ack` gave may leave."""
    @property
    def answer_bytes(self) -> int:
        """Answers to what the server sent, that it has not read; what else it read since counts for it."""
    def on_acks(
        self, acks: bytes, finished: deque[PublishHandle], reasons: dict[int, tuple[int, int, int, bytes]]
    ) -> int:
        """The server acknowledges; returns the bytes of the answers to that, which are encoded.

        finished, reasons: extended by the handles of what that ends, and by what the acknowledgements carried. Raises
        as `Session.on_acks` does, with what came before it settled.
        """
    def drop_acks(self) -> None:
        """The connection is gone, and with it whom they were for."""
    def reserve_packet_id(self) -> int:
        """An id for SUBSCRIBE or UNSUBSCRIBE, that of nothing else until `release_packet_id`; 0 where all are taken."""
    def release_packet_id(self, packet_id: int) -> None:
        """SUBACK or UNSUBACK came. An id that was not reserved is left as it is."""
    def _release_control_ids(self) -> None: ...
    @property
    def is_to_settle(self) -> bool:
        """True where `settle` has something to hand out."""
    def settle(self) -> list[PublishHandle]:
        """The handles of what is finished, in that order; the caller holds the lock."""
    def after_settle(self) -> None:
        """Pass on what `settle` found. Not under the lock."""
    @property
    def is_stored(self) -> bool:
        """Its messages outlive the process, and what is to be sent comes from a thread of its own too."""
    @property
    def max_queued(self) -> int:
        """Most unacknowledged messages, 0 for no limit; with a store, most in the queue."""
    def __len__(self) -> int: ...
    def unfinished(self, stops_by_s: float | None) -> int:
        """So many messages keep the network thread after `loop_stop`, until `stops_by_s` of `time.monotonic`."""
    def has_to_send(self) -> bool:
        """True where something was published that is yet to leave on this connection, and can before long."""
    def pull(self) -> None:
        """Make ready to be sent what the window has room for."""
    def park(self) -> object:
        """The connection is gone."""
    def resume(self, session_present: bool, receive_maximum: int) -> None:
        """The broker accepted the connection: send again what was not acknowledged, then what waits."""
    def identify(self, client_id: str, owner: str, members: Collection[str] = (), apart: Collection[str] = ()) -> None:
        """Say whose session comes next, before each connection."""
    def left_packet_ids(self) -> list[int]:
        """Of messages that a session which is to be discarded may hold: it is to have a PUBREL for each before that."""
    def on_left_released(self) -> None:
        """The server has read them."""
    def meet(self, connack: dict[str, Any], asked_s: int) -> None:
        """The server accepted the connection, and said this of itself; it was asked to keep the session so long."""
    def tell_all(self, wanted: bool) -> None:
        """Whether `settle` makes a handle for each message that nobody holds one of."""
    @property
    def pull_at_s(self) -> float:
        """When `pull` has something to do though nothing happens, of `time.monotonic`."""
    @property
    def is_due(self) -> bool:
        """True where `pull` has refused messages to send again."""
    @property
    def has_timers(self) -> bool:
        """True where something of it is to be looked at again before long, though nothing happens."""
    def look_for_answers(self) -> None:
        """Now and then, on a connection that lasts: ask for acknowledgements that are overdue."""
    def hasten(self) -> None:
        """What waits for the disk is wanted on the connection."""
    def wait_direct(self, deadline_s: float) -> bool:
        """Wait until the socket has what is kept nowhere else; False at the deadline, of `time.monotonic`."""
    def begin_close(self) -> None:
        """`close` is next: what would be lost by then is still to be waited for, and nothing else."""
    def close(self) -> None:
        """No message comes any more."""
    def is_own_thread(self) -> bool:
        """True where the caller is a thread of the outbox, which must not wait for itself."""
    def forbid(self, pid: int) -> None:
        """In a forked child of process `pid`: the messages are that one's."""
    def clear(self) -> list[Message]:
        """Forget every unacknowledged message and return them in order. Raises UnsupportedError with a store."""
    def message_ids(self) -> list[int]:
        """Of the unacknowledged messages that a program may look at, in order."""
    def find(self, message_id: int) -> Message | None:
        """That one of them; None where it is not one."""
    def has_message(self, message_id: int) -> bool:
        """True for an unacknowledged one."""
    def unsent_packets(self) -> int:
        """Those that the socket does not have yet."""
    def waiting_ids(self) -> set[int]:
        """Of those that are not on their way on this connection."""
    def drop(self, message_id: int) -> Message | None:
        """Forget that one, and return it; None where it is not one. What is on its way may arrive all the same."""
    def restore(self, mid: int, topic: str, payload: bytes, qos: int, retain: bool, properties: bytes | None) -> None:
        """Take a message with the packet id that it had.

        Raises ValueError where that is another's, UnsupportedError with a store.
        """
    def refuse_renewal(self) -> None:
        """Its client is made anew. Raises UnsupportedError with a store: its messages would be left without one."""
    def set_max_queued(self, value: int) -> None:
        """Most unacknowledged messages, 0 for no limit but the store's."""
    @property
    def store(self) -> Store:
        """Where the messages are. Raises UnsupportedError in memory."""
    def handle_for(self, message_id: int) -> PublishHandle | None:
        """The handle of a message accepted before. Raises UnsupportedError in memory."""

class MemoryOutbox(Outbox):
    """Messages in memory, as in paho: they have their packet id from `publish` on, and end with the process."""

    def __init__(self, window: int, on_work: Callable[[], None]) -> None: ...
    def park(self) -> list[PublishHandle]:
        """The connection is gone. Returns the handles of QoS 0 messages that went with it."""
    def greet(self, session_present: bool, receive_maximum: int) -> None:
        """See `Outbox.greet`. What is published from now on goes before what is sent again."""
    def resume(self, session_present: bool, receive_maximum: int) -> None:
        """The broker accepted the connection: send again what was not acknowledged, then what waits.

        QoS 2 messages that the broker had received before it lost its session are its own: `settle` hands them out.
        """

UNSENT_BYTES_MAX: int
"""Encoded and not yet taken by the socket; more would only be memory."""

class Registration:
    """Called with the id that the store gave a message: from then on the message's handle is found by it."""

    def __init__(self, handle: PublishHandle, handles: WeakValueDictionary[int, PublishHandle]) -> None: ...
    def __call__(self, message_id: int) -> None: ...

class RowOutbox(Outbox):
    """The part of an outbox over a store that every turn of a flush goes through; `DurableOutbox` is the rest.

    handle_type: what `new_handle` makes.
    """

    handle_type: type[PublishHandle]
    def new_handle(self, qos: int) -> PublishHandle:
        """Of a message that is given to the store next, which says its id."""

    _rows: list[Row]
    _rows_gone: int
    _alerts: list[Row]
    _alerts_gone: int
    _more_to_read: bool
    _may_have_orphans: bool
    _again: list[int]
    _again_at_s: float
    _refused: list[int]
    _finished: Finished
    _in_doubt: list[tuple[int, Decision]]
    _tells_all: bool
    is_opening: bool
    """The server has accepted the connection, and what waits is read for it before it is open."""
    has_progress: bool
    """Something was acknowledged on this connection."""
    asks_at_once: bool
    """PINGREQ goes right behind QoS 0 of the store, where nothing else of it waits."""
    is_narrow: bool
    """The window is one exchange, and no QoS 0 goes, until `_may_widen`."""
    has_remarks: bool
    """`_note_remarks` has something to note or to tell."""
    has_suspects: bool
    """Messages are suspected of ending connections: `_note_answered` is to hear of what is finished."""
    has_refusals: bool
    """The broker has refused a message on this connection, and may end it for that."""
    is_reading: bool
    """Rows are between the store and `_rows`."""
    is_downgrade_recorded: bool
    """The ledger has a message that this broker took as QoS 1."""

    in_doubt_count: int

    def __init__(
        self,
        store: Store,
        window: int,
        on_work: Callable[[], None],
        *,
        max_unreleased: int = 0,
        resend_in_doubt: bool = False,
    ) -> None: ...
    @property
    def store(self) -> Store:
        """Where the messages are."""
    @property
    def _handles(self) -> WeakValueDictionary[int, PublishHandle]: ...
    @property
    def _direct(self) -> dict[int, tuple[str, str | bytes, Extras | None, PublishHandle]]: ...
    @property
    def _said(self) -> set[int]: ...
    @property
    def _pulling(self) -> Lock: ...
    quota: Quota | None
    """Of what leaves, where that is bounded by count."""
    _granted: int
    @property
    def pace(self) -> Pace:
        """How many bytes may be on their way."""
    def pull(self) -> None:
        """Encode the next rows as far as the window has room, and read more of them from the store."""
    def _pull(self) -> None: ...
    def _have_all_gone(self) -> bool: ...
    def _fill_quota(self) -> bool: ...
    def abandon(self, ids: list[int]) -> list[int] | None:
        """See `glec_fast.durable.transaction.Outbox`."""
    def void_session(self) -> None:
        """The broker knows nothing of what is in flight (MQTT 3.1.1, 3.1.2.4): decide what becomes of each message."""
    def leave_owner(self, again: set[int], received: list[int]) -> None:
        """Messages in flight with a broker that another takes the place of: as in `void_session`."""
    def give_up(self, ids: list[int]) -> int:
        """End the exchanges of these messages whose PUBREL is not answered; returns how many there were."""
    def _begin_connection(self, receive_maximum: int) -> tuple[list[int], list[int]]:
        """(what is parked, what is finished): neither is to be read as new."""
    def _admit_direct(self, row: Row) -> None: ...
    def _end_connection(self) -> tuple[list[int], list[int], list[int], list[Row], int]:
        """As `_begin_connection`, and which of `_direct` had not left."""
    def _requeue(self, direct_ids: list[int], append: Callable[..., None]) -> None:
        """`append(topic, payload, extras, handle)` of each that nobody else has taken over, until one raises."""
    def _finish(self, ids: list[int]) -> None: ...
    def settle(self) -> list[PublishHandle]:
        """The handles of what is finished, where somebody holds one or all are told; the caller holds the lock."""
    def after_settle(self) -> None:
        """Tell the store what is new for it. Not under the lock."""
    def take_finished(self) -> list[int]:
        """See `glec_fast.durable.transaction.Outbox`."""
    def take_image(self, kept: list[tuple[int, int]]) -> tuple[int, bytes, list[tuple[int, Decision]]]:
        """See `glec_fast.durable.transaction.Outbox`."""

def tell(
    finished: deque[PublishHandle],
    reasons: dict[int, tuple[int, int, int, bytes]],
    call: Callable[[PublishHandle], None],
    again: bool,
) -> None:
    """`call(handle)` for each of the deque `finished`, then let its waiters go on, as paho does.

    reasons: what the acknowledgements of these carried. again: where `call` raises, the next `tell` calls it again.
    """

def tell_waiters(finished: deque[PublishHandle], reasons: dict[int, tuple[int, int, int, bytes]]) -> None:
    """As `tell`, where there is nothing to call."""

def call_once(left: list[Any], callback: Callable[..., object], *arguments: Any) -> None:
    """`callback`, which is taken from `left` once it has returned; no exception comes between the two."""

def take_up(received: dict[int, Any], mid: int, callback: Callable[..., None], *arguments: Any) -> None:
    """A message of `received` goes to its callback, once."""

def set_as_published(handles: list[PublishHandle]) -> None:
    """The server has taken these messages over: let those go on who wait for any of them. All are one client's."""

def publish(
    self: Any,
    topic: str,
    payload: PayloadType = None,
    qos: int = 0,
    retain: bool = False,
    properties: Properties | None = None,
) -> PublishHandle:
    """Accept a message for the broker, and return its handle at once: see `glec_fast.Client.publish`."""
