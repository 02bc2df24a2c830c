"""A model's tensors, precomputed once per loaded version so that a request is checked without thought."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...shm.datatypes import BY_NUMBER, DATATYPES, Datatype, element_count

BY_CONFIG_NAME: dict[str, Datatype] = {datatype.config_name: datatype for datatype in DATATYPES.values()}
"""Every datatype by its name in configurations."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    ``dims`` are the configured dims without the batch dim; ``shape`` is what clients send or get
    (a leading -1 when the model batches); -1 marks a variable dim. ``reshape`` is the shape the
    model itself takes (without the batch dim) or None where it equals ``dims``.
    ``item_byte_size`` is the byte size of one batch item, or -1 where it varies.
    """

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    shape: tuple[int, ...]
    reshape: tuple[int, ...] | None
    item_byte_size: int
    optional: bool = False
    allow_ragged_batch: bool = False

    @property
    def variable(self) -> bool:
        """Does any of its dims vary?"""
        return -1 in self.dims


@dataclass(frozen=True, slots=True)
class Signature:
    """Every tensor of a model version, in configuration order.

    ``batching``, ``reshapes_inputs`` (does any input have a ``reshape``?) and ``required_inputs``
    (how many inputs are not optional) follow from the rest.
    """

    model: str
    max_batch_size: int
    decoupled: bool
    inputs: dict[str, TensorSpec] = field(default_factory=dict)
    outputs: dict[str, TensorSpec] = field(default_factory=dict)
    batching: bool = field(init=False)
    reshapes_inputs: bool = field(init=False)
    required_inputs: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "batching", self.max_batch_size > 0)
        object.__setattr__(self, "reshapes_inputs", any(spec.reshape is not None for spec in self.inputs.values()))
        object.__setattr__(self, "required_inputs", sum(not spec.optional for spec in self.inputs.values()))


def signature_of(config: Any) -> Signature:
    """Precompute the signature of a validated ``ModelConfig`` message."""
    batching = config.max_batch_size > 0

    def spec(tensor: Any) -> TensorSpec:
        reshape = tensor.reshape.shape if tensor.HasField("reshape") else None
        return _spec(tensor.name, BY_NUMBER[tensor.data_type], tensor.dims, reshape, batching)

    return Signature(
        model=config.name,
        max_batch_size=config.max_batch_size,
        decoupled=config.model_transaction_policy.decoupled,
        inputs={
            tensor.name: replace(spec(tensor), optional=tensor.optional, allow_ragged_batch=tensor.allow_ragged_batch)
            for tensor in config.input
        },
        outputs={tensor.name: spec(tensor) for tensor in config.output},
    )


def signature_of_members(config: Mapping[str, Any]) -> Signature:
    """The signature of a final configuration as the members of its JSON document, which any Python can read."""
    batching = config.get("max_batch_size", 0) > 0

    def spec(tensor: Mapping[str, Any]) -> TensorSpec:
        reshape = tensor["reshape"].get("shape", ()) if "reshape" in tensor else None
        return _spec(tensor["name"], BY_CONFIG_NAME[tensor["data_type"]], tensor["dims"], reshape, batching)

    return Signature(
        model=config["name"],
        max_batch_size=config.get("max_batch_size", 0),
        decoupled=bool(config.get("model_transaction_policy", {}).get("decoupled")),
        inputs={
            tensor["name"]: replace(
                spec(tensor), optional=bool(tensor.get("optional")), allow_ragged_batch=bool(tensor.get("allow_ragged_batch"))
            )
            for tensor in config.get("input", ())
        },
        outputs={tensor["name"]: spec(tensor) for tensor in config.get("output", ())},
    )


def _spec(name: str, datatype: Datatype, dims: Iterable[int], reshape: Iterable[int] | None, batching: bool) -> TensorSpec:
    dims = tuple(dims)
    fixed = -1 not in dims and datatype.byte_size > 0
    return TensorSpec(
        name=name,
        datatype=datatype,
        dims=dims,
        shape=(-1, *dims) if batching else dims,
        reshape=None if reshape is None else tuple(reshape),
        item_byte_size=element_count(dims) * datatype.byte_size if fixed else -1,
    )


def reshaped(shape: Sequence[int], source: Sequence[int], target: Sequence[int], batching: bool) -> tuple[int, ...]:
    """Map a request's ``shape`` from the configured dims ``source`` to the dims ``target``.

    Each -1 of ``target`` takes the value found at the -1 of ``source`` with the same rank among
    the variable dims; a batch dim is kept in front. Used with (dims, reshape) for inputs and with
    (reshape, dims) for outputs.
    """
    batch = tuple(shape[:1]) if batching else ()
    items = shape[1:] if batching else shape
    wild = iter([value for value, dim in zip(items, source, strict=True) if dim == -1])
    return batch + tuple(next(wild) if dim == -1 else dim for dim in target)
