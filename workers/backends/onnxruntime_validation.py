"""The checks of a configuration against its ONNX model when it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...shm.datatypes import BY_NUMBER, DATATYPES, Datatype, shape_text
from ..contract.status import internal, invalid, unsupported
from ..ragged import RANK_TWO
from .onnxruntime_graph import Graph, GraphTensor

_CONTROL_KINDS = ("CONTROL_SEQUENCE_START", "CONTROL_SEQUENCE_END", "CONTROL_SEQUENCE_READY", "CONTROL_SEQUENCE_CORRID")


def validate(config: Any, graph: Graph) -> None:
    """Check a final ``ModelConfig`` message against the model's tensors.

    Every input of the model must be configured, any subset of its outputs may be. A variable dim of
    the model's input accepts any configured dim; the dims of outputs must be equal.
    Raises INVALID_ARG with what differs, INTERNAL and UNSUPPORTED for what cannot be served.
    """
    expected = sum([not tensor.optional for tensor in config.input])
    expected += len({name for batch_input in config.batch_input for name in batch_input.target_name})
    expected += _validate_controls(config, graph) + len(config.sequence_batching.state)
    if expected != len(graph.inputs):
        raise invalid(f"unable to load model '{config.name}', configuration expects {expected} inputs, model provides {len(graph.inputs)}")
    for tensor in config.input:
        _validate_input(config, graph, tensor)
    for tensor in config.output:
        _validate_output(config, graph, tensor)
    for batch_input in config.batch_input:
        for name in batch_input.target_name:
            _validate_batch_input(config, batch_input, name, _find(name, "input", graph.inputs))
    for state in config.sequence_batching.state:
        found = _find(state.input_name, "input", {**graph.inputs, **graph.initializers})
        _validate_datatype(config, state, state.output_name, "output state", _find(state.output_name, "output", graph.outputs))
        _validate_datatype(config, state, state.input_name, "input state", found)
    _refuse(config)


def _validate_input(config: Any, graph: Graph, tensor: Any) -> None:
    if tensor.optional and config.max_batch_size != 0:
        raise invalid(
            f"unable to load model '{config.name}', optional input '{tensor.name}' is not supported for models that support batching"
        )
    found = _find(tensor.name, "input", {**graph.inputs, **graph.initializers})
    _validate_datatype(config, tensor, tensor.name, "input", found)
    if tensor.allow_ragged_batch:
        _validate_ragged(config, tensor, found)
    else:
        _validate_shape(config, tensor, found, exact=False)


def _validate_batch_input(config: Any, batch_input: Any, name: str, found: GraphTensor) -> None:
    _validate_datatype(config, batch_input, name, "batch input", found)
    kind = batch_input.Kind.Name(batch_input.kind)
    rank = 2 if kind == RANK_TWO else 1
    if len(found.shape) != rank:
        raise invalid(
            f"unable to load model '{config.name}', batch input '{name}' of kind {kind} has {rank} dimensions, "
            f"model provides {shape_text(found.shape)}"
        )


def _validate_output(config: Any, graph: Graph, tensor: Any) -> None:
    found = _find(tensor.name, "output", graph.outputs)
    _validate_datatype(config, tensor, tensor.name, "output", found)
    if not any([tensor.name in scatter.target_name for scatter in config.batch_output]):
        _validate_shape(config, tensor, found, exact=True)


def _find(name: str, direction: str, tensors: dict[str, GraphTensor]) -> GraphTensor:
    found = tensors.get(name)
    if found is None:
        allowed = ", ".join(sorted(tensors))
        raise invalid(f"unexpected inference {direction} '{name}', allowed {direction}s are: {allowed}")
    return found


def _datatype(number: int) -> Datatype | None:
    return BY_NUMBER.get(number)


def _validate_datatype(config: Any, tensor: Any, name: str, direction: str, found: GraphTensor) -> None:
    datatype = _datatype(tensor.data_type)
    if datatype is None:
        raise internal(f"unsupported datatype TYPE_INVALID for {direction} '{name}' for model '{config.name}'")
    if datatype is not found.datatype:
        raise invalid(
            f"unable to load model '{config.name}', configuration expects datatype {datatype.config_name} "
            f"for {direction} '{name}', model provides {found.type_name}"
        )


def _validate_ragged(config: Any, tensor: Any, found: GraphTensor) -> None:
    prefix = f"unable to load model '{config.name}', configuration expects model provides input with shape [-1]"
    if tensor.optional:
        raise invalid(f"{prefix} for ragged input '{tensor.name}', which is not supported for optional input")
    if found.shape != (-1,):
        raise invalid(f"{prefix}  for ragged input '{tensor.name}', model provides {shape_text(found.shape)}")


def _validate_shape(config: Any, tensor: Any, found: GraphTensor, exact: bool) -> None:
    dims: Sequence[int] = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    shape = found.shape
    if found.scalar:
        if any([dim != 1 for dim in dims]):
            raise invalid(
                f"unable to load model '{config.name}', scalar tensor '{tensor.name}', should only provide 1 in the model configuration "
                f"when the model doesn't support batching. Model configuration provided: {shape_text(dims)}."
            )
        return
    prefix = f"model '{config.name}', tensor '{tensor.name}': "
    batching = config.max_batch_size > 0
    if batching and shape[0] != -1:
        raise invalid(
            f"{prefix}for the model to support batching the shape should have at least 1 dimension and the first dimension "
            f"must be -1; but shape expected by the model is {shape_text(shape)}"
        )
    full = (-1, *dims) if batching else tuple(dims)
    if len(shape) == len(full) and _agree(shape, full, exact):
        return
    batch_text = "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making complete "
    raise invalid(
        f"{prefix}the model expects {len(shape)} dimensions (shape {shape_text(shape)}) but the model configuration specifies "
        f"{len(full)} dimensions ({batch_text if batching else ''}shape {shape_text(full)})"
    )


def _agree(shape: Iterable[int], full: Iterable[int], exact: bool) -> bool:
    return all([have == want or (have == -1 and not exact) for have, want in zip(shape, full, strict=True)])


def _validate_controls(config: Any, graph: Graph) -> int:
    """Check the sequence control tensors; returns how many there are."""
    count = 0
    for kind in _CONTROL_KINDS:
        for control_input in config.sequence_batching.control_input:
            for control in control_input.control:
                if control.Kind.Name(control.kind) == kind:
                    _validate_control(config, graph, control_input.name, control)
                    count += 1
    return count


def _validate_control(config: Any, graph: Graph, name: str, control: Any) -> None:
    found = graph.inputs.get(name)
    if found is None:
        raise internal(f"configuration specified sequence control '{name}', but model does not provide that input")
    dims = found.shape[1:] if config.max_batch_size > 0 else found.shape
    prefix = f"unable to load model '{config.name}', sequence control '{name}'"
    if dims != (1,):
        raise invalid(f"{prefix} in model has dims {shape_text(dims)} but dims [1] is expected")
    if control.int32_false_true:
        type_name = "TYPE_INT32"
    elif control.fp32_false_true:
        type_name = "TYPE_FP32"
    elif control.bool_false_true:
        type_name = "TYPE_BOOL"
    else:
        datatype = _datatype(control.data_type)
        type_name = datatype.config_name if datatype is not None else "TYPE_INVALID"
    if found.datatype is None or found.datatype.config_name != type_name:
        raise invalid(
            f"{prefix}, the model expects data-type {found.onnx_name} but the model configuration specifies data-type {type_name}"
        )


def _refuse(config: Any) -> None:
    prefix = f"unable to load model '{config.name}', "
    states = config.sequence_batching.state
    names = [tensor.name for tensor in (*config.input, *config.output) if _datatype(tensor.data_type) is DATATYPES["BF16"]]
    names += [state.input_name for state in states if _datatype(state.data_type) is DATATYPES["BF16"]]
    if names and any([_datatype(tensor.data_type) is DATATYPES["BYTES"] for tensor in (*config.input, *states)]):
        raise unsupported(f"{prefix}ONNX Runtime for Python cannot run TYPE_STRING inputs together with TYPE_BF16: tensor '{names[0]}'")
