"""``POST /v2/models/<m>[/versions/<v>]/generate`` and ``/generate_stream``: inference in plain JSON, with one response or with many.

The status is that of the first response: 200, or 400 where that is an error, whatever its code. What fails before
there is any has the status of its code.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from starlette.routing import Route

from ...workers.contract.status import StatusError, internal, invalid
from ..dispatch.request import EndMark, Rejection, Request, Response
from ..door.bringing import Bringing
from ..door.scratch import Scratch
from ..door.version_text import version_text
from ..repository.demand import NotResident
from .errors import JSON_TYPE, error_body, error_reply
from .exchange import Answer, Cancel, Head, Headers, Stream, StreamingRequest
from .generate_request import GenerateCall, read_generate, read_long_generate
from .generate_response import EXPECTS_ONE, response_steps
from .handler_app import HandlerApp
from .limits import Limits
from .load_metrics import FAMILY, load_metrics_headers
from .long_request import LONG_BYTE_SIZE
from .restriction import Restrictions
from .turns import in_turns

if TYPE_CHECKING:
    from ..inference_service import InferenceService, Version

_MODELS = "/v2/models/"
_EVENTS_TYPE = (b"Content-Type", b"text/event-stream; charset=utf-8")
_EVENT, _END_OF_EVENT = b"data: ", b"\n\n"


def generate_target(path: str) -> tuple[str, str, bool] | None:
    """The model, the version's digits ("" for the newest) and whether responses are streamed; None for any other path."""
    streamed = path.endswith("/generate_stream")
    if not path.startswith(_MODELS) or not (streamed or path.endswith("/generate")):
        return None
    pieces = path[len(_MODELS) :].split("/")
    if len(pieces) == 2 and pieces[0]:
        return pieces[0], "", streamed
    if len(pieces) == 4 and pieces[0] and pieces[1] == "versions" and pieces[2].isascii() and pieces[2].isdigit():
        return pieces[0], pieces[2], streamed
    return None


def generate(
    service: InferenceService, model: str, version: str, request: StreamingRequest, answer: Answer, streamed: bool = False
) -> Cancel | None:
    """Run one inference and reply with its response, or with an event for each of its responses.

    Takes the request's body over: it is released once it has been read.
    """
    try:
        found = service.find(model, version_text(version))
        if request.head.header(b"content-encoding") not in (None, b"identity"):
            raise invalid("Unsupported content-encoding, only 'identity' is supported.")
    except NotResident as absent:
        begin = partial(generate, service, model, version, request, answer, streamed)
        return Bringing(service, absent, partial(_brought, begin, request, answer), request.body.release).cancel
    except StatusError as error:
        request.body.release()
        answer(error_reply(error))
        return None
    generation = _Generation(service, found, version, streamed, request, answer)
    generation.start()
    return generation.cancel


def _brought(begin: Callable[[], Cancel | None], request: StreamingRequest, answer: Answer, error: StatusError | None) -> Cancel | None:
    """Begin a request whose model can be asked now, or refuse it."""
    if error is not None:
        request.body.release()
        answer(error_reply(error))
        return None
    try:
        return begin()
    except Exception:
        # Nobody above hears of it, and the client waits.
        answer(error_reply(internal("internal error")))
        raise


