"""In which order the messages of a stream leave: sans-IO.

Source: Triton's stream handler. Responses come in the order of their requests, whatever the model, but those of decoupled models come
as they are made, and nobody waits for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Place(Generic[T]):
    """The place of a request in its stream. ``free``: its messages wait for nobody, and nobody for them."""

    waiting: list[T] = field(default_factory=list)
    free: bool = False
    ended: bool = False


class ResponseOrder(Generic[T]):
    """Takes messages as they are made, and passes them on to ``leave`` as they may be written."""

    def __init__(self, leave: Callable[[T], None]) -> None:
        self._leave = leave
        self._places: deque[Place[T]] = deque()
        self._open = 0

    @property
    def empty(self) -> bool:
        """Have all requests had their last message?"""
        return not self._open

    def enter(self) -> Place[T]:
        """One more request has come."""
        place: Place[T] = Place()
        self._places.append(place)
        self._open += 1
        return place

    def free(self, place: Place[T]) -> None:
        """The request turns out to be one whose responses come as they are made."""
        place.free = True
        self._advance()

    def add(self, place: Place[T], message: T) -> None:
        """A message for a request that has not ended."""
        if place.free or place is self._places[0]:
            self._leave(message)
        else:
            place.waiting.append(message)

    def end(self, place: Place[T]) -> None:
        """A request has had its last message."""
        place.ended = True
        self._open -= 1
        self._advance()

    def _advance(self) -> None:
        places = self._places
        while places and (places[0].ended or places[0].free):
            places.popleft()
            if places:
                waiting, places[0].waiting = places[0].waiting, []
                for message in waiting:
                    self._leave(message)
