"""Checks of an ensemble against the models that it runs: are they there, and do their tensors fit together?

Source: texts, and which of several faults is told, are those of Triton; tests/parity asks the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...shm.datatypes import shape_text
from ...workers.contract.configuration import model_config
from ...workers.contract.status import StatusError, invalid


@dataclass(frozen=True, slots=True)
class MemberState:
    """How a model that an ensemble runs has fared.

    ``error`` is what is wrong with an ensemble that is a member, ``reason`` why no version of a model is loaded ("" where that is
    not known), ``ready`` has the configuration of each version that is.
    """

    ready: Mapping[int, Any] = field(default_factory=dict)
    error: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor as one model has it; ``dims`` include a batch dim in ``full``."""

    model: str
    data_type: int
    dims: tuple[int, ...]
    batching: bool

    @property
    def full(self) -> tuple[int, ...]:
        return (-1, *self.dims) if self.batching else self.dims


def is_ensemble(config: Any) -> bool:
    """Is this the configuration of an ensemble?"""
    return bool(config.HasField("ensemble_scheduling"))


def member_names(config: Any) -> list[str]:
    """The models that an ensemble runs, each once, in the order of its steps; none for other models."""
    return list(dict.fromkeys(step.model_name for step in config.ensemble_scheduling.step))


def check_available(config: Any, available: Callable[[str], bool]) -> None:
    """Refuse an ensemble with a member that the repository does not have. Raises StatusError INVALID_ARG."""
    for name in member_names(config):
        if not available(name):
            raise invalid(f"ensemble {config.name} contains models that are not available or ambiguous: {name}")


def circles(members: Mapping[str, Iterable[str]]) -> dict[str, StatusError]:
    """The ensembles that run themselves by way of others; ``members`` has those of each ensemble."""
    found = {}
    for name in members:
        last = _way_back(name, members)
        if last is not None:
            found[name] = invalid(f"circular dependency between ensembles: {name} -> ... -> {last} -> {name}")
    return found


def _way_back(name: str, members: Mapping[str, Iterable[str]]) -> str | None:
    seen = set()
    queue = [name]
    while queue:
        at = queue.pop()
        for member in members.get(at, ()):
            if member == name:
                return at
            if member not in seen:
                seen.add(member)
                queue.append(member)
    return None


def check_loaded(config: Any, state: Callable[[str], MemberState]) -> None:
    """Refuse an ensemble with a member of which nothing, or not the version it needs, is loaded. Raises StatusError INVALID_ARG."""
    name = config.name
    # The last step's model is the first to be looked at, as in the original.
    for member in member_names(config)[::-1]:
        found = state(member)
        if found.error:
            raise invalid(f"ensemble '{name}' depends on '{member}' which is not valid. Model '{member}' failed with error: {found.error}")
        if not found.ready:
            reason = f". Model '{member}' loading failed with error: {found.reason}" if found.reason else ""
            raise invalid(f"ensemble '{name}' depends on '{member}' which has no loaded version{reason}")
        needed = {step.model_version for step in config.ensemble_scheduling.step if step.model_name == member}
        for version in sorted(needed - {-1}):
            if version not in found.ready:
                raise invalid(f"ensemble '{name}' depends on '{member}' whose required version {version} is not loaded.")


def check_tensors(config: Any, member: Callable[[str, int], Any]) -> bool:
    """Check that an ensemble's steps fit their models; ``member`` gives the configuration of a model's version (-1: the newest).

    Returns whether the ensemble is decoupled, which it is where one of its members is. Raises StatusError INVALID_ARG.
    """
    known = {tensor.name: _of_ensemble(config, tensor) for tensor in [*config.input, *config.output]}
    decoupled = False
    for step in config.ensemble_scheduling.step:
        model = member(step.model_name, step.model_version)
        decoupled = decoupled or model.model_transaction_policy.decoupled
        if 0 < model.max_batch_size < config.max_batch_size:
            raise invalid(
                f"ensemble {config.name} allows maximum batch size {config.max_batch_size}, but it contains model {model.name} "
                f"which only allows maximum batch size to be {model.max_batch_size}"
            )
        _check_inputs(config.name, step, model, known)
        _check_outputs(config.name, step, model, known)
    return decoupled


def _check_inputs(ensemble: str, step: Any, model: Any, known: dict[str, _Tensor]) -> None:
    inputs = {tensor.name: tensor for tensor in model.input}
    for name, tensor in sorted(step.input_map.items()):
        if name not in inputs:
            raise invalid(f"in ensemble {ensemble}, ensemble tensor {tensor} is mapping to non-existing input {name} in model {model.name}")
        _meet(ensemble, tensor, _of_member(model, inputs[name]), known)
    for name, found in inputs.items():
        if name not in step.input_map and not found.optional:
            raise invalid(f"in ensemble {ensemble}, input {name} in model {model.name} is not mapped to any ensemble tensors")


def _check_outputs(ensemble: str, step: Any, model: Any, known: dict[str, _Tensor]) -> None:
    outputs = {tensor.name: tensor for tensor in model.output}
    for name, tensor in sorted(step.output_map.items()):
        if name not in outputs:
            raise invalid(
                f"in ensemble {ensemble}, ensemble tensor {tensor} is mapped from non-existing output {name} in model {model.name}"
            )
        _meet(ensemble, tensor, _of_member(model, outputs[name]), known)


def _of_ensemble(config: Any, tensor: Any) -> _Tensor:
    dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    return _Tensor(config.name, tensor.data_type, tuple(dims), config.max_batch_size > 0)


def _of_member(model: Any, tensor: Any) -> _Tensor:
    return _Tensor(model.name, tensor.data_type, tuple(tensor.dims), model.max_batch_size > 0)


def _meet(ensemble: str, name: str, new: _Tensor, known: dict[str, _Tensor]) -> None:
    """A step has a tensor too: it must be what the first one that had it says."""
    old = known.setdefault(name, new)
    where = f"in ensemble {ensemble}, ensemble tensor {name}"
    if old.data_type != new.data_type:
        types = [model_config.DataType.Name(tensor.data_type) for tensor in (old, new)]
        raise invalid(
            f"{where}: inconsistent data type: {types[0]} is inferred from model {old.model} "
            f"while {types[1]} is inferred from model {new.model}"
        )
    if not (_matches(old.dims, new.dims) or (old.batching != new.batching and _matches(old.full, new.full))):
        raise invalid(
            f"{where}: inconsistent shape: {shape_text(old.full)} is inferred from model {old.model} "
            f"while {shape_text(new.full)} is inferred from model {new.model}"
        )


def _matches(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(-1 in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True))
