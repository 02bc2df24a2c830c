"""Checks of inputs, outputs and batch tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...workers.contract.configuration import model_config
from ...workers.contract.status import StatusError, invalid

_CHANNEL_FORMATS = (model_config.ModelInput.FORMAT_NHWC, model_config.ModelInput.FORMAT_NCHW)
_BATCH_INPUT_TYPES = (model_config.TYPE_INT32, model_config.TYPE_FP32)
_TENSORRT = "tensorrt_plan"
_DIMENSION = "must be integer >= 1, or -1 to indicate a variable-size dimension"


def validate_tensors(config: Any) -> None:
    """Check every tensor of a configuration. Raises StatusError INVALID_ARG, its text ended by `` for <model>``."""
    try:
        for tensor in config.input:
            _check_shape(tensor, config.max_batch_size, "model input")
            if tensor.format in _CHANNEL_FORMATS and len(tensor.dims) != 3:
                raise invalid("model input NHWC/NCHW require 3 dims")
            _check_platform(tensor, config.platform, "input")
        for tensor in config.output:
            _check_shape(tensor, config.max_batch_size, "model output")
            _check_platform(tensor, config.platform, "output")
        _check_batch_tensors(config)
    except StatusError as error:
        raise StatusError(error.code, f"{error.message} for {config.name}") from None


def _check_platform(tensor: Any, platform: str, what: str) -> None:
    if tensor.is_shape_tensor and platform != _TENSORRT:
        raise invalid("shape tensors are only supported for TensorRT platform")
    if tensor.is_non_linear_format_io:
        if platform != _TENSORRT:
            raise invalid("Non-linear IO format is only supported for the TensorRT platform")
        if len(tensor.dims) != 3:
            raise invalid(f"Non-linear IO format {what} requires 3 dims")


def _check_shape(tensor: Any, max_batch_size: int, what: str) -> None:
    if not tensor.name:
        raise invalid(f"{what} must specify 'name'")
    what = f"{what} '{tensor.name}'"
    if tensor.data_type == model_config.TYPE_INVALID:
        raise invalid(f"{what} must specify 'data_type'")
    if not tensor.dims:
        raise invalid(f"{what} must specify 'dims'")
    if tensor.HasField("reshape") and not tensor.reshape.shape and max_batch_size == 0:
        raise invalid(f"{what} cannot have empty reshape for non-batching model as scalar tensors are not supported")
    if any(dim < 1 and dim != -1 for dim in tensor.dims):
        raise invalid(f"{what} dimension {_DIMENSION}")
    if tensor.HasField("reshape"):
        if any(dim < 1 and dim != -1 for dim in tensor.reshape.shape):
            raise invalid(f"{what} reshape dimensions {_DIMENSION}")
        _check_reshape(tensor.dims, tensor.reshape.shape, what)


def _check_reshape(dims: Sequence[int], reshape: Sequence[int], what: str) -> None:
    """Both shapes must hold the same elements whatever their variable dims turn out to be: the fixed dims
    between two variable ones multiply to the same, pair by pair. An empty reshape holds one element."""
    dims_variable, reshape_variable = -1 in dims, -1 in reshape
    if dims_variable is not reshape_variable:
        raise invalid(f"{what} has different size for dims and reshape")
    dims_chunks, reshape_chunks = _chunks(dims), _chunks(reshape)
    if len(dims_chunks) != len(reshape_chunks):
        raise invalid(f"{what} has different number of variable-size dimensions for dims and reshape")
    if dims_chunks != reshape_chunks:
        raise invalid(f"{what} has different size for dims and reshape")


def _chunks(shape: Sequence[int]) -> list[int]:
    chunks: list[list[int]] = [[]]
    for dim in shape:
        if dim == -1:
            chunks.append([])
        else:
            chunks[-1].append(dim)
    return [math.prod(chunk) for chunk in chunks]


def _check_batch_tensors(config: Any) -> None:
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    for batch_input in config.batch_input:
        kind = model_config.BatchInput.Kind.Name(batch_input.kind)
        if len(batch_input.source_input) != 1:
            raise invalid(f"batch input kind '{kind}' expects 1 source input, got {len(batch_input.source_input)}")
        if batch_input.data_type not in _BATCH_INPUT_TYPES:
            raise invalid("batch input data type must be TYPE_INT32 or TYPE_FP32")
        _check_sources(batch_input, inputs)
    for batch_output in config.batch_output:
        kind = model_config.BatchOutput.Kind.Name(batch_output.kind)
        if len(batch_output.source_input) != 1:
            raise invalid(f"batch output kind '{kind}' expects 1 source input, got {len(batch_output.source_input)}")
        _check_sources(batch_output, inputs)
        targets = set()
        for target in batch_output.target_name:
            if target not in outputs:
                raise invalid(f"unknown target output name '{target}'")
            if target in targets:
                raise invalid(f"target output name '{target}' can only be specified once")
            targets.add(target)


def _check_sources(batch_tensor: Any, inputs: set[str]) -> None:
    for source in batch_tensor.source_input:
        if source not in inputs:
            raise invalid(f"unknown source input name '{source}'")
