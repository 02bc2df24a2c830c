"""``ModelInfer``: one inference, from the request's bytes to the response's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ...workers.contract.status import StatusError, internal, unsupported
from ..dispatch.request import Response
from ..door.body import Body
from ..door.bringing import Bringing
from ..door.restriction import Restriction
from ..door.single_response import OnResponse, SingleResponse
from ..door.version_text import version_text
from ..repository.demand import NotResident
from .infer_call import InferCall
from .infer_message import InferMessage
from .infer_plan import received
from .infer_response import response_parts
from .method import SingleMessage, check_restriction
from .rpc import Rpc
from .submission import submit

if TYPE_CHECKING:
    from ..inference_service import InferenceService, Version

_logger = logging.getLogger(__name__)

NO_DECOUPLED = "ModelInfer RPC doesn't support models with decoupled transaction policy"


class Infer:
    """Begins calls of the method."""

    def __init__(self, service: InferenceService, rule: Restriction | None) -> None:
        self._service = service
        self._rule = rule

    def begin(self, rpc: Rpc) -> SingleMessage:
        """What takes a call's message. Raises StatusError where the call may not be made."""
        check_restriction(self._rule, rpc)
        return SingleMessage(rpc, self._run)

    def _run(self, rpc: Rpc, body: Body) -> Callable[[], None] | None:
        """Begin the inference; returns what cancels it."""
        try:
            message = received(body)
        except StatusError as error:
            rpc.fail(error)
            return None
        return self._begin(rpc, message)

    def _begin(self, rpc: Rpc, message: InferMessage) -> Callable[[], None] | None:
        service = self._service
        try:
            version = service.find(message.model, version_text(message.version))
            if version.signature.decoupled:
                raise unsupported(NO_DECOUPLED)
            exchange = _Exchange(rpc, version)
            request = submit(service, version, message, rpc, rpc.start_ns, exchange.taking)
        except NotResident as absent:
            return Bringing(service, absent, partial(self._brought, rpc, message), message.release).cancel
        except StatusError as error:
            message.release()
            rpc.fail(error)
            return None
        except Exception:
            # Its connection carries the calls of others, too.
            _logger.exception("a gRPC inference could not be begun")
            message.release()
            rpc.fail(internal("internal error"))
            return None
        return partial(service.cancel, version, request)

    def _brought(self, rpc: Rpc, message: InferMessage, error: StatusError | None) -> Callable[[], None] | None:
        """Begin an inference whose model can be asked now, or refuse it."""
        if error is not None:
            message.release()
            rpc.fail(error)
            return None
        return self._begin(rpc, message)


class _Exchange(SingleResponse):
    """Waits for the one response of a request, and answers with it."""

    __slots__ = ("_call", "_rpc", "_version")

    def __init__(self, rpc: Rpc, version: Version) -> None:
        super().__init__()
        self._rpc = rpc
        self._version = version
        self._call: InferCall

    def taking(self, call: InferCall) -> OnResponse:
        """What takes the responses of this call."""
        self._call = call
        return self.on_response

    def settle(self, response: Response, refusal: StatusError | None) -> None:
        """As the base class says."""
        rpc = self._rpc
        if refusal is None and rpc.open:
            call = self._call
            try:
                parts = response_parts(self._version, call.body.id, call.classes, response)
            except StatusError as error:
                refusal = error
            except Exception:
                # The client is to hear something, and its outputs' memory to come back, whatever went wrong here.
                response.release()
                rpc.fail(internal("internal error"))
                raise
            else:
                rpc.reply(parts, response.release)
                return
        response.release()
        if refusal is not None:
            rpc.fail(refusal)
