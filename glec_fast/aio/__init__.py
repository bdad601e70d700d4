"""The fleet API for asyncio: `AsyncMQTTManager`, on the program's own loop.

Must not know of bytes on the wire or SQL, nor hold the loop up: what waits is for the store's thread, or a pool's.
"""

from glec_fast.aio.handle import DeliveryHandle
from glec_fast.aio.manager import AsyncMQTTManager

__all__ = ["AsyncMQTTManager", "DeliveryHandle"]
