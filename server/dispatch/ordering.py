"""Responses in the order the requests arrived, for models that ask for it (``preserve_ordering``)."""

from __future__ import annotations

from collections import OrderedDict

from .request import Request, Response


class ResponseOrder:
    """Holds finished responses back until all requests that came before them are answered.

    A request that nobody waits for any more is held up by nobody, and holds up nobody.
    """

    def __init__(self) -> None:
        self._arrived: OrderedDict[Request, None] = OrderedDict()
        self._held: dict[Request, list[Response]] = {}
        self._finished: set[Request] = set()

    def arrived(self, request: Request) -> None:
        """A request has been accepted."""
        self._arrived[request] = None

    def respond(self, response: Response) -> list[Response]:
        """Take a response; returns the responses that may be delivered now, in order."""
        request = response.request
        arrived, held, finished = self._arrived, self._held, self._finished
        ready: list[Response] = []
        if request.cancelled:
            ready += [*held.pop(request, ()), response]
            if response.final:
                del arrived[request]
        else:
            held.setdefault(request, []).append(response)
            if response.final:
                finished.add(request)
        while arrived:
            first = next(iter(arrived))
            ready.extend(held.pop(first, ()))
            if first not in finished:
                break
            finished.remove(first)
            del arrived[first]
        return ready
