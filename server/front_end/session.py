"""One front end as the server process sees it: the inferences it has submitted, the questions it has asked, the outputs it reads."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from ...shm.placement import Inline, Lease, Span
from ...workers.contract.messages import RequestBody
from ...workers.contract.status import StatusError, internal, unavailable
from ..admission import Overloaded
from ..dispatch.request import EndMark, Request, Response
from ..door.body import InlineBody
from ..door.bringing import Bringing
from ..door.scratch import INLINE_BYTE_SIZE
from ..http.exchange import Head, HttpRequest, Reply
from ..http.load_metrics import FAMILY
from ..inference_service import with_spans
from ..repository.demand import NotResident
from .copies import Copies, Copy
from .messages import (
    AnsweredHttp,
    AnsweredRpc,
    AskHttp,
    AskRpc,
    Drop,
    Find,
    Finished,
    Found,
    FromFrontEnd,
    Hold,
    Measured,
    Refusal,
    Refused,
    Rejected,
    Release,
    Responded,
    Submit,
    Terms,
    ToFrontEnd,
    Withdraw,
)

if TYPE_CHECKING:
    from ..grpc.method import UnaryReply
    from ..http.asgi_call import AsgiCalls
    from ..repository.version import ModelVersion
    from ..service import Service

_logger = logging.getLogger(__name__)

Tell = Callable[[ToFrontEnd], None]


def refusal_of(error: StatusError) -> Refusal:
    """What a client is told, as a message."""
    # Names of files need not be text.
    message = error.message.encode("utf-8", "replace").decode()
    return Refusal(error.code, message, error.retry_after_s if isinstance(error, Overloaded) else 0)


def _terms(version: ModelVersion) -> Terms:
    labels = {name: [label.encode("utf-8", "surrogateescape") for label in labels] for name, labels in version.labels.items()}
    ensemble = version.ensemble is not None
    return Terms(version.number, version.name, version.version, version.config.SerializeToString(), ensemble, labels)


class Session:
    """Serves one front end with what ``service`` knows and does.

    ``tell`` speaks to it, ``share(arena)`` lets it read another process's arena, ``arena`` is the number of its own. ``http`` and ``rpc``
    answer what is no inference.
    """

    def __init__(
        self,
        service: Service,
        tell: Tell,
        share: Callable[[int], None],
        arena: int,
        http: AsgiCalls,
        rpc: Mapping[str, UnaryReply],
    ) -> None:
        self.service = service
        self.tell = tell
        self._share = share
        self._arena = arena
        self._http = http
        self._rpc = rpc
        self._loop = asyncio.get_running_loop()
        self._inferences: dict[int, _Inference] = {}
        self._cancels: dict[int, Callable[[], None]] = {}
        self._responses: dict[int, tuple[Response, list[Copy]]] = {}
        self._copies = Copies(service.arena)
        self._numbers = itertools.count(1)
        self._finished: dict[int, None] = {}
        self._telling = False
        self._measured: list[tuple[dict[str, str], float]] | None = None

    @property
    def in_flight(self) -> int:
        """Inferences that it waits for."""
        return len(self._inferences)

    def receive(self, message: FromFrontEnd) -> None:
        """Take a message of the front end."""
        if type(message) is Submit:
            inference = self._inferences[message.request] = _Inference(self, message)
            inference.begin()
        elif type(message) is Release:
            for number in message.responses:
                self._release(number)
        elif isinstance(message, Withdraw):
            withdrawn = self._inferences.pop(message.request, None)
            if withdrawn is not None:
                withdrawn.cancel()
        elif isinstance(message, Hold):
            held = self._inferences.get(message.request)
            if held is not None:
                held.hold(message.held)
        elif isinstance(message, Find):
            self._find(message)
        elif isinstance(message, AskHttp):
            self._ask_http(message)
        elif isinstance(message, AskRpc):
            self._ask_rpc(message)
        elif isinstance(message, Drop):
            cancel = self._cancels.pop(message.question, None)
            if cancel is not None:
                cancel()

    def end(self) -> None:
        """It has gone: nobody waits for anything any more."""
        self.tell, self._share = _nobody, _nothing_shared
        inferences, self._inferences = self._inferences, {}
        cancels, self._cancels = self._cancels, {}
        # One that fails must not keep the others.
        with contextlib.ExitStack() as undo:
            for number in list(self._responses):
                undo.callback(self._release, number)
            for cancel in cancels.values():
                undo.callback(cancel)
            for inference in inferences.values():
                undo.callback(inference.cancel)

    # questions

    def _find(self, message: Find) -> None:
        question = message.question
        try:
            self.tell(Found(question, _terms(self.service.find(message.model, message.version))))
        except NotResident as absent:
            bringing = Bringing(self.service, absent, partial(self._brought, message), _nothing)
            if bringing.waits:
                self._cancels[question] = bringing.cancel
        except StatusError as error:
            self.tell(Refused(question, refusal_of(error)))
        except Exception:
            self.tell(Refused(question, refusal_of(internal("internal error"))))
            raise

    def _brought(self, message: Find, error: StatusError | None) -> None:
        """Answer now that the model can be asked, or with why it cannot."""
        self._cancels.pop(message.question, None)
        try:
            if error is not None:
                raise error
            self.tell(Found(message.question, _terms(self.service.find(message.model, message.version))))
        except StatusError as refusal:
            self.tell(Refused(message.question, refusal_of(refusal)))
        except Exception:
            self.tell(Refused(message.question, refusal_of(internal("internal error"))))
            raise

    def _ask_rpc(self, message: AskRpc) -> None:
        task = self._loop.create_task(self._answer_rpc(message))
        self._cancels[message.question] = partial(_cancel, task)
        task.add_done_callback(partial(self._ended, message.question))

    async def _answer_rpc(self, message: AskRpc) -> None:
        question = message.question
        try:
            self.tell(AnsweredRpc(question, await self._rpc[message.path](message.message, message.peer_is_local)))
        except StatusError as error:
            self.tell(Refused(question, refusal_of(error)))
        except Exception:
            _logger.exception("a gRPC handler failed")
            self.tell(Refused(question, refusal_of(internal("internal error"))))

    def _ended(self, question: int, task: asyncio.Task[None]) -> None:
        self._cancels.pop(question, None)

    def _ask_http(self, message: AskHttp) -> None:
        question = message.question
        headers = message.headers
        head = Head(message.method, message.path, headers, [name for name, _ in headers], message.query, len(message.body))
        request = HttpRequest(head, InlineBody(message.body), time.monotonic_ns(), message.peer_is_local)
        self._cancels[question] = self._http.begin(request, partial(self._answered, question))

    def _answered(self, question: int, reply: Reply) -> None:
        self._cancels.pop(question, None)
        self.tell(AnsweredHttp(question, reply.status, list(reply.headers), b"".join(reply.body)))
        if reply.on_sent is not None:
            reply.on_sent()

    # inferences

    def respond(self, number: int, response: Response) -> None:
        """Pass on a response of an inference."""
        if response.final:
            self._inferences.pop(number, None)
        finished = number in self._finished
        if finished:
            del self._finished[number]
        try:
            kept = self._tell_response(number, response, finished)
        except Exception:
            # The client is to hear something, and its outputs' memory to come back, whatever went wrong here.
            response.release()
            error = refusal_of(internal("internal error"))
            self.tell(Responded(number, [], {}, error, response.final, response=0, finished=finished))
            raise
        if not kept:
            response.release()

    def _tell_response(self, number: int, response: Response, finished: bool) -> bool:
        """Tell a response; is it kept until its outputs have been released?"""
        self._tell_measured()
        outputs = response.outputs
        copies: list[Copy] = []
        leases = False
        for index, tensor in enumerate(outputs):
            place = tensor.place
            if type(place) is Inline and place.byte_size > INLINE_BYTE_SIZE:
                copy = self._copies.of(place.content)
                if copy is not None:
                    copies.append(copy)
                    outputs = [*outputs[:index], msgspec.structs.replace(tensor, place=copy.lease), *outputs[index + 1 :]]
            elif type(place) is Lease:
                leases = True
                if place.arena and place.arena != self._arena:
                    self._share(place.arena)
        kept = next(self._numbers) if leases or copies else 0
        error = None if response.error is None else refusal_of(response.error)
        try:
            self.tell(Responded(number, outputs, response.parameters, error, response.final, type(response) is EndMark, kept, finished))
        except BaseException:
            self._copies.drop(copies)
            raise
        if kept:
            self._responses[kept] = (response, copies)
        return bool(kept)

    def _release(self, number: int) -> None:
        response, copies = self._responses.pop(number, (None, []))
        self._copies.drop(copies)
        if response is not None:
            response.release()

    def reject(self, number: int, error: StatusError) -> None:
        """An inference has not begun."""
        self._inferences.pop(number, None)
        self.tell(Rejected(number, refusal_of(error)))

    def finish(self, number: int) -> None:
        """Nobody reads the inputs of an inference any more: told with its response, which mostly follows at once, or else alone."""
        self._finished[number] = None
        if not self._telling:
            self._telling = True
            self._loop.call_soon(self._tell_finished)

    def _tell_finished(self) -> None:
        self._telling = False
        if self._finished:
            finished, self._finished = list(self._finished), {}
            self.tell(Finished(finished))

    def _tell_measured(self) -> None:
        """Clients may ask for these metrics in the reply that is about to be written."""
        family = self.service.custom_family(FAMILY)
        if family is None and self._measured is None:
            return
        samples = None if family is None else [(dict(sample.labels), sample.value) for sample in family.samples]
        if samples != self._measured:
            self._measured = samples
            self.tell(Measured(FAMILY, samples))

    def submit(self, inference: _Inference, message: Submit, version: ModelVersion) -> Request:
        """Queue an inference. Raises StatusError."""
        body = message.body
        if message.regions:
            body = self._with_regions(body, message.regions)
        number = message.request
        request = Request(body, message.start_ns, inference.respond, partial(self.finish, number), message.priority, message.timeout_us)
        if version.number == message.number and not message.regions:
            if any([type(tensor.place) is Lease for tensor in body.inputs]):
                request.arenas = (self._arena,)
            self.service.submit_checked(version, request)
        elif version.signature.decoupled != message.decoupled:
            raise unavailable(f"model '{version.name}' was changed while the request was read; send it again")
        else:
            self.service.submit(version, request)
        return request

    def _with_regions(self, body: RequestBody, names: Mapping[int, str]) -> RequestBody:
        """The body with the regions that clients mean by their names. Raises StatusError."""

        def found(span: Span) -> Span:
            return self.service.regions.span(names[span.region], span.offset, span.byte_size)

        return with_spans(body, found)


class _Inference:
    """An inference that a front end has submitted, until its last response."""

    __slots__ = ("_bringing", "_ended", "_gone", "_held", "_message", "_number", "_request", "_session", "_version")

    def __init__(self, session: Session, message: Submit) -> None:
        self._session = session
        self._number = message.request
        self._message: Submit | None = message
        self._request: Request | None = None
        self._version: ModelVersion
        self._bringing: Bringing | None = None
        self._gone = False
        self._ended = False
        self._held = False

    def begin(self, error: StatusError | None = None) -> None:
        """Queue it, or refuse it with the error there is."""
        session, message = self._session, self._message
        assert message is not None
        self._bringing = None
        try:
            if error is not None:
                raise error
            version = self._version = session.service.find(message.model, message.asked)
            request = session.submit(self, message, version)
            if not self._ended:
                self._request = request
                if self._held:
                    session.service.hold(version, request, True)
        except NotResident as absent:
            # It has left since it was asked for.
            bringing = Bringing(session.service, absent, self.begin, partial(session.finish, self._number))
            if bringing.waits:
                self._bringing = bringing
            return
        except StatusError as refusal:
            session.reject(self._number, refusal)
        except Exception:
            session.reject(self._number, internal("internal error"))
            raise
        # Its tensors are the request's now.
        self._message = None

    def respond(self, response: Response) -> None:
        """Take a response."""
        if response.final:
            # The request knows this object: left alone, a cycle for the collector, with the whole session in it.
            self._request, self._ended = None, True
        if self._gone:
            response.release()
        else:
            self._session.respond(self._number, response)

    def hold(self, held: bool) -> None:
        """Its client takes no more responses for now, or takes them again."""
        self._held = held
        if self._request is not None:
            self._session.service.hold(self._version, self._request, held)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._gone = True
        bringing, self._bringing = self._bringing, None
        request, self._request = self._request, None
        if bringing is not None:
            bringing.cancel()
        elif request is not None:
            self._session.service.cancel(self._version, request)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _nobody(message: ToFrontEnd) -> None:
    """Nobody listens any more."""


def _nothing_shared(arena: int) -> None:
    """Nobody reads any arena."""


def _nothing() -> None:
    """There is nothing to give back."""
