"""What goes wrong with messages, by msgspec's names."""

from __future__ import annotations


class MsgspecError(Exception):
    """Base of the others."""


class DecodeError(MsgspecError):
    """Bytes that are not msgpack."""


class ValidationError(DecodeError):
    """msgpack of another type than was expected."""
