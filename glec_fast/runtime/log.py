"""The logger "glec_fast", to write to. What a handler of the program's raises is told, and keeps nothing undone.

A record may be in the middle of anything: a transaction, a salvage, the end of a connection. Python's own handlers tell
of their failures on standard error and go on; so does whatever is logged here, also where a handler or filter raises.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from glec_fast.runtime.thread import is_kept_in


class Log:
    """The methods of `logging.Logger` that write. Thread-safe.

    An exception from outside, as of a signal, goes through it. But in a thread of ours there are none: what is raised
    there is a handler's, also a SystemExit, and that thread must not end by it.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self.isEnabledFor = self._logger.isEnabledFor

    def log(self, level: int, text: str, *arguments: object, exc_info: Any = None, stacklevel: int = 1) -> None:
        """As `logging.Logger.log`."""
        try:
            self._logger.log(level, text, *arguments, exc_info=exc_info, stacklevel=stacklevel + 1)
        except BaseException as error:
            if not is_kept_in(error):
                raise
            _tell(error, self._logger.name, level, text, arguments)

    def debug(self, text: str, *arguments: object) -> None:
        """As `logging.Logger.debug`; and so are those below."""
        self.log(logging.DEBUG, text, *arguments, stacklevel=2)

    def warning(self, text: str, *arguments: object) -> None:
        """See `debug`."""
        self.log(logging.WARNING, text, *arguments, stacklevel=2)

    def error(self, text: str, *arguments: object) -> None:
        """See `debug`."""
        self.log(logging.ERROR, text, *arguments, stacklevel=2)

    def exception(self, text: str, *arguments: object) -> None:
        """See `debug`."""
        self.log(logging.ERROR, text, *arguments, exc_info=True, stacklevel=2)

    def critical(self, text: str, *arguments: object, exc_info: Any = None) -> None:
        """See `debug`."""
        self.log(logging.CRITICAL, text, *arguments, exc_info=exc_info, stacklevel=2)


def _tell(error: BaseException, name: str, level: int, text: str, arguments: tuple[object, ...]) -> None:
    """As a handler of Python's does of its own."""
    record = logging.LogRecord(name, level, "", 0, text, arguments, sys.exc_info())
    try:
        logging.Handler().handleError(record)
    except Exception:
        # Nobody listens there either.
        del error


def shown(error: BaseException) -> str:
    """`repr`, of an error of the program's that may have none."""
    try:
        return repr(error)
    except Exception:
        return type(error).__name__


logger = Log("glec_fast")
