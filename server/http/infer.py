"""``POST /v2/models/<m>[/versions/<v>]/infer``: one inference, from the request's bytes to the reply's."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from ...shm.arena import Arena
from ...workers.contract.status import StatusError, internal, unsupported
from ...workers.contract.strings import CutString
from ..dispatch.request import Request, Response
from ..regions import NO_REGIONS
from .content_encoding import (
    ACCEPTED,
    SHORT_BYTE_SIZE,
    SHORT_PACKED_BYTE_SIZE,
    UnknownEncoding,
    beside_the_loop,
    chosen_encoding,
    compress,
    decompress,
    is_compressed,
)
from .exchange import Answer, ArenaBody, Cancel, HttpRequest, InlineBody, Reply
from .infer_call import InferCall, InferSettings, Scratch, block_with, infer_settings
from .infer_request import header_length, read_request
from .infer_response import failure, infer_reply, packed

if TYPE_CHECKING:
    from ..repository.version import ModelVersion
    from ..service import Service

NO_DECOUPLED = "HTTP end point doesn't support models with decoupled transaction policy"


def infer(service: Service, model_name: str, version_text: str, request: HttpRequest, answer: Answer) -> Cancel | None:
    """Run one inference and answer with its outcome; ``version_text`` is empty for the newest version.

    Takes the request's body over: it is released once the inference has ended, or at once where
    it does not begin.
    """
    options = service.options
    settings = infer_settings(options.http_max_input_size, options.http_header_forward_pattern)
    try:
        version = service.find(model_name, version_text)
        if version.signature.decoupled:
            raise unsupported(NO_DECOUPLED)
        fields = dict(request.headers)
        encoding = fields.get(b"content-encoding")
        if encoding is not None and is_compressed(encoding):
            if len(request.body.view) > SHORT_PACKED_BYTE_SIZE:
                return _Unpacking(service, version, request, fields, settings, answer).cancel
            _put_in_place(request, service.arena, decompress(request.body.view, settings.max_input_size))
    except StatusError as error:
        _refuse(request, error, True, answer)
        return None
    return _begin(service, version, request, fields, settings, answer)


def _begin(
    service: Service,
    version: ModelVersion,
    request: HttpRequest,
    fields: dict[bytes, bytes],
    settings: InferSettings,
    answer: Answer,
) -> Cancel | None:
    """Run an inference whose body is as it should be read."""
    scratch = Scratch(service.arena)
    plain = True
    try:
        json_size = header_length(request, fields, len(request.body.view))
        plain = False
        regions = service.regions if service.client_shm_allowed(request.peer_is_local) else NO_REGIONS
        call = read_request(request, json_size, version.signature, regions, scratch, settings)
        accepted = fields.get(b"accept-encoding")
        exchange = _Exchange(version, call, answer, "identity" if accepted is None else chosen_encoding(accepted))
        queued = Request(
            call.body,
            request.start_ns,
            exchange.on_response,
            partial(_let_go, request, scratch),
            call.priority,
            call.timeout_us,
        )
        service.submit(version, queued)
    except StatusError as error:
        scratch.release()
        _refuse(request, error, plain, answer)
        return None
    return partial(service.cancel, version, queued)


def _refuse(request: HttpRequest, error: StatusError, plain: bool, answer: Answer) -> None:
    request.body.release()
    reply = failure(error, plain=plain or isinstance(error, CutString))
    if isinstance(error, UnknownEncoding):
        reply.headers = (*reply.headers, ACCEPTED)
    answer(reply)


def _let_go(request: HttpRequest, scratch: Scratch) -> None:
    request.body.release()
    scratch.release()


def _put_in_place(request: HttpRequest, arena: Arena | None, content: bytes) -> None:
    """Put the decompressed body in the place of the compressed one. Raises StatusError UNAVAILABLE where the arena is full."""
    block = block_with(arena, content)
    request.body.release()
    request.body = InlineBody(content) if block is None else ArenaBody(block, len(content))


class _Unpacking:
    """A request whose long compressed body is undone in another thread before it begins."""

    __slots__ = ("_arguments", "_cancel", "_gone")

    def __init__(
        self,
        service: Service,
        version: ModelVersion,
        request: HttpRequest,
        fields: dict[bytes, bytes],
        settings: InferSettings,
        answer: Answer,
    ) -> None:
        self._arguments = (service, version, request, fields, settings, answer)
        self._cancel: Cancel | None = None
        self._gone = False
        beside_the_loop(partial(decompress, request.body.view, settings.max_input_size), self._done)

    def _done(self, content: asyncio.Future[bytes]) -> None:
        service, _, request, _, _, answer = self._arguments
        error = content.exception()
        if self._gone:
            request.body.release()
        elif error is not None:
            _refuse(request, error if isinstance(error, StatusError) else internal("internal error"), True, answer)
        else:
            try:
                _put_in_place(request, service.arena, content.result())
            except StatusError as full:
                _refuse(request, full, True, answer)
            else:
                self._cancel = _begin(*self._arguments)

    def cancel(self) -> None:
        """The client has gone."""
        self._gone = True
        if self._cancel is not None:
            self._cancel()


class _Exchange:
    """Waits for the one response of a request, and answers with it."""

    __slots__ = ("_answer", "_call", "_count", "_encoding", "_kept", "_version")

    def __init__(self, version: ModelVersion, call: InferCall, answer: Answer, encoding: str) -> None:
        self._version = version
        self._call = call
        self._answer = answer
        self._encoding = encoding
        self._kept: Response | None = None
        self._count = 0

    def on_response(self, response: Response) -> None:
        """Take a response; the final one brings the answer, unless it is only the end mark of an earlier one."""
        mark_only = response.final and self._kept is not None and not response.outputs and response.error is None
        if mark_only:
            response.release()
            assert self._kept is not None
            response = self._kept
        else:
            self._count += 1
            if not response.final:
                if self._kept is not None:
                    self._kept.release()
                self._kept = response
                return
            if self._kept is not None:
                self._kept.release()
        try:
            if self._count != 1:
                raise internal(f"expected a single response, got {self._count}")
            reply = infer_reply(self._version, self._call, response)
        except StatusError as error:
            response.release()
            reply = failure(error, plain=True)
        except Exception:
            # The client is to hear something, and its outputs' memory to come back, whatever went wrong here.
            response.release()
            self._answer(failure(internal("internal error"), plain=True))
            raise
        if self._encoding == "identity" or reply.status != 200:
            self._answer(reply)
        elif sum([len(part) for part in reply.body]) <= SHORT_BYTE_SIZE:
            self._answer(packed(reply, self._encoding, compress(reply.body, self._encoding)))
        else:
            beside_the_loop(partial(compress, reply.body, self._encoding), partial(self._packed, reply))

    def _packed(self, reply: Reply, content: asyncio.Future[bytes]) -> None:
        if content.exception() is None:
            self._answer(packed(reply, self._encoding, content.result()))
            return
        if reply.on_sent is not None:
            reply.on_sent()
        self._answer(failure(internal("internal error"), plain=True))
        content.result()
