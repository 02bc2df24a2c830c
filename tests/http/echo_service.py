"""A service without processes: models that give back their inputs, on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tensorfarm.server.admission import Admission
from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.server.door.body import Body, InlineBody
from tensorfarm.server.http.exchange import Head, HttpRequest, Reply
from tensorfarm.server.http.inference import infer_guarded
from tensorfarm.server.service import Service
from tensorfarm.shm.arena import Arena, create_memory
from tensorfarm.shm.datatypes import DATATYPES, element_count
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.messages import RequestBody, Result, Tensor
from tensorfarm.workers.contract.signature import Signature, TensorSpec
from tensorfarm.workers.contract.status import not_found
from tensorfarm.workers.contract.validation import validate

HEADER_LENGTH = b"inference-header-content-length"


def spec(name: str, datatype: str, *dims: int, batching: bool = False, reshape: tuple[int, ...] | None = None, **more: Any) -> TensorSpec:
    """A tensor of a model."""
    size = DATATYPES[datatype].byte_size
    item = element_count(dims) * size if size and -1 not in dims else -1
    return TensorSpec(name, DATATYPES[datatype], dims, (-1, *dims) if batching else dims, reshape, item, **more)


def private_arena() -> Arena:
    """An arena whose memory goes with it: nothing keeps a descriptor."""
    fd = create_memory(1 << 20)
    arena = Arena(3, fd, 1 << 20)
    os.close(fd)
    return arena


def echo_signature(model: str, inputs: list[TensorSpec], max_batch_size: int = 0, decoupled: bool = False) -> Signature:
    """A model with an output ``O<rest>`` for each input ``I<rest>``."""
    outputs = {f"O{tensor.name[1:]}": spec(f"O{tensor.name[1:]}", tensor.datatype.name, *tensor.dims) for tensor in inputs}
    return Signature(model, max_batch_size, decoupled, {tensor.name: tensor for tensor in inputs}, outputs)


def echo(body: RequestBody) -> Result:
    """Each input as the output of its name, where wanted; BYTES and all."""
    wanted = {output.name: output.span for output in body.outputs}
    outputs = []
    for tensor in body.inputs:
        name = f"O{tensor.name[1:]}"
        if not wanted or name in wanted:
            outputs.append(Tensor(name, tensor.datatype, tensor.shape, wanted.get(name) or tensor.place))
    return Result(outputs)


def _outliving(output: Tensor) -> Tensor:
    """An input that is sent back as an output must outlive the request's body."""
    place = output.place
    return Tensor(output.name, output.datatype, output.shape, Inline(memoryview(bytes(place.content)))) if type(place) is Inline else output


@dataclass
class EchoService:
    """What ``infer`` asks of a service. ``run`` makes the result of a request; ``submitted`` keeps them."""

    signatures: Mapping[str, Signature]
    labels: Mapping[str, list[str]] = field(default_factory=dict)
    arena: Any = None
    run: Callable[[RequestBody], Result] = echo
    regions_by_name: dict[str, int] = field(default_factory=dict)
    max_input_size: int = 64 * 1024 * 1024
    forward_pattern: str = ""
    submitted: list[Request] = field(default_factory=list)
    unchecked: int = 0
    released: int = 0
    cancelled: int = 0
    refuse: Exception | None = None
    remote_shm: bool = True
    admission: Admission = field(default_factory=Admission)

    @property
    def options(self) -> Any:
        return SimpleNamespace(http_max_input_size=self.max_input_size, http_header_forward_pattern=self.forward_pattern)

    @property
    def regions(self) -> Any:
        return self

    def span(self, name: str, offset: int, byte_size: int) -> Span:
        if name not in self.regions_by_name:
            raise not_found(f"Unable to find shared memory region: '{name}'")
        return Span(self.regions_by_name[name], offset, byte_size)

    regions_for = Service.regions_for

    def client_shm_allowed(self, peer_is_local: bool) -> bool:
        return peer_is_local or self.remote_shm

    def current(self, version: Any, asked: str) -> Any:
        return version

    def find(self, name: str, version: str = "") -> Any:
        if name not in self.signatures:
            raise not_found(f"Request for unknown model: '{name}' is not found")
        if version not in ("", "1"):
            raise not_found(f"Request for unknown model: '{name}' version {version} is not found")
        return SimpleNamespace(name=name, version=1, signature=self.signatures[name], labels=dict(self.labels))

    def _read(self, lease: Lease) -> memoryview:
        return memoryview(self.arena.view(lease))

    def _count_release(self, leases: list[Lease]) -> None:
        self.released += 1

    def submit(self, version: Any, request: Request) -> None:
        if self.refuse is not None:
            raise self.refuse
        request.body = validate(version.signature, request.body, self._read if self.arena is not None else None)
        self.submitted.append(request)
        result = self.run(request.body)
        outputs = [_outliving(output) for output in result.outputs]
        if request.on_finish is not None:
            request.on_finish()
        request.on_response(Response(request, outputs, result.parameters, on_release=self._count_release))

    def submit_checked(self, version: Any, request: Request) -> None:
        body = request.body
        self.unchecked += 1
        self.submit(version, request)
        assert request.body is body, "this request was not as the checks leave it"

    def cancel(self, version: Any, request: Request) -> None:
        self.cancelled += 1


class CountedBody(InlineBody):
    """A body that knows how often it was released."""

    __slots__ = ("releases",)

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.releases = 0

    def release(self) -> None:
        self.releases += 1


def http_request(content: bytes | Body, headers: Mapping[str, str] | None = None) -> HttpRequest:
    """A POST with that body."""
    body = CountedBody(content) if isinstance(content, bytes) else content
    fields = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    return HttpRequest(Head("POST", "/v2/models/m/infer", fields, [name.encode() for name in headers or {}]), body, 0)


def post(service: EchoService, model: str, content: bytes | Body, headers: Mapping[str, str] | None = None, version: str = "") -> Reply:
    """Send one inference and return its reply; fails unless it is answered once and its body released once."""
    request = http_request(content, headers)
    replies: list[Reply] = []
    infer_guarded(service, model, version, request, replies.append)  # type: ignore[arg-type]
    assert len(replies) == 1
    if isinstance(request.body, CountedBody):
        assert request.body.releases == 1
    return replies[0]
