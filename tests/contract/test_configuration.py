from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.workers.contract.configuration import (
    MAX_BYTE_SIZE,
    ConfigurationError,
    ModelConfig,
    config_json,
    document,
    model_config,
    parse_document,
    parse_json,
    parse_text,
)
from tensorfarm.workers.contract.status import Code, StatusError

TOKENS = st.sampled_from(
    [
        *"{}[]<>:;,-\"'#\n\0é",
        *("name", "input", "dims", "data_type", "reshape", "shape", "TYPE_FP32", "parameters", "key", "value", "string_value"),
        *("max_batch_size", "dynamic_batching", "sequence_batching", "instance_group", "kind", "KIND_CPU", "metric_tags"),
        *('"x"', '"\\377"', '"\\ud800"', "1", "-1", "0x7f", "1e400", "99999999999999999999", "nan", "true", "[a.b/c]", "[x.y]"),
    ]
)


def run_python(code: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout.split()


def test_importing_it_does_not_import_grpc() -> None:
    code = "import sys, tensorfarm.workers.contract.configuration; print('grpc' in sys.modules, 'tritonclient.grpc' in sys.modules)"
    assert run_python(code) == ["False", "False"]


@pytest.mark.parametrize("first", ["tensorfarm.workers.contract.configuration", "tritonclient.grpc"])
def test_the_client_package_gets_the_same_classes(first: str) -> None:
    code = (
        f"import {first}\n"
        "import tensorfarm.workers.contract.configuration as ours, tritonclient.grpc.model_config_pb2 as theirs\n"
        "from tritonclient.grpc import service_pb2\n"
        "print(ours.ModelConfig is theirs.ModelConfig, type(service_pb2.ModelConfigResponse().config) is ours.ModelConfig)"
    )
    assert run_python(code) == ["True", "True"]


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ('name: "m"\n  bogus: 1', '2:3: Message type "inference.ModelConfig" has no field named "bogus".'),
        ("max_batch_size: 1.5", "Couldn't parse integer: 1.5"),
        ("max_batch_size: 1 max_batch_size: 2", "1:35: "),
        ("dynamic_batching {} sequence_batching {}", "1:21: "),
        ("max_batch_size: 99999999999", "1:17: "),
        ("input { data_type: 99 }", "inference.ModelInput.data_type has no value 99"),
        (b'name: "\xff"', "can't decode byte 0xff"),
        ('name: "\\377"', "can't decode byte 0xff"),
        (" " * (MAX_BYTE_SIZE + 1), "longer than"),
    ],
)
def test_broken_text_is_reported_with_its_place(text: str | bytes, detail: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_text(text, "m/config.pbtxt")
    assert (caught.value.code, caught.value.message) == (Code.INTERNAL, "failed to read text proto from m/config.pbtxt")
    assert detail in caught.value.detail


def test_a_long_bad_line_is_not_quoted_in_full() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_text("<" * 5000, "x")
    assert len(caught.value.detail) < 500


@given(st.one_of(st.text(), st.binary(), st.lists(TOKENS).map(" ".join), st.lists(TOKENS).map("".join)))
def test_no_text_raises_anything_else(text: str | bytes) -> None:
    try:
        config = parse_text(text, "x")
    except StatusError:
        return
    assert parse_document(document(config)) == config


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        config_json(parse_document(data))
    except StatusError as error:
        assert error.code is Code.INVALID_ARG


def test_what_text_accepts() -> None:
    config = parse_text(
        """
        # a comment; lists in brackets, repeated fields, either colon or none before a brace, several separators
        name: "m" input [ { name: "a", data_type: TYPE_FP32; dims: [ 1, -1 ] } ]
        input: < name: 'b' data_type: 8 dims: 3 dims: 4 >
        parameters { key: "k" value: { string_value: "one" " two" } }
        """,
        "x",
    )
    assert [(tensor.name, model_config.DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in config.input] == [
        ("a", "TYPE_FP32", [1, -1]),
        ("b", "TYPE_INT32", [3, 4]),
    ]
    assert config.parameters["k"].string_value == "one two"


def test_json_takes_proto_and_camel_case_names() -> None:
    config = parse_json('{"maxBatchSize": 2, "input": [{"name": "a", "data_type": "TYPE_FP32", "dims": ["4", 5]}]}')
    assert config.max_batch_size == 2
    assert list(config.input[0].dims) == [4, 5]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"bogus": 1}', '{"max_batch_size": "x"}', '{"a":' * 5000, '{"input": [{"data_type": 99}]}']
)
def test_broken_json_is_an_invalid_override(text: str) -> None:
    with pytest.raises(ConfigurationError, match="^Invalid config override: ") as caught:
        parse_json(text)
    assert caught.value.code is Code.INVALID_ARG


@given(
    st.one_of(st.text(), st.lists(st.sampled_from(["{", "}", "[", "]", ":", ",", '"input"', '"dims"', "1", "null", '"NaN"'])).map("".join))
)
def test_no_json_raises_anything_else(text: str) -> None:
    try:
        parse_json(text)
    except ConfigurationError:
        pass


def test_json_of_an_empty_configuration_prints_scalars_and_lists_only() -> None:
    assert config_json(ModelConfig()) == {
        **{"name": "", "platform": "", "backend": "", "runtime": "", "max_batch_size": 0},
        **{"input": [], "output": [], "batch_input": [], "batch_output": [], "instance_group": []},
        **{"default_model_filename": "", "cc_model_filenames": {}, "metric_tags": {}, "parameters": {}, "model_warmup": []},
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("1.0", 1),
        ("0", 0),
        ("0.33333334", 0.333333343),
        ("1e20", 1e20),
        ("inf", "Infinity"),
        ("-inf", "-Infinity"),
        ("nan", "NaN"),
    ],
)
def test_floats_print_as_short_as_the_server_prints_them(text: str, value: object) -> None:
    config = parse_text(f"sequence_batching {{ direct {{ minimum_slot_utilization: {text} }} }}", "x")
    printed = config_json(config)["sequence_batching"]["direct"]["minimum_slot_utilization"]
    assert (printed, type(printed)) == (value, type(value))


def test_wide_integers_are_strings_only_where_the_server_forgot_them() -> None:
    config = parse_text(
        "instance_group { secondary_devices { device_id: 3 } }\n"
        "optimization { cuda { graph_spec { input { key: 'a' value { dim: 2 } } } } }\n"
        "model_warmup { inputs { key: 'a' value { dims: 4 } } }\n"
        "sequence_batching { state { dims: 1 initial_state { dims: 2 } } }",
        "x",
    )
    printed = config_json(config)
    assert printed["instance_group"][0]["secondary_devices"][0]["device_id"] == "3"
    assert printed["optimization"]["cuda"]["graph_spec"][0]["input"]["a"]["dim"] == ["2"]
    assert printed["model_warmup"][0]["inputs"]["a"]["dims"] == [4]
    assert printed["sequence_batching"]["state"][0]["dims"] == [1]
    assert printed["sequence_batching"]["state"][0]["initial_state"][0]["dims"] == ["2"]
