"""The messages between the server process and its front ends: in each turn of a loop, one msgpack array of all that it has to say.

A front end reads what its clients send and writes what they get; what it cannot know it asks, and inferences it submits. Tensors lie
where they do everywhere: small ones ride inside the messages, large ones in arenas, of which the descriptors travel over the
front end's lifeline, as a worker's do. Nothing here can carry code: only msgpack scalars, bytes, arrays and maps, decoded into fixed
types.

``request`` is the number that a front end gives an inference of its own, ``question`` the one it gives a question; each is answered
by exactly one of the messages that say so, and by none once it was given up with ``Withdraw`` or ``Drop``.
"""

from __future__ import annotations

import msgspec

from ...workers.contract.messages import Fault, Hello, Parameters, RequestBody, Tensor
from ..options import Options

HttpHeaders = list[tuple[bytes, bytes]]
"""Names and values of HTTP headers, in order."""


class Refusal(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Why not: a ``status.Code``, what the client is told, and, where it may come again, when, in seconds (0: nothing is said)."""

    code: int
    message: str
    retry_after_s: int = 0


class Terms(msgspec.Struct, frozen=True, array_like=True):
    """What a front end needs to know of a model version to read requests to it and to write its responses.

    ``number`` names this load of it. ``config`` is the final ``ModelConfig``, serialised. ``labels``: for each output with a label
    file, the label of each class index, in UTF-8 as far as it is that.
    """

    number: int
    name: str
    version: int
    config: bytes
    ensemble: bool
    labels: dict[str, list[bytes]] = {}


# front end -> server


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=60):
    """The doors are open, or ``fault`` says why they are not: then the process ends."""

    fault: Fault | None = None


class Find(msgspec.Struct, frozen=True, array_like=True, tag=61):
    """What does a request for ``version`` of ``model`` ("": the newest) go to? Answered by Found or Refused once it can be asked."""

    question: int
    model: str
    version: str


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=62, gc=False):
    """Run an inference; answered by Responded up to the final one, or by Rejected.

    It was read, and checked, for the load ``number`` of what ``asked`` of ``model`` goes to. ``regions`` has the names of the regions
    that its spans call by these numbers. ``decoupled``: any number of responses can be told.
    """

    request: int
    model: str
    asked: str
    number: int
    body: RequestBody
    start_ns: int
    decoupled: bool = False
    priority: int = 0
    timeout_us: int = 0
    regions: dict[int, str] = {}


class Withdraw(msgspec.Struct, frozen=True, array_like=True, tag=63):
    """Nobody waits for an inference any more. Only Finished may still come of it."""

    request: int


class Hold(msgspec.Struct, frozen=True, array_like=True, tag=64):
    """The client takes no more responses of an inference for now, or takes them again."""

    request: int
    held: bool


class Release(msgspec.Struct, frozen=True, array_like=True, tag=65):
    """The outputs of these responses are not needed any more."""

    responses: list[int]


class AskHttp(msgspec.Struct, frozen=True, array_like=True, tag=66):
    """An HTTP request that is no inference; answered by AnsweredHttp. ``path`` as it came, without the query."""

    question: int
    method: str
    path: str
    query: str
    headers: HttpHeaders
    body: bytes
    peer_is_local: bool


class AskRpc(msgspec.Struct, frozen=True, array_like=True, tag=67):
    """A unary gRPC call that is no inference; answered by AnsweredRpc or Refused."""

    question: int
    path: str
    message: bytes
    peer_is_local: bool


class Drop(msgspec.Struct, frozen=True, array_like=True, tag=68):
    """Nobody waits for the answer to a question any more; none comes."""

    question: int


class Forgotten(msgspec.Struct, frozen=True, array_like=True, tag=69):
    """The answer to Forget."""

    number: int


class Counted(msgspec.Struct, frozen=True, array_like=True, tag=70):
    """How many HTTP connections are open and how many gRPC connections have calls under way, of a front end that was told to leave."""

    connections: int
    calls: int


class Logged(msgspec.Struct, frozen=True, array_like=True, tag=71):
    """A line for the log: ``severity`` is I, W or E, ``place`` is ``file:line``."""

    severity: str
    message: str
    place: str


class Used(msgspec.Struct, frozen=True, array_like=True, tag=72):
    """How many bytes of its arena are in use, how many it holds in ordinary memory, and what it has refused since it said so last.

    Said now and then, as a sign of life. ``refused``: model, reason and count.
    """

    arena_byte_size: int
    held_byte_size: int
    refused: list[tuple[str, str, int]] = []


FromFrontEnd = Opened | Find | Submit | Withdraw | Hold | Release | AskHttp | AskRpc | Drop | Forgotten | Counted | Logged | Used


class Said(msgspec.Struct, frozen=True, array_like=True, tag=59):
    """All that a front end has said in one turn of its loop, in order."""

    messages: list[FromFrontEnd]


class SaidRaw(msgspec.Struct, frozen=True, array_like=True, tag=59):
    """``Said`` as it is sent: each message encoded when it was said, so that one that cannot be is its own sender's trouble alone."""

    messages: list[msgspec.Raw]


FrontEndFrame = Hello | Said
"""What comes from a front end: it says Hello first."""


# server -> front end


class Begin(msgspec.Struct, frozen=True, array_like=True, tag=80):
    """Open the doors; answered by Opened. ``front_end_count`` is how many share the limits that the options set."""

    options: Options
    front_end_count: int


class Found(msgspec.Struct, frozen=True, array_like=True, tag=81):
    """The answer to Find; good until the next Forget."""

    question: int
    terms: Terms


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=82):
    """The answer to Find or AskRpc where there is no other."""

    question: int
    refusal: Refusal


