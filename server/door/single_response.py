"""The one response that a request is to have whose reply cannot hold more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from ...workers.contract.status import StatusError, internal
from ..dispatch.request import Response

OnResponse = Callable[[Response], None]
"""Takes one response after the other: a ``Request``'s callback."""


class SingleResponse(ABC):
    """Takes a request's responses until the last one, which may only be the end mark of an earlier one, and then settles."""

    __slots__ = ("_count", "_kept")

    def __init__(self) -> None:
        self._kept: Response | None = None
        self._count = 0

    @abstractmethod
    def settle(self, response: Response, refusal: StatusError | None) -> None:
        """Answer with this response, or with ``refusal``, and release it in any case."""

    def on_response(self, response: Response) -> None:
        """Take a response: a ``Request``'s callback."""
        kept = self._kept
        if kept is None or response.outputs or response.error is not None or not response.final:
            self._count += 1
            if kept is not None:
                kept.release()
            if not response.final:
                self._kept = response
                return
        else:
            response.release()
            response = kept
        self.settle(response, response.error if self._count == 1 else internal(f"expected a single response, got {self._count}"))
