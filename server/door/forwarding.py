"""Headers that become parameters of a request (``--http-header-forward-pattern``, ``--grpc-header-forward-pattern``)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from ...workers.contract.messages import Parameters
from ...workers.contract.status import invalid

_RESERVED = frozenset(("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output"))


@lru_cache(maxsize=16)
def forward_pattern(text: str) -> re.Pattern[str] | None:
    """The pattern that an option gives; None: nothing is forwarded. Raises ``re.error`` where it is none."""
    return re.compile(text, re.IGNORECASE) if text else None


def forward(headers: Iterable[tuple[str, str]], pattern: re.Pattern[str], parameters: Parameters) -> None:
    """Make a parameter of each header whose name matches. Raises StatusError INVALID_ARG for reserved names."""
    for name, value in headers:
        if pattern.search(name):
            if name in _RESERVED or name.startswith("triton_"):
                raise invalid(f"Header '{name}' is reserved for Triton usage and cannot be forwarded.")
            parameters[name] = value
