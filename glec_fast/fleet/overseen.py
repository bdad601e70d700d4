"""What an operator asks of a queue, whoever has it open."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from glec_fast.runtime.process import OfOneProcess
from glec_fast.validation import check_ids

if TYPE_CHECKING:
    from glec_fast.durable.in_doubt import InDoubt
    from glec_fast.durable.quarantine import Quarantined
    from glec_fast.durable.store import Store


class Overseen(OfOneProcess):
    """Has a queue. These are for any thread, and wait for the disk."""

    _store: Store

    def in_doubt(self) -> list[InDoubt]:
        """QoS 2 messages that a broker may or may not have passed on when it lost its session, oldest first.

        Each says what was decided (`MQTTConfig.resend_in_doubt`). The newest 1,000 are kept. Raises QueueStorageError,
        QueueClosedError; so do the others.
        """
        return self._store.in_doubt()

    def quarantined(self) -> list[Quarantined]:
        """What stands aside, oldest first: messages that a broker refused, or ended connections over, and odd rows.

        See docs/internals/quarantine.md.
        """
        return self._store.quarantined()

    def retry_quarantined(self, numbers: Iterable[int]) -> list[int]:
        """Accept the messages of these entries anew, and return their new ids; a number without an entry has none.

        numbers: of the entries. Raises MessageError for one that no message can be made of; those before it are in the
        queue then.
        """
        given = [self._store.retry_quarantined(number) for number in check_ids("numbers", numbers)]
        return [message_id for message_id in given if message_id is not None]

    def delete_quarantined(self, numbers: Iterable[int]) -> int:
        """Delete the entries of these `numbers` for good; returns how many there were."""
        return self._store.delete_quarantined(numbers)
