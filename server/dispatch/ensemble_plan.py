"""What there is to know of an ensemble before any request: its steps, what feeds them, and which responses belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...workers.contract.signature import Signature, TensorSpec
from ...workers.contract.status import invalid

OUTSIDE = -1
"""The origin of what comes from the ensemble's own request rather than from the responses of a decoupled step."""

_MAX_SELECTIONS = 64


@dataclass(frozen=True, slots=True)
class Link:
    """A tensor of a step's model and the ensemble's tensor that it is; ``dims`` are the model's, without the batch dim."""

    name: str
    tensor: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One step. ``version`` -1 is the newest. ``tensors`` are those it is fed with, each once.

    ``origin`` is the decoupled step whose responses it is run for, one run for each; ``produces`` is the origin
    of its own outputs: itself where it is decoupled.
    """

    number: int
    model: str
    version: int
    batching: bool
    decoupled: bool
    inputs: tuple[Link, ...]
    outputs: tuple[Link, ...]
    tensors: tuple[str, ...]
    origin: int

    @property
    def produces(self) -> int:
        """The origin of its outputs."""
        return self.number if self.decoupled else self.origin


@dataclass(frozen=True, slots=True)
class Selection:
    """The part of an ensemble that certain outputs need.

    ``steps`` are by origin; ``consumers`` says which of them a tensor feeds, ``uses`` how often a tensor is
    used: once by each of those, and once as an output.
    """

    outputs: tuple[str, ...]
    steps: Mapping[int, tuple[Step, ...]]
    consumers: Mapping[str, tuple[Step, ...]]
    uses: Mapping[str, int]


@dataclass(slots=True, eq=False)
class EnsemblePlan:
    """An ensemble as ``plan_of`` has read it.

    ``inputs`` and ``outputs`` are those of its signature, ``origin`` that of its outputs. ``max_inflight`` bounds how many
    requests of a step run at once because of a decoupled step, 0: without limit.
    """

    name: str
    batching: bool
    decoupled: bool
    steps: tuple[Step, ...]
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    origin: int
    max_inflight: int
    _selections: dict[frozenset[str], Selection] = field(default_factory=dict)

    def select(self, wanted: Iterable[str]) -> Selection:
        """What the wanted outputs need; all outputs where none is named."""
        names = frozenset(wanted)
        selection = self._selections.get(names)
        if selection is None:
            selection = self._select(names or frozenset(self.outputs))
            if len(self._selections) >= _MAX_SELECTIONS:
                self._selections.clear()
            self._selections[names] = selection
        return selection

    def _select(self, names: frozenset[str]) -> Selection:
        outputs = tuple(name for name in self.outputs if name in names)
        producers = {link.tensor: step for step in self.steps for link in step.outputs}
        needed: dict[int, Step] = {}
        queue = list(outputs)
        while queue:
            step = producers.get(queue.pop())
            if step is not None and step.number not in needed:
                needed[step.number] = step
                queue += step.tensors
        steps = [step for step in self.steps if step.number in needed]
        consumers: dict[str, list[Step]] = {}
        uses = dict.fromkeys(outputs, 1)
        for step in steps:
            for tensor in step.tensors:
                consumers.setdefault(tensor, []).append(step)
                uses[tensor] = uses.get(tensor, 0) + 1
        origins = {step.origin for step in steps} | {step.produces for step in steps} | {OUTSIDE}
        return Selection(
            outputs,
            {origin: tuple(step for step in steps if step.origin == origin) for origin in origins},
            {tensor: tuple(steps) for tensor, steps in consumers.items()},
            uses,
        )


def origins_of(config: Any, decoupled: Callable[[str, int], bool]) -> dict[str, int]:
    """The origin of each tensor of an ensemble; ``decoupled`` says whether a model's version (-1: the newest) is.

    Raises StatusError INVALID_ARG where tensors of different decoupled steps come together.
    """
    origins = {tensor.name: OUTSIDE for tensor in config.input}
    unread = list(enumerate(config.ensemble_scheduling.step))
    while unread:
        ready = [(number, step) for number, step in unread if all(tensor in origins for tensor in step.input_map.values())]
        if not ready:
            raise invalid(f"ensemble '{config.name}' has steps whose inputs are not connected")
        for number, step in ready:
            origin = _common_origin(config.name, [origins[tensor] for tensor in step.input_map.values()])
            made = number if decoupled(step.model_name, step.model_version) else origin
            origins |= dict.fromkeys(step.output_map.values(), made)
        done = {number for number, _ in ready}
        unread = [(number, step) for number, step in unread if number not in done]
    _common_origin(config.name, [origins[tensor.name] for tensor in config.output])
    return origins


def plan_of(config: Any, signature: Signature, member: Callable[[str, int], Signature]) -> EnsemblePlan:
    """The plan of an ensemble that has been checked; ``member`` gives the signature of a model's version (-1: the newest).

    Raises what ``origins_of`` raises.
    """
    origins = origins_of(config, lambda model, version: member(model, version).decoupled)
    steps = []
    for number, message in enumerate(config.ensemble_scheduling.step):
        found = member(message.model_name, message.model_version)
        tensors = tuple(dict.fromkeys(tensor for _, tensor in sorted(message.input_map.items())))
        steps.append(
            Step(
                number=number,
                model=message.model_name,
                version=message.model_version,
                batching=found.batching,
                decoupled=found.decoupled,
                inputs=_links(message.input_map, found.inputs),
                outputs=_links(message.output_map, found.outputs),
                tensors=tensors,
                origin=origins[tensors[0]],
            )
        )
    return EnsemblePlan(
        name=config.name,
        batching=signature.batching,
        decoupled=any(step.decoupled for step in steps),
        steps=tuple(steps),
        inputs=signature.inputs,
        outputs=signature.outputs,
        origin=origins[next(iter(signature.outputs))],
        max_inflight=config.ensemble_scheduling.max_inflight_requests,
    )


def _common_origin(ensemble: str, origins: Iterable[int]) -> int:
    found = set(origins)
    if len(found) > 1:
        # The ensemble's own name where a member's is to be expected is the protocol's.
        raise invalid(f"in ensemble {ensemble}, step of model '{ensemble}' receives inputs originated from different decoupled models")
    return found.pop()


def _links(mapping: Mapping[str, str], specs: Mapping[str, TensorSpec]) -> tuple[Link, ...]:
    return tuple(Link(name, tensor, specs[name].dims) for name, tensor in sorted(mapping.items()))


def fitted(shape: tuple[int, ...], batched: bool, dims: Sequence[int], batching: bool) -> tuple[int, ...]:
    """The shape that a tensor has where it is used.

    ``batched`` says whether its first dim is a batch dim, ``batching`` whether one is expected before ``dims``. A batch dim of 1 is put
    before a shape that is all ``dims``, and taken away where it is one dim too many; else the first dim counts as what is
    expected.
    """
    if batched == batching:
        return shape
    if batching:
        return (1, *shape) if _matches(shape, dims) else shape
    return shape[1:] if len(shape) == len(dims) + 1 and shape[0] == 1 else shape


def _matches(shape: Sequence[int], dims: Sequence[int]) -> bool:
    return len(shape) == len(dims) and all(-1 in (size, dim) or size == dim for size, dim in zip(shape, dims, strict=True))
