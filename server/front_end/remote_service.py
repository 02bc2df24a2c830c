"""The service as a front end sees it: models found by asking, inferences submitted by message.

Everything that is not known here is known by the server process, so that all front ends say the same. What was found is kept until the
server says that it may be something else now, and a submitted request goes to what its model is by then in any case.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ...shm.arena import Arena
from ...shm.placement import Lease, Span
from ...workers.contract.configuration import ModelConfig
from ...workers.contract.messages import RequestBody
from ...workers.contract.signature import Signature, signature_of
from ...workers.contract.status import Code, StatusError, invalid
from ..admission import Admission, Overloaded
from ..dispatch.request import EndMark, Rejection, Request, Response
from ..inference_service import InferenceService, Version, regions_of, with_spans
from ..options import Options
from ..prometheus_text import Family
from ..regions import NO_REGIONS, RegionRegistry
from ..repository.demand import NotResident, OnReady
from .messages import (
    AnsweredHttp,
    AnsweredRpc,
    AskHttp,
    AskRpc,
    Drop,
    Find,
    Finished,
    Forget,
    Forgotten,
    Found,
    FromFrontEnd,
    Hold,
    HttpHeaders,
    Measured,
    News,
    Refusal,
    Refused,
    Rejected,
    Release,
    Responded,
    Submit,
    Terms,
    Withdraw,
)

_MOST_KNOWN = 8192
_MAX_UINT64 = 2**64 - 1

Tell = Callable[[FromFrontEnd], None]


def error_of(refusal: Refusal) -> StatusError:
    """What a refusal is raised as."""
    if refusal.retry_after_s:
        return Overloaded(refusal.message, refusal.retry_after_s)
    return StatusError(Code(refusal.code), refusal.message)


class _NotKnown(NotResident):
    """A model of which nobody has asked here."""

    def __init__(self, name: str, version: str) -> None:
        super().__init__(name)
        self.asked = version


class _Statistics:
    """The server process has them."""

    success_count = 0
    fail_count = 0


_STATISTICS = _Statistics()


class RemoteVersion:
    """What requests for ``asked`` of a model go to: a ``Version`` of the server process."""

    __slots__ = ("_service", "asked", "ensemble", "in_flight", "labels", "name", "number", "signature", "statistics", "stopping", "version")

    def __init__(self, service: RemoteService, terms: Terms, asked: str) -> None:
        self._service = service
        self.asked = asked
        self.number = terms.number
        self.name = terms.name
        self.version = terms.version
        self.signature: Signature = signature_of(ModelConfig.FromString(terms.config))
        self.labels: Mapping[str, Sequence[str]] = {
            name: [label.decode("utf-8", "surrogateescape") for label in labels] for name, labels in terms.labels.items()
        }
        self.ensemble: object | None = terms.ensemble or None
        self.statistics = _STATISTICS
        self.in_flight = 0
        self.stopping = False

    def enter(self, request: Request) -> None:
        """Submit a request that was checked."""
        self._service.enter(self, request)

    def withdraw(self, request: Request) -> None:
        """Nobody waits for a request any more."""
        self._service.withdraw(request)

    def hold(self, request: Request, held: bool) -> None:
        """The client of a request takes no more responses for now, or takes them again."""
        self._service.hold_back(request, held)


class NamedSpan(Span, frozen=True, array_like=True, tag=2, gc=False):
    """A part of a region by its name: the server process knows what is behind that, if anything."""

    name: str = ""


class RemoteRegions:
    """Any region there may be."""

    def span(self, name: str, offset: int, byte_size: int) -> NamedSpan:
        """A part of a region. Raises StatusError for numbers that no region has room for, nor a message."""
        if max(offset, byte_size) > _MAX_UINT64:
            raise invalid(f"Invalid offset for shared memory region: '{name}'")
        return NamedSpan(0, offset, byte_size, name)


_REGIONS = RemoteRegions()


def _numbered(body: RequestBody) -> tuple[RequestBody, dict[int, str]]:
    """The body with numbers of its own for the regions it names, and their names."""
    names: dict[int, str] = {}

    def number(span: Span) -> Span:
        assert isinstance(span, NamedSpan)
        names[len(names) + 1] = span.name
        return Span(len(names), span.offset, span.byte_size)

    return with_spans(body, number), names


@dataclass(slots=True, eq=False)
class _Inference:
    """A request that was submitted, until nobody reads its inputs any more and its last response has come."""

    request: Request
    answered: bool = False
    finished: bool = False


@dataclass(slots=True, eq=False)
class _Question:
    """What becomes of the answer to a question."""

    answered: Callable[[Found | AnsweredHttp | AnsweredRpc], None]
    refused: Callable[[StatusError], None]


class _Asking:
    """Somebody who waits for the answer to a question."""

    __slots__ = ("_number", "_service")

    def __init__(self, service: RemoteService, number: int) -> None:
        self._service = service
        self._number = number

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._service.drop(self._number)


class RemoteService(InferenceService):
    """The service of a front end. ``view`` gives the bytes of leases, ``tell`` speaks to the server process."""

    def __init__(self, options: Options, arena: Arena, admission: Admission, view: Callable[[Lease], memoryview], tell: Tell) -> None:
        super().__init__(options, arena, admission)
        self._view = view
        self._tell = tell
        self._known: dict[tuple[str, str], RemoteVersion] = {}
        self._numbers = itertools.count(1)
        self._inferences: dict[int, _Inference] = {}
        self._questions: dict[int, _Question] = {}
        self._families: dict[str, Family] = {}

    @property
    def in_flight(self) -> int:
        """Inferences that the server process has."""
        return len(self._inferences)

    # what doors ask

    def find(self, name: str, version: str = "") -> RemoteVersion:
        """As the base class says; raises NotResident for what was not asked for lately."""
        found = self._known.get((name, version))
        if found is None:
            raise _NotKnown(name, version)
        return found

    def bring(self, absent: NotResident, on_ready: OnReady, caller: str = "") -> _Asking:
        """Ask the server process."""
        assert isinstance(absent, _NotKnown)
        model, asked = absent.name, absent.asked

        def found(answer: Found | AnsweredHttp | AnsweredRpc) -> None:
            assert isinstance(answer, Found)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[model, asked] = RemoteVersion(self, answer.terms, asked)
            on_ready(None)

        return self._ask(lambda number: Find(number, model, asked), found, on_ready)

    def regions_for(self, peer_is_local: bool) -> RemoteRegions | RegionRegistry:
        """As the base class says."""
        return _REGIONS if self.client_shm_allowed(peer_is_local) else NO_REGIONS

    def _hold(self, request: Request, regions: tuple[int, ...]) -> None:
        # The server process holds them.
        request.regions = regions

    def _let_go(self, regions: tuple[int, ...]) -> None:
        pass

    def view(self, lease: Lease) -> memoryview:
        """As the base class says."""
        return self._view(lease)

    def custom_family(self, name: str) -> Family | None:
        """As the base class says, of those that clients can ask for in replies."""
        return self._families.get(name)

    def ask_http(
        self,
        method: str,
        path: str,
        query: str,
        headers: HttpHeaders,
        body: bytes,
        peer_is_local: bool,
        answered: Callable[[AnsweredHttp], None],
    ) -> _Asking:
        """Have the server process answer an HTTP request that is no inference."""

        def take(answer: Found | AnsweredHttp | AnsweredRpc) -> None:
            assert isinstance(answer, AnsweredHttp)
            answered(answer)

        return self._ask(lambda number: AskHttp(number, method, path, query, headers, body, peer_is_local), take, _never)

    def ask_rpc(
        self, path: str, message: bytes, peer_is_local: bool, answered: Callable[[bytes], None], refused: Callable[[StatusError], None]
    ) -> _Asking:
        """Have the server process answer a unary gRPC call that is no inference."""

        def take(answer: Found | AnsweredHttp | AnsweredRpc) -> None:
            assert isinstance(answer, AnsweredRpc)
            answered(answer.message)

        return self._ask(lambda number: AskRpc(number, path, message, peer_is_local), take, refused)

    def _ask(
        self,
        message: Callable[[int], Find | AskHttp | AskRpc],
        answered: Callable[[Found | AnsweredHttp | AnsweredRpc], None],
        refused: Callable[[StatusError], None],
    ) -> _Asking:
        number = next(self._numbers)
        self._tell(message(number))
        self._questions[number] = _Question(answered, refused)
        return _Asking(self, number)

    def drop(self, number: int) -> None:
        """Nobody waits for the answer to a question any more."""
        if self._questions.pop(number, None) is not None:
            self._tell(Drop(number))

    def submit(self, version: Version, request: Request) -> None:
        """As the base class says; where it uses regions, all of it is checked by the server process, which looks at them first."""
        regions = regions_of(request.body)
        if regions:
            self._hold(request, regions)
            version.enter(request)
        else:
            super().submit(version, request)

    # what versions ask

    def enter(self, version: RemoteVersion, request: Request) -> None:
        """Submit a request that was checked."""
        number = request.order = next(self._numbers)
        body = request.body
        names: dict[int, str] = {}
        if request.regions:
            body, names = _numbered(body)
        decoupled = version.signature.decoupled
        load, start_ns, priority, timeout_us = version.number, request.start_ns, request.priority, request.timeout_us
        self._tell(Submit(number, version.name, version.asked, load, body, start_ns, decoupled, priority, timeout_us, names))
        self._inferences[number] = _Inference(request)

    def withdraw(self, request: Request) -> None:
        """Nobody waits for a request any more."""
        inference = self._inferences.get(request.order)
        if inference is not None and not inference.answered:
            inference.answered = True
            request.cancelled = True
            self._tell(Withdraw(request.order))
            self._end(request.order, inference)

    def hold_back(self, request: Request, held: bool) -> None:
        """The client of a request takes no more responses for now, or takes them again."""
        if request.order in self._inferences:
            self._tell(Hold(request.order, held))

    # what the server process says

    def receive(self, message: News) -> None:
        """Take a message of the server process."""
        if type(message) is Responded:
            self._responded(message)
        elif type(message) is Finished:
            for number in message.requests:
                inference = self._inferences.get(number)
                if inference is not None:
                    self._finish(number, inference)
        elif isinstance(message, Found | AnsweredHttp | AnsweredRpc):
            question = self._questions.pop(message.question, None)
            if question is not None:
                question.answered(message)
        elif isinstance(message, Refused):
            question = self._questions.pop(message.question, None)
            if question is not None:
                question.refused(error_of(message.refusal))
        elif isinstance(message, Rejected):
            self._rejected(message)
        elif isinstance(message, Forget):
            self._known.clear()
            self._tell(Forgotten(message.number))
        elif isinstance(message, Measured):
            self._measured(message)

    def _responded(self, message: Responded) -> None:
        number = message.request
        inference = self._inferences.get(number)
        if inference is not None and message.finished:
            self._finish(number, inference)
        if inference is None or inference.answered:
            if message.response:
                self._tell(Release([message.response]))
            return
        error = None if message.error is None else error_of(message.error)
        on_release = partial(self._release, message.response) if message.response else None
        kind = EndMark if message.end_mark else Response
        response = kind(inference.request, message.outputs, message.parameters, error, message.final, self._view, on_release)
        if message.final:
            inference.answered = True
            self._end(number, inference)
        inference.request.on_response(response)

    def _rejected(self, message: Rejected) -> None:
        inference = self._inferences.get(message.request)
        if inference is None:
            return
        self._finish(message.request, inference)
        if not inference.answered:
            inference.answered = True
            inference.request.on_response(Rejection(inference.request, [], error=error_of(message.refusal)))
        self._inferences.pop(message.request, None)

    def _finish(self, number: int, inference: _Inference) -> None:
        """Nobody reads its inputs any more."""
        if not inference.finished:
            inference.finished = True
            self._end(number, inference)
            on_finish, inference.request.on_finish = inference.request.on_finish, None
            if on_finish is not None:
                on_finish()

    def _end(self, number: int, inference: _Inference) -> None:
        if inference.answered and inference.finished:
            del self._inferences[number]

    def _release(self, response: int, leases: list[Lease]) -> None:
        self._tell(Release([response]))

    def _measured(self, message: Measured) -> None:
        if message.samples is None:
            self._families.pop(message.family, None)
            return
        family = self._families[message.family] = Family(message.family, "gauge", "")
        for labels, value in message.samples:
            family.add(labels, value)


def _never(error: StatusError) -> None:
    raise AssertionError("an HTTP request is always answered")
