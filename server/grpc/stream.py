"""``ModelStreamInfer``: any number of inferences on one stream, with models of all kinds, and any number of responses to each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import grpc

from ...workers.contract.status import StatusError, internal
from ..dispatch.request import EndMark, Request, Response
from ..door.bringing import Bringing
from ..door.restriction import Restriction
from ..door.single_response import OnResponse, SingleResponse
from ..door.version_text import version_text
from ..repository.demand import NotResident
from .infer_request import InferCall, InferMessage, read_message
from .infer_response import stream_error, stream_response
from .method import Context, check_restriction, refuse
from .protocol import Unparsable
from .response_order import Place, ResponseOrder
from .submission import submit

if TYPE_CHECKING:
    from ..repository.version import ModelVersion
    from ..service import Service

_logger = logging.getLogger(__name__)

UNSENT_BYTE_SIZE = 16 * 1024 * 1024
"""With more than this waiting for the client, no further request of its stream is read."""

_ERROR_KEY = "triton_grpc_error"


class StreamInfer:
    """The method as grpcio calls it: bytes in, bytes out."""

    def __init__(self, service: Service, rule: Restriction | None) -> None:
        self._service = service
        self._rule = rule

    async def answer(self, requests: object, context: Context) -> None:
        """Answer one stream. It is cancelled where the client goes, or its deadline passes."""
        failure: StatusError | None = None
        try:
            check_restriction(self._rule, context)
            failure = await Stream(self._service, context).run()
        except StatusError as error:
            failure = error
        except Exception:
            _logger.exception("a gRPC stream failed")
            failure = internal("internal error")
        if failure is not None:
            await refuse(context, failure)


class Stream:
    """One stream, from its first request to its last response."""

    def __init__(self, service: Service, context: Context) -> None:
        self.service = service
        self.context = context
        self.order: ResponseOrder[bytes] = ResponseOrder(self._leave)
        self.outstanding: dict[Answering, None] = {}
        metadata = dict(context.invocation_metadata() or ())
        self._ends_by_error = metadata.get(_ERROR_KEY) == "true"
        self._failure: StatusError | None = None
        self._unsent: deque[bytes] = deque()
        self._unsent_byte_size = 0
        self._ended = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def run(self) -> StatusError | None:
        """Read requests and write responses until there are no more of either; returns the error that ends the stream, if one does."""
        reader = asyncio.get_running_loop().create_task(self._read())
        reader.add_done_callback(lambda _: self._news.set())
        try:
            while True:
                while self._unsent and self._failure is None:
                    message = self._unsent.popleft()
                    await self.context.write(message)
                    self._sent(len(message))
                if self._failure is not None:
                    return self._failure
                if reader.done():
                    # What it has run into ends the stream.
                    reader.result()
                    if self.order.empty:
                        return None
                await self._news.wait()
                self._news.clear()
        finally:
            reader.cancel()
            for answering in list(self.outstanding):
                answering.cancel()
            self.service.admission.let_go(self._unsent_byte_size)
            self._unsent_byte_size = 0
            self._ended = True

    async def _read(self) -> None:
        while True:
            content = await self.context.read()
            if content is grpc.aio.EOF:
                return
            try:
                message = read_message(content)
            except Unparsable:
                # As if the client had ended its side: what it has asked before is answered.
                return
            del content
            self._take(message)
            while self._unsent_byte_size > UNSENT_BYTE_SIZE:
                self._room.clear()
                await self._room.wait()

    def _take(self, message: InferMessage) -> None:
        """Begin the inference that one message asks for."""
        answering = Answering(self, message.envelope.id, time.monotonic_ns())
        try:
            answering.begin(message)
        except StatusError as error:
            answering.refuse(error)
        except Exception:
            _logger.exception("a request of a gRPC stream failed")
            answering.refuse(internal("internal error"))

    def fail(self, place: Place[bytes], request_id: str, error: StatusError, model: tuple[str, int] | None = None) -> None:
        """A request has failed: tell the client, which ends the stream if it is one that ends by errors."""
        if self._ends_by_error:
            self._failure = self._failure or error
            self._news.set()
        else:
            self.order.add(place, stream_error(error.message, request_id, model))

    def _leave(self, message: bytes) -> None:
        if self._ended:
            return
        self._unsent.append(message)
        self._unsent_byte_size += len(message)
        self.service.admission.hold(len(message))
        self._news.set()

    def _sent(self, byte_size: int) -> None:
        self._unsent_byte_size -= byte_size
        self.service.admission.let_go(byte_size)
        if self._unsent_byte_size <= UNSENT_BYTE_SIZE:
            self._room.set()

    def finished(self, answering: Answering) -> None:
        """A request has had all its responses."""
        self.outstanding.pop(answering, None)
        self.order.end(answering.place)
        self._news.set()


class Answering:
    """One request of a stream, from its message to its last response."""

    __slots__ = ("_bringing", "_call", "_gone", "_request", "_request_id", "_start_ns", "_stream", "_version", "place")

    def __init__(self, stream: Stream, request_id: str, start_ns: int) -> None:
        self.place = stream.order.enter()
        self._stream = stream
        self._request_id = request_id
        self._start_ns = start_ns
        self._call: InferCall
        self._version: ModelVersion
        self._request: Request | None = None
        self._bringing: Bringing | None = None
        self._gone = False
        stream.outstanding[self] = None

    def begin(self, message: InferMessage) -> None:
        """Queue it, or wait for its model first. Raises StatusError."""
        stream = self._stream
        envelope = message.envelope
        try:
            version = self._version = stream.service.find(envelope.model_name, version_text(envelope.model_version))
            self.place.free = version.signature.decoupled
            self._request = submit(stream.service, version, message, stream.context, self._start_ns, self._taking)
        except NotResident as absent:
            bringing = Bringing(stream.service, absent, partial(self._brought, message), _nothing)
            if bringing.waits:
                self._bringing = bringing

    def _brought(self, message: InferMessage, error: StatusError | None) -> Callable[[], None] | None:
        """Begin it now that its model can be asked, or refuse it."""
        self._bringing = None
        try:
            if error is not None:
                raise error
            self.begin(message)
        except StatusError as failure:
            self.refuse(failure)
        except Exception:
            self.refuse(internal("internal error"))
            raise
        return None

    def refuse(self, error: StatusError) -> None:
        """It has not begun, and will not."""
        self._stream.fail(self.place, self._request_id, error)
        self._stream.finished(self)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._gone = True
        bringing, self._bringing = self._bringing, None
        request, self._request = self._request, None
        if bringing is not None:
            bringing.cancel()
        elif request is not None:
            self._stream.service.cancel(self._version, request)

    def _taking(self, call: InferCall) -> OnResponse:
        self._call = call
        return self._on_response if self.place.free else _Single(self).on_response

    def _on_response(self, response: Response) -> None:
        """Pass on one response of a decoupled model."""
        final = response.final
        if type(response) is EndMark and not self._call.empty_final:
            response.release()
        else:
            self.write(response, response.error, final)
        if final:
            self.end()

    def write(self, response: Response, refusal: StatusError | None, final: bool) -> None:
        """Pass on a response, or an error in its place, and release it."""
        stream = self._stream
        version = self._version
        try:
            if self._gone:
                return
            if refusal is None:
                call = self._call
                stream.order.add(self.place, stream_response(version, self._request_id, call.classes, response, final))
        except StatusError as error:
            refusal = error
        except Exception:
            _logger.exception("a gRPC response could not be written")
            refusal = internal("internal error")
        finally:
            response.release()
        if refusal is not None:
            stream.fail(self.place, self._request_id, refusal, (version.name, version.version))

    def end(self) -> None:
        """It has had its last response."""
        self._request = None
        self._stream.finished(self)


class _Single(SingleResponse):
    """Waits for the one response of a request of a model that is not decoupled."""

    __slots__ = ("_answering",)

    def __init__(self, answering: Answering) -> None:
        super().__init__()
        self._answering = answering

    def settle(self, response: Response, refusal: StatusError | None) -> None:
        """As the base class says."""
        self._answering.write(response, refusal, True)
        self._answering.end()


def _nothing() -> None:
    """What a request that waits for its model has to give back."""
