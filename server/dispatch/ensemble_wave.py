"""What flows through an ensemble: tensors that lie where their producers made them, and the waves they come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...shm.placement import Lease
from ...workers.contract.messages import Parameters, Tensor
from ...workers.contract.status import invalid
from ..statistics import ExecutionTimes
from .ensemble_plan import Selection, Step
from .request import Response

SEQUENCE_START = 1
SEQUENCE_END = 2

Belonging = tuple[int | str, int]
"""A correlation id and flags: what is passed on with a tensor where a step's response said something of its own."""


@dataclass(slots=True)
class ComputeTimes:
    """What the steps of a request have taken together. It can be read as the times of one execution that began at 0."""

    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0

    def add(self, times: ExecutionTimes) -> None:
        """A step has run."""
        self.input_ns += times.input_end_ns - times.compute_start_ns
        self.infer_ns += times.output_start_ns - times.input_end_ns
        self.output_ns += times.compute_end_ns - times.output_start_ns

    @property
    def compute_start_ns(self) -> int:
        """Where it begins: 0."""
        return 0

    @property
    def input_end_ns(self) -> int:
        """Where the inputs are there."""
        return self.input_ns

    @property
    def output_start_ns(self) -> int:
        """Where the outputs begin to be written."""
        return self.input_ns + self.infer_ns

    @property
    def compute_end_ns(self) -> int:
        """Where it ends."""
        return self.input_ns + self.infer_ns + self.output_ns


@dataclass(slots=True, eq=False)
class Source:
    """A step's response and how many uses of its tensors are still to end; it is released, and forgotten, after the last."""

    response: Response | None
    uses: int

    def drop(self, uses: int = 1) -> None:
        """Some uses have ended."""
        self.uses -= uses
        response = self.response
        if self.uses == 0 and response is not None:
            # It knows its request, that the step, that the wave, and that knows this.
            self.response = None
            response.release()


@dataclass(slots=True, eq=False)
class Value:
    """A tensor of the ensemble in one wave; ``tensor`` is None where its producer left it out.

    ``source`` is None for what came with the ensemble's own request.
    """

    tensor: Tensor | None
    batched: bool
    source: Source | None = None
    belonging: Belonging | None = None


@dataclass(slots=True, eq=False)
class Wave:
    """Tensors that belong together: those that follow from the request, or from one response of a decoupled step.

    ``missing`` counts the tensors that each waiting step still lacks, ``outputs_missing`` those of the ensemble's
    response; it is -1 where this wave makes none, or has made it.
    """

    selection: Selection
    origin: int
    outputs_missing: int = -1
    values: dict[str, Value] = field(default_factory=dict)
    missing: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.missing = {step.number: len(step.tensors) for step in self.selection.steps.get(self.origin, ())}

    def put(self, tensor: str, value: Value) -> list[Step]:
        """A tensor is there; returns the steps that have all they wait for now."""
        self.values[tensor] = value
        ready = []
        for step in self.selection.consumers.get(tensor, ()):
            self.missing[step.number] -= 1
            if not self.missing[step.number]:
                del self.missing[step.number]
                ready.append(step)
        if self.outputs_missing > 0 and tensor in self.selection.outputs:
            self.outputs_missing -= 1
        return ready

    @property
    def over(self) -> bool:
        """Nothing of it waits for anything."""
        return not self.missing and self.outputs_missing < 0

    def drop(self) -> None:
        """Nothing of it will be used any more by steps that were still waiting, or as an output."""
        waiting = [tensor for step in self.selection.steps.get(self.origin, ()) if step.number in self.missing for tensor in step.tensors]
        if self.outputs_missing >= 0:
            waiting += self.selection.outputs
        self.missing.clear()
        self.outputs_missing = -1
        for tensor in waiting:
            value = self.values.get(tensor)
            if value is not None and value.source is not None:
                value.source.drop()


@dataclass(slots=True, eq=False)
class Lent:
    """The memory of an ensemble's response: it lies in responses of steps. One use of each entry of ``sources`` ends with it."""

    sources: Sequence[Source]
    owners: dict[Lease, Source]

    def view(self, lease: Lease) -> memoryview:
        """The bytes of an output."""
        response = self.owners[lease].response
        if response is None or response.arena_view is None:
            raise TypeError("a lease without an arena")
        return response.arena_view(lease)

    def release(self, leases: list[Lease]) -> None:
        """The outputs are no longer needed."""
        for source in self.sources:
            source.drop()


def belonging_of(parameters: Parameters, given: Belonging) -> Belonging | None:
    """The sequence that a step's response puts its tensors in, or None where it says nothing; ``given`` is what the step was told.

    Raises StatusError INVALID_ARG where a parameter has another type.
    """
    correlation_id, flags = given
    found = False
    if "sequence_id" in parameters:
        value = parameters["sequence_id"]
        if type(value) is not int and type(value) is not str:
            raise invalid("expected parameter 'sequence_id' to be TRITONSERVER_PARAMETER_INT or TRITONSERVER_PARAMETER_STRING")
        correlation_id, found = value, True
    for name, flag in (("sequence_start", SEQUENCE_START), ("sequence_end", SEQUENCE_END)):
        if name in parameters:
            value = parameters[name]
            if type(value) is not bool:
                raise invalid(f"expect parameter '{name}' to be TRITONSERVER_PARAMETER_BOOL")
            flags = flags | flag if value else flags & ~flag
            found = True
    return (correlation_id, flags) if found else None


def belonging_parameters(belonging: Belonging) -> Parameters:
    """What an ensemble's response says of its sequence."""
    correlation_id, flags = belonging
    return {
        "sequence_id": correlation_id,
        "sequence_start": bool(flags & SEQUENCE_START),
        "sequence_end": bool(flags & SEQUENCE_END),
    }
