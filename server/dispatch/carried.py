"""What stands in front of a model version where tensors may lie on a GPU that its workers do not reach: they are carried there and back.

Inputs are copied to ordinary memory before their request is queued. Outputs that belong into a client's CUDA region are made in
ordinary memory, and put there before their response goes on. Sans-IO: whoever copies answers by callbacks, later.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Protocol

import msgspec

from ...shm.placement import Lease, Placement, Span, on_device
from ...workers.contract.messages import RequestBody, Tensor
from ...workers.contract.room import check_room
from ...workers.contract.status import Code, StatusError
from ...workers.contract.strings import check_strings
from ..statistics import FailureReason, VersionStatistics
from .forwarding import Counting, Forwarding
from .request import Request, Response
from .scheduler import stopping_error


@dataclass(frozen=True, slots=True)
class Location:
    """A GPU, and the worker that alone reaches what lies there; "" for clients' regions, which any worker of that GPU can open."""

    device: int
    worker: str = ""


class Copies(Protocol):
    """Copies in ordinary memory, one for each place that was to be fetched."""

    @property
    def leases(self) -> list[Lease]: ...

    def view(self, lease: Lease) -> memoryview:
        """The bytes of one of them."""

    def give_back(self) -> None:
        """Nobody reads them any more."""


Fetched = Callable[[Copies | StatusError], None]
Settled = Callable[[StatusError | None], None]


class Mover(Protocol):
    """Copies between GPUs and ordinary memory. ``done`` is called once, and never before the method has returned."""

    def where(self, place: Placement) -> Location | None:
        """The GPU that something lies on; None for ordinary memory. Raises StatusError where its worker has gone."""

    def fetch(self, location: Location, places: list[Placement], done: Fetched) -> None:
        """Copy what lies in one location to ordinary memory."""

    def put(self, device: int, places: list[Placement], spans: list[Span], done: Settled) -> None:
        """Copy each place to the beginning of its part of a region, all on one GPU."""


class _Visit:
    """A request on its way. ``waiting``: it has not been passed on yet, and ``over``: its last response has been handed on.

    ``deliver`` and ``finish`` are what its sender gave as ``on_response`` and ``on_finish``; ``finished``: what lies behind has finished
    with it. ``missing`` fetches are under way, ``fetched`` are the inputs that have come, by index, in ``copies``. ``spans`` are where
    outputs are to be put, with the GPU. ``line`` are responses that wait for ``putting`` puts of the first of them, and for their turn.
    ``answering``: the last of them is there. ``failed``: that has been counted.
    """

    __slots__ = (
        *("answering", "copies", "deliver", "error", "failed", "fetched", "finish", "finished", "line"),
        *("missing", "over", "putting", "request", "sequence", "spans", "waiting"),
    )

    def __init__(self, request: Request, sequence: int | str, spans: dict[str, tuple[int, Span]]) -> None:
        self.request = request
        self.sequence = sequence
        self.spans = spans
        self.deliver = request.on_response
        self.finish = request.on_finish
        self.error: StatusError | None = None
        self.missing = self.putting = 0
        self.fetched: dict[int, Lease] = {}
        self.copies: list[Copies] = []
        self.line: deque[Response] = deque()
        self.waiting = self.finished = self.over = self.answering = self.failed = False


