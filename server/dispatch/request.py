"""A request on its way through the server, and the responses it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ...shm.placement import Inline, Lease
from ...workers.contract.messages import Parameters, RequestBody, Tensor
from ...workers.contract.status import StatusError, label
from ..statistics import ExecutionTimes


@dataclass(slots=True, eq=False)
class Response:
    """One response to a request: outputs, or an error.

    ``read(tensor)`` gives the bytes of an output that is not in a client's region; they stay
    valid until ``release()``, which the receiver must call exactly once.
    """

    request: Request
    outputs: list[Tensor]
    parameters: Parameters = field(default_factory=dict)
    error: StatusError | None = None
    final: bool = True
    arena_view: Callable[[Lease], memoryview] | None = None
    on_release: Callable[[list[Lease]], None] | None = None

    def read(self, tensor: Tensor) -> memoryview:
        """The bytes of an output, zero copy."""
        place = tensor.place
        if type(place) is Inline:
            return place.content
        if type(place) is not Lease or self.arena_view is None:
            raise TypeError(f"output '{tensor.name}' lies in a client's region")
        return self.arena_view(place)

    def release(self) -> None:
        """Give the outputs' memory back to the worker that owns it."""
        on_release = self.on_release
        if on_release is not None:
            self.on_release = None
            on_release([tensor.place for tensor in self.outputs if type(tensor.place) is Lease])


@dataclass(slots=True, eq=False)
class EndMark(Response):
    """Says that all responses to a request have come: no response itself."""


@dataclass(slots=True, eq=False)
class Rejection(Response):
    """Says that a request was refused on entry, after it had been handed over: it was never queued."""


@dataclass(slots=True, eq=False)
class Request:
    """One inference request.

    ``start_ns`` is when the door began to read it, ``queued_ns`` when it entered the scheduler's
    queue (CLOCK_MONOTONIC nanoseconds). ``on_response`` is called on the server's loop, once for
    each response; the last one has ``final`` set, or an ``EndMark`` follows. ``on_finish`` gives back what the request holds
    (its body's arena block, its ``regions``) and is called exactly once, before the final response.
    ``deadline_ns`` (0: none) is when it expires in the queue, ``attempts`` counts the workers that died
    while it was with them, ``order`` is its number in the queue, ``begun`` says whether one of several responses has come.
    ``arenas`` are those of workers that its inputs lie in. ``on_execution`` gets the times of the execution it was part of, for
    streams perhaps after the final response. ``caller`` is the number of the running batch that waits for it, 0 for none. ``device`` is
    the GPU whose memory it uses, and on which it is to run, -1 where any instance will do.
    """

    body: RequestBody
    start_ns: int
    on_response: Callable[[Response], None]
    on_finish: Callable[[], None] | None = None
    priority: int = 0
    timeout_us: int = 0
    queued_ns: int = 0
    deadline_ns: int = 0
    attempts: int = 0
    cancelled: bool = False
    order: int = 0
    regions: tuple[int, ...] = ()
    arenas: tuple[int, ...] = ()
    begun: bool = False
    on_execution: Callable[[ExecutionTimes], None] | None = None
    caller: int = 0
    device: int = -1

    @property
    def label(self) -> str:
        """The prefix of the protocol's error messages: ``[request id: X] ``."""
        return label(self.body.id)
