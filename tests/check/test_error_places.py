"""Where rules' errors are placed: each text breaks one rule, in the line that ends in ``# here``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorfarm.server.check.config_lines import scan
from tensorfarm.server.check.error_places import place_of
from tensorfarm.server.repository.backend_choice import choose_backend, environment_path
from tensorfarm.server.repository.preparation import finish_config, prepare_config
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.status import StatusError

BACKEND = 'backend: "onnxruntime"\n'
TENSOR = 'name: "a"\ndata_type: TYPE_FP32\n'
INPUT = 'input {\nname: "x"\ndata_type: TYPE_FP32\ndims: 4\n}\n'
CORRELATION = "control {\nkind: CONTROL_SEQUENCE_CORRID\n"
STEP = 'step {\nmodel_name: "m1"\ninput_map { key: "i" value: "x" }\noutput_map { key: "o" value: "y" }\n}\n'
Y = 'output {\nname: "y"\ndata_type: TYPE_FP32\ndims: 4\n}\n'

RULES = {
    "name": 'name: "other"  # here\n' + BACKEND,
    "platform": 'platform: "nosuch"  # here\ndefault_model_filename: "x"\n',
    "pair": 'platform: "tensorrt_plan"  # here\n' + BACKEND,
    "ensemble backend": BACKEND.replace("\n", "  # here\n") + 'platform: "ensemble"\nmax_batch_size: 1\n',
    "no ensemble": 'platform: "ensemble"  # here\n' + INPUT,
    "backend": 'max_batch_size: 1\nbackend: "nosuch"  # here\n',
    "batch": BACKEND + "max_batch_size: -4  # here\n",
    "input name": BACKEND + INPUT + "input {  # here\ndata_type: TYPE_FP32\ndims: 1\n}\n",
    "input type": BACKEND + INPUT + 'input {  # here\nname: "a"\ndims: 1\n}\n',
    "input dims": BACKEND + INPUT + "input {\n" + TENSOR + "dims: 0  # here\n}\n",
    "input reshape": BACKEND + INPUT + "input {\n" + TENSOR + "dims: 4\nreshape { shape: 5 }  # here\n}\n",
    "same name": BACKEND + "input {\n" + TENSOR + "dims: 4\n}\noutput {\n" + TENSOR + "dims: -3  # here\n}\n",
    "format": BACKEND + INPUT + "input {\n" + TENSOR + "dims: 4\nformat: FORMAT_NCHW  # here\n}\n",
    "shape tensor": BACKEND + INPUT + "output {\n" + TENSOR + "dims: 4\nis_shape_tensor: true  # here\n}\n",
    "batch input": BACKEND + INPUT + 'batch_input {\ntarget_name: "t"\ndata_type: TYPE_FP32\nsource_input: "z"  # here\n}\n',
    "batch input type": BACKEND + INPUT + 'batch_input {  # here\ntarget_name: "t"\ndata_type: TYPE_FP16\nsource_input: "x"\n}\n',
    "group": BACKEND + "instance_group { kind: KIND_CPU }\ninstance_group {\ncount: 1\nkind: KIND_GPU  # here\n}\n",
    "group gpus": BACKEND + "instance_group {\nkind: KIND_CPU\ngpus: 1  # here\n}\n",
    "group profile": BACKEND + 'instance_group {\nname: "g"\nkind: KIND_CPU\nprofile: "1"  # here\n}\n',
    "preferred": BACKEND + "max_batch_size: 4\ndynamic_batching {\npreserve_ordering: true\npreferred_batch_size: 8  # here\n}\n",
    "priority": BACKEND + "dynamic_batching {\npriority_levels: 2\ndefault_priority_level: 3  # here\n}\n",
    "priority key": BACKEND + "dynamic_batching {\npriority_levels: 2\ndefault_priority_level: 1\n"
    "priority_queue_policy {  # here\nkey: 3\nvalue { }\n}\n}\n",
    "ordering": BACKEND + "dynamic_batching {\npreserve_ordering: true\npriority_levels: 2  # here\ndefault_priority_level: 1\n}\n",
    "delay": BACKEND + "dynamic_batching {\npreserve_ordering: true\n"
    "default_queue_policy {  # here\ntimeout_action: DELAY\ndefault_timeout_microseconds: 1\n}\n}\n",
    "control": BACKEND + 'sequence_batching {\ncontrol_input {  # here\nname: "c"\n' + CORRELATION + "data_type: TYPE_FP32\n}\n}\n}\n",
    "one of several controls": BACKEND
    + 'sequence_batching {\ncontrol_input {\nname: "s"\ncontrol {\nkind: CONTROL_SEQUENCE_START\nfp32_false_true: [ 0, 1 ]\n}\n}\n'
    + 'control_input {  # here\nname: "c"\n' + CORRELATION + "data_type: TYPE_FP32\n}\n}\n}\n",
    "utilization": BACKEND + "sequence_batching {\ndirect {\nminimum_slot_utilization: 2  # here\n}\n}\n",
    "cache": BACKEND + "model_transaction_policy { decoupled: true }\nresponse_cache { enable: true }  # here\n",
    "metrics": BACKEND + "model_metrics {\nmetric_control {  # here\n}\n}\n",
    "label path": BACKEND + 'output {\nname: "y"\nlabel_filename: "../x"  # here\n}\n',
    "model path": BACKEND + 'max_batch_size: 1\ndefault_model_filename: "/x"  # here\n',
    "warm-up path": BACKEND + 'model_warmup {\ninputs {\nkey: "a"\nvalue {\ninput_data_file: "../y"  # here\n}\n}\n}\n',
    "environment": 'backend: "python"\nparameters {\nkey: "a"\nvalue { }\n}\n'
    'parameters {  # here\nkey: "FORCE_CPU_ONLY_INPUT_TENSORS"\nvalue { string_value: "maybe" }\n}\n',
    "steps": 'platform: "ensemble"\nensemble_scheduling {  # here\n}\n',
    "step": 'platform: "ensemble"\n' + INPUT + "ensemble_scheduling {\n" + STEP + 'step {  # here\nmodel_name: "b"\n}\n}\n',
    "ensemble group": 'platform: "ensemble"\ninstance_group { count: 1 }  # here\nensemble_scheduling {\n' + STEP + "}\n",
    "ensemble optimization": 'platform: "ensemble"\noptimization { }  # here\nensemble_scheduling {\n' + STEP + "}\n",
    "ensemble input": 'platform: "ensemble"\n' + INPUT + 'input {  # here\nname: "z"\n}\n' + Y + "ensemble_scheduling {\n" + STEP + "}\n",
    "ensemble output": 'platform: "ensemble"\n' + INPUT + 'output {  # here\nname: "z"\n}\n' + Y + "ensemble_scheduling {\n" + STEP + "}\n",
    "unused": 'platform: "ensemble"\n' + INPUT + Y + "ensemble_scheduling {\n"
    + STEP.replace("\n}\n", '\noutput_map { key: "o2" value: "z" }  # here\n}\n') + "}\n",
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_errors_are_placed_at_their_fields(tmp_path: Path, rule: str) -> None:
    text = RULES[rule]
    config = parse_text(text, "config.pbtxt")
    (tmp_path / "m" / "1").mkdir(parents=True)
    with pytest.raises(StatusError) as caught:
        prepare_config(config, tmp_path / "m", "m", auto_complete=True)
        choose_backend(config, tmp_path / "m", 1, tmp_path)
        environment_path(config)
        finish_config(config, ())
    expected = 1 + next(number for number, line in enumerate(text.split("\n")) if line.endswith("# here"))
    place = place_of(caught.value.message, config, scan(text))
    assert place is not None, caught.value.message
    assert place.line == expected, caught.value.message


def test_what_no_field_is_to_blame_for_has_no_place() -> None:
    text = BACKEND + INPUT
    config = parse_text(text, "config.pbtxt")
    assert place_of("onnx runtime error 7: Failed to load model because protobuf parsing failed.", config, scan(text)) is None
    assert place_of("'", config, scan("")) is None