class _Generation:
    """One request, from its body to the end of its reply. Responses are written one after the other, in the order they come."""

    __slots__ = (
        "_answer",
        "_asked",
        "_call",
        "_count",
        "_drop",
        "_gone",
        "_queued",
        "_request",
        "_responses",
        "_scratch",
        "_service",
        "_stream",
        "_streamed",
        "_text",
        "_version",
    )

    def __init__(
        self, service: InferenceService, version: Version, asked: str, streamed: bool, request: StreamingRequest, answer: Answer
    ) -> None:
        self._service = service
        self._version = version
        self._asked = asked
        self._streamed = streamed
        self._request = request
        self._answer = answer
        self._scratch = Scratch(service.arena)
        self._call: GenerateCall
        self._queued: Request | None = None
        self._stream: Stream | None = None
        self._responses: deque[Response] = deque()
        self._drop: Cancel | None = None
        self._gone = False
        self._count = 0
        self._text: list[bytes] = []

    def start(self) -> None:
        """Read the request, and submit it."""
        body = self._request.body
        text = bytes(body.view)
        body.release()
        signature = self._version.signature
        limit = self._service.options.http_max_input_size
        if len(text) > LONG_BYTE_SIZE:
            self._drop = in_turns(read_long_generate(text, signature, self._scratch, limit), self._read)
            return
        self._submit_read(partial(read_generate, text, signature, self._scratch, limit))

    def _read(self, outcome: asyncio.Future[GenerateCall]) -> None:
        self._drop = None
        self._submit_read(outcome.result)

    def _submit_read(self, read: Callable[[], GenerateCall]) -> None:
        """Submit the call that ``read`` gives, or refuse it."""
        try:
            call = read()
        except StatusError as error:
            self._refuse(error)
        except Exception:
            # Nobody above hears of it, and the client waits.
            self._refuse(internal("internal error"))
            raise
        else:
            self._submit(call)

    def _submit(self, call: GenerateCall) -> None:
        self._call = call
        self._queued = Request(call.body, self._request.start_ns, self._on_response, self._scratch.release)
        try:
            self._version = self._service.current(self._version, self._asked)
            self._service.submit(self._version, self._queued)
        except NotResident as absent:
            # It has left since its body was begun to be read.
            self._queued = None
            bringing = Bringing(self._service, absent, self._brought, lambda: None)
            if bringing.waits:
                self._drop = bringing.cancel
        except StatusError as error:
            self._queued = None
            self._refuse(error)

    def _brought(self, error: StatusError | None) -> None:
        self._drop = None
        if error is None:
            self._submit(self._call)
        else:
            self._refuse(error)

    def _refuse(self, error: StatusError) -> None:
        self._scratch.release()
        self._answer(error_reply(error))

    def cancel(self) -> None:
        """The client has gone."""
        self._gone = True
        if self._drop is not None:
            self._drop()
            self._drop = None
            if self._queued is None:
                # It was still being read.
                self._scratch.release()
        while self._responses:
            self._responses.popleft().release()
        queued, self._queued = self._queued, None
        if queued is not None:
            self._service.cancel(self._version, queued)

    def _on_response(self, response: Response) -> None:
        if self._gone:
            response.release()
            return
        if type(response) is Rejection:
            self._queued = None
            assert response.error is not None
            self._refuse(response.error)
            return
        self._responses.append(response)
        if len(self._responses) == 1:
            self._go_on()

    def _go_on(self) -> None:
        """Write the responses that have come, up to one that takes long."""
        while self._responses:
            response = self._responses[0]
            try:
                if type(response) is EndMark:
                    self._take(response, None)
                    continue
                if self._count and not self._streamed:
                    # One too many: nobody will read it.
                    self._take(response, [])
                    continue
                if response.error is not None:
                    self._take_error(response, response.error)
                    continue
                steps = response_steps(self._version.name, self._version.version, self._call.id_text, response)
                try:
                    next(steps)
                except StopIteration as written:
                    self._take(response, written.value)
                except StatusError as error:
                    self._take_error(response, error)
                else:
                    self._drop = in_turns(steps, self._written)
                    return
            except Exception:
                self._break_off()
                raise

    def _written(self, outcome: asyncio.Future[list[bytes]]) -> None:
        """Take a response that was written in turns with the loop."""
        self._drop = None
        response = self._responses[0]
        try:
            try:
                parts = outcome.result()
            except StatusError as error:
                self._take_error(response, error)
            else:
                self._take(response, parts)
        except Exception:
            self._break_off()
            raise
        self._go_on()

    def _take_error(self, response: Response, error: StatusError) -> None:
        self._take(response, [error_body(error.message)], 400)

    def _take(self, response: Response, parts: list[bytes] | None, status: int = 200) -> None:
        """Put a response that was written on the wire, as far as it is to go there; None: there is only the end to tell."""
        final = response.final
        self._responses.popleft()
        response.release()
        stream = self._stream
        if stream is None:
            stream = self._stream = self._request.begin(status, self._headers(self._request.head))
        if parts is not None:
            self._count += 1
        if self._streamed:
            event = [] if parts is None else [_EVENT, *parts, _END_OF_EVENT]
            if not final:
                stream.write(event)
        else:
            if self._count == 1 and parts:
                self._text = parts
            event = self._text if self._count == 1 else [error_body(EXPECTS_ONE)]
            if not final and self._count == 1:
                stream.write(())
        if final:
            # The request knows this object, which knows the request: left alone, a cycle for the collector.
            self._queued = None
            stream.end(event)

    def _headers(self, head: Head) -> Headers:
        kind = _EVENTS_TYPE if self._streamed else JSON_TYPE
        wanted = head.header(b"endpoint-load-metrics-format")
        return (kind,) if wanted is None else (kind, *load_metrics_headers(wanted, self._service.custom_family(FAMILY)))

    def _break_off(self) -> None:
        """Something went wrong here: the client is to hear of it, and outputs' memory to come back."""
        stream = self._stream
        self.cancel()
        if stream is None:
            self._answer(error_reply(internal("internal error")))
        else:
            stream.abort()


def model_routes(service: InferenceService, restrictions: Restrictions, limits: Limits) -> list[Route]:
    """Both forms of it, with and without a version."""
    return [
        Route(f"/v2/models/{{model}}{version}/generate{suffix}", HandlerApp(service, restrictions, limits, handler, plain=False))
        for suffix, handler in (("", generate), ("_stream", partial(generate, streamed=True)))
        for version in ("/versions/{version:digits}", "")
    ]
