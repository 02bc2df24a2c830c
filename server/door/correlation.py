"""What a request says of the sequence it belongs to."""

from __future__ import annotations

from ...workers.contract.status import unsupported

MAX_CORRELATION_ID = 128
"""How many bytes a sequence's id may have that is a text."""


def checked_correlation_id(text: str) -> str:
    """The id itself. Raises StatusError UNSUPPORTED where it is too long."""
    if len(text.encode()) > MAX_CORRELATION_ID:
        raise unsupported(f"string correlation ID cannot be longer than {MAX_CORRELATION_ID} characters")
    return text
