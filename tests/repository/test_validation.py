from __future__ import annotations

import pytest

from tensorfarm.server.repository.normalization import normalize, normalize_instance_groups
from tensorfarm.server.repository.validation import profile_index, validate_instance_groups, validate_model
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.status import Code, StatusError

PY = 'name: "m" backend: "python"'
INSIDE = "must stay within the model directory for m"


def metrics(control: str) -> str:
    return f"{PY} model_metrics {{ metric_control {{ {control} }} }}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('backend: "python"', "model configuration must specify 'name'"),
        ('name: "m"', "unexpected platform type '' for m"),
        ('name: "m" platform: "foo"', "unexpected platform type 'foo' for m"),
        (f'{PY} platform: "ensemble"', "Ensemble model 'm' must have platform type 'ensemble' and empty backend type"),
        (
            'name: "m" backend: "pytorch" platform: "onnxruntime_onnx"',
            "unexpected 'platform' and 'backend' pair, got:onnxruntime_onnx, pytorch",
        ),
        ('name: "m" backend: "tensorrt" platform: "foo"', "unexpected 'platform' and 'backend' pair, got:foo, tensorrt"),
        (
            'name: "m" backend: "onnxruntime" platform: "tensorrt_plan"',
            "unexpected 'platform' and 'backend' pair, got:tensorrt_plan, onnxruntime",
        ),
        ('name: "m" backend: "tensorflow"', "unexpected 'platform' and 'backend' pair, got:, tensorflow"),
        (f"{PY} max_batch_size: -1", "'max_batch_size' must be non-negative value for m"),
        (f"{PY} max_batch_size: 1 dynamic_batching {{ preferred_batch_size: 2 }}", None),
        (
            f"{PY} sequence_batching {{}} response_cache {{ enable: true }}",
            "Response Cache does not currently support model m with sequence batching scheduler. Please disable the response cache.",
        ),
        (
            f"{PY} model_transaction_policy {{ decoupled: true }} response_cache {{ enable: true }}",
            "Response Cache does not currently support model m with 'decoupled' transaction policy. Please disable the response cache.",
        ),
        ('name: "m" platform: "ensemble"', "ensemble scheduling must be set for ensemble m whose platform is ensemble"),
        (f"{PY} ensemble_scheduling {{}}", "ensemble scheduling cannot be set for model 'm' whose platform is not ensemble"),
        (metrics(""), "metric control must specify 'metric_identifier'"),
        (metrics("metric_identifier {}"), "metric identifier must specify non-empty 'family'"),
        (metrics('metric_identifier { family: "f" }'), "metric control must specify 'histogram_options'"),
        (
            metrics('metric_identifier { family: "f" } histogram_options {}'),
            "histogram options must specify non-empty 'buckets'",
        ),
        (f'{PY} runtime: "../x.so"', f"runtime '../x.so' {INSIDE}"),
        (f'{PY} default_model_filename: "/x.py"', f"default_model_filename '/x.py' {INSIDE}"),
        (f'{PY} cc_model_filenames {{ key: "7.5" value: "../../x" }}', f"cc_model_filenames '../../x' {INSIDE}"),
        (f'{PY} output {{ label_filename: "../l" }}', f"label_filename '../l' {INSIDE}"),
        (f'{PY} model_operations {{ op_library_filename: "/lib/evil.so" }}', f"op_library_filename '/lib/evil.so' {INSIDE}"),
        (
            f'{PY} model_warmup {{ inputs {{ key: "a" value {{ input_data_file: "../f" }} }} }}',
            f"input_data_file '../f' {INSIDE}",
        ),
        (f'{PY} sequence_batching {{ state {{ initial_state {{ data_file: "../f" }} }} }}', f"data_file '../f' {INSIDE}"),
        ('name: "m" backend: "../evil"', "unexpected backend name '../evil' for m"),
        ('name: "m" backend: ".."', "unexpected backend name '..' for m"),
    ],
)
def test_whole_model_messages(text: str, message: str | None) -> None:
    config = parse_text(text, "x")
    normalize(config)
    with pytest.raises(StatusError) as caught:
        validate_model(config)
    assert caught.value.code is Code.INVALID_ARG
    assert message is None or caught.value.message == message


def test_version_policy_is_there_after_normalisation_only() -> None:
    with pytest.raises(StatusError, match="^must specify 'version policy' for m$"):
        validate_model(parse_text(PY, "x"))


@pytest.mark.parametrize(
    "text",
    [
        PY,
        f'{PY} platform: "onnxruntime_onnx"',
        'name: "m" backend: "identity"',
        'name: "m" backend: "identity" platform: "pytorch_libtorch"',
        'name: "m" backend: "openvino" platform: "zz"',
        'name: "m" backend: "onnxruntime" platform: "onnxruntime_onnx" default_model_filename: "sub/model.onnx"',
        'name: "m" backend: "pytorch" platform: "torch_aoti"',
        metrics('metric_identifier { family: "f" } histogram_options { buckets: [3, 1] }'),
    ],
)
def test_what_is_accepted(text: str) -> None:
    config = parse_text(text, "x")
    normalize(config)
    validate_model(config)


