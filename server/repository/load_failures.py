"""Loads that failed, remembered for a while: whoever asks again at once is told at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...workers.contract.status import StatusError

_SECOND_NS = 1_000_000_000
LONGEST_NS = 30 * _SECOND_NS
FORGOTTEN_NS = 60 * _SECOND_NS
"""A failure that nobody has asked about for this long after its time is forgotten, and with it how many there were."""


@dataclass(slots=True)
class _Failure:
    error: StatusError
    count: int
    until_ns: int


class LoadFailures:
    """Answers for 1, 2, 4 … 30 seconds after each failure in a row; then the model may be tried again."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._failures: dict[str, _Failure] = {}

    def __len__(self) -> int:
        return len(self._failures)

    def note(self, name: str, error: StatusError) -> None:
        """A load has failed."""
        now_ns = self._clock_ns()
        for old in [old for old, failure in self._failures.items() if now_ns - failure.until_ns > FORGOTTEN_NS]:
            del self._failures[old]
        before = self._failures.get(name)
        count = 1 if before is None else before.count + 1
        # What is raised again and again would grow a traceback, and keep what its frames hold.
        kept = StatusError(error.code, error.message)
        self._failures[name] = _Failure(kept, count, now_ns + min(LONGEST_NS, _SECOND_NS << min(count - 1, 10)))

    def forget(self, name: str) -> None:
        """The model has been loaded, has changed, or has gone."""
        self._failures.pop(name, None)

    def of(self, names: Iterable[str]) -> StatusError | None:
        """Why one of these models is not to be tried now, or None; a new error each time, fit to be raised."""
        failures = self._failures
        if not failures:
            return None
        for name in names:
            failure = failures.get(name)
            if failure is not None and self._clock_ns() < failure.until_ns:
                return StatusError(failure.error.code, failure.error.message)
        return None
