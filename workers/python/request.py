"""A request as a model receives it, and as a model makes it for another model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any

from ..contract import messages
from . import host
from . import parameters as parameters_
from .errors import UINT32, TritonModelException, are, incompatible, within
from .host import InputMemory, Responder
from .preferred_memory import MemoryType, PreferredMemory
from .response import InferenceResponse, json_text
from .sender import InferenceResponseSender
from .tensor import Tensor
from .trace import InferenceTrace

_MISSING: Any = object()
_DEFAULT_MEMORY = PreferredMemory(MemoryType.TRITONSERVER_MEMORY_CPU)
_NO_CONTEXT = messages.RequestContext()
_NONE: frozenset[str] = frozenset()

_SEQUENCES = (list, tuple)
_UINT64 = range(2**64)
_INT64 = range(-(2**63), 2**63)


class InferenceRequest:
    """Input tensors for a model, and how they are to be seen.

    Made by a model: ``exec`` or ``async_exec`` runs it. ``model_version`` -1 is the newest, ``flags`` are those of sequences
    (1 start, 2 end), ``timeout`` is in µs and counts for the model's queue, ``parameters`` go along to the model.
    Raises TypeError for other types, TritonModelException for what is empty, and for correlation ids and parameters of
    types that the protocol does not have, RuntimeError for correlation ids that no unsigned number of 64 bits can be.
    """

    __slots__ = (
        "__weakref__",
        "_body",
        "_correlation_id",
        "_flags",
        "_inputs",
        "_memory",
        "_outputs",
        "_request_id",
        "_responder",
        "_sender",
        "_timeout",
        "_wanted",
        "model_name",
        "model_version",
        "parameters_dict",
        "preferred_memory",
        "priority",
        "release_flags",
        "trace_",
    )

    _memory: InputMemory
    _outputs: frozenset[str]
    # those that a received request gets only when somebody looks: see __getattr__
    _request_id: str
    _correlation_id: int | str
    _flags: int
    _timeout: int
    _wanted: tuple[str, ...]
    _sender: InferenceResponseSender
    model_name: str
    model_version: int
    parameters_dict: messages.Parameters
    preferred_memory: PreferredMemory
    priority: int
    release_flags: int
    trace_: InferenceTrace

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = _MISSING,
        requested_output_names: Sequence[str] = _MISSING,
        model_name: str = _MISSING,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory = _DEFAULT_MEMORY,
        trace: InferenceTrace | None = None,
        parameters: dict[str, bool | int | str] | None = None,
    ) -> None:
        if not (
            are(str, request_id, model_name)
            and inputs.__class__ in _SEQUENCES
            and requested_output_names.__class__ in _SEQUENCES
            and are(str, *requested_output_names)
            and are(Tensor, *(tensor for tensor in inputs if tensor is not None))
            and not are(type(None), correlation_id)
            and within(model_version, _INT64)
            and within(flags, UINT32)
            and within(timeout, _UINT64)
            and are(PreferredMemory, preferred_memory)
            and are(InferenceTrace, *([] if trace is None else [trace]))
        ):
            raise incompatible(
                "InferenceRequest(request_id: str = '', correlation_id: int | str = 0, inputs: list[Tensor], "
                "requested_output_names: list[str], model_name: str, model_version: int = -1, flags: int = 0, timeout: int = 0, "
                "preferred_memory: PreferredMemory = default, trace: InferenceTrace = InferenceTrace(), parameters: dict = None)",
                *(
                    "missing" if argument is _MISSING else argument
                    for argument in (request_id, correlation_id, inputs, requested_output_names, model_name, model_version, flags, timeout)
                ),
            )
        whose = f"for request with id '{request_id}' and model name '{model_name}' should not be empty."
        if any(tensor is None for tensor in inputs):
            raise TritonModelException(f"Input tensor {whose}")
        if "" in requested_output_names:
            raise TritonModelException(f"Requested output name {whose}")
        if not within(correlation_id, _UINT64) and not are(str, correlation_id):
            if are(int, correlation_id):
                raise RuntimeError(f"a correlation ID lies between 0 and {_UINT64[-1]}")
            raise TritonModelException("Correlation ID must be integer or string")
        self._body: messages.RequestBody | None = None
        self._responder: Responder | None = None
        self._inputs: list[Tensor] | None = list(inputs)
        self._request_id = request_id
        self._correlation_id = int(correlation_id) if isinstance(correlation_id, bool) else correlation_id
        self._flags = flags
        self._timeout = timeout
        self._wanted = tuple(dict.fromkeys(requested_output_names))
        self.model_name = model_name
        self.model_version = model_version
        self.parameters_dict = parameters_.checked(parameters)
        self.preferred_memory = preferred_memory
        self.priority = 0
        self.release_flags = 0
        self.trace_ = trace or InferenceTrace()

    @staticmethod
    def received(
        body: messages.RequestBody, memory: InputMemory, responder: Responder, outputs: frozenset[str] = _NONE
    ) -> InferenceRequest:
        """A request of a batch. ``outputs`` are the model's, taken as requested where the client has named none."""
        self = _new(InferenceRequest)
        self._body = body
        self._memory = memory
        self._responder = responder
        self._outputs = outputs
        self._inputs = None
        self.release_flags = 0
        return self

    def __getattr__(self, name: str) -> Any:
        # most models look at inputs alone: the rest of a received request is taken from the message at the first question
        if name == "_sender":
            self._sender = InferenceResponseSender(self._responder)
        elif name in _LATE and self._body is not None:
            self._unpack(self._body)
        else:
            raise AttributeError(f"'InferenceRequest' object has no attribute '{name}'")
        return getattr(self, name)

    def _unpack(self, body: messages.RequestBody) -> None:
        context = body.context or _NO_CONTEXT
        self._request_id = body.id
        self._correlation_id = context.correlation_id
        self._flags = context.flags
        self._timeout = context.timeout_us
        self._wanted = tuple([output.name for output in body.outputs]) or tuple(self._outputs)
        self.model_name = ""
        self.model_version = -1
        self.parameters_dict = body.parameters
        self.preferred_memory = _DEFAULT_MEMORY
        self.priority = 0
        self.trace_ = InferenceTrace(context.trace)

    def _tensors(self) -> list[Tensor]:
        inputs = self._inputs
        if inputs is None:
            body = self._body
            memory = self._memory
            inputs = self._inputs = [] if body is None else [_received(wire, memory) for wire in body.inputs]
        return inputs

    def give(self, tensors: Sequence[Tensor]) -> None:
        """Have these be inputs as well, or instead of those of the same names."""
        names = {tensor.name() for tensor in tensors}
        self._inputs = [*[tensor for tensor in self._tensors() if tensor.name() not in names], *tensors]

    def want_nothing(self) -> None:
        """Have no output be requested."""
        self._outputs = _NONE

    def inputs(self) -> list[Tensor]:
        """The input tensors, always the same ones."""
        return list(self._tensors())

    def request_id(self) -> str:
        """The id that the client chose, "" for none."""
        return self._request_id

    def correlation_id(self) -> int | str:
        """The sequence that the request belongs to, 0 for none."""
        return self._correlation_id

    def flags(self) -> int:
        """The place in the sequence: 1 start, 2 end."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """Change the place in the sequence. Raises TypeError for what is no unsigned number of 32 bits."""
        if not within(flags, UINT32):
            raise incompatible("set_flags(flags: int)", flags)
        # with the rest read first, a later question cannot bring the old ones back
        _ = self._flags
        self._flags = int(flags)

    def timeout(self) -> int:
        """The longest time in the queue, in µs, 0 for none."""
        return self._timeout

    def parameters(self) -> str:
        """The parameters as the text of a JSON object."""
        return json_text(self.parameters_dict, spaced=self._body is None)

    def requested_output_names(self) -> set[str]:
        """The outputs that are wanted; for a received request all of the model's where the client named none."""
        return set(self._wanted)

    def trace(self) -> InferenceTrace:
        """The trace that the request is part of."""
        return self.trace_

    def get_response_sender(self) -> InferenceResponseSender:
        """What answers the request besides, or instead of, what ``execute`` returns; always the same one."""
        return self._sender

    def is_cancelled(self) -> bool:
        """Has the client gone?"""
        return self._responder is not None and self._responder.is_cancelled()

    def set_release_flags(self, flags: int) -> None:
        """Say what becomes of the request after ``execute``: 1, it is done with; 2, it comes again.

        Raises TypeError for what is no unsigned number of 32 bits.
        """
        if not within(flags, UINT32):
            raise incompatible("set_release_flags(flags: int)", flags)
        self.release_flags = int(flags)

    def exec(self, decoupled: bool = False) -> InferenceResponse | Iterator[InferenceResponse]:
        """Run the request and wait for its response; ``decoupled``: an iterator over the responses, which come as they are made.

        What goes wrong in the other model is a response with an error.
        """
        return host.required().call(self, _flag(decoupled))

    def async_exec(self, decoupled: bool = False) -> Awaitable[InferenceResponse | Iterator[InferenceResponse]]:
        """The same for ``await``: a thread of the running loop's default executor waits. Raises RuntimeError without a loop."""
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(None, host.required().call, self, _flag(decoupled))


def _flag(decoupled: object) -> bool:
    if not isinstance(decoupled, bool):
        raise incompatible("exec(decoupled: bool = False)", decoupled)
    return decoupled


_new = InferenceRequest.__new__
_received = Tensor.received
_LATE = frozenset(
    (
        "_request_id",
        "_correlation_id",
        "_flags",
        "_timeout",
        "_wanted",
        "model_name",
        "model_version",
        "parameters_dict",
        "preferred_memory",
        "priority",
        "trace_",
    )
)
