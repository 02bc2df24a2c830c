"""The restricted-API check (``--http-restricted-api``): one authoriser in front of every route, of every path to it."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping

from .errors import plain_error_reply
from .exchange import Reply


class Restrictions:
    """Which API categories need which header. ``rules``: category → (header name, value)."""

    def __init__(self, rules: Mapping[str, tuple[str, str]]) -> None:
        self._rules = {
            category: (header, header.lower().encode("latin-1"), value.encode("utf-8", "surrogateescape"))
            for category, (header, value) in rules.items()
        }

    def refusal(self, category: str, headers: Iterable[tuple[bytes, bytes]]) -> Reply | None:
        """The 403 for a request with these headers (names lower-case), or None where it may pass."""
        rule = self._rules.get(category)
        if rule is None:
            return None
        header, key, expected = rule
        given = next((value for name, value in headers if name == key), None)
        if given is not None and hmac.compare_digest(given, expected):
            return None
        return plain_error_reply(403, f"This API is restricted, expecting header '{header}'")
