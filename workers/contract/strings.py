"""What a serialised BYTES tensor must be, wherever it is looked at first: in the server, or in a worker for clients' regions."""

from __future__ import annotations

import struct

from .status import Code, StatusError, invalid, label


class CutString(StatusError):
    """The last element of a BYTES input ends beyond it: a fault that the original leaves to its backends to find."""


_LENGTH = struct.Struct("<I")


def _are(view: memoryview, end: int, count: int) -> bool:
    """Whether the elements are as they should be: the quick way, of which a long tensor takes a while as it is."""
    length_at = _LENGTH.unpack_from
    at = found = 0
    try:
        while at < end and found < count:
            (length,) = length_at(view, at)
            at += 4 + length
            found += 1
    except struct.error:
        return False
    return at == end and found == count


def check_strings(name: str, model: str, view: memoryview, count: int, request_id: str) -> None:
    """Walk the elements of a serialised BYTES tensor, which must be ``count`` and end where the buffer does.

    Raises StatusError INVALID_ARG; a CutString for an element that ends beyond the buffer.
    """
    end = len(view)
    if _are(view, end, count):
        return
    at = 0
    found = 0
    cut: StatusError | None = None
    from_bytes = int.from_bytes
    while at < end:
        # one more is enough to know, whatever follows its length
        if found >= count and end - at >= 4:
            raise invalid(
                f"{label(request_id)}unexpected number of string elements {found + 1} for inference input '{name}' "
                f"for model '{model}', expecting {count}"
            )
        if end - at < 4:
            raise invalid(
                f"{label(request_id)}incomplete string length indicator for inference input '{name}' for model '{model}', "
                f"expecting 4 bytes but only {end - at} bytes available. Please make sure the string length indicator is in one buffer."
            )
        length = from_bytes(view[at : at + 4], "little")
        at += 4
        found += 1
        if length > end - at:
            cut = CutString(
                Code.INVALID_ARG,
                f"incomplete string data for inference input '{name}', expecting string of length {length} "
                f"but only {end - at} bytes available",
            )
            break
        at += length
    if found != count:
        raise invalid(f"{label(request_id)}expected {count} string elements for inference input '{name}' for model '{model}', got {found}")
    if cut is not None:
        raise cut
