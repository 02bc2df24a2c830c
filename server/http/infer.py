"""``POST /v2/models/<m>[/versions/<v>]/infer``: one inference, from the request's bytes to the reply's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from ...shm.arena import Arena
from ...workers.contract.status import StatusError, internal, unsupported
from ...workers.contract.strings import CutString
from ..dispatch.request import Rejection, Request, Response
from ..door.body import ArenaBody, InlineBody
from ..door.bringing import Bringing
from ..door.content_encoding import (
    ACCEPTED,
    SHORT_BYTE_SIZE,
    SHORT_PACKED_BYTE_SIZE,
    Beside,
    UnknownEncoding,
    compress,
    decompress,
    is_compressed,
)
from ..door.scratch import Scratch, block_with
from ..door.single_response import SingleResponse
from ..regions import NO_REGIONS
from ..repository.demand import NotResident
from .exchange import Answer, Cancel, HttpRequest, Reply
from .infer_call import InferCall, infer_settings
from .infer_head import InferHead
from .infer_plan import known_plan
from .infer_request import read_request
from .infer_response import failure, infer_reply, packed
from .long_reply import LongReply
from .long_request import LONG_BYTE_SIZE, LongScratch, read_long_request
from .turns import in_turns

if TYPE_CHECKING:
    from ..inference_service import InferenceService, Version

NO_DECOUPLED = "HTTP end point doesn't support models with decoupled transaction policy"


def infer(service: InferenceService, head: InferHead, request: HttpRequest, answer: Answer) -> Cancel | None:
    """Run one inference and answer with its outcome.

    Takes the request's body over: it is released once the inference has ended, or at once where
    it does not begin.
    """
    if head.reply_encoding != "identity":
        packing = _Packing(head.reply_encoding, answer)
        cancel = _unpacked(service, head, request, packing)
        return None if cancel is None else partial(packing.cancel, cancel)
    return _unpacked(service, head, request, answer)


def _unpacked(service: InferenceService, head: InferHead, request: HttpRequest, answer: Answer) -> Cancel | None:
    """Run an inference once its body is as it should be read."""
    try:
        version = service.find(head.model, head.version)
        if version.signature.decoupled:
            raise unsupported(NO_DECOUPLED)
        encoding = head.content_encoding
        if encoding is not None and is_compressed(encoding):
            limit = service.options.http_max_input_size
            if len(request.body.view) > SHORT_PACKED_BYTE_SIZE:
                return _Unpacking(service, version, head, request, limit, answer).cancel
            _put_in_place(request, service.arena, decompress(request.body.view, limit))
    except NotResident as absent:
        return _bring(service, absent, _unpacked, head, request, answer)
    except StatusError as error:
        _refuse(request, error, True, answer)
        return None
    return _begin(service, version, head, request, answer)


_Begin = Callable[["InferenceService", InferHead, HttpRequest, Answer], Cancel | None]


def _bring(service: InferenceService, absent: NotResident, begin: _Begin, head: InferHead, request: HttpRequest, answer: Answer) -> Cancel:
    """Have the model loaded, and ``begin`` then; returns what gives it up."""
    return Bringing(service, absent, partial(_brought, service, begin, head, request, answer), request.body.release).cancel


def _brought(
    service: InferenceService, begin: _Begin, head: InferHead, request: HttpRequest, answer: Answer, error: StatusError | None
) -> Cancel | None:
    if error is not None:
        _refuse(request, error, True, answer)
        return None
    try:
        return begin(service, head, request, answer)
    except Exception:
        # Nobody above hears of it, and the client waits.
        _refuse(request, internal("internal error"), True, answer)
        raise


def _begin_unpacked(service: InferenceService, head: InferHead, request: HttpRequest, answer: Answer) -> Cancel | None:
    """Run an inference whose body has been unpacked before its model left."""
    try:
        version = service.find(head.model, head.version)
    except StatusError as error:
        _refuse(request, error, True, answer)
        return None
    return _begin(service, version, head, request, answer)


def _begin(service: InferenceService, version: Version, head: InferHead, request: HttpRequest, answer: Answer) -> Cancel | None:
    """Run an inference whose body is as it should be read."""
    scratch: Scratch | None = None
    plain = True
    try:
        content = request.body
        json_size = head.json_byte_size(len(content.view))
        plain = False
        signature = version.signature
        options = service.options
        plan = None if options.http_header_forward_pattern else known_plan(content.view, json_size)
        if plan is None:
            if json_size > LONG_BYTE_SIZE:
                return _LongReading(service, version, head, request, json_size, answer).cancel
            scratch = Scratch(service.arena)
            settings = infer_settings(options.http_max_input_size, options.http_header_forward_pattern)
            call = read_request(request, json_size, signature, service.regions_for(request.peer_is_local), scratch, settings)
            body = call.body
        else:
            call = plan.terms
            body = plan.request_body(content, signature, service.regions_for(request.peer_is_local) if plan.uses_regions else NO_REGIONS)
        exchange = _Exchange(version, call, answer)
        on_finish = content.release if scratch is None else partial(_let_go, request, scratch)
        queued = Request(body, request.start_ns, exchange.on_response, on_finish, call.priority, call.timeout_us)
        if plan is not None and plan.always_fits(signature, body):
            service.submit_checked(version, queued)
        else:
            service.submit(version, queued)
    except StatusError as error:
        if scratch is not None:
            scratch.release()
        _refuse(request, error, plain, answer)
        return None
    return partial(service.cancel, version, queued)


def _current(service: InferenceService, version: Version, head: InferHead) -> Version:
    """What an inference goes to that found ``version`` before its body was read. Raises StatusError."""
    current = service.current(version, head.version)
    if current.signature.decoupled:
        raise unsupported(NO_DECOUPLED)
    return current


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
    """A request whose long compressed body is undone in another thread before it begins. Raises StatusError UNAVAILABLE."""

    __slots__ = ("_arguments", "_cancel", "_gone", "_job")

    def __init__(
        self, service: InferenceService, version: Version, head: InferHead, request: HttpRequest, limit: int, answer: Answer
    ) -> None:
        self._arguments = (service, version, head, request, answer)
        self._cancel: Cancel | None = None
        self._gone = False
        self._job: Beside[bytes] | None = Beside(partial(decompress, request.body.view, limit), self._done)

    def _done(self, content: Future[bytes]) -> None:
        service, version, head, request, answer = self._arguments
        # It knows the content, which may be large.
        self._job = None
        if self._gone:
            request.body.release()
            return
        error = content.exception()
        if error is not None:
            _refuse(request, error if isinstance(error, StatusError) else internal("internal error"), True, answer)
            return
        try:
            _put_in_place(request, service.arena, content.result())
            version = _current(service, version, head)
        except NotResident as absent:
            self._cancel = _bring(service, absent, _begin_unpacked, head, request, answer)
        except StatusError as refusal:
            _refuse(request, refusal, True, answer)
        else:
            self._cancel = _begin(service, version, head, request, answer)

    def cancel(self) -> None:
        """The client has gone."""
        job, self._job = self._job, None
        if job is None:
            if self._cancel is not None:
                self._cancel()
        elif job.cancel():
            self._arguments[3].body.release()
        else:
            self._gone = True


class _Packing:
    """An answer that compresses the reply to an inference before it passes it on."""

    __slots__ = ("_answer", "_encoding", "_gone", "_job", "_reply")

    def __init__(self, encoding: str, answer: Answer) -> None:
        self._answer = answer
        self._encoding = encoding
        self._gone = False
        self._job: Beside[bytes] | None = None
        self._reply: Reply

    def __call__(self, reply: Reply) -> None:
        if self._gone or reply.status != 200:
            self._answer(reply)
        elif sum([len(part) for part in reply.body]) <= SHORT_BYTE_SIZE:
            self._answer(packed(reply, self._encoding, compress(reply.body, self._encoding)))
        else:
            try:
                self._job = Beside(partial(compress, reply.body, self._encoding), self._done)
            except StatusError:
                # Too many wait. The inference is done, and every client understands a reply as it is.
                self._answer(reply)
            else:
                self._reply = reply

    def _done(self, content: Future[bytes]) -> None:
        self._job = None
        reply = self._reply
        error = None if self._gone else content.exception()
        if self._gone or error is not None:
            _let_reply_go(reply)
        if error is not None:
            self._answer(failure(internal("internal error"), plain=True))
            raise error
        if not self._gone:
            self._answer(packed(reply, self._encoding, content.result()))

    def cancel(self, inference: Cancel) -> None:
        """The client has gone: cancels the inference, and what is done with its reply."""
        self._gone = True
        inference()
        if self._job is not None and self._job.cancel():
            self._job = None
            _let_reply_go(self._reply)


def _let_reply_go(reply: Reply) -> None:
    if reply.on_sent is not None:
        reply.on_sent()


class _LongReading:
    """A request whose long JSON part is read in turns with the loop before it begins."""

    __slots__ = ("_arguments", "_cancel", "_drop", "_scratch")

    def __init__(
        self, service: InferenceService, version: Version, head: InferHead, request: HttpRequest, json_size: int, answer: Answer
    ) -> None:
        self._arguments = (service, version, head, request, answer)
        self._cancel: Cancel | None = None
        self._scratch = LongScratch(service.arena)
        options = service.options
        settings = infer_settings(options.http_max_input_size, options.http_header_forward_pattern)
        steps = read_long_request(
            request, json_size, version.signature, service.regions_for(request.peer_is_local), self._scratch, settings
        )
        self._drop: Cancel | None = in_turns(steps, self._done)

    def _done(self, outcome: asyncio.Future[InferCall]) -> None:
        self._drop = None
        self._cancel = self._submit(outcome)

    def _brought(self, outcome: asyncio.Future[InferCall], error: StatusError | None) -> Cancel | None:
        if error is None:
            return self._submit(outcome)
        self._scratch.release()
        _refuse(self._arguments[3], error, False, self._arguments[4])
        return None

    def _submit(self, outcome: asyncio.Future[InferCall]) -> Cancel | None:
        service, version, head, request, answer = self._arguments
        scratch = self._scratch
        try:
            call = outcome.result()
            version = _current(service, version, head)
            exchange = _Exchange(version, call, answer)
            on_finish = partial(_let_go, request, scratch)
            queued = Request(call.body, request.start_ns, exchange.on_response, on_finish, call.priority, call.timeout_us)
            service.submit(version, queued)
        except NotResident as absent:
            # It has left since the request was begun to be read.
            return Bringing(service, absent, partial(self._brought, outcome), partial(_let_go, request, scratch)).cancel
        except StatusError as refusal:
            scratch.release()
            _refuse(request, refusal, False, answer)
            return None
        except Exception:
            # Nobody above hears of it, and the client waits.
            scratch.release()
            _refuse(request, internal("internal error"), False, answer)
            raise
        return partial(service.cancel, version, queued)

    def cancel(self) -> None:
        """The client has gone."""
        if self._drop is not None:
            self._drop()
            self._drop = None
            self._scratch.release()
            self._arguments[3].body.release()
        elif self._cancel is not None:
            self._cancel()


class _Exchange(SingleResponse):
    """Waits for the one response of a request, and answers with it."""

    __slots__ = ("_answer", "_call", "_version")

    def __init__(self, version: Version, call: InferCall, answer: Answer) -> None:
        super().__init__()
        self._version = version
        self._call = call
        self._answer = answer

    def settle(self, response: Response, refusal: StatusError | None) -> None:
        """As the base class says."""
        if refusal is not None:
            # Raised, it would keep this frame, and with it itself and the request's body, for the collector.
            response.release()
            self._answer(failure(refusal, plain=type(response) is not Rejection))
            return
        try:
            reply = infer_reply(self._version, self._call, response)
        except StatusError as error:
            response.release()
            reply = failure(error, plain=True)
        except Exception:
            # The client is to hear something, and its outputs' memory to come back, whatever went wrong here.
            response.release()
            self._answer(failure(internal("internal error"), plain=True))
            raise
        if type(reply) is LongReply:
            in_turns(reply.steps(), partial(self._written, response))
        else:
            self._answer(reply)

    def _written(self, response: Response, outcome: asyncio.Future[Reply]) -> None:
        """Take a long reply that was written in turns with the loop."""
        try:
            reply = outcome.result()
        except StatusError as error:
            response.release()
            reply = failure(error, plain=True)
        except Exception:
            response.release()
            self._answer(failure(internal("internal error"), plain=True))
            raise
        self._answer(reply)
