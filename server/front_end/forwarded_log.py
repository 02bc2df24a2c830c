"""The log of a front end: the server process's."""

from __future__ import annotations

from collections.abc import Callable

from ..log import Log
from .messages import FromFrontEnd, Logged


class ForwardedLog(Log):
    """Has the server process write each line, as its settings are there."""

    def __init__(self, tell: Callable[[FromFrontEnd], None]) -> None:
        super().__init__()
        self._tell = tell

    def record(self, severity: str, message: str, place: str, pid: int | None = None) -> None:
        """As the base class says; the process is told by whoever writes the line."""
        # Names of files need not be text.
        self._tell(Logged(severity, message.encode("utf-8", "backslashreplace").decode(), place))
