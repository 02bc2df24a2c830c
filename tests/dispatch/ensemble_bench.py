"""An ensemble with its world, for tests: members are lists of requests that the test answers when it likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorfarm.server.dispatch.ensemble import Ensemble
from tensorfarm.server.dispatch.ensemble_plan import plan_of
from tensorfarm.server.dispatch.request import EndMark, Request, Response
from tensorfarm.server.statistics import VersionStatistics
from tensorfarm.shm.placement import Inline, Lease
from tensorfarm.workers.contract.configuration import ModelConfig
from tensorfarm.workers.contract.messages import RequestBody, Tensor, WantedOutput
from tensorfarm.workers.contract.signature import Signature, signature_of
from tensorfarm.workers.contract.status import StatusError

INT32 = 8
CONTENT = memoryview(bytes(16))


def model(
    name: str, inputs: list[str], outputs: list[str], dims: tuple[int, ...] = (4,), max_batch_size: int = 0, decoupled: bool = False
) -> Signature:
    config = ModelConfig(name=name, max_batch_size=max_batch_size)
    for tensors, names in ((config.input, inputs), (config.output, outputs)):
        for tensor in names:
            tensors.add(name=tensor, data_type=INT32, dims=dims)
    config.model_transaction_policy.decoupled = decoupled
    return signature_of(config)


def step(member: str, inputs: dict[str, str], outputs: dict[str, str], version: int = -1) -> dict[str, Any]:
    return {"model_name": member, "model_version": version, "input_map": inputs, "output_map": outputs}


def ensemble_config(
    steps: list[dict[str, Any]],
    inputs: list[str],
    outputs: list[str],
    dims: tuple[int, ...] = (4,),
    max_batch_size: int = 0,
    max_inflight: int = 0,
) -> Any:
    config = ModelConfig(name="E", platform="ensemble", max_batch_size=max_batch_size)
    for one in steps:
        config.ensemble_scheduling.step.add(**one)
    config.ensemble_scheduling.max_inflight_requests = max_inflight
    for tensors, names in ((config.input, inputs), (config.output, outputs)):
        for tensor in names:
            tensors.add(name=tensor, data_type=INT32, dims=dims)
    return config


class Asked:
    """A step's request as its member got it."""

    def __init__(self, member: str, version: int, request: Request) -> None:
        self.member = member
        self.version = version
        self.request = request
        self.cancelled = 0
        self.over = False

    def inputs(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.request.body.inputs}


class Bench:
    """An ensemble with its world. ``asked`` are the steps' requests that wait for an answer."""

    def __init__(self, config: Any, *members: Signature) -> None:
        self.now_ns = 1_000_000_000
        self.asked: list[Asked] = []
        self.everything: list[Asked] = []
        self.responses: list[Response] = []
        self.made: list[Response] = []
        self.released: list[Response] = []
        self.finished: list[str] = []
        self.warnings: list[str] = []
        self.soon: list[Callable[[], None]] = []
        self.refuse: dict[str, StatusError] = {}
        self.at_once: dict[str, Callable[[Asked], None]] = {}
        self.statistics = VersionStatistics()
        self.leases = 0
        signature = signature_of(config)
        known = {member.model: member for member in members}
        self.plan = plan_of(config, signature, lambda name, version: known[name])
        self.ensemble = Ensemble(
            self.plan,
            self.statistics,
            self.submit_step,
            view=lambda lease: memoryview(b"request " * 2),
            warn=self.warnings.append,
            call_soon=self.soon.append,
            clock_ns=self.clock,
        )

    def clock(self) -> int:
        self.now_ns += 1
        return self.now_ns

    def submit_step(self, member: str, version: int, request: Request) -> Callable[[], None]:
        if member in self.refuse:
            raise self.refuse[member]
        asked = Asked(member, version, request)
        self.asked.append(asked)
        self.everything.append(asked)

        def cancel() -> None:
            asked.cancelled += 1

        if member in self.at_once:
            self.at_once[member](asked)
        return cancel

    def ask(self, *outputs: str | WantedOutput, inputs: dict[str, Tensor] | None = None, **more: Any) -> Request:
        if inputs is None:
            inputs = {name: Tensor(name, "INT32", (4,), Inline(CONTENT)) for name in self.plan.inputs}
        wanted = [WantedOutput(output) if isinstance(output, str) else output for output in outputs]
        body = RequestBody(
            more.pop("id", ""),
            more.pop("batch_size", 1),
            list(inputs.values()),
            wanted,
            more.pop("parameters", {}),
            more.pop("context", None),
        )
        request = Request(body, self.now_ns, self.responses.append, lambda: self.finished.append("request"), **more)
        self.ensemble.submit(request)
        return request

    def waiting(self, member: str) -> Asked:
        return next(asked for asked in self.asked if asked.member == member)

    def names(self) -> list[str]:
        return [asked.member for asked in self.asked]

    def lease(self) -> Lease:
        self.leases += 1
        return Lease(1, self.leases * 64, 16)

    def answer(
        self,
        asked: Asked | str,
        *names: str,
        error: StatusError | None = None,
        final: bool = True,
        shape: tuple[int, ...] = (4,),
        parameters: dict[str, Any] | None = None,
    ) -> Response:
        """A member answers; all the outputs it was asked for where none is named."""
        if isinstance(asked, str):
            asked = self.waiting(asked)
        request = asked.request
        if final:
            self.asked.remove(asked)
            asked.over = True
            self.finish(request)
        wanted = () if error is not None else names or [output.name for output in request.body.outputs]
        outputs = [Tensor(name, "INT32", shape, self.lease()) for name in wanted if name != "-"]
        response = Response(request, outputs, parameters or {}, error, final)
        response.arena_view = lambda lease: memoryview(f"{asked.member} {lease.offset}".encode())
        response.on_release = lambda leases: self.released.append(response)
        self.made.append(response)
        request.on_response(response)
        return response

    def end(self, asked: Asked | str) -> None:
        """The end mark of a member."""
        if isinstance(asked, str):
            asked = self.waiting(asked)
        self.asked.remove(asked)
        asked.over = True
        self.finish(asked.request)
        asked.request.on_response(EndMark(asked.request, []))

    def finish(self, request: Request) -> None:
        """What dispatch does before a final response."""
        assert request.on_finish is not None
        on_finish, request.on_finish = request.on_finish, None
        on_finish()
