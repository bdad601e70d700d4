"""Changes to the queue of a running manager that an operator asks for: quarantine looked through, messages deleted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from glec_fast.errors import MessageError

if TYPE_CHECKING:
    from glec_fast.fleet.manager import MQTTManager

# In one packet; whoever has more asks again.
NUMBERS_MAX = 1000


def upkeep_of(manager: MQTTManager) -> Mapping[str, Callable[[dict[str, Any]], dict[str, object]]]:
    """The questions, each an order, that the owner of a queue is given: by name, called with the packet's content."""
    return {
        "retry": lambda content: {"given": manager.retry_quarantined(_numbers(content))},
        "delete": lambda content: {"deleted": manager.delete_quarantined(_numbers(content))},
        "purge": lambda content: {"asked": manager.purge(_numbers(content))},
    }


def _numbers(content: dict[str, Any]) -> list[int]:
    numbers = content.get("numbers")
    if not isinstance(numbers, list) or not all(type(each) is int and 0 < each < 1 << 63 for each in numbers):
        raise MessageError("numbers must be a list of whole numbers above 0")
    if len(numbers) > NUMBERS_MAX:
        raise MessageError(f"{len(numbers)} numbers at once, more than {NUMBERS_MAX}: ask in parts")
    return numbers
