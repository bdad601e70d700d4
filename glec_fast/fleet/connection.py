"""What becomes of a manager's connection: counted, logged, and told to the program."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from glec_fast.errors import ConfigError, ConnectionLostError
from glec_fast.runtime.log import logger, shown
from glec_fast.runtime.thread import is_kept_in

if TYPE_CHECKING:
    from glec_fast.engine.connector import CertificateExpiry
    from glec_fast.errors import SubscriptionRefusedError
    from glec_fast.fleet.metrics import LinkState
    from glec_fast.runtime.summing_log import SummingLog


class ConnectionCallback:
    """Derive from this and override what you need. Called from the network thread; no lock is held.

    topic_filter: as `subscribe` was given it. cause: why, an error of `glec_fast.errors` or of the network.
    """

    def on_connected(self) -> None:
        """The broker accepted the connection; what was queued is now sent."""

    def on_connection_lost(self, cause: Exception | None) -> None:
        """The connection ended. `cause` is None where `disconnect` ended it."""

    def on_reconnecting(self) -> None:
        """An attempt to connect again begins."""

    def on_subscription_refused(self, topic_filter: str, cause: SubscriptionRefusedError) -> None:
        """The broker refuses a filter of `subscribe`. It is asked again on the next connection."""

    def on_connect_failed(self, cause: Exception) -> None:
        """An attempt failed: PinningError, TLSError, TLSFileError, BrokerRefusalError, or the network's OSError.

        ConnectionLostError where what answered did not speak MQTT, or closed the connection before it took the login.
        """


CONNECTION_EVENTS = [name for name in vars(ConnectionCallback) if name.startswith("on_")]


def check_connection_callback(callback: object) -> None:
    """Refuse what could not be told of connections. Raises ConfigError."""
    for event in CONNECTION_EVENTS:
        if not callable(getattr(callback, event, None)):
            says = f"callback is {type(callback).__name__} without {event}; derive it from ConnectionCallback"
            raise ConfigError(says, field="callback")


class Reports:
    """Its figures are read by any thread, and changed by whoever has the connection; `enter` also by who ends it."""

    def __init__(self, log: SummingLog) -> None:
        self._log = log
        self.callback = ConnectionCallback()
        self.attempts = self.connects = self.reconnect_count = 0
        self.state: LinkState = "idle"
        self._state_since_s = time.monotonic()
        self.last_failure: str | None = None
        self._was_connected = self._is_failure_told = False
        self._expiry_told: set[CertificateExpiry] = set()

    @property
    def in_state_s(self) -> float:
        """For how long `state` has been what it is."""
        return time.monotonic() - self._state_since_s

    def enter(self, state: LinkState) -> None:
        """`state` begins."""
        self._state_since_s = time.monotonic()
        self.state = state

    def on_attempt(self) -> None:
        """An attempt to connect begins."""
        self.attempts += 1
        self._is_failure_told = False
        if self.attempts > 1:
            self.tell("on_reconnecting")

    def on_failed(self, level: int, url: str, error: Exception) -> None:
        """An attempt has failed."""
        self._is_failure_told = True
        # What a proxy says may have lines of its own.
        self.last_failure = why = " ".join(str(error).split())
        self._log.note(level, "attempts to connect failed", why, text=f"no connection to {url}: {why}")
        self.tell("on_connect_failed", error)

    def on_accepted(self) -> None:
        """The broker accepts a connection; `tell_connected` follows, once the gateway has said so itself."""
        self.reconnect_count += self.connects > 0
        self.connects += 1
        self._was_connected = True
        self.enter("connected")

    def tell_connected(self, url: str) -> None:
        """All that is to be on a connection before the program hears of it is."""
        self._note_link(logging.INFO, f"connected to {url}")
        self.tell("on_connected")

    def on_ended(self, url: str, why: str, *, is_lost: bool, is_last: bool) -> None:
        """A connection is over, which the broker may not have accepted. is_lost: nobody here wanted that."""
        if not self._was_connected:
            if is_lost and not self._is_failure_told:
                self.on_failed(logging.WARNING, url, ConnectionLostError(why))
            return
        self._was_connected = False
        cause: ConnectionLostError | None = None
        if is_lost:
            cause = ConnectionLostError(f"the connection to {url} was lost: {why}")
            self._note_link(logging.WARNING, str(cause))
        else:
            self._note_link(logging.INFO, f"left {url}")
        if not is_last:
            self.enter("connecting")
            self.last_failure = None if cause is None else str(cause)
        self.tell("on_connection_lost", cause)

    def note_expiring(self, certificates: Iterable[CertificateExpiry]) -> None:
        """Log each of them once."""
        for each in certificates:
            if each not in self._expiry_told:
                self._expiry_told.add(each)
                end = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(each.expires_at_s))
                logger.warning("the %s's certificate %s expires on %s: renew it", each.owner, each.subject, end)

    def tell(self, event: str, *arguments: object) -> None:
        """Call the program's method of this name; what it raises is logged."""
        try:
            getattr(self.callback, event)(*arguments)
        except BaseException as error:
            if not is_kept_in(error):
                raise
            text = f"the connection callback's {event} failed: {shown(error)}"
            self._log.note(logging.ERROR, "errors in the connection callback", text, text=text, error=error)

    def _note_link(self, level: int, change: str) -> None:
        self._log.note(level, "changes of the connection", change, text=change)
