"""What a manager wants of its connections: pauses as the specification says, other routes, and no end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from glec_fast.engine.backoff import Backoff
from glec_fast.engine.policy import Failed, Policy
from glec_fast.engine.proof import SHORT_LIFE_S, SHORT_LIVES, Proof
from glec_fast.errors import PinningError
from glec_fast.runtime.log import logger, shown

if TYPE_CHECKING:
    from glec_fast.durable.outcomes import Dropped
    from glec_fast.engine.routes import Routes
    from glec_fast.fleet.config import MQTTConfig
    from glec_fast.runtime.summing_log import SummingLog

_TICK_AGAIN_S = 1.0


class FleetPolicy(Policy):
    """Waits as the specification says, ticks for its manager's timers also while it waits, and goes on for ever."""

    def __init__(
        self,
        config: MQTTConfig,
        tick: Callable[[], float],
        on_dropped: Callable[[list[Dropped]], None],
        log: SummingLog,
        routes: Routes,
    ) -> None:
        self.backoff = Backoff(
            config.retry_initial_delay_ms / 1000,
            config.retry_max_delay_ms / 1000,
            config.retry_max_attempts,
            config.retry_jitter,
        )
        self.retries_first = config.auto_reconnect
        self._proof = Proof()
        self.pin_failures = 0
        self.on_dropped = on_dropped
        self._tick = tick
        self._log = log
        self._routes = routes
        self._initial_delay_s = config.retry_initial_delay_ms / 1000
        # True where the broker has messages that it sends again on a new connection alone.
        self.must_ask_again: Callable[[], bool] = _never
        # The connection was left for that: the next one is made at once.
        self.is_asking_again = False
        # Has the client connect to the current route.
        self.aim: Callable[[], None] = _nowhere
        # Tells the consumers at a broker that is left for another.
        self.take_leave: Callable[[], None] = _nowhere

    @property
    def is_moving(self) -> bool:  # type: ignore[override]
        """See `Policy`."""
        return self._routes.is_returning or self.must_ask_again()

    def on_moving(self) -> None:
        """See `Policy`. Where it comes back at once, consumers need not know."""
        if self._routes.is_returning:
            self.take_leave()

    def begin_attempt(self) -> None:
        """See `Policy`."""
        super().begin_attempt()
        self.aim()

    def tick(self) -> float:
        """See `Policy`. What fails in it ends no connection, nor the thread that waits for the next."""
        try:
            self._log.tick()
            self._routes.tick()
            return max(min(self._tick(), self._log.due_in_s(), self._routes.due_in_s()), 0.0)
        except Exception as error:
            self._log.note(logging.ERROR, "failures of the network thread", shown(error), error=error)
            return _TICK_AGAIN_S

    def next_delay_s(self) -> float:
        """See `Policy`."""
        if self.is_asking_again:
            self.is_asking_again = False
            return 0.0
        if self._routes.turn():
            return self._routes.spread_s(self._initial_delay_s)
        if isinstance(self.connect_error, PinningError):
            # No fault of the network, which might pass in a moment.
            return self.backoff.longest_delay_s()
        return self.backoff.next_delay_s()

    def on_accepted(self, answered_count: int) -> None:
        """The broker accepts a connection; so many acknowledgements came before it. It may yet end it at once."""
        self._proof.begin(time.monotonic(), answered_count)

    def look_for_proof(self, answered_count: int) -> None:
        """A connection that has proved itself lets the waits begin anew."""
        if self._proof.look(time.monotonic(), answered_count):
            self.backoff.reset()

    def on_ended(self, answered_count: int, *, in_order: bool) -> None:
        """A connection that was accepted has ended, in order by the broker or otherwise."""
        self.is_asking_again = self.must_ask_again()
        self.look_for_proof(answered_count)
        if self._proof.end(time.monotonic(), in_order=in_order):
            cause = f"the broker ended {SHORT_LIVES} in a row within {SHORT_LIFE_S:g} s of accepting them"
            hint = "is there another client with this client id? The waits before the next grow"
            self._log.note(logging.WARNING, "connections that do not last", cause, text=f"{cause}: {hint}")

    def fail_attempt(self, error: OSError) -> bool:
        """See `Policy`."""
        super().fail_attempt(error)
        self.pin_failures += isinstance(error, PinningError)
        return True

    def goes_on(self, failed: Failed, error: Exception) -> bool:
        """See `Policy`. Nothing that fails in the network thread may end it while the manager lives."""
        if isinstance(error, OSError) and not self.retries_first:
            # The first attempt failed, and none is to follow.
            logger.error("no connection is made again: %s", error)
            return False
        self._log.note(logging.ERROR, "failures of the network thread", shown(error), error=error)
        return failed.begins_anew()


def _nowhere() -> None:
    """Until there is a client."""


def _never() -> bool:
    """Until something comes."""
    return False
