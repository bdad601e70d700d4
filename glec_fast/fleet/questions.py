"""What a running manager can be asked over a socket: its figures, its health, its last log lines."""

from __future__ import annotations

import json
import logging
import re
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glec_fast.durable.database import located
from glec_fast.errors import GlecError, MessageError
from glec_fast.fleet.metrics import metrics_as_json
from glec_fast.fleet.packet_server import PacketServer
from glec_fast.runtime._lock import Event
from glec_fast.runtime.log import logger, shown
from glec_fast.runtime.thread import Thread

if TYPE_CHECKING:
    from glec_fast.fleet.manager import MQTTManager

QUESTION_MAX_BYTES = 1 << 16
_LINES_MAX = 50
_LINE_MAX = 500
_WAIT_S = 3600.0
_QUESTION = re.compile(rb'\s*\{\s*"ask"\s*:')


class LastLines(logging.Filter):
    """The last lines of the log. A filter, as a handler would keep Python from writing them where nobody set one up."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[dict[str, object]] = deque(maxlen=_LINES_MAX)

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep it, and let it pass."""
        try:
            text = record.getMessage()[:_LINE_MAX]
        except Exception:
            # Whoever writes it says so.
            text = str(record.msg)[:_LINE_MAX]
        self.lines.append({"time_ms": int(record.created * 1000), "level": record.levelname, "text": text})
        return True


class Questions:
    """Answers for one manager. others: further questions, each called with the packet's content."""

    def __init__(
        self, manager: MQTTManager, others: Mapping[str, Callable[[dict[str, Any]], dict[str, object]]] | None = None
    ) -> None:
        # Its thread must not keep a manager alive that its program has let go of.
        self._manager = weakref.proxy(manager)
        # A program may leave the folder that it is named from.
        self._queue_path = str(located(manager.config.queue_path))
        self._log = LastLines()
        self._known: dict[str, Callable[[dict[str, Any]], dict[str, object]]] = {
            "health": self._health,
            "metrics": self._metrics,
            "log": self._last_lines,
            **(others or {}),
        }
        logging.getLogger("glec_fast").addFilter(self._log)

    def close(self) -> None:
        """No line is kept any more."""
        logging.getLogger("glec_fast").removeFilter(self._log)

    def answer(self, packet: bytes, _descriptors: list[int]) -> dict[str, object]:
        """The answer to a packet, which may be that it is none of the questions."""
        try:
            content = asked(packet)
            if content is None:
                raise MessageError('a packet must be a question, such as {"ask": "health"}')
            return self.answer_to(content)
        except GlecError as error:
            return {"error": str(error), "retryable": error.retryable}
        except Exception as error:
            # Whoever else asks is to be answered.
            logger.exception("a question could not be answered")
            return {"error": f"{shown(error)}: see the log", "retryable": False}

    def answer_to(self, content: dict[str, Any]) -> dict[str, object]:
        """The answer to what `asked` returned. Raises GlecError."""
        question = content["ask"]
        if not isinstance(question, str) or question not in self._known:
            known = ", ".join(self._known)
            raise MessageError(f"a question must be one of {known}: write it as " + '{"ask": "health"}')
        return self._known[question](content)

    def _health(self, _content: dict[str, Any]) -> dict[str, object]:
        metrics = self._manager.get_metrics()
        return {
            # Without a link too: what comes is kept on disk until there is one.
            "healthy": not self._manager.is_queue_damaged(),
            "state": metrics.state,
            "in_state_s": metrics.in_state_s,
            "last_failure": metrics.last_failure,
            "queue_size": metrics.queue_size,
        }

    def _metrics(self, _content: dict[str, Any]) -> dict[str, object]:
        from glec_fast import __version__

        config = self._manager.config
        return {
            "client_id": self._manager.device_id,
            "version": __version__,
            "broker": self._manager.broker_url,
            "queue_path": self._queue_path,
            "limits": {"queue_size": config.queue_max_size, "queue_bytes": config.queue_max_bytes},
            "metrics": metrics_as_json(self._manager.get_metrics()),
        }

    def _last_lines(self, _content: dict[str, Any]) -> dict[str, object]:
        return {"lines": list(self._log.lines)}


class Answering:
    """A manager's own socket, and the thread that answers there. Raises ConfigError."""

    def __init__(self, manager: MQTTManager, path: Path) -> None:
        self._questions = questions = Questions(manager)
        try:
            self._server = server = PacketServer(path, questions.answer, QUESTION_MAX_BYTES, "metrics_socket")
        except BaseException:
            questions.close()
            raise
        self._ending = ending = Event()

        def run() -> None:
            while not ending.is_set():
                server.turn(_WAIT_S)

        self._thread = Thread(target=run, name="glec-fast-questions", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it. Not from its own thread."""
        self._ending.set()
        self._server.wake()
        self._thread.join()
        self._server.close()
        self._questions.close()

    def let_go_in_child(self) -> None:
        """In a forked child: the socket is the parent's."""
        self._server.let_go()


def asked(packet: bytes) -> dict[str, Any] | None:
    """The content of a question; None for a packet that is none. Raises MessageError."""
    if not _QUESTION.match(packet):
        return None
    try:
        content = json.loads(packet)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"a packet is not JSON ({error}): send one object") from error
    assert isinstance(content, dict)
    return content
