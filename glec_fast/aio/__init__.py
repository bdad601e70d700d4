"""The fleet API for asyncio: `AsyncMQTTManager`, on the program's own loop."""

from glec_fast.aio.handle import DeliveryHandle
from glec_fast.aio.manager import AsyncMQTTManager

__all__ = ["AsyncMQTTManager", "DeliveryHandle"]
