"""``ModelStreamInfer``: any number of inferences on one stream, with models of all kinds, and any number of responses to each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ...workers.contract.status import StatusError, internal
from ..dispatch.request import EndMark, Rejection, Request, Response
from ..door.body import Body
from ..door.bringing import Bringing
from ..door.restriction import Restriction
from ..door.single_response import OnResponse, SingleResponse
from ..door.version_text import version_text
from ..repository.demand import NotResident
from .infer_call import InferCall
from .infer_message import InferMessage
from .infer_plan import received
from .infer_response import stream_end, stream_error, stream_refusal, stream_response
from .method import check_restriction
from .protocol import Unparsable
from .response_order import ResponseOrder
from .rpc import Rpc
from .submission import submit

if TYPE_CHECKING:
    from ..inference_service import InferenceService, Version

_logger = logging.getLogger(__name__)

UNSENT_BYTE_SIZE = 16 * 1024 * 1024
"""With more than this waiting for the client, no further request of its stream is read, and models are not to send more."""

_MOST_UNSENT = 4096
"""As many small ones take up more memory than their bytes."""

_ERROR_KEY = "triton_grpc_error"


class StreamInfer:
    """Begins calls of the method."""

    def __init__(self, service: InferenceService, rule: Restriction | None) -> None:
        self._service = service
        self._rule = rule

    def begin(self, rpc: Rpc) -> Stream:
        """What takes a call's messages. Raises StatusError where the call may not be made."""
        check_restriction(self._rule, rpc)
        return Stream(self._service, rpc)


class Stream:
    """One call, from its first request to its last response."""

    __slots__ = ("_complete", "_ends_by_error", "_most_unsent", "full", "order", "outstanding", "rpc", "service")

    def __init__(self, service: InferenceService, rpc: Rpc) -> None:
        self.service = service
        self.rpc = rpc
        self.order: ResponseOrder[bytes] = ResponseOrder(self._leave)
        self.outstanding: dict[Answering, None] = {}
        self._ends_by_error = rpc.head.value(_ERROR_KEY) == "true"
        self._complete = False
        self.full = False
        self._most_unsent = min(service.options.grpc_max_response_pool_size, _MOST_UNSENT)
        rpc.on_room = self._room

    # Receiver

    def message(self, body: Body) -> None:
        """As ``Receiver`` says: a request."""
        if self._complete:
            body.release()
            return
        try:
            message = received(body)
        except Unparsable:
            # As if the client had ended its side: what it has asked before is answered.
            self.ended()
            return
        Answering(self, message.id, time.monotonic_ns()).start(message)

    def ended(self) -> None:
        """As ``Receiver`` says."""
        self._complete = True
        if self.order.empty:
            self.rpc.finish()

    def gone(self) -> None:
        """As ``Receiver`` says."""
        self._complete = True
        outstanding, self.outstanding = self.outstanding, {}
        for answering in outstanding:
            answering.cancel()

    @property
    def idle(self) -> bool:
        """As ``Receiver`` says."""
        return self.order.empty

    # what answers say

    def fail(self, error: StatusError) -> bool:
        """A model has failed a request: True where that ends the call."""
        if not self._ends_by_error:
            return False
        self.rpc.fail(error)
        self.gone()
        return True

    def finished(self, answering: Answering) -> None:
        """A request has had all its responses."""
        self.outstanding.pop(answering, None)
        self.order.end(answering.place)
        if self._complete and self.order.empty:
            self.rpc.finish()

    def _leave(self, message: bytes) -> None:
        rpc = self.rpc
        rpc.write(message)
        if not self.full and (rpc.unsent_byte_size > UNSENT_BYTE_SIZE or rpc.unsent_count >= self._most_unsent):
            self._hold(True)

    def _room(self) -> None:
        if self.full and self.rpc.unsent_byte_size <= UNSENT_BYTE_SIZE // 2 and self.rpc.unsent_count < self._most_unsent:
            self._hold(False)

    def _hold(self, full: bool) -> None:
        """Read no more requests, and have models make no more responses, until the client has taken what waits for it."""
        self.full = full
        self.rpc.hold(full)
        for answering in self.outstanding:
            answering.hold(full)


