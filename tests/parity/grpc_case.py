"""Calls of gRPC methods, sent as bytes to both servers, and how what comes of them is compared."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import message_factory, text_format
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2

from ..servers import Server, wait_until

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
PATIENCE_S = 20.0
"""How long any one call may take."""

OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

FRAMES = re.compile(r"  (?:<frozen importlib\S*>|\S*/triton_python_backend_utils\.py)\(\d+\): \w+(?:\n|\\n)")
"""Frames that differ from one Python to the next, in texts and in responses shown as text."""

Metadata = Sequence[tuple[str, str | bytes]]
Rewrite = Callable[[Any], None]
"""Takes from a message what must differ between the two servers."""


@dataclass(frozen=True)
class Side:
    """One of the two servers, with a channel to it and the folder that its recorders write to. ``ours``: it is tensorfarm."""

    server: Server
    port: int
    home: Path
    ours: bool
    channel: grpc.Channel = field(compare=False)

    @property
    def notes(self) -> Path:
        """Where its recorders write to."""
        return self.home / "notes"

    def alike(self, text: str) -> str:
        """A text without this server's own paths, and without frames of Python's own modules."""
        return FRAMES.sub("", text.replace(str(self.home), "HOME"))


@dataclass(frozen=True)
class Pair:
    """Both servers."""

    theirs: Side
    ours: Side

    def both(self, of: Callable[[Side], Any]) -> tuple[Any, Any]:
        """What comes of doing the same with both at the same time."""
        with ThreadPoolExecutor(2) as executor:
            theirs, ours = executor.map(of, (self.theirs, self.ours))
        return theirs, ours


@dataclass(frozen=True)
class Answer:
    """What a client sees of a call: ``message`` is the response as text, or "" where there is none; metadata without the transport's own."""

    code: str
    details: str
    message: str = ""
    metadata: tuple[tuple[str, str | bytes], ...] = ()

    def __str__(self) -> str:
        return f"{self.code} {self.details!r} {self.message} {self.metadata or ''}"


@dataclass(frozen=True)
class Call:
    """A unary call. ``method`` without a slash is one of the inference service's; ``message`` may be bytes that are none.

    ``settled``: the call is repeated until its response (as text) fulfils it.
    """

    method: str
    message: Message | bytes = b""
    metadata: Metadata = ()
    rewrite: Rewrite | None = None
    settled: Callable[[str], bool] | None = None

    @property
    def path(self) -> str:
        """The method's path."""
        return self.method if "/" in self.method else f"/{SERVICE}/{self.method}"

    def __str__(self) -> str:
        content = self.message if isinstance(self.message, bytes) else text(self.message)
        return f"{self.method} {str(content)[:300]}"


@dataclass(frozen=True)
class Differs:
    """What tensorfarm answers otherwise than release 24.10, and why that is right. What is None may be anything.

    ``fatal``: the call kills release 24.10, or leaves it unfit for more, so it is not asked.
    """

    why: str
    code: str
    details: str | None = ""
    message: str | None = None
    fatal: bool = False

    def agree(self, answer: Answer, what: str) -> None:
        """Fail unless tensorfarm's answer is the one that is promised."""
        assert answer.code == self.code, f"{what}\n{answer}"
        assert self.details in (None, answer.details), f"{what}\n{answer}"
        assert self.message in (None, answer.message.strip()), f"{what}\n{answer}"


def text(message: Message) -> str:
    """A message on one line: fields in order of their numbers, maps in order of their keys, also what the message's type does not know."""
    return str(text_format.MessageToString(message, as_one_line=True, print_unknown_fields=True))


def response_class(method: str) -> type[Message] | None:
    """What a method of the inference service answers with."""
    found = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name.get(method)
    return message_factory.GetMessageClass(found.output_type) if found is not None else None


