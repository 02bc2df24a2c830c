"""Errors as a model makes and meets them."""

from __future__ import annotations

from ..contract.status import Code, StatusError
from . import host


class TritonModelException(Exception):
    """What goes wrong in a call to this module; a model that raises it fails its whole batch with the text."""


UINT32 = range(2**32)


def are(kind: type, *values: object) -> bool:
    """Are all of this type?"""
    return all(isinstance(value, kind) for value in values)


class TritonError:
    """An error that answers one request: a message and a code, ``TritonError.INTERNAL`` where none is given.

    Raises TypeError where the message is no str or the code none of the constants.
    """

    __slots__ = ("_code", "_message")

    UNKNOWN = Code.UNKNOWN
    INTERNAL = Code.INTERNAL
    NOT_FOUND = Code.NOT_FOUND
    INVALID_ARG = Code.INVALID_ARG
    UNAVAILABLE = Code.UNAVAILABLE
    UNSUPPORTED = Code.UNSUPPORTED
    ALREADY_EXISTS = Code.ALREADY_EXISTS
    CANCELLED = Code.CANCELLED

    def __init__(self, message: str, code: Code = Code.INTERNAL) -> None:
        if not are(str, message) or not are(Code, code):
            raise incompatible("TritonError(message: str, code: TritonError code = TritonError.INTERNAL)", message, code)
        self._message = message
        self._code = code

    def message(self) -> str:
        """The text."""
        return self._message

    def code(self) -> Code:
        """One of the constants."""
        return self._code


def within(value: object, limits: range) -> bool:
    """Is it an int in this range?"""
    return isinstance(value, int) and value in limits


def incompatible(signature: str, *arguments: object) -> TypeError:
    """The TypeError of a call whose arguments have the wrong types."""
    given = ", ".join(map(repr, arguments))
    name = signature.partition("(")[0]
    return TypeError(
        f"{name}(): incompatible arguments. The following argument types are supported:\n    1. {signature}\n\nInvoked with: {given}"
    )


def refused(what: str, error: StatusError) -> TritonModelException:
    """The exception for what the server would not do, in the words of a Python backend: ``what`` did not work."""
    return TritonModelException(f"{what}: {in_process(error.message)}")


def in_process(text: str) -> str:
    """A failure's text as coming from the process of this instance."""
    return f"Failed to process the request for model '{host.required().instance_name}', message: {text}"
