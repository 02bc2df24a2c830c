"""How long to wait before a worker that died is started again."""

from __future__ import annotations

from dataclasses import dataclass

STABLE_NS = 10_000_000_000
"""A worker that lived this long was no crash loop: a request that kills one now and then must not take its models away for longer."""

LONGEST_SECS = 30.0


@dataclass(slots=True)
class Backoff:
    """At once after the first death, then 1, 2, 4 … up to 30 seconds; ten seconds of life clear the account."""

    deaths: int = 0

    def delay_secs(self, lived_ns: int) -> float:
        """Count a death; returns the seconds to wait before the next start."""
        if lived_ns >= STABLE_NS:
            self.deaths = 0
        self.deaths += 1
        return 0.0 if self.deaths == 1 else min(LONGEST_SECS, 2.0 ** min(self.deaths - 2, 10))


def when_text(delay_secs: float) -> str:
    """When something is tried again, for logs."""
    return f"in {delay_secs:g} s" if delay_secs else "at once"
