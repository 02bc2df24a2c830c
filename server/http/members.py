"""Members of a JSON request as the types an endpoint wants; errors are the reference's, code INTERNAL."""

from __future__ import annotations

from ...workers.contract.status import internal
from .json_text import no_member, wrong_type

_MAX_UINT64 = 2**64 - 1


def as_string(value: object) -> str:
    """A string. Raises INTERNAL."""
    if not isinstance(value, str):
        raise internal(wrong_type("string"))
    return value


def as_bool(value: object) -> bool:
    """A boolean. Raises INTERNAL."""
    if not isinstance(value, bool):
        raise internal(wrong_type("boolean"))
    return value


def as_uint(value: object) -> int:
    """An unsigned 64-bit integer; ``1.0`` is none. Raises INTERNAL."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_UINT64:
        raise internal(wrong_type("unsigned-integer"))
    return value


def member(container: object, name: str) -> object:
    """A member that has to be there. Raises INTERNAL."""
    if not isinstance(container, dict) or name not in container:
        raise internal(no_member(name))
    return container[name]