class Carried(Forwarding[_Visit]):
    """One model version, with ``mover`` in front.

    ``takes`` says whether all its workers reach a location, ``ties`` whether those of that GPU do, to which a request is tied then.
    ``enter`` and ``withdraw`` are those of what lies behind. ``model`` is its name for texts, ``flow`` is told of the requests that are
    here, and not, or no more, behind. ``ordered``: responses keep the order of the requests. Requests of a sequence always do on their
    way in. A request's time-out counts from when it is passed on.
    """

    def __init__(
        self,
        mover: Mover,
        takes: Callable[[Location], bool],
        ties: Callable[[Location], bool],
        enter: Callable[[Request], None],
        withdraw: Callable[[Request], None],
        statistics: VersionStatistics,
        flow: Counting,
        *,
        model: str,
        ordered: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(statistics, flow, ordered=ordered)
        self._mover = mover
        self._takes = takes
        self._ties = ties
        self._enter = enter
        self._withdraw = withdraw
        self._model = model
        self._clock_ns = clock_ns
        self._lines: dict[int | str, deque[_Visit]] = {}
        self._answering = 0
        self._outage: StatusError | None = None

    # requests

    def submit(self, request: Request) -> None:
        """Pass a validated request on, once its inputs are where the workers reach them.

        Raises StatusError, and then nothing is called back and the request is as it was.
        """
        if self.stopping:
            raise stopping_error(request.label)
        if not request.regions and not request.arenas and not self._lines and self._order is None:
            self._enter(request)
            return
        fetches, spans = self._fetches(request), self._spans(request)
        context = request.body.context
        sequence = 0 if context is None else context.correlation_id
        waits = bool(fetches) or sequence in self._lines
        if not waits and not spans and self._order is None:
            self._enter(request)
            return
        visit = _Visit(request, sequence, spans)
        if waits:
            self._wait(visit, fetches)
            return
        self._open[request] = visit
        try:
            self._pass_on(visit)
        except StatusError:
            del self._open[request]
            raise
        if self._order is not None:
            self._order.arrived(request)

    def _fetches(self, request: Request) -> dict[Location, list[int]]:
        """The inputs that the workers do not reach, by index. Raises StatusError where one has gone with its worker."""
        fetches: dict[Location, list[int]] = {}
        for index, tensor in enumerate(request.body.inputs):
            if type(tensor.place) is Span or on_device(tensor.place):
                location = self._mover.where(tensor.place)
                if location is not None and not self._reached(request, location):
                    fetches.setdefault(location, []).append(index)
        return fetches

    def _spans(self, request: Request) -> dict[str, tuple[int, Span]]:
        """Where outputs belong that the workers cannot put there, by name."""
        spans = {}
        for output in request.body.outputs:
            if output.span is not None:
                location = self._mover.where(output.span)
                if location is not None and not self._reached(request, location):
                    spans[output.name] = (location.device, output.span)
        return spans

    def _reached(self, request: Request, location: Location) -> bool:
        """Does whoever will run a request reach a location?"""
        if request.device in (-1, location.device) and self._ties(location):
            request.device = location.device
            return True
        return self._takes(location)

    def _wait(self, visit: _Visit, fetches: dict[Location, list[int]]) -> None:
        self._arrive(visit)
        self._begin_waiting(visit)
        if visit.sequence:
            self._lines.setdefault(visit.sequence, deque()).append(visit)
        visit.missing = len(fetches)
        inputs = visit.request.body.inputs
        for location, indices in fetches.items():
            self._mover.fetch(location, [inputs[index].place for index in indices], partial(self._fetched, visit, indices))

    def _fetched(self, visit: _Visit, indices: list[int], outcome: Copies | StatusError) -> None:
        visit.missing -= 1
        if isinstance(outcome, StatusError):
            visit.error = visit.error or outcome
        elif visit.over:
            outcome.give_back()
        else:
            self._take(visit, indices, outcome)
        if visit.missing or visit.over:
            # The others are read from all the same, and are to stay what they are.
            return
        if visit.sequence:
            self._advance(visit.sequence)
        else:
            self._go_on(visit)

    def _take(self, visit: _Visit, indices: list[int], copies: Copies) -> None:
        visit.copies.append(copies)
        body = visit.request.body
        for index, lease in zip(indices, copies.leases, strict=True):
            visit.fetched[index] = lease
            tensor = body.inputs[index]
            if tensor.datatype == "BYTES":
                # Nobody has looked at what a client's region holds, and workers look only at what lies in one.
                try:
                    check_strings(tensor.name, self._model, copies.view(lease), prod(tensor.shape), body.id)
                except StatusError as error:
                    visit.error = visit.error or StatusError(error.code, error.message)

    def _advance(self, sequence: int | str) -> None:
        """Let those of a sequence go on that have all, and nobody before them."""
        line = self._lines.get(sequence, deque())
        ready = []
        while line and not line[0].missing:
            ready.append(line.popleft())
        with ExitStack() as stack:  # calls all of them, whichever fails
            stack.callback(self._advanced, sequence)
            for visit in reversed(ready):
                stack.callback(self._go_on, visit)

    def _advanced(self, sequence: int | str) -> None:
        line = self._lines.get(sequence)
        if line:
            if not line[0].missing:
                # It came while the others went on.
                self._advance(sequence)
        elif line is not None:
            del self._lines[sequence]

    def _go_on(self, visit: _Visit) -> None:
        if visit.over:
            return
        self._end_waiting(visit)
        try:
            if visit.request.cancelled:
                self._refuse(visit, StatusError(Code.CANCELLED, ""), FailureReason.CANCELED)
            elif visit.error is not None:
                self._refuse(visit, visit.error, FailureReason.OTHER)
            else:
                try:
                    self._pass_on(visit)
                except StatusError as error:
                    self._refuse(visit, error, FailureReason.REJECTED)
        finally:
            self._rest()

    def _pass_on(self, visit: _Visit) -> None:
        """Have what lies behind answer a request that it can run as it is. Raises StatusError, and then the request is as it was."""
        request = visit.request
        body, arenas, regions = request.body, request.arenas, request.regions
        if visit.fetched or visit.spans:
            # Whoever runs it is given the regions and the arenas that it names.
            places = [body.inputs[index].place for index in visit.fetched]
            gone = {place.region for place in places if isinstance(place, Span)}
            gone.update(span.region for _, span in visit.spans.values())
            request.body = _within_reach(body, visit)
            request.arenas = (*arenas, *{lease.arena for lease in visit.fetched.values()})
            request.regions = tuple([number for number in regions if number not in gone])
        request.on_response = partial(self._answered, visit)
        request.on_finish = partial(self._finished_behind, visit)
        try:
            self._enter(request)
        except StatusError:
            request.body, request.arenas, request.regions = body, arenas, regions
            request.on_response, request.on_finish = visit.deliver, visit.finish
            raise

    def cancel(self, request: Request) -> None:
        """Nobody waits for this request any more. What is being fetched for it comes all the same, and then it is answered."""
        visit = self._open.get(request)
        if visit is None or not visit.waiting:
            self._withdraw(request)
        else:
            request.cancelled = True

    def _refuse(self, visit: _Visit, error: StatusError, reason: FailureReason) -> None:
        """Answer a request that has waited, and goes no further."""
        visit.over = True
        self._give_back(visit)
        self._statistics.request_failed(reason, visit.request.start_ns, self._clock_ns())
        visit.request.on_finish = None
        try:
            self._finish(visit)
        finally:
            self._deliver(visit, Response(visit.request, [], error=error))

    # answers

    def _finished_behind(self, visit: _Visit) -> None:
        """Nothing reads the inputs any more. What outputs are to be put into is held until they are there."""
        visit.finished = True
        self._give_back(visit)
        if visit.over:
            # Its response was released just now: the outputs were inputs.
            self._finish(visit)

    def _give_back(self, visit: _Visit) -> None:
        copies, visit.copies = visit.copies, []
        for one in copies:
            one.give_back()

    def _finish(self, visit: _Visit) -> None:
        finish, visit.finish = visit.finish, None
        if finish is not None:
            finish()

    def _answered(self, visit: _Visit, response: Response) -> None:
        """What lies behind has answered. No request may be part of a circle of objects once it is over: the collector runs rarely."""
        if response.final:
            visit.request.on_response = visit.deliver
        if not visit.line and not self._puts(visit, response):
            self._settle(visit, response)
            return
        visit.line.append(response)
        if response.final:
            visit.answering = True
            self._answering += 1
            self._flow.in_flight += 1

    def _puts(self, visit: _Visit, response: Response) -> bool:
        """Begin to put the outputs of a response where they belong, if there are any; where they have no room, it is an error."""
        loads: dict[int, tuple[list[Placement], list[Span]]] = {}
        try:
            for tensor in response.outputs:
                if tensor.name in visit.spans:
                    device, span = visit.spans[tensor.name]
                    check_room(tensor.name, span, tensor.place.byte_size)
                    places, spans = loads.setdefault(device, ([], []))
                    places.append(tensor.place)
                    spans.append(span)
            if loads and self._outage is not None:
                raise StatusError(self._outage.code, self._outage.message)
        except StatusError as error:
            self._fail(visit, response, error)
            return False
        visit.putting = len(loads)
        for device, (places, spans) in loads.items():
            self._mover.put(device, places, spans, partial(self._put, visit, response))
        return bool(loads)

    def _put(self, visit: _Visit, response: Response, error: StatusError | None) -> None:
        if not visit.line or visit.line[0] is not response:
            # It was given up meanwhile.
            return
        visit.putting -= 1
        visit.error = visit.error or error
        if not visit.putting:
            self._put_all(visit)

    def _put_all(self, visit: _Visit) -> None:
        """The first response of the line can go on, and those behind it for which there is nothing to put."""
        error, visit.error = visit.error, None
        if error is None:
            _show_in_place(visit.line[0], visit.spans)
        else:
            self._fail(visit, visit.line[0], error)
        ready = [visit.line.popleft()]
        while visit.line and not self._puts(visit, visit.line[0]):
            ready.append(visit.line.popleft())
        with ExitStack() as stack:  # calls all of them, whichever fails
            for response in reversed(ready):
                stack.callback(self._settle, visit, response)

    def _fail(self, visit: _Visit, response: Response, error: StatusError) -> None:
        """Make an error of a response whose outputs could not be put where they belong."""
        response.release()
        response.outputs, response.parameters, response.error = [], {}, StatusError(error.code, error.message)
        if not visit.failed:
            # Its execution has been counted as a success, which it was.
            visit.failed = True
            self._statistics.request_failed(FailureReason.OTHER, visit.request.start_ns, self._clock_ns())

    def _settle(self, visit: _Visit, response: Response) -> None:
        """Hand a response on; before the last one, everything that the request held is given back."""
        if not response.final:
            self._deliver(visit, response)
            return
        visit.over = True
        if visit.answering:
            self._answering -= 1
            self._flow.in_flight -= 1
        with ExitStack() as stack:  # calls all of them, whichever fails
            stack.callback(self._rest)
            stack.callback(self._deliver, visit, response)
            if visit.finished:
                stack.callback(self._finish, visit)

    def _deliver(self, visit: _Visit, response: Response) -> None:
        if self._order is None and response.final:
            del self._open[visit.request]
        self._hand_on(visit, response)

    # the end

    @property
    def in_flight(self) -> int:
        """Requests that are not answered, and not known to what lies behind: not yet, or not any more."""
        return self._waiting + self._answering

    @property
    def idle(self) -> bool:
        """As ``Forwarding`` says: nothing is carried, neither here nor behind."""
        return not self._open

    def abandon(self, error: StatusError) -> None:
        """Answer what is here with ``error``: the server ends. What lies behind is to be abandoned after this."""
        self._outage = error
        self._lines.clear()
        for visit in list(self._open.values()):
            if visit.waiting:
                self._end_waiting(visit)
                self._refuse(visit, error, FailureReason.OTHER)
            elif visit.putting:
                visit.putting, visit.error = 0, error
                self._put_all(visit)
        self._rest()


def _within_reach(body: RequestBody, visit: _Visit) -> RequestBody:
    """The body with what was fetched for what lies out of reach, and with outputs made where the workers reach them."""
    inputs = list(body.inputs)
    for index, lease in visit.fetched.items():
        inputs[index] = msgspec.structs.replace(inputs[index], place=lease)
    outputs = [msgspec.structs.replace(output, span=None) if output.name in visit.spans else output for output in body.outputs]
    return RequestBody(body.id, body.batch_size, inputs, outputs, body.parameters, body.context)


def _show_in_place(response: Response, spans: dict[str, tuple[int, Span]]) -> None:
    """Say of the outputs of a response that they lie where they have been put.

    What they were put there from goes back with the rest; at once where there is no rest.
    """
    sources = [tensor.place for tensor in response.outputs if tensor.name in spans and type(tensor.place) is Lease]
    response.outputs = [
        Tensor(tensor.name, tensor.datatype, tensor.shape, spans[tensor.name][1]) if tensor.name in spans else tensor
        for tensor in response.outputs
    ]
    if response.on_release is not None:
        response.on_release = partial(_release, response.on_release, sources)
    if not any(type(tensor.place) is Lease for tensor in response.outputs):
        response.release()


def _release(on_release: Callable[[list[Lease]], None], sources: list[Lease], others: list[Lease]) -> None:
    on_release([*sources, *others])
