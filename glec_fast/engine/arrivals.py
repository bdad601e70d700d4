"""What handles that which arrives, as the parts that move bytes see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from paho.mqtt.enums import MQTTErrorCode

    from glec_fast.transport._link import Link


class Arrivals(Protocol):
    """For whoever has the client's loop."""

    @property
    def link(self) -> Link:
        """Between the socket, the outbox and the parser."""

    def is_behind(self) -> bool:
        """True where something has come, or left, that no callback was told of yet."""

    def handle(self, sock: Any) -> MQTTErrorCode:
        """Every whole packet that is there, until the connection ends or is about to."""

    def settle_sent(self) -> None:
        """The socket took what ends messages of QoS 0: tell of them."""

    def take_last_acks(self) -> set[int]:
        """What came behind our DISCONNECT: the server has these messages; it keeps what we do not acknowledge.

        Returns the types of the packets among it that are no acknowledgements.
        """

    def tell_published(self, *, again: bool = True) -> None:
        """Call `on_publish` for each. again: where it raises, it is called again for the same message."""

    def pass_over(self) -> None:
        """Go on behind the packet whose callback raised, as `suppress_exceptions` would have."""

    def acknowledge_returned(self) -> None:
        """Nobody has the loop any more: acknowledge what an exception kept from it, behind its callbacks."""
