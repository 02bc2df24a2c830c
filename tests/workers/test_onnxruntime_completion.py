"""Auto-complete of ONNX models: what is filled in, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper

from tensorfarm.workers.backends.onnxruntime import backend
from tensorfarm.workers.contract.configuration import ModelConfig
from tensorfarm.workers.contract.messages import Note
from tensorfarm.workers.contract.status import Code, StatusError

from .onnx_source import add_sub, identity, model, source, value, with_default

AUTOFILLED = (
    "autofilled max_batch_size to {} for model 'm' since batching is supporrted but no max_batch_size is specified in model "
    "configuration. Must specify max_batch_size to utilize autofill with a larger max batch size"
)
SKIPPED = "skipping model configuration auto-complete for 'm': inputs and outputs already specified"
NO_BATCHING = "autofill failed for model 'm': model does not support batching while non-zero max_batch_size is specified"

IN_4 = "input { name: 'IN' data_type: TYPE_FP32 dims: [ 4 ] }"
OUT_4 = "output { name: 'OUT' data_type: TYPE_FP32 dims: [ 4 ] }"


def two(first: list[int | str], second: list[int | str]) -> onnx.ModelProto:
    node = helper.make_node("Shape", ["IN"], ["OUT"])
    return model([node], [value("IN", "FP32", first)], [value("OUT", "INT64", second)])


CASES: dict[str, tuple[onnx.ModelProto, str, dict[str, str], str, list[str]]] = {
    "batching": (
        identity("FP32", ["batch", 4]),
        "",
        {},
        f"max_batch_size: 4 dynamic_batching {{}} {IN_4} {OUT_4}",
        [AUTOFILLED.format(4)],
    ),
    "default of the settings": (
        identity("FP32", ["batch", 4]),
        "",
        {"default-max-batch-size": "32"},
        f"max_batch_size: 32 dynamic_batching {{}} {IN_4} {OUT_4}",
        [AUTOFILLED.format(32)],
    ),
    "default of one: no scheduler": (
        identity("FP32", ["batch", 4]),
        "",
        {"default-max-batch-size": "1"},
        f"max_batch_size: 1 {IN_4} {OUT_4}",
        [AUTOFILLED.format(1)],
    ),
    "default of none": (
        identity("FP32", ["batch", 4]),
        "",
        {"default-max-batch-size": "0"},
        "input { name: 'IN' data_type: TYPE_FP32 dims: [ -1, 4 ] } output { name: 'OUT' data_type: TYPE_FP32 dims: [ -1, 4 ] }",
        [AUTOFILLED.format(0)],
    ),
    "batch size given": (
        identity("FP32", ["batch", 4]),
        "max_batch_size: 2",
        {},
        f"max_batch_size: 2 dynamic_batching {{}} {IN_4} {OUT_4}",
        [],
    ),
    "scheduler given": (
        identity("FP32", ["batch", 4]),
        "max_batch_size: 2 sequence_batching {}",
        {},
        f"max_batch_size: 2 sequence_batching {{}} {IN_4} {OUT_4}",
        [],
    ),
    "dynamic batching given": (
        identity("FP32", ["batch", 4]),
        "dynamic_batching { preferred_batch_size: 2 }",
        {},
        f"max_batch_size: 4 dynamic_batching {{ preferred_batch_size: 2 }} {IN_4} {OUT_4}",
        [AUTOFILLED.format(4)],
    ),
    "all given": (identity("FP32", ["batch", 4]), f"{IN_4} {OUT_4}", {}, f"{IN_4} {OUT_4}", [SKIPPED]),
    "inputs given": (
        identity("FP32", ["batch", 4]),
        "input { name: 'wrong' }",
        {},
        f"max_batch_size: 4 dynamic_batching {{}} input {{ name: 'wrong' }} {OUT_4}",
        [AUTOFILLED.format(4)],
    ),
    "outputs given": (
        identity("FP32", ["batch", 4]),
        "output { name: 'wrong' }",
        {},
        f"max_batch_size: 4 dynamic_batching {{}} {IN_4} output {{ name: 'wrong' }}",
        [AUTOFILLED.format(4)],
    ),
    "symbolic and unknown dims": (
        identity("BYTES", ["a", "b", 3]),
        "max_batch_size: 1",
        {},
        "max_batch_size: 1 input { name: 'IN' data_type: TYPE_STRING dims: [ -1, 3 ] } "
        "output { name: 'OUT' data_type: TYPE_STRING dims: [ -1, 3 ] }",
        [],
    ),
    "fixed first dim": (
        identity("BF16", [2, 4]),
        "",
        {},
        "input { name: 'IN' data_type: TYPE_BF16 dims: [ 2, 4 ] } output { name: 'OUT' data_type: TYPE_BF16 dims: [ 2, 4 ] }",
        [],
    ),
    "an output without batch dim": (
        two(["batch", 4], [2]),
        "",
        {},
        "input { name: 'IN' data_type: TYPE_FP32 dims: [ -1, 4 ] } output { name: 'OUT' data_type: TYPE_INT64 dims: [ 2 ] }",
        [],
    ),
    "rank 0": (
        identity("FP16", []),
        "",
        {},
        "input { name: 'IN' data_type: TYPE_FP16 dims: [ 1 ] } output { name: 'OUT' data_type: TYPE_FP16 dims: [ 1 ] }",
        [],
    ),
    "only the batch dim": (
        identity("INT8", ["batch"]),
        "max_batch_size: 1",
        {},
        "max_batch_size: 1 input { name: 'IN' data_type: TYPE_INT8 dims: [ 1 ] reshape { } } "
        "output { name: 'OUT' data_type: TYPE_INT8 dims: [ 1 ] reshape { } }",
        [],
    ),
    "initialisers are not inputs": (
        with_default(),
        "",
        {},
        "input { name: 'IN' data_type: TYPE_FP32 dims: [ 3 ] } output { name: 'OUT' data_type: TYPE_FP32 dims: [ 3 ] }",
        [],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_complete(tmp_path: Path, case: tuple[onnx.ModelProto, str, dict[str, str], str, list[str]]) -> None:
    made, config, settings, expected, notes = case
    completed = source(tmp_path, made, config, settings)
    assert [note.text for note in backend().complete(completed)] == notes
    message = ModelConfig()
    text_format.Parse(f"name: 'm' backend: 'onnxruntime' {expected}", message)
    assert text_format.MessageToString(completed.config) == text_format.MessageToString(message)


def test_tensors_keep_the_order_of_the_graph(tmp_path: Path) -> None:
    completed = source(tmp_path, add_sub())
    backend().complete(completed)
    assert [tensor.name for tensor in completed.config.input] == ["IN0", "IN1"]
    assert [tensor.name for tensor in completed.config.output] == ["SUM", "DIFFERENCE"]


def test_a_model_is_not_opened_where_nothing_is_missing(tmp_path: Path) -> None:
    completed = source(tmp_path, b"no model at all", f"{IN_4} {OUT_4}")
    assert backend().complete(completed) == [Note("I", SKIPPED)]


def sequence_output() -> onnx.ModelProto:
    output = helper.make_tensor_sequence_value_info("OUT", TensorProto.FLOAT, None)
    return model([helper.make_node("SequenceConstruct", ["IN"], ["OUT"])], [value("IN", "FP32", ["n"])], [output])


REFUSED: dict[str, tuple[onnx.ModelProto | bytes, str, Code, str]] = {
    "no batch dim": (identity("FP32", [4]), "max_batch_size: 8", Code.INVALID_ARG, NO_BATCHING),
    "rank 0": (identity("FP32", []), "max_batch_size: 8", Code.INVALID_ARG, NO_BATCHING),
    "sequence": (
        sequence_output(),
        "",
        Code.UNSUPPORTED,
        "Unsupported ONNX Type 'ONNX_TYPE_SEQUENCE' for I/O 'OUT', expected 'ONNX_TYPE_TENSOR'.",
    ),
    "garbage": (
        b"\xff\xff no model",
        "",
        Code.INTERNAL,
        "onnx runtime error 7: Failed to load model because protobuf parsing failed.",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_complete_refuses(tmp_path: Path, case: tuple[onnx.ModelProto | bytes, str, Code, str]) -> None:
    made, config, code, message = case
    with pytest.raises(StatusError) as caught:
        backend().complete(source(tmp_path, made, config))
    assert (caught.value.code, caught.value.message) == (code, message)
