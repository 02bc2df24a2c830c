"""Filling in what a model's configuration leaves out, from the ONNX model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..contract.messages import Note
from ..contract.status import invalid
from .onnxruntime_graph import Graph, GraphTensor

DEFAULT_MAX_BATCH_SIZE = 4
"""``max_batch_size`` of a model that can batch and does not say how far."""


def complete_config(config: Any, graph: Callable[[], Graph], default_max_batch_size: int) -> list[Note]:
    """Fill in ``max_batch_size``, scheduler, inputs and outputs of a ``ModelConfig`` message, in place.

    ``graph`` opens the model and is called only where something is missing. What the server gives a sequence's requests, and
    what it keeps of them, is for no client, and not listed. Returns notes for the log. Raises INVALID_ARG where the configuration
    asks for batching and the model has no batch dim.
    """
    has_inputs = bool(config.input or config.batch_input)
    has_outputs = bool(config.output)
    if has_inputs and has_outputs:
        return [Note("I", f"skipping model configuration auto-complete for '{config.name}': inputs and outputs already specified")]
    found = graph()
    notes = _complete_batching(config, found, default_max_batch_size)
    batching = config.max_batch_size > 0
    sequences = config.sequence_batching
    own = {control.name for control in sequences.control_input} | {state.input_name for state in sequences.state}
    if not has_inputs:
        _fill(config.input, [tensor for tensor in found.inputs.values() if tensor.name not in own], batching)
    if not has_outputs:
        kept = {state.output_name for state in sequences.state}
        # A model that makes state alone would not be worth asking.
        _fill(config.output, [tensor for tensor in found.outputs.values() if tensor.name not in kept] or found.outputs.values(), batching)
    return notes


def _complete_batching(config: Any, graph: Graph, default_max_batch_size: int) -> list[Note]:
    notes: list[Note] = []
    if not all([tensor.shape[:1] == (-1,) for tensor in (*graph.inputs.values(), *graph.outputs.values())]):
        if config.max_batch_size != 0:
            raise invalid(
                f"autofill failed for model '{config.name}': model does not support batching while non-zero max_batch_size is specified"
            )
        return notes
    if config.max_batch_size == 0:
        config.max_batch_size = max(default_max_batch_size, 0)
        text = (
            f"autofilled max_batch_size to {config.max_batch_size} for model '{config.name}' since batching is supporrted but no "
            "max_batch_size is specified in model configuration. Must specify max_batch_size to utilize autofill with a larger "
            "max batch size"
        )
        notes.append(Note("W", text))
    if config.max_batch_size > 1 and config.WhichOneof("scheduling_choice") is None:
        config.dynamic_batching.SetInParent()
    return notes


def _fill(section: Any, tensors: Iterable[GraphTensor], batching: bool) -> None:
    for tensor in tensors:
        entry = section.add(name=tensor.name, data_type=tensor.datatype.number if tensor.datatype is not None else 0)
        dims = tensor.shape[1:] if batching else tensor.shape
        # A configuration has no empty dims; a scalar without batch dim is told by the model alone.
        entry.dims.extend(dims or (1,))
        if batching and not dims:
            entry.reshape.SetInParent()
