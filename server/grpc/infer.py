"""``ModelInfer``: one inference, from the request's bytes to the response's."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from ...workers.contract.status import StatusError, internal, unsupported
from ..dispatch.request import Request, Response
from ..door.bringing import bring
from ..door.restriction import Restriction
from ..door.single_response import OnResponse, SingleResponse
from ..door.version_text import version_text
from ..repository.demand import NotResident
from .infer_request import InferCall, InferMessage, read_message
from .infer_response import infer_response
from .method import Context, check_restriction, refuse
from .submission import SMALL_BYTE_SIZE, submit

if TYPE_CHECKING:
    from ..repository.version import ModelVersion
    from ..service import Service

_logger = logging.getLogger(__name__)

NO_DECOUPLED = "ModelInfer RPC doesn't support models with decoupled transaction policy"


class Infer:
    """The method as grpcio calls it: bytes in, bytes out."""

    def __init__(self, service: Service, rule: Restriction | None) -> None:
        self._service = service
        self._rule = rule

    async def answer(self, content: bytes, context: Context) -> bytes:
        """Answer one call. It is cancelled where the client goes, or its deadline passes."""
        start_ns = time.monotonic_ns()
        try:
            check_restriction(self._rule, context)
            begin = partial(self._begin, read_message(content), context, start_ns)
            del content
            try:
                exchange = begin()
            except NotResident as absent:
                exchange = await bring(self._service, absent, begin)
            outcome = await exchange.outcome()
        except StatusError as error:
            outcome = error
        except Exception:
            _logger.exception("a gRPC inference failed")
            outcome = internal("internal error")
        if type(outcome) is bytes:
            if len(outcome) > SMALL_BYTE_SIZE:
                self._hold(len(outcome), context)
            return outcome
        assert isinstance(outcome, StatusError)
        await refuse(context, outcome)

    def _begin(self, message: InferMessage, context: Context, start_ns: int) -> _Exchange:
        service = self._service
        envelope = message.envelope
        version = service.find(envelope.model_name, version_text(envelope.model_version))
        if version.signature.decoupled:
            raise unsupported(NO_DECOUPLED)
        exchange = _Exchange(service, version)
        exchange.request = submit(service, version, message, context, start_ns, exchange.taking)
        return exchange

    def _hold(self, byte_size: int, context: Context) -> None:
        """Count a reply that the client has not taken."""
        admission = self._service.admission
        admission.hold(byte_size)
        context.add_done_callback(lambda _: admission.let_go(byte_size))


class _Exchange(SingleResponse):
    """Waits for the one response of a request."""

    __slots__ = ("_call", "_gone", "_outcome", "_service", "_version", "request")

    def __init__(self, service: Service, version: ModelVersion) -> None:
        super().__init__()
        self._service = service
        self._version = version
        self._call: InferCall
        self._gone = False
        self._outcome: asyncio.Future[bytes | StatusError] = asyncio.get_running_loop().create_future()
        self.request: Request | None = None

    def taking(self, call: InferCall) -> OnResponse:
        """What takes the responses of this call."""
        self._call = call
        return self.on_response

    async def outcome(self) -> bytes | StatusError:
        """The message to reply with, or why there is none. Where this is cancelled, so is the request."""
        try:
            return await self._outcome
        except asyncio.CancelledError:
            request, self.request = self.request, None
            self._gone = True
            if request is not None:
                self._service.cancel(self._version, request)
            raise

    def settle(self, response: Response, refusal: StatusError | None) -> None:
        """As the base class says."""
        self.request = None
        try:
            if self._gone:
                return
            # Raised, an error would keep this frame, and with it the request's message, for the collector.
            outcome = refusal or self._written(response)
        finally:
            response.release()
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def _written(self, response: Response) -> bytes | StatusError:
        call = self._call
        try:
            return infer_response(self._version, call.body.id, call.classes, response)
        except StatusError as error:
            return error
        except Exception:
            _logger.exception("a gRPC response could not be written")
            return internal("internal error")
