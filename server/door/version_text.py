"""The version that a request asks for."""

from __future__ import annotations

from ...workers.contract.status import invalid

_MAX_INT64 = 2**63 - 1


def version_text(text: str) -> str:
    """The digits of a version in a path. Raises INVALID_ARG where they make no 64-bit number."""
    digits = text.lstrip("0")
    if len(digits) > 19 or (len(digits) == 19 and int(digits) > _MAX_INT64):
        raise invalid(
            f"failed to get model version from specified version string '{text}' (details: stol), version should be an integral value > 0"
        )
    return text
