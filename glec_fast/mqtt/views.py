"""What stands where paho keeps its collections of messages and packets: views of what the outbox and the session have.

Programs count, look up and empty them, though their names are private. They are made when they are asked for, so they
cost nothing where nobody does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from paho.mqtt import client as paho
from paho.mqtt.enums import MessageState
from paho.mqtt.packettypes import PacketTypes

from glec_fast._paho import MQTTMessage, encode_payload
from glec_fast.errors import UnsupportedError
from glec_fast.mqtt.inbound_message import OwnMessage, properties_from

if TYPE_CHECKING:
    from collections.abc import Callable

    from glec_fast._paho import Paho
    from glec_fast.engine.network_thread import NetworkThread
    from glec_fast.engine.writing import Writer
    from glec_fast.outbox._outbox import Message, Outbox

_EXACTLY_ONCE = 2


class OutMessages(MutableMapping[int, MQTTMessage]):
    """mid -> message, of those of QoS 1 and 2 that are unacknowledged, in their order. Thread-safe.

    A message is made anew whenever it is asked for; what is changed in it changes nothing. One that is set is sent with
    that packet id, as one of a session that the program has kept. One that is deleted is not sent again, and nobody is
    told. With a store it is as long as the queue, has the ids that are in it, and hands out and forgets no message.
    """

    def __init__(self, paho: Paho, outbox: Outbox, thread: NetworkThread, unforgotten: dict[int, Message]) -> None:
        self._paho = paho
        self._outbox = outbox
        self._thread = thread
        # Acknowledged, and the program has kept them from being forgotten.
        self._unforgotten = unforgotten

    def __len__(self) -> int:
        if self._paho.is_ending and self._thread.is_running:
            # paho's loop asks whether it may end.
            return self._thread.unfinished()
        return len(self._outbox) + len(self._unforgotten)

    def __iter__(self) -> Iterator[int]:
        return iter([*self._unforgotten, *self._outbox.message_ids()])

    def __contains__(self, mid: object) -> bool:
        return isinstance(mid, int) and (mid in self._unforgotten or self._outbox.has_message(mid))

    def __getitem__(self, mid: int) -> MQTTMessage:
        found = self._unforgotten.get(mid) or self._outbox.find(mid)
        if found is None:
            raise KeyError(mid)
        return self._as_paho_s(found, is_waiting=mid in self._outbox.waiting_ids())

    def __setitem__(self, mid: int, message: MQTTMessage) -> None:
        properties = None if message.properties is None else bytes(message.properties.pack())
        payload = bytes(encode_payload(message.payload))
        self._outbox.drop(mid)
        self._outbox.restore(mid, message.topic, payload, message.qos, bool(message.retain), properties)

    def __delitem__(self, mid: int) -> None:
        if self._unforgotten.pop(mid, None) is None and self._outbox.drop(mid) is None:
            raise KeyError(mid)

    def values(self) -> Any:
        """Each as it is when its turn comes. None for paho's own handler of CONNACK, which would send them again."""
        asker = sys._getframe(1)
        if asker.f_code.co_name == "_handle_connack" and asker.f_globals.get("__name__") == paho.__name__:
            return ()
        return _Values(self)

    def items(self) -> Any:
        """As `values`."""
        return _Items(self)

    def clear(self) -> None:
        """Forget all that are in memory."""
        self._unforgotten.clear()
        if not self._outbox.is_stored:
            self._outbox.clear()

    def walk(self) -> Iterator[tuple[int, MQTTMessage]]:
        """(mid, message) of each that is still there when its turn comes."""
        outbox = self._outbox
        mids = list(self)
        waiting = outbox.waiting_ids() if mids else set()
        for mid in mids:
            found = self._unforgotten.get(mid) or outbox.find(mid)
            if found is not None:
                yield mid, self._as_paho_s(found, is_waiting=mid in waiting)

    def _as_paho_s(self, found: Message, *, is_waiting: bool) -> MQTTMessage:
        message = OwnMessage(found.mid, found.topic.encode())
        message.payload, message.qos, message.retain, message.info = (
            found.payload,
            found.qos,
            found.retain,
            found.handle,
        )
        if found.properties is not None:
            message.properties = properties_from(PacketTypes.PUBLISH, found.properties)
        if is_waiting:
            message.state = MessageState.MQTT_MS_QUEUED
        elif found.qos == _EXACTLY_ONCE:
            message.state = MessageState.MQTT_MS_WAIT_FOR_PUBREC
        else:
            message.state = MessageState.MQTT_MS_WAIT_FOR_PUBACK
        return message

    def __repr__(self) -> str:
        return f"<{len(self)} unacknowledged messages>"


class _Walked:
    def __init__(self, messages: OutMessages) -> None:
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    def __reversed__(self) -> Iterator[Any]:
        return iter([*self][::-1])  # type: ignore[misc]


class _Values(_Walked):
    def __iter__(self) -> Iterator[MQTTMessage]:
        return (message for _, message in self._messages.walk())


class _Items(_Walked):
    def __iter__(self) -> Iterator[tuple[int, MQTTMessage]]:
        return self._messages.walk()


class OutPackets:
    """As long as the packets that the socket does not have yet. Thread-safe.

    Nothing can be taken out of it: bytes leave in the order of MQTT. `append` sends a packet of paho's form.
    """

    def __init__(self, paho: Paho, outbox: Outbox, thread: NetworkThread, writer: Writer) -> None:
        self._paho = paho
        self._outbox = outbox
        self._thread = thread
        self._writer = writer

    def __len__(self) -> int:
        if self._paho.is_ending and self._thread.is_running:
            # paho's loop asks whether it may end.
            return self._thread.unsent()
        return self._outbox.unsent_packets()

    def __iter__(self) -> Iterator[Any]:
        """paho looks there for what a connection ends, which the outbox sees to."""
        return iter(())

    def append(self, packet: dict[str, Any]) -> None:
        """Send it behind what waits."""
        self._writer.put(packet["command"], packet["packet"])

    def popleft(self) -> Any:
        """Raises IndexError where there is none, UnsupportedError where there is."""
        if len(self):
            raise UnsupportedError("what is on its way to the broker cannot be taken back: let it go, or disconnect()")
        raise IndexError("pop from an empty deque")

    pop = popleft

    def clear(self) -> None:
        """What a connection has not taken ends with it; on one that lasts, packets leave all the same."""

    def __repr__(self) -> str:
        return f"<{len(self)} packets>"


def counter(read: Callable[[Any], int]) -> Any:
    """A field that says what is so, and is not changed by what is written to it: paho's initialiser writes 0."""

    def ignore(_: Any, __: object) -> None:
        """The session counts."""

    return property(read, ignore)
