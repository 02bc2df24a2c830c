"""The numbers of gRPC's statuses. Source: statuscodes.md of gRPC."""

from __future__ import annotations

from ...workers.contract.status import Code

OK = 0
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
RESOURCE_EXHAUSTED = 8
INTERNAL = 13

_NUMBERS = {
    Code.CANCELLED: 1,
    Code.UNKNOWN: 2,
    Code.INVALID_ARG: INVALID_ARGUMENT,
    Code.NOT_FOUND: NOT_FOUND,
    Code.ALREADY_EXISTS: 6,
    Code.UNSUPPORTED: 12,
    Code.INTERNAL: INTERNAL,
    Code.UNAVAILABLE: 14,
}


def status_number(code: Code) -> int:
    """The status of an error code."""
    return _NUMBERS[code]