def encoded(message: Message | bytes) -> bytes:
    """The bytes that are sent for a message."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def as_text(method: str, content: bytes, rewrite: Rewrite | None = None) -> str:
    """A response as text."""
    made = response_class(method)
    if made is None:
        return repr(content)
    message = made()
    try:
        message.ParseFromString(content)
    except DecodeError:
        return f"no message: {content!r}"
    if rewrite is not None:
        rewrite(message)
    return text(message)


def _plain(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((key, value) for key, value in metadata or ())


def send(side: Side, call: Call, timeout_s: float = PATIENCE_S) -> Answer:
    """Make a call and wait for what comes of it."""
    method = side.channel.unary_unary(call.path)
    try:
        content, made = method.with_call(encoded(call.message), timeout=timeout_s, metadata=tuple(call.metadata))
    except grpc.RpcError as error:
        return failure(side, error)
    metadata = _plain(made.initial_metadata()) + _plain(made.trailing_metadata())
    return Answer("OK", made.details() or "", side.alike(as_text(call.method, content, call.rewrite)), metadata)


def failure(side: Side, error: Any) -> Answer:
    """A call that has failed. What a client says of a deadline depends on whether it or the server was first to end the call."""
    late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    details = "" if late else side.alike(error.details() or "")
    return Answer(error.code().name, details, "", _plain(error.trailing_metadata()))


Script = Sequence[Call]
"""Calls in order."""


def check(pair: Pair, id: str, script: Script, differences: Mapping[str, Sequence[Differs]]) -> None:
    """Make the calls of a script at one server, then at the other, and compare; those that are to differ are listed in order."""
    listed = list(differences.get(id, ()))
    for call in script:
        what = f"AT {call}"
        if listed and listed[0].fatal:
            listed.pop(0).agree(send(pair.ours, call), what)
            continue
        wanted, got = (send_settled(side, call) for side in (pair.theirs, pair.ours))
        agreed(call, wanted, got, listed)
    assert not listed, f"the servers agree on {id}: take it off the list of differences"


def agreed(call: Call, wanted: Answer, got: Answer, listed: list[Differs]) -> None:
    """Fail unless the answers to a call are the same, or differ as the first of those listed says, which is taken off."""
    what = f"AT {call}"
    if got != wanted and listed:
        listed.pop(0).agree(got, what)
    else:
        assert got == wanted, f"{what}\nGOT  {got}\nREAL {wanted}"


def send_settled(side: Side, call: Call) -> Answer:
    """Make a call, again and again until its response is what it waits for; at last whatever it is."""
    if call.settled is None:
        return send(side, call)
    settled = call.settled
    answers: list[Answer] = []

    def done() -> bool:
        answers.append(send(side, call))
        return settled(answers[-1].message)

    with contextlib.suppress(AssertionError):
        wait_until(done, "the answer", 10.0, 0.03)
    return answers[-1]


# messages


def parameter(value: object) -> service_pb2.InferParameter:
    """A parameter of the kind that its value suggests; one that is made already stays as it is."""
    if isinstance(value, service_pb2.InferParameter):
        return value
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return service_pb2.InferParameter(**{kinds[type(value)]: value})


UNSET = service_pb2.InferParameter()


def unsigned(value: int) -> service_pb2.InferParameter:
    """A uint64 parameter."""
    return service_pb2.InferParameter(uint64_param=value)


def _put(target: Any, parameters: Mapping[str, object] | None) -> None:
    for name, value in (parameters or {}).items():
        target[name].CopyFrom(parameter(value))


def tensor(name: str, datatype: str, shape: Sequence[int], parameters: Mapping[str, object] | None = None, **contents: Any) -> Any:
    """An input; ``contents`` are typed lists, by the first part of their names: ``int=[1]``."""
    made = service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)
    _put(made.parameters, parameters)
    for kind, values in contents.items():
        getattr(made.contents, f"{kind}_contents").extend(values)
    return made


def output(name: str, **parameters: object) -> Any:
    """A requested output."""
    made = service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name)
    _put(made.parameters, parameters)
    return made


def request(
    model: str,
    *inputs: Any,
    outputs: Sequence[Any] = (),
    raw: Sequence[bytes] = (),
    id: str = "",
    version: str = "",
    parameters: Mapping[str, object] | None = None,
) -> Any:
    """An inference request."""
    made = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=id, raw_input_contents=raw)
    made.inputs.extend(inputs)
    made.outputs.extend(output(one) if isinstance(one, str) else one for one in outputs)
    _put(made.parameters, parameters)
    return made


def infer(model: str, *inputs: Any, **more: Any) -> Call:
    """A unary inference."""
    return Call("ModelInfer", request(model, *inputs, **more))


def said(model: str, verb: str, **more: Any) -> Any:
    """A request to one of the models that do what their input VERB says."""
    return request(model, tensor("VERB", "BYTES", [1], bytes=[verb.encode()]), **more)
