"""Hands a request that has been received to the service, and gives back what it held."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from ..dispatch.request import Request, Response
from ..door.forwarding import forward_pattern
from ..door.scratch import Regions, Scratch
from .infer_request import InferCall, InferMessage, read_request
from .method import Context
from .peer import peer_is_local

if TYPE_CHECKING:
    from ..repository.version import ModelVersion
    from ..service import Service

SMALL_BYTE_SIZE = 4096
"""Messages up to this size are not counted among the bytes that are held."""


def metadata_texts(context: Context) -> Iterable[tuple[str, str]]:
    """A call's metadata, binary values as text as far as they are."""
    for name, value in context.invocation_metadata() or ():
        yield name, value if isinstance(value, str) else value.decode("utf-8", "replace")


def submit(
    service: Service,
    version: ModelVersion,
    message: InferMessage,
    context: Context,
    start_ns: int,
    on_response_of: Callable[[InferCall], Callable[[Response], None]],
) -> Request:
    """Read a request and queue it; ``on_response_of`` says who takes its responses once it is read. Raises StatusError."""
    scratch = Scratch(service.arena)
    admission = service.admission
    byte_size = message.byte_size if message.byte_size > SMALL_BYTE_SIZE else 0
    try:
        if byte_size:
            admission.check_bytes(byte_size)
        pattern = forward_pattern(service.options.grpc_header_forward_pattern)
        headers = metadata_texts(context) if pattern is not None else ()
        call = read_request(message, version.signature, partial(_regions, service, context), scratch, headers, pattern)
        on_finish = partial(_finished, scratch, service, byte_size) if byte_size else None
        request = Request(call.body, start_ns, on_response_of(call), on_finish, call.priority, call.timeout_us)
        service.submit(version, request)
    except BaseException:
        scratch.release()
        raise
    if byte_size:
        admission.hold(byte_size)
    return request


def _regions(service: Service, context: Context) -> Regions:
    return service.regions_for(peer_is_local(context.peer()))


def _finished(scratch: Scratch, service: Service, byte_size: int) -> None:
    service.admission.let_go(byte_size)
    scratch.release()
