"""The messages between the server and its workers: one msgpack array per message, tag first.

Server → worker, control socket: Inspect, Load, Extend, Shrink, Unload, Check, Return, Cancel, Hold, Answer, Reply, Stop; to those that
have a GPU also OpenRegion, CloseRegion, Fetch, Put. Worker → server: Hello, Inspected, Loaded, Unloaded, Checked, Settled, Fetched,
Failed. Server → instance socket: Execute, Close, Answer. Instance → server:
InstanceReady, Done. What a Python model says besides, from any of its threads: Voice, Respond, Call, CancelCall, Release,
Say, Measure, Forget, and the questions that are answered by a Reply.
File descriptors (client regions, other workers' arenas) travel beside them over the worker's lifeline.
Nothing here can carry code: only msgpack scalars, bytes, arrays and maps, decoded into fixed types.
"""

from __future__ import annotations

import msgspec

from ...shm.placement import Lease, Placement, Span

Parameters = dict[str, str | int | float | bool]


class Tensor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An input of a request or an output of a response: ``shape`` includes the batch dim."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    place: Placement


class WantedOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An output that the client asked for, and the region part to write it to, if any.

    ``stays``: it may be left in the GPU's memory, because whoever takes it runs in the same worker.
    """

    name: str
    span: Span | None = None
    stays: bool = False


class RequestContext(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What few requests have: a sequence they belong to (``flags``: 1 start, 2 end), a time-out in µs, a trace they are part of.

    ``lends``: whoever sent it keeps its leases until its response has been released, so that outputs may be inputs, passed on
    where they lie. ``slot`` is the place at its instance where the sequence's state is kept, -1 for none.
    """

    correlation_id: int | str = 0
    flags: int = 0
    timeout_us: int = 0
    trace: str = ""
    lends: bool = False
    slot: int = -1


