"""Hands a request that has been received to the service, and gives back what it held."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from ..dispatch.request import Request, Response
from ..door.forwarding import forward_pattern
from ..door.scratch import Scratch
from .infer_request import InferCall, InferMessage, read_request
from .rpc import Rpc

if TYPE_CHECKING:
    from ..repository.version import ModelVersion
    from ..service import Service


def metadata_texts(rpc: Rpc) -> Iterable[tuple[str, str]]:
    """A call's metadata, binary values as text as far as they are."""
    for name, value in rpc.head.metadata:
        yield name, value if isinstance(value, str) else value.decode("utf-8", "replace")


def submit(
    service: Service,
    version: ModelVersion,
    message: InferMessage,
    rpc: Rpc,
    start_ns: int,
    on_response_of: Callable[[InferCall], Callable[[Response], None]],
) -> Request:
    """Read a request and queue it; ``on_response_of`` says who takes its responses once it is read.

    Takes the message over, but where it raises StatusError.
    """
    scratch = Scratch(service.arena)
    try:
        pattern = forward_pattern(service.options.grpc_header_forward_pattern)
        headers = metadata_texts(rpc) if pattern is not None else ()
        call = read_request(message, version.signature, partial(service.regions_for, rpc.peer_is_local), scratch, headers, pattern)
        request = Request(call.body, start_ns, on_response_of(call), partial(_finished, message, scratch), call.priority, call.timeout_us)
        service.submit(version, request)
    except BaseException:
        scratch.release()
        raise
    return request


def _finished(message: InferMessage, scratch: Scratch) -> None:
    message.release()
    scratch.release()
