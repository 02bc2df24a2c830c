"""The messages between the server and its workers: one msgpack array per message, tag first.

Server → worker, control socket: Inspect, Load, Unload, Return, Stop. Worker → server: Hello,
Inspected, Loaded, Unloaded, Failed. Server → instance socket: Execute, Close. Instance → server:
InstanceReady, Done.
File descriptors (client regions) travel beside them over the worker's lifeline as Attach/Detach.
Nothing here can carry code: only msgpack scalars, bytes, arrays and maps, decoded into fixed types.
"""

from __future__ import annotations

import msgspec

from ...shm.placement import Placement, Span

Parameters = dict[str, str | int | float | bool]


class Tensor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An input of a request or an output of a response: ``shape`` includes the batch dim."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    place: Placement


class WantedOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An output that the client asked for, and the region part to write it to, if any."""

    name: str
    span: Span | None = None


class RequestBody(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a backend sees of a request.

    ``batch_size`` is 1 for models that do not batch. Empty ``outputs`` means all of them.
    """

    id: str
    batch_size: int
    inputs: list[Tensor]
    outputs: list[WantedOutput]
    parameters: Parameters


class Fault(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An error in a message: ``code`` is a ``status.Code``."""

    code: int
    message: str


class Result(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The outcome of one request of a batch: outputs, or a fault."""

    outputs: list[Tensor]
    parameters: Parameters = {}
    fault: Fault | None = None


class InstanceSpec(msgspec.Struct, frozen=True, array_like=True):
    """One model instance to create: ``number`` is unique in the server's life."""

    number: int
    name: str
    kind: str
    device: int


# server -> worker, control socket


class Inspect(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Open a model far enough to complete its configuration; answered by Inspected or Failed."""

    task: int
    backend: str
    directory: str
    version: int
    config: bytes
    settings: dict[str, str]
    complete: bool


class Load(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Create the instances of a model version; answered by Loaded or Failed.

    ``config`` is the final ModelConfig as serialised protobuf.
    """

    task: int
    model: int
    backend: str
    directory: str
    version: int
    config: bytes
    settings: dict[str, str]
    instances: list[InstanceSpec]


class Unload(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Drop a model's instances and memory; answered by Unloaded."""

    task: int
    model: int


class Return(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Leases of the worker's own arena that the server has finished with: offsets."""

    offsets: list[int]


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Finish and exit."""


# server -> instance socket


class Execute(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Run one batch on the instance whose socket this arrives at."""

    batch: int
    requests: list[RequestBody]


class Close(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """The instance ends: no batch follows."""


# worker -> server


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """First message on a worker's control socket; ``token`` is the one it got over its lifeline."""

    token: bytes


class Note(msgspec.Struct, frozen=True, array_like=True):
    """Something for the server's log; ``severity`` is I, W or E."""

    severity: str
    text: str


class Inspected(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """The completed configuration, serialised, and what the server's log should have."""

    task: int
    config: bytes
    notes: list[Note] = []


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """All instances exist and have said InstanceReady."""

    task: int


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """An Inspect, Load or Unload that did not work."""

    task: int
    fault: Fault


class Unloaded(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """The model's instances are gone."""

    task: int


class InstanceReady(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """First message on an instance's socket: binds the socket's identity to the instance."""

    token: bytes
    instance: int


class Done(msgspec.Struct, frozen=True, array_like=True, tag=26, gc=False):
    """A batch has run. ``results`` are in the order of the batch's requests.

    The four times are CLOCK_MONOTONIC nanoseconds: compute start, input end, output start,
    compute end.
    """

    batch: int
    results: list[Result]
    compute_start_ns: int
    input_end_ns: int
    output_start_ns: int
    compute_end_ns: int


ToWorker = Inspect | Load | Unload | Return | Stop
ToInstance = Execute | Close
FromWorker = Hello | Inspected | Loaded | Failed | Unloaded | InstanceReady | Done


# over the lifeline


class Attach(msgspec.Struct, frozen=True, array_like=True, tag=40):
    """A client region, its file descriptor beside the message: map ``byte_size`` bytes at ``offset``."""

    region: int
    offset: int
    byte_size: int


class Detach(msgspec.Struct, frozen=True, array_like=True, tag=41):
    """Unmap a region; no request uses it any more."""

    region: int


class Greeting(msgspec.Struct, frozen=True, array_like=True, tag=42):
    """First message over the lifeline: where to connect and the token to show there."""

    endpoint: str
    token: bytes


LifelineMessage = Greeting | Attach | Detach
