"""The restricted-API check (``--http-restricted-api``): one authoriser in front of every route, of every path to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..door.restriction import restrictions
from .errors import plain_error_reply
from .exchange import Reply


class Restrictions:
    """Which API categories need which header. ``rules``: category → (header name, value)."""

    def __init__(self, rules: Mapping[str, tuple[str, str]]) -> None:
        found = restrictions(rules)
        self._rules = {category: (rule, rule.header.lower().encode("latin-1")) for category, rule in found.items()}

    def refusal(self, category: str, headers: Iterable[tuple[bytes, bytes]]) -> Reply | None:
        """The 403 for a request with these headers (names lower-case), or None where it may pass."""
        found = self._rules.get(category)
        if found is None:
            return None
        rule, key = found
        if rule.met_by(next((value for name, value in headers if name == key), None)):
            return None
        return plain_error_reply(403, f"This API is restricted, expecting header '{rule.header}'")
