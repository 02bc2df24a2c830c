"""The checks of a configuration against its ONNX model at load time, message by message."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from tensorfarm.workers.backends.onnxruntime import backend
from tensorfarm.workers.contract.status import Code, StatusError

from .onnx_source import add_sub, identity, model, source, value, with_default


def tensors(direction: str, *entries: tuple[str, str, str], extra: str = "") -> str:
    return " ".join(f"{direction} {{ name: '{name}' data_type: TYPE_{kind} dims: [ {dims} ] {extra} }}" for name, kind, dims in entries)


IN = tensors("input", ("IN0", "INT32", "16"), ("IN1", "INT32", "16"))
OUT = tensors("output", ("SUM", "INT32", "16"))
BATCH = "max_batch_size: 4"
COMPLETE = "(an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making complete shape {})"


def ragged() -> onnx.ModelProto:
    return identity("FP32", ["n"])


def control() -> onnx.ModelProto:
    node = helper.make_node("Mul", ["IN", "START"], ["OUT"])
    return model([node], [value("IN", "FP32", ["b", 1]), value("START", "FP32", ["b", 1])], [value("OUT", "FP32", ["b", 1])])


def controlled(name: str, kind: str, how: str) -> str:
    tensor_texts = tensors("input", ("IN", "FP32", "1")) + tensors("output", ("OUT", "FP32", "1"))
    return f"{BATCH} {tensor_texts} sequence_batching {{ control_input {{ name: '{name}' control {{ kind: {kind} {how} }} }} }}"


def stateful(name: str, datatype: str = "FP32", output: str = "OUT", initial: str = "") -> str:
    tensor_texts = tensors("input", ("IN", "FP32", "1")) + tensors("output", ("OUT", "FP32", "1"))
    state = f"state {{ input_name: '{name}' output_name: '{output}' data_type: TYPE_{datatype} dims: 1 {initial} }}"
    return f"{BATCH} {tensor_texts} sequence_batching {{ {state} }}"


def counted(count: int = 1) -> onnx.ModelProto:
    names = ["COUNT", "MORE"][:count]
    nodes = [helper.make_node("Cast", [name], [f"F{name}"], to=onnx.TensorProto.FLOAT) for name in names]
    nodes += [helper.make_node("Concat", ["IN", *[f"F{name}" for name in names]], ["ALL"], axis=0)]
    nodes += [helper.make_node("Cast", ["ALL"], ["OUT"], to=onnx.TensorProto.INT32)]
    return model(nodes, [value("IN", "FP32", ["n"]), *[value(name, "INT32", ["k"]) for name in names]], [value("OUT", "INT32", ["b"])])


FLAT = tensors("input", ("IN", "FP32", "-1"), extra="allow_ragged_batch: true")


def batch_input(*names: str, kind: str = "BATCH_ELEMENT_COUNT", datatype: str = "INT32") -> str:
    targets = " ".join(f"target_name: '{name}'" for name in names)
    scatter = "batch_output { target_name: 'OUT' source_input: 'IN' }"
    return f"batch_input {{ kind: {kind} {targets} data_type: TYPE_{datatype} source_input: 'IN' }} {scatter}"


GOOD: dict[str, tuple[onnx.ModelProto, str]] = {
    "batching": (add_sub(), f"{BATCH} {IN} {OUT}"),
    "both outputs": (add_sub(), f"{BATCH} {IN} {tensors('output', ('DIFFERENCE', 'INT32', '16'), ('SUM', 'INT32', '16'))}"),
    "a variable dim of the model takes any": (
        identity("FP32", ["a", "b"]),
        tensors("input", ("IN", "FP32", "2, 3")) + tensors("output", ("OUT", "FP32", "-1, -1")),
    ),
    "scalar": (identity("FP32", []), tensors("input", ("IN", "FP32", "1, 1")) + tensors("output", ("OUT", "FP32", "1"))),
    "optional left out": (with_default(), tensors("input", ("IN", "FP32", "3")) + tensors("output", ("OUT", "FP32", "3"))),
    "optional": (
        with_default(),
        tensors("input", ("IN", "FP32", "3"))
        + tensors("input", ("BIAS", "FP32", "1"), extra="optional: true")
        + tensors("output", ("OUT", "FP32", "3")),
    ),
    "control": (control(), controlled("START", "CONTROL_SEQUENCE_START", "fp32_false_true: [ 0, 1 ]")),
    "state": (control(), stateful("START")),
    "ragged": (
        ragged(),
        f"{BATCH} {tensors('input', ('IN', 'FP32', '-1'), extra='allow_ragged_batch: true')} {tensors('output', ('OUT', 'FP32', '-1'))}"
        " batch_output { target_name: 'OUT' source_input: 'IN' }",
    ),
    "batch input": (counted(), f"{BATCH} {FLAT} {tensors('output', ('OUT', 'INT32', '-1'))} {batch_input('COUNT')}"),
    "two of a kind": (counted(2), f"{BATCH} {FLAT} {tensors('output', ('OUT', 'INT32', '-1'))} {batch_input('COUNT', 'MORE')}"),
}


@pytest.mark.parametrize("case", GOOD.values(), ids=GOOD)
def test_load(tmp_path: Path, case: tuple[onnx.ModelProto, str]) -> None:
    backend().load(source(tmp_path, *case)).close()


BAD: dict[str, tuple[onnx.ModelProto, str, str]] = {
    "missing input": (
        add_sub(),
        f"{BATCH} {tensors('input', ('IN0', 'INT32', '16'))} {OUT}",
        "unable to load model 'm', configuration expects 1 inputs, model provides 2",
    ),
    "extra input": (
        add_sub(),
        f"{BATCH} {IN} {tensors('input', ('X', 'INT32', '16'))} {OUT}",
        "unable to load model 'm', configuration expects 3 inputs, model provides 2",
    ),
    "unknown input": (
        add_sub(),
        f"{BATCH} {tensors('input', ('X', 'INT32', '16'), ('IN1', 'INT32', '16'))} {OUT}",
        "unexpected inference input 'X', allowed inputs are: IN0, IN1",
    ),
    "unknown input beside an initialiser": (
        with_default(),
        tensors("input", ("X", "FP32", "3")) + tensors("output", ("OUT", "FP32", "3")),
        "unexpected inference input 'X', allowed inputs are: BIAS, IN",
    ),
    "unknown output": (
        add_sub(),
        f"{BATCH} {IN} {tensors('output', ('X', 'INT32', '16'))}",
        "unexpected inference output 'X', allowed outputs are: DIFFERENCE, SUM",
    ),
    "input datatype": (
        add_sub(),
        f"{BATCH} {tensors('input', ('IN0', 'FP32', '16'), ('IN1', 'INT32', '16'))} {OUT}",
        "unable to load model 'm', configuration expects datatype TYPE_FP32 for input 'IN0', model provides TYPE_INT32",
    ),
    "output datatype": (
        identity("BYTES", ["n"]),
        tensors("input", ("IN", "STRING", "-1")) + tensors("output", ("OUT", "FP64", "-1")),
        "unable to load model 'm', configuration expects datatype TYPE_FP64 for output 'OUT', model provides TYPE_BYTES",
    ),
    "input dims, batching": (
        add_sub(),
        f"{BATCH} {tensors('input', ('IN0', 'INT32', '8'), ('IN1', 'INT32', '16'))} {OUT}",
        "model 'm', tensor 'IN0': the model expects 2 dimensions (shape [-1,16]) but the model configuration specifies 2 dimensions "
        + COMPLETE.format("[-1,8]"),
    ),
    "input rank, batching": (
        add_sub(),
        f"{BATCH} {tensors('input', ('IN0', 'INT32', '-1, 16'), ('IN1', 'INT32', '16'))} {OUT}",
        "model 'm', tensor 'IN0': the model expects 2 dimensions (shape [-1,16]) but the model configuration specifies 3 dimensions "
        + COMPLETE.format("[-1,-1,16]"),
    ),
    "input reshape": (
        add_sub(),
        f"{BATCH} {tensors('input', ('IN0', 'INT32', '16'), extra='reshape { shape: [ 4, 4 ] }')} "
        f"{tensors('input', ('IN1', 'INT32', '16'))} {OUT}",
        "model 'm', tensor 'IN0': the model expects 2 dimensions (shape [-1,16]) but the model configuration specifies 3 dimensions "
        + COMPLETE.format("[-1,4,4]"),
    ),
    "output dims, exact": (
        identity("FP32", ["batch", "n"]),
        f"{BATCH} {tensors('input', ('IN', 'FP32', '3'))} {tensors('output', ('OUT', 'FP32', '3'))}",
        "model 'm', tensor 'OUT': the model expects 2 dimensions (shape [-1,-1]) but the model configuration specifies 2 dimensions "
        + COMPLETE.format("[-1,3]"),
    ),
    "input dims, no batching": (
        identity("FP32", [4, "n"]),
        tensors("input", ("IN", "FP32", "3, 3")) + tensors("output", ("OUT", "FP32", "4, -1")),
        "model 'm', tensor 'IN': the model expects 2 dimensions (shape [4,-1]) but the model configuration specifies "
        "2 dimensions (shape [3,3])",
    ),
    "no batch dim": (
        identity("FP32", [4]),
        f"{BATCH} {tensors('input', ('IN', 'FP32', '4'))} {tensors('output', ('OUT', 'FP32', '4'))}",
        "model 'm', tensor 'IN': for the model to support batching the shape should have at least 1 dimension and the first "
        "dimension must be -1; but shape expected by the model is [4]",
    ),
    "scalar": (
        identity("FP32", []),
        tensors("input", ("IN", "FP32", "2")) + tensors("output", ("OUT", "FP32", "1")),
        "unable to load model 'm', scalar tensor 'IN', should only provide 1 in the model configuration when the model doesn't "
        "support batching. Model configuration provided: [2].",
    ),
    "optional and batching": (
        identity("FP32", ["b", 4]),
        f"{BATCH} {tensors('input', ('IN', 'FP32', '4'))} {tensors('input', ('X', 'FP32', '4'), extra='optional: true')} "
        + tensors("output", ("OUT", "FP32", "4")),
        "unable to load model 'm', optional input 'X' is not supported for models that support batching",
    ),
    "ragged shape": (
        identity("FP32", ["b", 4]),
        f"{BATCH} {tensors('input', ('IN', 'FP32', '4'), extra='allow_ragged_batch: true')} {tensors('output', ('OUT', 'FP32', '4'))}",
        "unable to load model 'm', configuration expects model provides input with shape [-1]  for ragged input 'IN', "
        "model provides [-1,4]",
    ),
    "control datatype": (
        control(),
        controlled("START", "CONTROL_SEQUENCE_START", "int32_false_true: [ 0, 1 ]"),
        "unable to load model 'm', sequence control 'START', the model expects data-type FLOAT but the model configuration "
        "specifies data-type TYPE_INT32",
    ),
    "correlation id datatype": (
        control(),
        controlled("START", "CONTROL_SEQUENCE_CORRID", "data_type: TYPE_UINT64"),
        "unable to load model 'm', sequence control 'START', the model expects data-type FLOAT but the model configuration "
        "specifies data-type TYPE_UINT64",
    ),
    "batch input datatype": (
        counted(),
        f"{BATCH} {FLAT} {tensors('output', ('OUT', 'INT32', '-1'))} {batch_input('COUNT', datatype='FP32')}",
        "unable to load model 'm', configuration expects datatype TYPE_FP32 for batch input 'COUNT', model provides TYPE_INT32",
    ),
    "batch input rank": (
        counted(),
        f"{BATCH} {FLAT} {tensors('output', ('OUT', 'INT32', '-1'))} {batch_input('COUNT', kind='BATCH_ITEM_SHAPE')}",
        "unable to load model 'm', batch input 'COUNT' of kind BATCH_ITEM_SHAPE has 2 dimensions, model provides [-1]",
    ),
    "batch input name": (
        counted(),
        f"{BATCH} {FLAT} {tensors('output', ('OUT', 'INT32', '-1'))} {batch_input('TALLY')}",
        "unexpected inference input 'TALLY', allowed inputs are: COUNT, IN",
    ),
    "batch output": (
        counted(),
        f"{BATCH} {FLAT} {tensors('output', ('OUT', 'INT32', '1, -1'))} {batch_input('COUNT')}",
        "batch output 'OUT' has variable dimensions that its source input 'IN' does not have",
    ),
    "state datatype": (
        control(),
        stateful("START", "INT32"),
        "unable to load model 'm', configuration expects datatype TYPE_INT32 for output state 'OUT', model provides TYPE_FP32",
    ),
    "state input": (control(), stateful("S"), "unexpected inference input 'S', allowed inputs are: IN, START"),
    "state output": (control(), stateful("START", output="S"), "unexpected inference output 'S', allowed outputs are: OUT"),
    "initial state": (
        control(),
        stateful("START", initial="initial_state { data_type: TYPE_FP32 dims: 1 zero_data: true }"),
        "Field 'name' must be set when using initial_state for state input 'START'.",
    ),
    "execution mode": (
        add_sub(),
        f"{BATCH} {IN} {OUT} parameters {{ key: 'execution_mode' value {{ string_value: '2' }} }}",
        "Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 but got 2 .",
    ),
    "accelerator": (
        add_sub(),
        f"{BATCH} {IN} {OUT} optimization {{ execution_accelerators {{ cpu_execution_accelerator {{ name: 'magic' }} }} }}",
        "unknown Execution Accelerator 'magic' is requested",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_load_refuses(tmp_path: Path, case: tuple[onnx.ModelProto, str, str]) -> None:
    made, config, message = case
    with pytest.raises(StatusError) as caught:
        backend().load(source(tmp_path, made, config))
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, message)


def test_missing_control_input_is_internal(tmp_path: Path) -> None:
    config = controlled("END", "CONTROL_SEQUENCE_END", "fp32_false_true: [ 0, 1 ]")
    with pytest.raises(StatusError) as caught:
        backend().load(source(tmp_path, control(), config))
    message = "configuration specified sequence control 'END', but model does not provide that input"
    assert (caught.value.code, caught.value.message) == (Code.INTERNAL, message)


def mixed() -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", ["A"], ["C"]), helper.make_node("Identity", ["B"], ["D"])]
    return model(
        nodes,
        [value("A", "BYTES", ["n"]), value("B", "BF16", ["n"])],
        [value("C", "BYTES", ["n"]), value("D", "BF16", ["n"])],
    )


NOT_SERVED: dict[str, tuple[onnx.ModelProto, str, str]] = {
    "strings and BF16": (
        mixed(),
        tensors("input", ("A", "STRING", "-1"), ("B", "BF16", "-1")) + tensors("output", ("D", "BF16", "-1")),
        "unable to load model 'm', ONNX Runtime for Python cannot run TYPE_STRING inputs together with TYPE_BF16: tensor 'B'",
    ),
}


@pytest.mark.parametrize("case", NOT_SERVED.values(), ids=NOT_SERVED)
def test_what_is_not_served_is_said(tmp_path: Path, case: tuple[onnx.ModelProto, str, str]) -> None:
    made, config, message = case
    with pytest.raises(StatusError) as caught:
        backend().load(source(tmp_path, made, config))
    assert (caught.value.code, caught.value.message) == (Code.UNSUPPORTED, message)