WHERE = "instance group m_0 of model m"
TRT = 'name: "m" backend: "tensorrt" platform: "tensorrt_plan"'


@pytest.mark.parametrize(
    ("text", "gpus", "message"),
    [
        (f"{PY} instance_group {{ kind: KIND_MODEL gpus: 0 }}", (0,), f"{WHERE} has kind KIND_MODEL but specifies one or more GPUs"),
        (f"{PY} instance_group {{ kind: KIND_CPU gpus: 0 }}", (0,), f"{WHERE} has kind KIND_CPU but specifies one or more GPUs"),
        (f"{PY} instance_group {{ gpus: 0 }}", (), f"{WHERE} has kind KIND_CPU but specifies one or more GPUs"),
        (f"{PY} instance_group {{ kind: KIND_GPU }}", (), f"{WHERE} has kind KIND_GPU but no GPUs are available"),
        (
            f"{PY} instance_group {{ kind: KIND_GPU gpus: 0 }}",
            (),
            f"{WHERE} specifies invalid or unsupported gpu id 0. GPUs with at least the minimum required CUDA compute "
            "compatibility of 6.000000 are: ",
        ),
        (
            f"{PY} instance_group {{ kind: KIND_GPU gpus: 7 }}",
            (1, 0),
            f"{WHERE} specifies invalid or unsupported gpu id 7. GPUs with at least the minimum required CUDA compute "
            "compatibility of 6.000000 are: 0, 1",
        ),
        (
            f"{PY} instance_group {{ profile: '0' }}",
            (),
            f"{WHERE} and platform specifies profile field which is only supported for TensorRT models",
        ),
        (
            f"{TRT} instance_group {{ profile: ['0', '-1'] }}",
            (),
            f"{WHERE} and platform tensorrt_plan specifies invalid profile -1. "
            "The field should contain the string representation of a non-negative integer.",
        ),
        (f"{TRT} instance_group {{ profile: 'x' }}", (), "unable to parse 'x': stoi"),
        (f"{TRT} instance_group {{ profile: '99999999999' }}", (), "unable to parse '99999999999': stoi"),
        (f"{TRT} instance_group {{ profile: '' }}", (), "profile name must not be empty"),
    ],
)
def test_instance_group_messages(text: str, gpus: tuple[int, ...], message: str) -> None:
    config = parse_text(text, "x")
    normalize_instance_groups(config, gpus)
    with pytest.raises(StatusError) as caught:
        validate_instance_groups(config, gpus)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, message)


@pytest.mark.parametrize(
    ("gpus", "least", "said"),
    [
        ((0, 1), 6.0, "6.000000 are: 0, 1"),
        ((1, 0), 7.5, "7.500000 are: 0, 1"),
        ((0, 3), 8.9, "8.900000 are: 0, 3"),
        ((4,), 0.0, "0.000000 are: 4"),
        ((), 9.0, "9.000000 are: "),
    ],
)
def test_the_least_compute_capability_is_the_one_in_force(gpus: tuple[int, ...], least: float, said: str) -> None:
    config = parse_text(f"{PY} instance_group {{ kind: KIND_GPU gpus: 2 }}", "x")
    normalize_instance_groups(config, gpus)
    with pytest.raises(StatusError) as caught:
        validate_instance_groups(config, gpus, least)
    start = f"{WHERE} specifies invalid or unsupported gpu id 2. GPUs with at least the minimum required CUDA compute compatibility of "
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, start + said)


@pytest.mark.parametrize(
    ("group", "gpus"),
    [
        ("", ()),
        ("", (0,)),
        ("", (1, 3)),
        ("gpus: 3", (1, 3)),
        ("gpus: [3, 1] count: 2", (1, 3)),
        ("kind: KIND_GPU", (3,)),
        ("kind: KIND_MODEL", (0,)),
        ("kind: KIND_CPU", (0, 1)),
    ],
)
def test_groups_that_there_are_gpus_for(group: str, gpus: tuple[int, ...]) -> None:
    config = parse_text(f"{PY} instance_group {{ {group} }}", "x")
    normalize_instance_groups(config, gpus)
    validate_instance_groups(config, gpus)


def test_groups_that_were_not_normalised() -> None:
    config = parse_text(PY, "x")
    with pytest.raises(StatusError, match="^must specify one or more 'instance group's for m$"):
        validate_instance_groups(config, ())
    config.instance_group.add(name="g", kind="KIND_GPU")
    with pytest.raises(StatusError, match="^instance group g of model m has kind KIND_GPU but specifies no GPUs$"):
        validate_instance_groups(config, (0,))
    config.instance_group[0].kind = 0
    with pytest.raises(StatusError, match="^instance group g of model m has unexpected kind KIND_AUTO$") as caught:
        validate_instance_groups(config, ())
    assert caught.value.code is Code.INTERNAL


def test_profiles_are_read_as_far_as_they_are_numbers() -> None:
    assert [profile_index(text) for text in ("0", " 12", "+3", "1x", "2.5")] == [0, 12, 3, 1, 2]
