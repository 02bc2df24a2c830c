"""Status codes both sides of the farm speak, and the error that carries one."""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """Error codes of the protocol. ``text`` is the name used in logs and repository index reasons."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7

    @property
    def text(self) -> str:
        """The code's name in logs and reasons."""
        return _TEXTS[self]


_TEXTS = {
    Code.UNKNOWN: "Unknown",
    Code.INTERNAL: "Internal",
    Code.NOT_FOUND: "Not found",
    Code.INVALID_ARG: "Invalid argument",
    Code.UNAVAILABLE: "Unavailable",
    Code.UNSUPPORTED: "Unsupported",
    Code.ALREADY_EXISTS: "Already exists",
    Code.CANCELLED: "<invalid code>",
}


class StatusError(Exception):
    """A failure that is answered to a client: a code and a message fit for its eyes.

    ``str()`` is the message alone; ``reason`` is the form of logs and index entries.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def reason(self) -> str:
        """``<code>: <message>``."""
        return f"{self.code.text}: {self.message}"


def label(request_id: str) -> str:
    """The prefix that error messages about a request carry."""
    return f"[request id: {request_id or '<id_unknown>'}] "


def invalid(message: str) -> StatusError:
    """An INVALID_ARG error."""
    return StatusError(Code.INVALID_ARG, message)


def internal(message: str) -> StatusError:
    """An INTERNAL error."""
    return StatusError(Code.INTERNAL, message)


def not_found(message: str) -> StatusError:
    """A NOT_FOUND error."""
    return StatusError(Code.NOT_FOUND, message)


def unavailable(message: str) -> StatusError:
    """An UNAVAILABLE error."""
    return StatusError(Code.UNAVAILABLE, message)


def unsupported(message: str) -> StatusError:
    """An UNSUPPORTED error."""
    return StatusError(Code.UNSUPPORTED, message)
