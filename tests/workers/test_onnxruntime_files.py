"""Where a model's files may lie: below its own folder, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tensorfarm.workers.backends.onnxruntime import backend
from tensorfarm.workers.contract.status import Code, StatusError

from .onnx_source import FakeMemory, array_of, executor, identity, model, request, run, source, tensor, value

WEIGHTS = np.arange(1024, dtype=np.float32)
PARSING_FAILED = "onnx runtime error 7: Failed to load model because protobuf parsing failed."


def loaded(folder: Path, made: onnx.ModelProto | bytes, config: str = "", filename: str = "model.onnx") -> None:
    made_source = source(folder, made, config, filename=filename)
    backend().complete(made_source)
    backend().load(made_source).close()


def refused(folder: Path, made: onnx.ModelProto | bytes, config: str = "", filename: str = "model.onnx") -> StatusError:
    with pytest.raises(StatusError) as caught:
        loaded(folder, made, config, filename)
    assert str(folder) not in caught.value.message
    return caught.value


def external(location: str) -> onnx.TensorProto:
    weights = onnx.TensorProto(name="WEIGHTS", data_type=TensorProto.FLOAT, dims=[1024], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    weights.external_data.add(key="length", value=str(WEIGHTS.nbytes))
    return weights


def with_weights(location: str) -> onnx.ModelProto:
    node = helper.make_node("Add", ["IN", "WEIGHTS"], ["OUT"])
    return model([node], [value("IN", "FP32", ["b", 1024])], [value("OUT", "FP32", ["b", 1024])], [external(location)])


def with_weights_in_a_branch(location: str) -> onnx.ModelProto:
    """The external tensor is a constant of a node in a branch of another node."""
    constant = helper.make_node("Constant", [], ["CHOSEN"], value=external(location))
    then = helper.make_graph([constant], "then", [], [value("CHOSEN", "FP32", [1024])])
    other = helper.make_graph([helper.make_node("Identity", ["IN"], ["SAME"])], "else", [], [value("SAME", "FP32", [1024])])
    node = helper.make_node("If", ["WHICH"], ["OUT"], then_branch=then, else_branch=other)
    return model([node], [value("WHICH", "BOOL", [1]), value("IN", "FP32", [1024])], [value("OUT", "FP32", [1024])])


def write_weights(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(WEIGHTS.tobytes())


def test_default_name_another_name_and_folders(tmp_path: Path) -> None:
    loaded(tmp_path / "a", identity("FP32", [1]))
    loaded(tmp_path / "b", identity("FP32", [1]), "default_model_filename: 'other.onnx'", "other.onnx")
    loaded(tmp_path / "c", identity("FP32", [1]), filename="model.onnx/model.onnx")
    loaded(tmp_path / "d", identity("FP32", [1]), "default_model_filename: 'sub/x.onnx'", "sub/x.onnx")


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ("", "m/1/model.onnx"),
        ("default_model_filename: 'x'", "m/1/x"),
        ("default_model_filename: 'empty'", "m/1/empty/model.onnx"),
    ],
)
def test_missing_model_file(tmp_path: Path, config: str, shown: str) -> None:
    (tmp_path / "m" / "1" / "empty").mkdir(parents=True)
    error = refused(tmp_path, identity("FP32", [1]), config, "elsewhere.onnx")
    assert (error.code, error.message) == (Code.UNAVAILABLE, f"unable to find '{shown}' for model instance 'm'")


@pytest.mark.parametrize("name", ["../model.onnx", "../../other/1/model.onnx", "/etc/passwd", "link.onnx", "..", "."])
def test_model_file_outside_the_version(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside.onnx"
    outside.write_bytes(identity("FP32", [1]).SerializeToString())
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    os.symlink(outside, folder / "link.onnx")
    error = refused(tmp_path, identity("FP32", [1]), f"default_model_filename: '{name}'")
    assert (error.code, error.message) == (Code.INVALID_ARG, f"model file '{name}' leaves the folder of version 1 of model 'm'")


def test_a_version_folder_may_be_a_link(tmp_path: Path) -> None:
    made = source(tmp_path / "store", identity("FP32", [1]))
    (tmp_path / "m").mkdir()
    os.symlink(Path(made.directory) / "1", tmp_path / "m" / "1")
    linked = type(made)(str(tmp_path / "m"), 1, made.document, {})
    backend().complete(linked)
    backend().load(linked).close()


@pytest.mark.parametrize("location", ["weights.bin", "sub/weights.bin", "./weights.bin", "sub/../weights.bin"])
def test_external_data_beside_the_model(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "m" / "1"
    (folder / "sub").mkdir(parents=True)
    write_weights(folder / os.path.normpath(location))
    made = executor(tmp_path, with_weights(location))
    (result,) = run(made, [request([tensor("IN", "FP32", np.ones((1, 1024), np.float32))])], memory := FakeMemory())
    assert np.array_equal(array_of(result.outputs[0], memory)[0], WEIGHTS + 1)


@pytest.mark.parametrize("build", [with_weights, with_weights_in_a_branch])
@pytest.mark.parametrize(
    "location",
    ["../../outside.bin", "../../../../../../../etc/passwd", "/etc/passwd", "link.bin", "linked/outside.bin", "*/_ORT_MEM_ADDR_/*"],
)
def test_external_data_outside_the_version(tmp_path: Path, location: str, build: object) -> None:
    assert callable(build)
    write_weights(tmp_path / "outside.bin")
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    os.symlink(tmp_path / "outside.bin", folder / "link.bin")
    os.symlink(tmp_path, folder / "linked")
    error = refused(tmp_path, build(location))
    message = f"model 'm' keeps weights at '{location}', which leaves the folder of its version 1"
    assert (error.code, error.message) == (Code.INVALID_ARG, message)


@pytest.mark.parametrize("load_format", ["ONNX", "ort", "x", ""])
def test_no_load_format_hides_external_data(tmp_path: Path, load_format: str) -> None:
    write_weights(tmp_path / "outside.bin")
    parameter = f"parameters {{ key: 'session.load_model_format' value {{ string_value: '{load_format}' }} }}"
    assert "leaves the folder of its version" in refused(tmp_path, with_weights("../../outside.bin"), parameter).message


def test_missing_external_data_is_told_without_the_path(tmp_path: Path) -> None:
    error = refused(tmp_path, with_weights("gone.bin"))
    assert error.code == Code.INTERNAL
    assert error.message.startswith("onnx runtime error ")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x3a\xff\xff\xff\xff\x0f", id="field longer than the file"),
        pytest.param(b"\x3a\x80", id="length cut off"),
        pytest.param(b"\xff" * 20, id="varint without end"),
        pytest.param(b"\x0b\x0c", id="group"),
        pytest.param(b"\x09\x00", id="fixed64 cut off"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    error = refused(tmp_path, content)
    assert (error.code, error.message) == (Code.INTERNAL, PARSING_FAILED)


def test_an_empty_file(tmp_path: Path) -> None:
    error = refused(tmp_path, b"")
    assert error.code == Code.INTERNAL
    assert error.message.startswith("onnx runtime error ")


def test_every_cut_of_a_model_is_refused_or_loads(tmp_path: Path) -> None:
    write_weights(tmp_path / "m" / "1" / "weights.bin")
    content = with_weights("weights.bin").SerializeToString()
    outcomes = set()
    for end in range(0, len(content), 7):
        try:
            loaded(tmp_path, content[:end])
        except StatusError as error:
            outcomes.add(error.code)
    assert outcomes <= {Code.INTERNAL, Code.INVALID_ARG} and outcomes


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("../lib.so", Code.INVALID_ARG, "operator library '../lib.so' leaves the folder of model 'm'"),
        ("/usr/lib/libc.so.6", Code.INVALID_ARG, "operator library '/usr/lib/libc.so.6' leaves the folder of model 'm'"),
        ("lib.so", Code.UNAVAILABLE, "unable to find operator library 'lib.so' of model 'm'"),
    ],
)
def test_operator_libraries(tmp_path: Path, name: str, code: Code, message: str) -> None:
    error = refused(tmp_path, identity("FP32", [1]), f"model_operations {{ op_library_filename: '{name}' }}")
    assert (error.code, error.message) == (code, message)


def test_an_operator_library_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "lib.so").write_text("not a library")
    error = refused(tmp_path, identity("FP32", [1]), "model_operations { op_library_filename: 'lib.so' }")
    assert error.code == Code.INTERNAL
    assert error.message.startswith("onnx runtime error 1: Failed to load library m/lib.so with error: ")
