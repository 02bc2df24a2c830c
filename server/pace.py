"""How fast requests are finished, and so when it is worth while to come again."""

from __future__ import annotations

LEAST_S, MOST_S = 1, 30
"""What a client may be told to wait, in seconds."""

_WINDOW_NS = 2_000_000_000
_FORGOTTEN_NS = 10_000_000_000
_KEPT_NS = 100_000_000


class Pace:
    """Looks at a count of finished requests whenever somebody asks; between two windows of 2 s back and one, that is their rate.

    Nothing is counted here and nothing runs beside it, so it costs nothing while nobody is refused. Clocks are CLOCK_MONOTONIC
    nanoseconds.
    """

    __slots__ = ("_answer_s", "_answered_ns", "_before", "_now")

    def __init__(self) -> None:
        self._before: tuple[int, int] | None = None
        self._now = (0, 0)
        self._answered_ns = 0
        self._answer_s = LEAST_S

    def fresh(self, now_ns: int) -> bool:
        """Was it asked a moment ago, so that the answer has not changed?"""
        return self._before is not None and now_ns - self._answered_ns < _KEPT_NS

    @property
    def answer_s(self) -> int:
        """The last answer."""
        return self._answer_s

    def retry_after_s(self, in_flight: int, finished: int, now_ns: int) -> int:
        """How many whole seconds until what is in flight now will have been answered, 1 to 30.

        ``finished`` is a count that only grows. Where it is the first to ask for a while, and nothing is known: 1.
        """
        before = self._before
        if before is None or now_ns - self._answered_ns > _FORGOTTEN_NS or finished < self._now[1]:
            before = self._before = self._now = (now_ns, finished)
        elif now_ns - self._now[0] >= _WINDOW_NS:
            before, self._before, self._now = self._now, self._now, (now_ns, finished)
        since_ns, count = before
        # Where none was finished, the next one may be any moment: no slower than one in the time that was looked at.
        left_ns = in_flight * (now_ns - since_ns) // max(1, finished - count)
        self._answered_ns = now_ns
        self._answer_s = min(MOST_S, max(LEAST_S, -(-left_ns // 1_000_000_000)))
        return self._answer_s
