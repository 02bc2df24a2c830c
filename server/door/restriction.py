"""What a restricted API asks of a request: one header, with one value."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Restriction:
    """A header that a category of the API needs, under the name that a refused client is told, and its value."""

    header: str
    value: bytes

    def met_by(self, given: bytes | None) -> bool:
        """Is this, the header's value in a request or None where it has none, what is asked for?"""
        return given is not None and hmac.compare_digest(given, self.value)


def restrictions(rules: Mapping[str, tuple[str, str]], prefix: str = "") -> dict[str, Restriction]:
    """The restrictions by category, as the flags give them: category → (header, value). ``prefix`` goes before every header."""
    return {category: Restriction(prefix + header, value.encode("utf-8", "surrogateescape")) for category, (header, value) in rules.items()}