class Responded(msgspec.Struct, frozen=True, array_like=True, tag=83, gc=False):
    """A response of an inference, or, with ``end_mark``, only that all have come.

    ``response`` is to be released by Release; 0: there is nothing to release. ``finished``: as Finished says, besides.
    """

    request: int
    outputs: list[Tensor]
    parameters: Parameters = {}
    error: Refusal | None = None
    final: bool = True
    end_mark: bool = False
    response: int = 0
    finished: bool = False


class Rejected(msgspec.Struct, frozen=True, array_like=True, tag=84):
    """An inference that was not begun: it was refused on entry. What it holds is free, too."""

    request: int
    refusal: Refusal


class Finished(msgspec.Struct, frozen=True, array_like=True, tag=85):
    """Nobody reads the inputs of these inferences any more."""

    requests: list[int]


class AnsweredHttp(msgspec.Struct, frozen=True, array_like=True, tag=86):
    """The answer to AskHttp."""

    question: int
    status: int
    headers: HttpHeaders
    body: bytes


class AnsweredRpc(msgspec.Struct, frozen=True, array_like=True, tag=87):
    """The answer to AskRpc: the reply's message."""

    question: int
    message: bytes


class Forget(msgspec.Struct, frozen=True, array_like=True, tag=88):
    """All terms may be others now: ask anew. Answered by Forgotten."""

    number: int


class Leave(msgspec.Struct, frozen=True, array_like=True, tag=89):
    """Accept nobody any more, let what is under way end, and say with Counted how much that is, now and at each change."""


class End(msgspec.Struct, frozen=True, array_like=True, tag=90):
    """Close every connection; the process ends."""


class Measured(msgspec.Struct, frozen=True, array_like=True, tag=91):
    """A family of metrics that a model has made, and that clients can ask for in replies: its series, None where it has gone."""

    family: str
    samples: list[tuple[dict[str, str], float]] | None


class Gone(msgspec.Struct, frozen=True, array_like=True, tag=92):
    """The process that an arena belongs to has gone: what it answered has been told before this."""

    arena: int


Order = Begin | Leave | End
"""What a front end does as a whole."""

News = Found | Refused | Responded | Rejected | Finished | AnsweredHttp | AnsweredRpc | Forget | Measured | Gone
"""What is about models and requests: it is taken in order."""

ToFrontEnd = Order | News


class Told(msgspec.Struct, frozen=True, array_like=True, tag=79):
    """All that the server has to say to a front end in one turn of its loop, in order."""

    messages: list[ToFrontEnd]


class ToldRaw(msgspec.Struct, frozen=True, array_like=True, tag=79):
    """``Told`` as it is sent; as ``SaidRaw``."""

    messages: list[msgspec.Raw]
