"""Responses in the order the requests arrived, for models that ask for it (``preserve_ordering``)."""

from __future__ import annotations

from collections import deque

from .request import Request, Response


class ResponseOrder:
    """Holds finished responses back until all requests that came before them are answered."""

    def __init__(self) -> None:
        self._arrived: deque[Request] = deque()
        self._held: dict[int, list[Response]] = {}
        self._finished: set[int] = set()

    def arrived(self, request: Request) -> None:
        """A request has been accepted."""
        self._arrived.append(request)

    def respond(self, response: Response) -> list[Response]:
        """Take a response; returns the responses that may be delivered now, in order."""
        request = response.request
        self._held.setdefault(id(request), []).append(response)
        if response.final:
            self._finished.add(id(request))
        ready: list[Response] = []
        while self._arrived:
            first = self._arrived[0]
            ready.extend(self._held.pop(id(first), ()))
            if id(first) not in self._finished:
                break
            self._finished.remove(id(first))
            self._arrived.popleft()
        return ready