class Answering:
    """One request of a stream, from its message to its last response."""

    __slots__ = ("_bringing", "_call", "_gone", "_request", "_request_id", "_start_ns", "_stream", "_version", "place")

    def __init__(self, stream: Stream, request_id: str, start_ns: int) -> None:
        self.place = stream.order.enter()
        self._stream = stream
        self._request_id = request_id
        self._start_ns = start_ns
        self._call: InferCall
        self._version: Version
        self._request: Request | None = None
        self._bringing: Bringing | None = None
        self._gone = False
        stream.outstanding[self] = None

    def start(self, message: InferMessage, error: StatusError | None = None) -> None:
        """Begin it, or refuse it with the error there is; takes the message over."""
        try:
            if error is not None:
                raise error
            self._begin(message)
        except StatusError as failure:
            message.release()
            self.refuse(failure)
        except Exception:
            # Its connection carries the calls of others, too.
            _logger.exception("a request of a gRPC stream could not be begun")
            message.release()
            self.refuse(internal("internal error"))

    def _begin(self, message: InferMessage) -> None:
        """Queue it, or wait for its model first. Raises StatusError."""
        stream = self._stream
        try:
            version = self._version = stream.service.find(message.model, version_text(message.version))
            if version.signature.decoupled:
                stream.order.free(self.place)
            self._request = submit(stream.service, version, message, stream.rpc, self._start_ns, self._taking)
            if stream.full:
                self.hold(True)
        except NotResident as absent:
            bringing = Bringing(stream.service, absent, partial(self._brought, message), message.release)
            if bringing.waits:
                self._bringing = bringing

    def _brought(self, message: InferMessage, error: StatusError | None) -> Callable[[], None] | None:
        """Begin it now that its model can be asked, or refuse it."""
        self._bringing = None
        self.start(message, error)
        return None

    def refuse(self, error: StatusError) -> None:
        """It has not begun, and will not."""
        if not self._gone:
            stream = self._stream
            stream.order.add(self.place, stream_refusal(error.message, self._request_id))
            stream.finished(self)

    def rejected(self, response: Rejection) -> None:
        """It was refused after it had been handed over."""
        self._request = None
        assert response.error is not None
        self.refuse(response.error)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._gone = True
        bringing, self._bringing = self._bringing, None
        request, self._request = self._request, None
        if bringing is not None:
            bringing.cancel()
        elif request is not None:
            self._stream.service.cancel(self._version, request)

    def hold(self, held: bool) -> None:
        """Its client takes no more responses for now, or takes them again."""
        if self.place.free and self._request is not None:
            self._stream.service.hold(self._version, self._request, held)

    def _taking(self, call: InferCall) -> OnResponse:
        self._call = call
        return self._on_response if self.place.free else _Single(self).on_response

    def _on_response(self, response: Response) -> None:
        """Pass on one response of a decoupled model."""
        final = response.final
        if self._gone:
            response.release()
        elif type(response) is Rejection:
            self.rejected(response)
            return
        elif type(response) is EndMark:
            response.release()
            if self._call.empty_final:
                self._stream.order.add(self.place, stream_end(self._request_id, self._version.name))
        elif response.error is not None and self._version.ensemble is not None:
            # An ensemble says no more behind an error but that it has ended.
            self._call.empty_final = False
            self.write(response, response.error, True)
        else:
            self.write(response, response.error, final)
        if final:
            self.end()

    def write(self, response: Response, refusal: StatusError | None, final: bool) -> None:
        """Pass on a response, or an error in its place, and release it."""
        stream = self._stream
        version = self._version
        message = b""
        try:
            if self._gone:
                return
            if refusal is None:
                message = stream_response(version, self._request_id, self._call.classes, response, final)
        except StatusError as error:
            refusal = error
        except Exception:
            _logger.exception("a gRPC response could not be written")
            refusal = internal("internal error")
        finally:
            response.release()
        if refusal is not None:
            if stream.fail(refusal):
                return
            message = stream_error(refusal.message, self._request_id, version.name, final)
        stream.order.add(self.place, message)

    def end(self) -> None:
        """It has had its last response."""
        self._request = None
        if not self._gone:
            self._stream.finished(self)


class _Single(SingleResponse):
    """Waits for the one response of a request of a model that is not decoupled."""

    __slots__ = ("_answering",)

    def __init__(self, answering: Answering) -> None:
        super().__init__()
        self._answering = answering

    def settle(self, response: Response, refusal: StatusError | None) -> None:
        """As the base class says."""
        if type(response) is Rejection:
            self._answering.rejected(response)
            return
        self._answering.write(response, refusal, True)
        self._answering.end()
