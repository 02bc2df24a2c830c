"""``POST /v2/models/<m>[/versions/<v>]/infer``: one inference, from the request's bytes to the reply's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ...shm.arena import Arena, ArenaFull
from ...workers.contract.status import StatusError, internal, unsupported
from ...workers.contract.strings import CutString
from ..dispatch.request import Request, Response
from .content_encoding import ACCEPTED, UnknownEncoding, chosen_encoding, decompress, is_compressed
from .exchange import Answer, ArenaBody, Cancel, HttpRequest, InlineBody
from .infer_call import INLINE_BYTE_SIZE, InferCall, Scratch, infer_settings
from .infer_request import header_length, read_request
from .infer_response import failure, infer_reply

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
    scratch = Scratch(service.arena)
    plain = True
    try:
        version = service.find(model_name, version_text)
        if version.signature.decoupled:
            raise unsupported(NO_DECOUPLED)
        fields = dict(request.headers)
        encoding = fields.get(b"content-encoding")
        if encoding is not None and is_compressed(encoding):
            _inflate(request, service.arena, settings.max_input_size)
        json_size = header_length(request, fields, len(request.body.view))
        plain = False
        call = read_request(request, json_size, version.signature, service.regions, scratch, settings)
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
        _let_go(request, scratch)
        reply = failure(error, plain=plain or isinstance(error, CutString))
        if isinstance(error, UnknownEncoding):
            reply.headers = (*reply.headers, ACCEPTED)
        answer(reply)
        return None
    return partial(service.cancel, version, queued)


def _let_go(request: HttpRequest, scratch: Scratch) -> None:
    request.body.release()
    scratch.release()


def _inflate(request: HttpRequest, arena: Arena | None, limit: int) -> None:
    """Put the decompressed body in the place of the compressed one."""
    content = decompress(request.body.view, limit)
    body: InlineBody | ArenaBody = InlineBody(content)
    if arena is not None and len(content) > INLINE_BYTE_SIZE:
        try:
            block = arena.reserve(len(content))
        except ArenaFull:
            pass
        else:
            block.view[: len(content)] = content
            body = ArenaBody(block, len(content))
    request.body.release()
    request.body = body


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
            reply = infer_reply(self._version, self._call, response, self._encoding)
        except StatusError as error:
            response.release()
            reply = failure(error, plain=True)
        except Exception:
            # The client is to hear something, and its outputs' memory to come back, whatever went wrong here.
            response.release()
            self._answer(failure(internal("internal error"), plain=True))
            raise
        self._answer(reply)
