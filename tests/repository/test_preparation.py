from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.repository.preparation import finish_config, merge_completed, prepare_config, read_config
from tensorfarm.workers.contract.configuration import config_json, parse_text
from tensorfarm.workers.contract.status import Code, StatusError

GOLDEN = Path(__file__).parent / "golden"
"""Configurations, and what ``GET …/config`` of tritonserver 24.10 without a GPU printed for each."""


def model(root: Path, text: str | None, *files: str, name: str = "m") -> Path:
    directory = root / name
    for file in files:
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_text("")
    directory.mkdir(exist_ok=True)
    if text is not None:
        (directory / "config.pbtxt").write_text(text)
    return directory


def read(directory: Path, *, auto_complete: bool = True, config_name: str = "") -> Any:
    return read_config(directory, directory.name, config_name=config_name, auto_complete=auto_complete)


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.json")))
@pytest.mark.parametrize("auto_complete", [True, False])
def test_final_configurations_print_as_the_real_server_prints_them(tmp_path: Path, name: str, auto_complete: bool) -> None:
    directory = model(tmp_path, (GOLDEN / f"{name}.pbtxt").read_text(), "1/model.py", name=name)
    config = read(directory, auto_complete=auto_complete)
    finish_config(config, ())
    printed = config_json(config)
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    if name == "ensemble":
        # Derived from the composing models when they are there; the other member is newer than 24.10.
        assert golden.pop("model_transaction_policy") == {"decoupled": False}
        assert printed["ensemble_scheduling"].pop("max_inflight_requests") == 0
    assert json.dumps(printed, indent=1) == json.dumps(golden, indent=1)


def test_a_model_without_a_file(tmp_path: Path) -> None:
    directory = model(tmp_path, None, "1/model.py")
    config = read(directory)
    assert (config.name, config.backend, config.default_model_filename) == ("m", "python", "model.py")
    with pytest.raises(StatusError) as caught:
        read(directory, auto_complete=False)
    assert caught.value.code is Code.INTERNAL
    assert caught.value.message == f"failed to open text file for read {directory}/config.pbtxt: No such file or directory"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    directory = model(tmp_path, None, "1/model.py", "config.pbtxt/x")
    with pytest.raises(StatusError, match="^failed to open text file for read .*/m/config.pbtxt: Is a directory$"):
        read(directory)


def test_the_named_file_comes_first(tmp_path: Path) -> None:
    directory = model(tmp_path, "max_batch_size: 1", "1/model.py", "configs/big.pbtxt")
    (directory / "configs" / "big.pbtxt").write_text("max_batch_size: 9")
    assert [read(directory, config_name=name).max_batch_size for name in ("", "big", "small")] == [1, 9, 1]


def test_the_name_must_be_that_of_the_directory(tmp_path: Path) -> None:
    with pytest.raises(StatusError) as caught:
        read(model(tmp_path, 'name: "other" backend: "python"'))
    assert caught.value.message == "unexpected directory name 'm' for model 'other', directory name must equal model name"


def test_tensors_are_checked_as_soon_as_they_are_final(tmp_path: Path) -> None:
    directory = model(tmp_path, 'backend: "python" input { name: "a" dims: 1 }')
    message = "^model input 'a' must specify 'data_type' for m$"
    with pytest.raises(StatusError, match=message):
        read(directory, auto_complete=False)
    config = read(directory)
    with pytest.raises(StatusError, match=message):
        finish_config(config, ())


def test_what_auto_completion_may_decide(tmp_path: Path) -> None:
    config = read(model(tmp_path, 'backend: "python" parameters { key: "p" value { string_value: "v" } }'))
    completed = parse_text(
        'name: "evil" backend: "evil" max_batch_size: 8 input { name: "x" data_type: TYPE_INT32 dims: 2 } '
        'output { name: "y" data_type: TYPE_INT32 dims: 2 } dynamic_batching {} model_transaction_policy { decoupled: true }',
        "x",
    )
    merge_completed(config, completed)
    finish_config(config, ())
    assert (config.name, config.backend, config.max_batch_size) == ("m", "python", 8)
    assert [tensor.name for tensor in (*config.input, *config.output)] == ["x", "y"]
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.model_transaction_policy.decoupled and config.parameters["p"].string_value == "v"


def test_auto_completion_keeps_the_scheduler_that_was_chosen(tmp_path: Path) -> None:
    config = read(model(tmp_path, 'backend: "python" sequence_batching { max_sequence_idle_microseconds: 7 }'))
    merge_completed(config, parse_text("sequence_batching {}", "x"))
    assert config.sequence_batching.max_sequence_idle_microseconds == 7
    for completed in ("dynamic_batching {}", ""):
        with pytest.raises(StatusError, match="^Cannot update scheduling choice from 13 to 13 when auto-completing.$"):
            merge_completed(config, parse_text(completed, "x"))


FIELDS = st.sampled_from(
    [
        'name: "m"',
        'backend: "python"',
        'backend: "onnxruntime"',
        'platform: "ensemble"',
        'platform: "onnxruntime_onnx"',
        'platform: ""',
        "max_batch_size: 4",
        "max_batch_size: -1",
        'input { name: "a" data_type: TYPE_FP32 dims: [4, -1] reshape { shape: [2, 2, -1] } }',
        'input { name: "a" dims: 0 }',
        'output { name: "o" data_type: TYPE_STRING dims: 1 label_filename: "l" }',
        'batch_input { target_name: "t" source_input: "a" data_type: TYPE_INT32 }',
        'batch_output { target_name: "o" source_input: "a" }',
        "dynamic_batching { preserve_ordering: true priority_levels: 1 default_priority_level: 1 }",
        "sequence_batching { oldest {} state { dims: 1 initial_state { dims: [1, 2] } } }",
        'ensemble_scheduling { step { model_name: "b" input_map { key: "a" value: "a" } output_map { key: "o" value: "o" } } }',
        "instance_group { kind: KIND_GPU }",
        'instance_group { gpus: 0 profile: "0" }',
        "optimization {}",
        "version_policy { specific {} }",
        'model_warmup { inputs { key: "a" value { input_data_file: "f" } } }',
        "response_cache { enable: true }",
        "model_metrics { metric_control {} }",
    ]
)


@given(texts=st.lists(FIELDS, max_size=8, unique=True), gpus=st.sampled_from([(), (0,), (0, 1)]), auto_complete=st.booleans())
def test_no_mixture_of_sections_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], gpus: tuple[int, ...], auto_complete: bool
) -> None:
    try:
        config = parse_text(" ".join(texts), "x")
        prepare_config(config, tmp_path_factory.getbasetemp(), "m", auto_complete=auto_complete)
        finish_config(config, gpus)
    except StatusError:
        return
    again = parse_text(str(config), "x")
    finish_config(again, gpus)
    assert again == config, "a final configuration is final"


def test_a_pipe_is_no_configuration(tmp_path: Path) -> None:
    directory = model(tmp_path, None, "1/model.py")
    os.mkfifo(directory / "config.pbtxt")
    with pytest.raises(StatusError, match="config.pbtxt: not a regular file$"):
        read(directory)
