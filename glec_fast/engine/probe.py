"""Whether somebody listens at an address, found out beside the connection that is in use."""

from __future__ import annotations

from collections.abc import Callable

from glec_fast.runtime.log import logger
from glec_fast.runtime.thread import Thread
from glec_fast.transport.dial import dial


def probe(host: str, port: int, timeout_s: float, tell: Callable[[bool], None]) -> None:
    """`tell(True)` from another thread if a TCP connection is accepted, `tell(False)` if not; returns at once."""

    def look() -> None:
        try:
            dial(host, port, timeout_s).close()
        except (OSError, UnicodeError) as error:
            logger.debug("%s port %d does not answer yet: %s", host, port, error)
            tell(False)
        else:
            tell(True)

    Thread(target=look, name="glec-fast-probe", daemon=True).start()
