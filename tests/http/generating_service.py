"""A service whose models answer when a test says so, as often as it likes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from tensorfarm.server.dispatch.request import EndMark, Request, Response
from tensorfarm.server.door.tls import Tls
from tensorfarm.server.http.front import own_front
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.http.listener import HttpDoor
from tensorfarm.server.prometheus_text import Family
from tensorfarm.server.service import Service
from tensorfarm.shm.datatypes import DATATYPES, serialize_bytes
from tensorfarm.shm.placement import Inline
from tensorfarm.workers.contract.messages import Tensor
from tensorfarm.workers.contract.status import StatusError
from tensorfarm.workers.contract.validation import validate

from .echo_service import EchoService, echo_signature, spec

MODEL = echo_signature("m", [spec("IT", "BYTES", -1)], decoupled=True)


def tensor(name: str, datatype: str, values: Sequence[Any], shape: tuple[int, ...] | None = None) -> Tensor:
    """An output with these elements."""
    if datatype == "BYTES":
        content = serialize_bytes([value.encode() if isinstance(value, str) else value for value in values])
    else:
        content = np.array(values, DATATYPES[datatype].dtype).tobytes()
    return Tensor(name, datatype, (len(values),) if shape is None else shape, Inline(memoryview(content)))


@dataclass
class GeneratingService(EchoService):
    """``on_submit`` is called with each request that was taken; without it, a test answers by ``send`` and ``end``."""

    on_submit: Callable[[Request], None] | None = None
    families: list[Family] = field(default_factory=list)
    responses: int = 0
    given_back: list[Response] = field(default_factory=list)
    finished: int = 0
    called_off: list[Request] = field(default_factory=list)

    def custom_family(self, name: str) -> Family | None:
        return next((family for family in self.families if family.name == name), None)

    def submit(self, version: Any, request: Request) -> None:
        if self.refuse is not None:
            raise self.refuse
        request.body = validate(version.signature, request.body, self._read if self.arena is not None else None)
        self.submitted.append(request)
        if self.on_submit is not None:
            self.on_submit(request)

    def cancel(self, version: Any, request: Request) -> None:
        request.cancelled = True
        self.called_off.append(request)

    def send(
        self, request: Request, *outputs: Tensor, final: bool = False, error: StatusError | None = None, parameters: Any = None
    ) -> None:
        """Answer a request once."""
        self._hand_over(Response(request, list(outputs), parameters or {}, error, final))

    def text(self, request: Request, *texts: str, final: bool = False) -> None:
        """Answer a request with an output OT of these strings."""
        self.send(request, tensor("OT", "BYTES", texts), final=final)

    def end(self, request: Request) -> None:
        """Say that a request has got all its responses."""
        self._hand_over(EndMark(request, []))

    def _hand_over(self, response: Response) -> None:
        self.responses += 1
        response.on_release = lambda leases: self.given_back.append(response)
        request = response.request
        if response.final and request.on_finish is not None:
            on_finish, request.on_finish = request.on_finish, None
            self.finished += 1
            on_finish()
        request.on_response(response)

    def nothing_held(self) -> bool:
        """Was every response released, once each?"""
        return len(self.given_back) == self.responses and len(set(map(id, self.given_back))) == self.responses


def generating(*signatures: Any, **options: Any) -> GeneratingService:
    """A service with the model "m", or these."""
    return GeneratingService({signature.model: signature for signature in signatures or (MODEL,)}, **options)


@asynccontextmanager
async def a_front(
    service: GeneratingService, limits: Limits | None = None, tls: Tls | None = None, **rules: tuple[str, str]
) -> AsyncIterator[HttpDoor]:
    """The door of a front before a service."""
    door = own_front(cast(Service, service), rules, limits).door()
    await door.start("127.0.0.1", 0, False, tls)
    try:
        yield door
    finally:
        await door.close()
        assert door.connection_count == 0
        assert service.admission.held_byte_size == 0, "bytes are counted that nobody holds"


def post(body: Any, kind: str = "generate_stream", model: str = "m", headers: str = "", version: str = "1.1") -> bytes:
    """A request's bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    head = f"POST /v2/models/{model}/{kind} HTTP/{version}\r\nHost: x\r\n{headers}Content-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def event(*texts: str, model: str = "m") -> bytes:
    """The event of a response with an output OT of these strings."""
    value = texts[0] if len(texts) == 1 else list(texts)
    return b"data: " + json.dumps({"OT": value, "model_name": model, "model_version": "1"}, separators=(",", ":")).encode() + b"\n\n"
