from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.repository.tensor_validation import validate_tensors
from tensorfarm.workers.contract.configuration import ModelConfig, parse_text
from tensorfarm.workers.contract.status import Code, StatusError

T = 'name: "a" data_type: TYPE_FP32'
IO = f"input {{ {T} dims: 4 }} output {{ name: 'o' data_type: TYPE_FP32 dims: 4 }}"
BATCH_IN = "batch_input { kind: BATCH_ELEMENT_COUNT target_name: 't'"
DIMENSION = "must be integer >= 1, or -1 to indicate a variable-size dimension"


def check(text: str) -> None:
    validate_tensors(parse_text(f'name: "m" {text}', "x"))


@pytest.mark.parametrize("section", ["input", "output"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data_type: TYPE_FP32 dims: 1", "model {} must specify 'name'"),
        ("name: 'a' dims: 1", "model {} 'a' must specify 'data_type'"),
        (T, "model {} 'a' must specify 'dims'"),
        (
            f"{T} dims: 1 reshape {{}}",
            "model {} 'a' cannot have empty reshape for non-batching model as scalar tensors are not supported",
        ),
        (f"{T} dims: 0", f"model {{}} 'a' dimension {DIMENSION}"),
        (f"{T} dims: -2", f"model {{}} 'a' dimension {DIMENSION}"),
        (f"{T} dims: 4 reshape {{ shape: 0 }}", f"model {{}} 'a' reshape dimensions {DIMENSION}"),
        (f"{T} dims: 4 reshape {{ shape: [2, 3] }}", "model {} 'a' has different size for dims and reshape"),
        (
            f"{T} dims: [-1, -1] reshape {{ shape: -1 }}",
            "model {} 'a' has different number of variable-size dimensions for dims and reshape",
        ),
        (f"{T} dims: [-1, 2] reshape {{ shape: [3, -1] }}", "model {} 'a' has different size for dims and reshape"),
        (f"{T} dims: 2 reshape {{ shape: -1 }}", "model {} 'a' has different size for dims and reshape"),
        (
            f"{T} dims: 4 reshape {{ shape: [9223372036854775807, 4] }}",
            "model {} 'a' has different size for dims and reshape",
        ),
        (f"{T} dims: 2 is_shape_tensor: true", "shape tensors are only supported for TensorRT platform"),
        (f"{T} dims: 2 is_non_linear_format_io: true", "Non-linear IO format is only supported for the TensorRT platform"),
    ],
)
def test_messages_of_both_sections(section: str, text: str, message: str) -> None:
    with pytest.raises(StatusError) as caught:
        check(f"{section} {{ {text} }}")
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, message.format(section) + " for m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"input {{ {T} dims: 2 format: FORMAT_NHWC }}", "model input NHWC/NCHW require 3 dims"),
        (f"input {{ {T} dims: 2 format: FORMAT_NCHW }}", "model input NHWC/NCHW require 3 dims"),
        (f"max_batch_size: 2 input {{ {T} dims: 2 reshape {{}} }}", "model input 'a' has different size for dims and reshape"),
        (
            f"platform: 'tensorrt_plan' input {{ {T} dims: 2 is_non_linear_format_io: true }}",
            "Non-linear IO format input requires 3 dims",
        ),
        (
            f"platform: 'tensorrt_plan' output {{ {T} dims: 2 is_non_linear_format_io: true }}",
            "Non-linear IO format output requires 3 dims",
        ),
        (f"{IO} {BATCH_IN} data_type: TYPE_INT32 }}", "batch input kind 'BATCH_ELEMENT_COUNT' expects 1 source input, got 0"),
        (f"{IO} {BATCH_IN} data_type: TYPE_INT64 source_input: 'a' }}", "batch input data type must be TYPE_INT32 or TYPE_FP32"),
        (f"{IO} {BATCH_IN} data_type: TYPE_INT32 source_input: 'zz' }}", "unknown source input name 'zz'"),
        (
            f"{IO} batch_output {{ target_name: 'o' }}",
            "batch output kind 'BATCH_SCATTER_WITH_INPUT_SHAPE' expects 1 source input, got 0",
        ),
        (f"{IO} batch_output {{ target_name: 'o' source_input: 'zz' }}", "unknown source input name 'zz'"),
        (f"{IO} batch_output {{ target_name: 'zz' source_input: 'a' }}", "unknown target output name 'zz'"),
        (
            f"{IO} batch_output {{ target_name: ['o', 'o'] source_input: 'a' }}",
            "target output name 'o' can only be specified once",
        ),
    ],
)
def test_messages_of_one_section(text: str, message: str) -> None:
    with pytest.raises(StatusError) as caught:
        check(text)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, f"{message} for m")


@pytest.mark.parametrize(
    "text",
    [
        "",
        IO,
        f"max_batch_size: 2 input {{ {T} dims: 1 reshape {{}} }}",
        f"input {{ {T} dims: [2, 4, -1, 6] reshape {{ shape: [8, -1, 1, 6] }} }}",
        f"input {{ {T} dims: [9223372036854775807, 9223372036854775807] }}",
        f"platform: 'tensorrt_plan' input {{ {T} dims: [1, 2, 3] is_non_linear_format_io: true is_shape_tensor: true }}",
        f"input {{ {T} dims: [1, 2, 3] format: FORMAT_NCHW }}",
        f"input {{ {T} dims: 1 }} input {{ {T} dims: 1 }}",
        f"{IO} {BATCH_IN} data_type: TYPE_FP32 source_input: 'a' }} batch_output {{ target_name: 'o' source_input: 'a' }}",
        f"{IO} batch_output {{ target_name: 'o' source_input: 'a' }} batch_output {{ target_name: 'o' source_input: 'a' }}",
    ],
)
def test_what_is_accepted(text: str) -> None:
    check(text)


DIMS = st.lists(st.one_of(st.just(-1), st.integers(1, 4)), min_size=1, max_size=5)


@given(DIMS, st.data())
def test_a_reshape_that_moves_ones_and_factors_is_accepted(dims: list[int], data: st.DataObject) -> None:
    reshape: list[int] = []
    for dim in dims:
        if dim == 4 and data.draw(st.booleans()):
            reshape += [2, 2]
        elif dim != 1:
            reshape.append(dim)
        if data.draw(st.booleans()):
            reshape.append(1)
    config = ModelConfig(name="m", max_batch_size=1)
    tensor = config.input.add(name="a", data_type="TYPE_FP32", dims=dims)
    tensor.reshape.shape.extend(reshape)
    validate_tensors(config)
    tensor.reshape.shape.append(5)
    with pytest.raises(StatusError, match="has different size for dims and reshape for m$"):
        validate_tensors(config)
