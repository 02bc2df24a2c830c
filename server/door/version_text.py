"""The version that a request asks for."""

from __future__ import annotations

import re

from ...workers.contract.status import invalid

_MAX_INT64 = 2**63 - 1
_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]+)")


def version_text(text: str) -> str:
    """The digits of a version, "" for none; what follows them is read over. Raises INVALID_ARG for what is no number, or no 64-bit one."""
    if not text:
        return ""
    number = _NUMBER.match(text)
    if number is None or len(number[2]) > 19 or int(number[2]) > _MAX_INT64:
        raise invalid(
            f"failed to get model version from specified version string '{text}' (details: stol), version should be an integral value > 0"
        )
    if number[1] == "-":
        raise invalid(f"invalid model version specified '{text}' , version should be an integral value > 0")
    return number[2]
