"""Warm-up samples: what their requests hold, what is refused, and running them. The texts are those of release 24.10."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tensorfarm.shm.datatypes import serialize_bytes
from tensorfarm.shm.placement import Inline
from tensorfarm.workers.backends.backend import ModelSource
from tensorfarm.workers.backends.onnxruntime import backend
from tensorfarm.workers.batch import Batch
from tensorfarm.workers.batch_runner import BatchRunner
from tensorfarm.workers.contract.configuration import document, parse_text
from tensorfarm.workers.contract.messages import RequestBody, Warmed
from tensorfarm.workers.contract.signature import signature_of, signature_of_members
from tensorfarm.workers.contract.status import Code, StatusError, invalid
from tensorfarm.workers.output import INLINE_BYTE_SIZE
from tensorfarm.workers.warmup import MOST_ERRORS, Sample, samples_of, warm_up

from . import onnx_source
from .fakes import FakeExecutor
from .real_memory import bench

ID = "[request id: <id_unknown>] "
NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input shape. "
    "If you want to specify the full shape including the batch dim in your input dims config, try setting max_batch_size to zero. "
    "See the model configuration docs for more info on max_batch_size."
)
IN = 'input { name: "IN" data_type: TYPE_FP32 dims: 2 }'
STRINGS = 'input { name: "IN" data_type: TYPE_STRING dims: 2 }'
REST = 'output { name: "OUT" data_type: TYPE_FP32 dims: 2 } max_batch_size: 4'
FLOATS = np.arange(4, dtype=np.float32).tobytes()


def given(how: str, name: str = "IN", datatype: str = "data_type: TYPE_FP32", dims: str = "dims: 2") -> str:
    return f'inputs {{ key: "{name}" value {{ {datatype} {dims} {how} }} }}'


def source_of(folder: Path, config: str, rest: str = REST) -> ModelSource:
    return ModelSource(str(folder / "m"), 1, document(parse_text(f'name: "m" backend: "fake" {rest} {config}', "config.pbtxt")), {})


def file(folder: Path, name: str, content: bytes) -> None:
    path = folder / "m" / "warmup" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def one(folder: Path, inputs: str, config: str = IN, rest: str = REST) -> RequestBody:
    """The request of the one sample with these inputs."""
    (sample,) = samples_of(source_of(folder, f'{config} model_warmup {{ name: "s" batch_size: 1 {inputs} }}', rest))
    return sample.request


def contents(request: RequestBody) -> list[bytes]:
    return [bytes(tensor.place.content) for tensor in request.inputs if isinstance(tensor.place, Inline)]


def test_samples_are_in_order_and_those_of_no_requests_are_left_out(tmp_path: Path) -> None:
    zero = given("zero_data: true")
    samples = samples_of(
        source_of(
            tmp_path,
            f'{IN} model_warmup [ {{ name: "a" batch_size: 3 count: 2 {zero} }}, {{ name: "b" count: 9 {zero} }}, {{ batch_size: 1 {zero} }} ]',
        )
    )
    assert [(sample.name, sample.batch_size, sample.count) for sample in samples] == [("a", 3, 2), ("", 1, 1)]
    request = samples[0].request
    assert (request.batch_size, request.id, request.outputs, request.parameters) == (1, "", [], {})
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("IN", "FP32", (1, 2)) and contents(request) == [bytes(8)]
    assert samples_of(source_of(tmp_path, IN)) == []


def test_what_the_inputs_hold(tmp_path: Path) -> None:
    file(tmp_path, "floats", FLOATS)
    file(tmp_path, "below/floats", FLOATS)
    file(tmp_path, "strings", serialize_bytes([b"ab", b""]))
    # being there is what chooses a source, whatever its value
    assert contents(one(tmp_path, given("zero_data: false"))) == [bytes(8)]
    (random,) = contents(one(tmp_path, given("random_data: false", dims="dims: 2")))
    assert len(random) == 8 and random != bytes(8)
    assert contents(one(tmp_path, given('input_data_file: "floats"'))) == [FLOATS[:8]], "more than it needs"
    assert contents(one(tmp_path, given('input_data_file: "below/floats"'))) == [FLOATS[:8]]
    string = "data_type: TYPE_STRING"
    for how in ("zero_data: true", "random_data: true"):
        assert contents(one(tmp_path, given(how, datatype=string), STRINGS)) == [serialize_bytes([b"", b""])]
    assert contents(one(tmp_path, given('input_data_file: "strings"', datatype=string), STRINGS)) == [serialize_bytes([b"ab", b""])]


def test_shapes_are_those_that_the_model_takes(tmp_path: Path) -> None:
    assert one(tmp_path, given("zero_data: true"), IN, REST.replace("max_batch_size: 4", "")).inputs[0].shape == (2,)
    reshaped = 'input { name: "IN" data_type: TYPE_FP32 dims: 2 reshape { shape: [1, 2] } }'
    assert one(tmp_path, given("zero_data: true"), reshaped).inputs[0].shape == (1, 1, 2)
    wild = 'input { name: "IN" data_type: TYPE_FP32 dims: -1 }'
    assert one(tmp_path, given("zero_data: true", dims="dims: 5"), wild).inputs[0].shape == (1, 5)


def test_inputs_that_the_model_does_not_list_override(tmp_path: Path) -> None:
    other = given("zero_data: true", "X", "data_type: TYPE_INT64", "dims: [2, 3]")
    text = given("zero_data: true", "S", "data_type: TYPE_STRING", "dims: 1")
    request = one(tmp_path, given("zero_data: true") + other + text)
    assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in request.inputs] == [
        ("IN", "FP32", (1, 2)),
        ("S", "BYTES", (1, 1)),
        ("X", "INT64", (1, 2, 3)),
    ]
    assert contents(request)[1:] == [bytes(4), bytes(48)]


def test_optional_inputs_may_be_left_out(tmp_path: Path) -> None:
    more = IN + ' input { name: "MORE" data_type: TYPE_FP32 dims: 1 optional: true }'
    assert [tensor.name for tensor in one(tmp_path, given("zero_data: true"), more).inputs] == ["IN"]


@pytest.mark.parametrize(("inputs", "config", "message"), [
    ("", IN, f"{ID}expected 1 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing required input(s) ['IN']. "
     "Please provide all required input(s)."),
    (given("zero_data: true", "X"), IN, f"{ID}expected 1 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing "
     "required input(s) ['IN']. Please provide all required input(s)."),
    (given(""), IN, f"{ID}warmup setting expects input 'IN' to have input_data_type set"),
    (given("zero_data: true", dims="dims: -1"), IN.replace("dims: 2", "dims: -1"),
     "warmup setting expects all variable-size dimensions are specified for input 'IN'"),
    (given("zero_data: true", dims="dims: 5"), IN, f"{ID}unexpected shape for input 'IN' for model 'm'. Expected [-1,2], got [1,5]. {NOTE}"),
    (given("zero_data: true", dims=""), IN, f"{ID}unexpected shape for input 'IN' for model 'm'. Expected [-1,2], got [1]. {NOTE}"),
    (given("zero_data: true", datatype="data_type: TYPE_INT8"), IN,
     f"{ID}inference input 'IN' data-type is 'INT8', but model 'm' expects 'FP32'"),
    (given("zero_data: true", datatype=""), IN, f"{ID}inference input 'IN' data-type is '<invalid>', but model 'm' expects 'FP32'"),
    (given("zero_data: true") + given("zero_data: true", "X", ""), IN, f"{ID}warmup setting expects input 'X' to have data_type set"),
    (given('input_data_file: "short"'), IN, f"{ID}warmup setting expects 8 bytes, but the data provided from shortonly has 3 bytes"),
    (given('input_data_file: "short"', datatype="data_type: TYPE_STRING"), STRINGS,
     f"{ID}incomplete string length indicator for inference input 'IN' for model 'm', expecting 4 bytes but only 3 bytes available. "
     "Please make sure the string length indicator is in one buffer."),
    (given('input_data_file: "one"', datatype="data_type: TYPE_STRING"), STRINGS,
     f"{ID}expected 2 string elements for inference input 'IN' for model 'm', got 1"),
    (given("zero_data: true") + given('input_data_file: "one"', "X", "data_type: TYPE_STRING"), IN,
     f"{ID}expected 2 string elements for inference input 'X' for model 'm', got 1"),
    (given('input_data_file: ""'), IN, "input_data_file '' leaves the folder 'warmup' of model 'm'"),
    (given('input_data_file: "../1/model.py"'), IN, "input_data_file '../1/model.py' leaves the folder 'warmup' of model 'm'"),
    (given('input_data_file: "/etc/passwd"'), IN, "input_data_file '/etc/passwd' leaves the folder 'warmup' of model 'm'"),
    (given('input_data_file: "link"'), IN, "input_data_file 'link' leaves the folder 'warmup' of model 'm'"),
    (given('input_data_file: "below"'), IN, "failed to open text file for read m/warmup/below: Is a directory"),
    (given('input_data_file: "pipe"'), IN, "input_data_file 'pipe' of model 'm' is not a regular file"),
    (given('input_data_file: "none"'), IN, "failed to open text file for read m/warmup/none: No such file or directory"),
    (given("zero_data: true", dims="dims: [4611686018427387904, 4]"), IN.replace("dims: 2", "dims: [-1, -1]"),
     f"{ID}element count for tensor 'IN' exceeds maximum size of 9223372036854775807"),
])  # fmt: skip
def test_what_no_request_could_be_like(tmp_path: Path, inputs: str, config: str, message: str) -> None:
    file(tmp_path, "short", b"abc")
    file(tmp_path, "one", serialize_bytes([b"x"]))
    file(tmp_path, "below/file", b"")
    (tmp_path / "secret").write_bytes(bytes(99))
    os.symlink(tmp_path / "secret", tmp_path / "m" / "warmup" / "link")
    os.mkfifo(tmp_path / "m" / "warmup" / "pipe")
    with pytest.raises(StatusError) as raised:
        one(tmp_path, inputs, config)
    assert raised.value.message == message
    assert raised.value.code is (Code.INTERNAL if message.startswith("failed to open") else Code.INVALID_ARG)


@pytest.mark.parametrize("batching", ["max_batch_size: 8", ""])
def test_the_signature_is_the_same_from_either_form_of_a_configuration(batching: str) -> None:
    config = parse_text(
        f"""name: "m" {batching} model_transaction_policy {{ decoupled: true }}
        input [ {{ name: "A" data_type: TYPE_STRING dims: [-1, 3] optional: true }},
                {{ name: "B" data_type: TYPE_BF16 dims: 4 reshape {{ shape: [2, 2] }} allow_ragged_batch: true }} ]
        output {{ name: "C" data_type: TYPE_FP64 dims: 1 reshape {{ }} }}""",
        "config.pbtxt",
    )
    assert signature_of_members(json.loads(document(config))) == signature_of(config)


# running them


def sample(batch_size: int, count: int = 1, max_batch_size: int = 4) -> Sample:
    request = onnx_source.request([onnx_source.tensor("IN", "FP32", np.ones((1, 2), np.float32))])
    return Sample("s", request, batch_size, count, max_batch_size)


def warm(executor: FakeExecutor, samples: Sequence[Sample]) -> list[Warmed]:
    failure = None
    with bench() as world:
        try:
            return warm_up(samples, BatchRunner(executor, world.memory, "m"), "m_0")
        except StatusError as error:
            # Without its frames, which hold the bench.
            failure = StatusError(error.code, error.message)
        finally:
            assert world.outputs.used_byte_size == 0
    raise failure


def test_each_sample_is_one_batch_as_often_as_it_says() -> None:
    executor = FakeExecutor()
    warmed = warm(executor, [sample(1), sample(3, count=2)])
    assert executor.batch_sizes == [1, 3, 3]
    assert [(one.batch_size, one.execution_count) for one in warmed] == [(1, 1), (3, 2)]
    assert all(min(one.input_ns, one.infer_ns, one.output_ns) >= 0 for one in warmed)


def test_responses_are_thrown_away_and_errors_end_it() -> None:
    runs = []

    def work(batch: Batch) -> None:
        runs.append(len(batch.requests))
        batch.set_output("OUT", "INT8", np.zeros((batch.batch_size, 2 * INLINE_BYTE_SIZE), np.int8))
        if len(runs) == 2:
            batch.fail(0, invalid("first"))
            batch.fail(2, invalid("third"))

    with pytest.raises(StatusError) as raised:
        warm(FakeExecutor(work), [sample(3, count=5), sample(1)])
    assert raised.value.message == "failed to run warmup sample 's': first; third; "
    assert raised.value.code is Code.INVALID_ARG and len(runs) == 2


@pytest.mark.parametrize(("batch_size", "max_batch_size"), [(5, 4), (2, 0), (2**32 - 1, 4)])
def test_batches_that_are_too_large_are_not_run(batch_size: int, max_batch_size: int) -> None:
    executor = FakeExecutor()
    with pytest.raises(StatusError) as raised:
        warm(executor, [sample(batch_size, 1, max_batch_size)])
    told = min(batch_size, MOST_ERRORS)
    assert (
        raised.value.message
        == "failed to run warmup sample 's': " + f"batch size {batch_size} for 'm_0', max allowed is {max_batch_size}; " * told
    )
    assert executor.batch_sizes == []


ADD = """
max_batch_size: 4
model_warmup { name: "good" batch_size: 2 count: 2
  inputs { key: "IN0" value { data_type: TYPE_INT32 dims: 16 random_data: true } }
  inputs { key: "IN1" value { data_type: TYPE_INT32 dims: 16 zero_data: true } } }
"""


def test_an_onnx_model_is_warmed_up(tmp_path: Path) -> None:
    source = onnx_source.source(tmp_path, onnx_source.add_sub(), ADD)
    backend().complete(source)
    source = source.with_document(source.completed())
    with bench() as world:
        runner = backend().load(source).runner(onnx_source.INSTANCE, world.memory)
        (warmed,) = warm_up(samples_of(source), runner, "m_0")
        assert (warmed.batch_size, warmed.execution_count) == (2, 2) and warmed.infer_ns > 0
        runner.close()
        del runner


def test_an_onnx_model_that_cannot_take_an_override(tmp_path: Path) -> None:
    more = 'inputs { key: "X" value { data_type: TYPE_INT32 dims: 1 zero_data: true } } }'
    source = onnx_source.source(tmp_path, onnx_source.add_sub(), ADD.strip().removesuffix("}") + more)
    backend().complete(source)
    source = source.with_document(source.completed())
    with bench() as world:
        runner = backend().load(source).runner(onnx_source.INSTANCE, world.memory)
        with pytest.raises(StatusError, match="^failed to run warmup sample 'good': onnx runtime error .*X.*; onnx runtime error .*; $"):
            warm_up(samples_of(source), runner, "m_0")
        runner.close()
        del runner
