"""Ragged batches: requests of different shapes as one flat tensor, inputs that tell the model where each begins, and outputs cut alike.

Source: ``BatchInput`` and ``BatchOutput`` of Triton's ``model_config.proto``, and its guide to ragged batching.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from .contract.signature import BY_CONFIG_NAME
from .contract.status import internal, invalid

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

RANK_TWO = "BATCH_ITEM_SHAPE"
"""The kind of batch input that has two dims: all others have one."""


@dataclass(frozen=True, slots=True)
class BatchInput:
    """An input of the model's that is made of the shapes that its ``source`` has in the requests of a batch.

    ``kind`` is the enum's name; ``datatype`` is INT32 or FP32.
    """

    kind: str
    source: str
    datatype: np.dtype[Any]

    def made(self, shapes: Sequence[Shape]) -> Array:
        """The tensor for a batch. ``shapes`` are those of the source, with their batch dims: elements are counted over these too."""
        counts = [prod(shape) for shape in shapes]
        match self.kind:
            case "BATCH_ELEMENT_COUNT":
                numbers = counts
            case "BATCH_ACCUMULATED_ELEMENT_COUNT":
                numbers = list(accumulate(counts))
            case "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO":
                numbers = list(accumulate(counts, initial=0))
            case "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE":
                # Its shape alone says something.
                return np.zeros(max(counts), self.datatype)
            case _:
                numbers = [dim for shape in shapes for dim in shape[1:] * shape[0]]
        # By way of a type that holds them all: what is too large for the model's own is cut, as the original does.
        array = np.array(numbers, np.int64).astype(self.datatype)
        return array.reshape(sum([shape[0] for shape in shapes]), len(shapes[0]) - 1) if self.kind == RANK_TWO else array


@dataclass(frozen=True, slots=True)
class ScatteredOutput:
    """An output that the model makes flat for the whole batch. A request's part has ``shape``, whose -1 are the dims of its ``source``."""

    source: str
    shape: Shape

    def parts(self, name: str, array: Array, shapes: Sequence[Shape]) -> Iterator[tuple[Shape, Array]]:
        """Cut a batch's array over its requests: each one's shape, and its elements, still flat, because numpy does not take every
        shape without elements that a client can send. Raises INTERNAL where there are too few elements.
        """
        flat = array.reshape(-1)
        at = 0
        for source in shapes:
            shape = tuple([source[place] if dim == -1 else dim for place, dim in enumerate(self.shape)])
            end = at + prod(shape)
            if end > len(flat):
                raise internal(f"output '{name}' was made with {len(flat)} elements, too few to give each request one of its shape")
            yield shape, flat[at:end]
            at = end


@dataclass(frozen=True, slots=True)
class Ragged:
    """What is ragged about a model: names of ``flat`` inputs, inputs that are made (by their names), and outputs that are scattered."""

    flat: frozenset[str] = frozenset()
    made: Mapping[str, BatchInput] = field(default_factory=dict)
    scattered: Mapping[str, ScatteredOutput] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.flat or self.made or self.scattered)


def ragged_of(config: Mapping[str, Any]) -> Ragged:
    """What is ragged about the model of a validated configuration, given as the members of its JSON document.

    Raises INVALID_ARG for an output that takes a dim of an input that has none there.
    """
    inputs = {tensor["name"]: tensor for tensor in config.get("input", ())}
    outputs = {tensor["name"]: tensor for tensor in config.get("output", ())}
    batch_dim = (-1,) if config.get("max_batch_size", 0) > 0 else ()
    scattered = {}
    for entry in config.get("batch_output", ()):
        source = entry["source_input"][0]
        for name in entry.get("target_name", ()):
            shape = (*batch_dim, *outputs[name]["dims"])
            rank = len(batch_dim) + len(_model_dims(inputs[source]))
            if any(dim == -1 and place >= rank for place, dim in enumerate(shape)):
                raise invalid(f"batch output '{name}' has variable dimensions that its source input '{source}' does not have")
            scattered[name] = ScatteredOutput(source, shape)
    return Ragged(
        frozenset([name for name, tensor in inputs.items() if tensor.get("allow_ragged_batch")]),
        {
            name: BatchInput(entry["kind"], entry["source_input"][0], BY_CONFIG_NAME[entry["data_type"]].dtype)
            for entry in config.get("batch_input", ())
            for name in entry.get("target_name", ())
        },
        scattered,
    )


def _model_dims(tensor: Mapping[str, Any]) -> Sequence[int]:
    dims: Sequence[int] = tensor["reshape"].get("shape", ()) if "reshape" in tensor else tensor["dims"]
    return dims
