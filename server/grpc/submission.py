"""Hands a request that has been received to the service, and gives back what it held."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from ..dispatch.request import Request, Response
from ..door.forwarding import forward_pattern
from ..door.scratch import Scratch
from .infer_call import InferCall
from .infer_message import InferMessage
from .infer_plan import keep_plan
from .infer_request import read_request
from .rpc import Rpc

if TYPE_CHECKING:
    from ..inference_service import InferenceService, Version


def metadata_texts(rpc: Rpc) -> Iterable[tuple[str, str]]:
    """A call's metadata by name, as the original has them; binary values as text as far as they are."""
    for name, value in sorted(rpc.head.metadata, key=itemgetter(0)):
        yield name, value if isinstance(value, str) else value.decode("utf-8", "replace")


def submit(
    service: InferenceService,
    version: Version,
    message: InferMessage,
    rpc: Rpc,
    start_ns: int,
    on_response_of: Callable[[InferCall], Callable[[Response], None]],
) -> Request:
    """Read a request and queue it; ``on_response_of`` says who takes its responses once it is read.

    Takes the message over, but where it raises StatusError.
    """
    plan = message.plan
    signature = version.signature
    pattern = forward_pattern(service.options.grpc_header_forward_pattern)
    if plan is not None:
        call = plan.call(message, signature)
        request = Request(call.body, start_ns, on_response_of(call), message.release, call.priority, call.timeout_us)
        if plan.fitting.always(signature, call.body):
            service.submit_checked(version, request)
        else:
            service.submit(version, request)
        return request
    scratch = Scratch(service.arena)
    try:
        headers = metadata_texts(rpc) if pattern is not None else ()
        call = read_request(message, signature, partial(service.regions_for, rpc.peer_is_local), scratch, headers, pattern)
        request = Request(call.body, start_ns, on_response_of(call), partial(_finished, message, scratch), call.priority, call.timeout_us)
        service.submit(version, request)
    except BaseException:
        scratch.release()
        raise
    if pattern is None:
        keep_plan(message, call)
    return request


def _finished(message: InferMessage, scratch: Scratch) -> None:
    message.release()
    scratch.release()
