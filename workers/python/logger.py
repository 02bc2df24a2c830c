"""Lines for the server's log."""

from __future__ import annotations

import enum
import os
import sys

from ..contract.messages import Say
from . import host
from .errors import are, incompatible
from .failure import sayable


class LogLevel(enum.IntEnum):
    """Levels of a line."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


_SEVERITIES = {LogLevel.INFO: "I", LogLevel.WARNING: "W", LogLevel.ERROR: "E", LogLevel.VERBOSE: "V"}


def _say(message: str, level: LogLevel, signature: str) -> None:
    if not are(str, message) or not are(LogLevel, level):
        raise incompatible(signature, message, level)
    speaker = host.required()
    if level is LogLevel.VERBOSE and not speaker.verbose:
        return
    # the line of the model: the caller of the method that called here
    frame = sys._getframe(2)
    speaker.tell(Say(_SEVERITIES[level], sayable(message), os.path.basename(frame.f_code.co_filename), frame.f_lineno))


class Logger:
    """Writes to the server's log, where a line carries the name of the model's file and the number of its line.

    All methods raise TypeError for what is no str.
    """

    __slots__ = ()

    INFO = LogLevel.INFO
    WARNING = LogLevel.WARNING
    ERROR = LogLevel.ERROR
    VERBOSE = LogLevel.VERBOSE

    @staticmethod
    def log(message: str, level: LogLevel = LogLevel.INFO) -> None:
        """Log a line at a level."""
        _say(message, level, "log(message: str, level: Logger.LogLevel = Logger.INFO)")

    @staticmethod
    def log_info(message: str) -> None:
        """Log what happened."""
        _say(message, LogLevel.INFO, "log_info(message: str)")

    @staticmethod
    def log_warn(message: str) -> None:
        """Log what somebody should look at."""
        _say(message, LogLevel.WARNING, "log_warn(message: str)")

    @staticmethod
    def log_error(message: str) -> None:
        """Log what went wrong."""
        _say(message, LogLevel.ERROR, "log_error(message: str)")

    @staticmethod
    def log_verbose(message: str) -> None:
        """Log what only a search for a fault needs; nothing goes out unless the server logs verbosely."""
        _say(message, LogLevel.VERBOSE, "log_verbose(message: str)")


# the level's class is reached through the logger
Logger.LogLevel = LogLevel  # type: ignore[attr-defined]