class RequestBody(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a backend sees of a request.

    ``batch_size`` is 1 for models that do not batch. Empty ``outputs`` means all of them.
    """

    id: str
    batch_size: int
    inputs: list[Tensor]
    outputs: list[WantedOutput]
    parameters: Parameters
    context: RequestContext | None = None


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
    """Open a model far enough to complete its configuration, a JSON document; answered by Inspected or Failed.

    Not ``complete``: the configuration is final, and is compared with the model, its warm-up samples are made, as a Load would.
    """

    task: int
    backend: str
    directory: str
    version: int
    config: bytes
    settings: dict[str, str]
    complete: bool
    backend_file: str = ""


class Load(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Create the instances of a model version; answered by Loaded or Failed.

    ``config`` is the final ModelConfig as a JSON document, ``model`` the number of this load of it. ``backend_file``
    is the path of a backend that is itself written in Python.
    """

    task: int
    model: int
    name: str
    backend: str
    directory: str
    version: int
    config: bytes
    settings: dict[str, str]
    instances: list[InstanceSpec]
    backend_file: str = ""


class Extend(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Create more instances of a model that is loaded, as ``config`` now says; all of them or none. Answered by Loaded or Failed."""

    task: int
    model: int
    config: bytes
    instances: list[InstanceSpec]


class Shrink(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Free what these instances hold, by their numbers, once they have had their Close; answered by Unloaded or Failed."""

    task: int
    model: int
    instances: list[int]


class Unload(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Drop a model's instances and memory; answered by Unloaded."""

    task: int
    model: int


class Return(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Leases of the worker's own arena that the server has finished with: offsets."""

    offsets: list[int]


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Finish and exit."""


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Nobody waits any more for the request at ``index`` of a batch that runs or streams."""

    batch: int
    index: int


class Hold(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """The client of the request at ``index`` of a batch has more responses than it takes: ``held``, no more are to be sent for now."""

    batch: int
    index: int
    held: bool


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """A response to a Call; ``result`` is None where there is only the end to tell.

    ``loan`` is what a Release gives its outputs back by, 0 where none of them lies in an arena.
    """

    call: int
    loan: int
    result: Result | None
    final: bool


class Check(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Ask a model's own readiness check; answered by Checked or Failed."""

    task: int
    model: int


class OpenRegion(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """Map a client's CUDA allocation, of which ``byte_size`` bytes were registered. Answered by Settled or Failed, if ``task`` is not 0.

    A region that could not be opened is known all the same: requests that use it are told why.
    """

    task: int
    region: int
    handle: bytes
    byte_size: int


class CloseRegion(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Let go of a CUDA region, which no request uses any more; answered by Settled."""

    task: int
    region: int


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """Copy what lies in the GPU's memory to the worker's own arena; answered by Fetched or Failed."""

    task: int
    places: list[Placement]


class Put(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """Copy each of ``places`` to the beginning of its CUDA region part in ``spans``; answered by Settled or Failed."""

    task: int
    places: list[Placement]
    spans: list[Span]


class Reply(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """The outcome of a question: a value, or a fault."""

    question: int
    value: bool | int | float | None = None
    fault: Fault | None = None


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
    """The completed configuration, and what the server's log should have. ``spent``: a model's code ran in this process."""

    task: int
    config: bytes
    notes: list[Note] = []
    spent: bool = False


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """All instances exist and have said InstanceReady. ``checks``: the model has a readiness check of its own."""

    task: int
    checks: bool = False


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """A task that did not work."""

    task: int
    fault: Fault


class Unloaded(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """The model's instances are gone, or those of them that a Shrink named."""

    task: int


class Warmed(msgspec.Struct, frozen=True, array_like=True):
    """A warm-up sample that was run ``execution_count`` times, each time ``batch_size`` requests for one item; summed durations."""

    batch_size: int
    execution_count: int
    input_ns: int
    infer_ns: int
    output_ns: int


class InstanceReady(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """First message on an instance's socket: binds the socket's identity to the instance. ``warmed``: what it has run before."""

    token: bytes
    instance: int
    warmed: list[Warmed] = []


class Done(msgspec.Struct, frozen=True, array_like=True, tag=26, gc=False):
    """A batch has run. ``results`` are in the order of the batch's requests.

    None stands for a request that is answered by Respond messages instead, earlier or later ones. ``failed`` are the
    indices of the requests that count as failed; None: those with a fault. ``again`` are the indices of those that the model
    has not finished with and wants in a later batch (their results are None, and no Respond follows for them).
    The four times are CLOCK_MONOTONIC nanoseconds: compute start, input end, output start,
    compute end.
    """

    batch: int
    results: list[Result | None]
    compute_start_ns: int
    input_end_ns: int
    output_start_ns: int
    compute_end_ns: int
    failed: list[int] | None = None
    again: list[int] = []


class Checked(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """What a model's readiness check said."""

    task: int
    ready: bool


class Settled(msgspec.Struct, frozen=True, array_like=True, tag=28):
    """A task is done that has nothing to tell."""

    task: int


class Fetched(msgspec.Struct, frozen=True, array_like=True, tag=29):
    """Leases of the worker's own arena, one for each place of a Fetch."""

    task: int
    leases: list[Lease]


# what a Python model says from any of its threads


class Voice(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """First message on the socket that these come over."""

    token: bytes


class Respond(msgspec.Struct, frozen=True, array_like=True, tag=31, gc=False):
    """A response to the request at ``index`` of a batch; ``result`` is None where there is only the end to tell."""

    batch: int
    index: int
    result: Result | None
    final: bool


class Call(msgspec.Struct, frozen=True, array_like=True, tag=32, gc=False):
    """A model asks a model of the server; answered by Answers. ``version`` -1 is the newest.

    ``batch`` is the one that cannot end before the answer has come, 0 where none waits. Leases among the inputs are the
    caller's own, or of Answers it has not released. ``instance`` is the one whose socket the Answers go to, 0 for the control socket.
    """

    call: int
    batch: int
    model: str
    version: int
    body: RequestBody
    priority: int = 0
    decoupled: bool = False
    instance: int = 0


class CancelCall(msgspec.Struct, frozen=True, array_like=True, tag=33):
    """The caller waits no more; the final Answer still comes."""

    call: int


class Release(msgspec.Struct, frozen=True, array_like=True, tag=34):
    """The caller has finished with the outputs of these Answers."""

    loans: list[int]


class Say(msgspec.Struct, frozen=True, array_like=True, tag=35):
    """A model's line for the log. ``severity`` is I, W, E or V; ``file`` and ``line`` say where it was written."""

    severity: str
    text: str
    file: str
    line: int


class OpenFamily(msgspec.Struct, frozen=True, array_like=True, tag=36):
    """Have a family of custom metrics; ``kind`` is counter, gauge or histogram. Answered by its number."""

    question: int
    name: str
    description: str
    kind: str


class OpenMetric(msgspec.Struct, frozen=True, array_like=True, tag=37):
    """Have a metric of a family; ``bounds`` are a histogram's. Answered by its number."""

    question: int
    family: int
    labels: dict[str, str]
    bounds: list[float] | None = None


class Measure(msgspec.Struct, frozen=True, array_like=True, tag=38):
    """Change a custom metric. ``verb`` is increment, set or observe."""

    metric: int
    verb: str
    value: float


class ReadMetric(msgspec.Struct, frozen=True, array_like=True, tag=39):
    """Ask for a custom metric's value."""

    question: int
    metric: int


class Forget(msgspec.Struct, frozen=True, array_like=True, tag=43):
    """Custom metrics and families that the model has dropped."""

    metrics: list[int]
    families: list[int]


class AskReady(msgspec.Struct, frozen=True, array_like=True, tag=44):
    """Is a model ready? ``version`` is its text, empty for the newest."""

    question: int
    model: str
    version: str


class AskLoad(msgspec.Struct, frozen=True, array_like=True, tag=45):
    """Load a model, with parameters as the repository extension has them."""

    question: int
    model: str
    config: str
    files: dict[str, bytes]


class AskUnload(msgspec.Struct, frozen=True, array_like=True, tag=46):
    """Unload a model."""

    question: int
    model: str
    unload_dependents: bool


Question = OpenFamily | OpenMetric | ReadMetric | AskReady | AskLoad | AskUnload
Spoken = Respond | Call | CancelCall | Release | Say | Measure | Forget | Question
ForDevice = OpenRegion | CloseRegion | Fetch | Put
ToWorker = Inspect | Load | Extend | Shrink | Unload | Return | Stop | Cancel | Hold | Answer | Check | Reply | ForDevice
ToInstance = Execute | Close | Answer
FromWorker = Hello | Inspected | Loaded | Failed | Unloaded | InstanceReady | Done | Checked | Settled | Fetched | Voice | Spoken


# over the lifeline


class Attach(msgspec.Struct, frozen=True, array_like=True, tag=40):
    """A client region, its file descriptor beside the message: map ``byte_size`` bytes at ``offset``."""

    region: int
    offset: int
    byte_size: int


class Detach(msgspec.Struct, frozen=True, array_like=True, tag=41):
    """Unmap a region; no request uses it any more."""

    region: int


class Adopt(msgspec.Struct, frozen=True, array_like=True, tag=50):
    """Another worker's arena, its read-only descriptor beside the message: leases of it will come."""

    arena: int


class Disown(msgspec.Struct, frozen=True, array_like=True, tag=51):
    """Another worker's arena that is gone: no further lease of it will come."""

    arena: int


class DeviceGrant(msgspec.Struct, frozen=True, array_like=True):
    """The GPU that a worker may use: its number in the server, its ordinal in that process, and what of it is for tensors on their way."""

    number: int
    ordinal: int
    pool_byte_size: int


class Greeting(msgspec.Struct, frozen=True, array_like=True, tag=42):
    """First message over the lifeline: where to connect, the token to show there, and what the worker's arena is called and keeps.

    Beside it come two descriptors: the server's arena, read-only, and the worker's own. ``device`` is None for workers of the CPU.
    """

    endpoint: str
    token: bytes
    arena: int
    resident_byte_size: int
    device: DeviceGrant | None = None


class LastWords(msgspec.Struct, frozen=True, array_like=True, tag=52):
    """Why a worker ends itself: the last that it says, over the lifeline, to the server."""

    reason: str


LifelineMessage = Greeting | Attach | Detach | Adopt | Disown | LastWords

LIFELINE_BYTE_SIZE = 4096
"""No message over a lifeline is longer."""
