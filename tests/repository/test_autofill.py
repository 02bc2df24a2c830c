from __future__ import annotations

from pathlib import Path

import pytest

from tensorfarm.server.repository.autofill import autofill
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.status import Code, StatusError


def filled(root: Path, text: str, *paths: str, name: str = "m") -> tuple[str, str, str]:
    for path in paths:
        file = root / path
        if path.endswith("/"):
            file.mkdir(parents=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("")
    config = parse_text(text, "x")
    autofill(config, root, name)
    assert config.name == name
    return config.backend, config.platform, config.default_model_filename


ONNX = ("onnxruntime", "onnxruntime_onnx", "model.onnx")
GRAPHDEF = ("tensorflow", "tensorflow_graphdef", "model.graphdef")
SAVEDMODEL = ("tensorflow", "tensorflow_savedmodel", "model.savedmodel")
PLAN = ("tensorrt", "tensorrt_plan", "model.plan")
TORCH = ("pytorch", "pytorch_libtorch", "model.pt")
AOTI = ("pytorch", "torch_aoti", "model.pt2")
PYTHON = ("python", "", "model.py")
OPENVINO = ("openvino", "", "model.xml")


@pytest.mark.parametrize(
    ("text", "paths", "expected"),
    [
        ("", ["1/model.onnx"], ONNX),
        ("", ["1/model.onnx/model.onnx"], ONNX),
        ("", ["1/model.py"], PYTHON),
        ("", ["1/model.py/"], PYTHON),
        ("", ["1/model.xml/"], OPENVINO),
        ("", ["1/model.plan"], PLAN),
        ("", ["1/model.xml"], OPENVINO),
        ("", ["1/model.pt"], TORCH),
        ("", ["1/model.pt2"], AOTI),
        ("", ["1/model.graphdef"], GRAPHDEF),
        ("", ["1/model.savedmodel/"], SAVEDMODEL),
        ("", ["1/model.graphdef/", "1/model.py"], PYTHON),
        ("", ["1/model.py", "1/model.onnx"], ONNX),
        ("", ["1/model.py", "0abc/model.onnx"], ONNX),
        ("", ["1/model.onnx", "2/model.py"], ONNX),
        ('backend: "python"', ["1/other"], PYTHON),
        ('backend: "python"', [], PYTHON),
        ('backend: "onnxruntime"', ["1/other"], ONNX),
        ('platform: "onnxruntime_onnx"', [], ONNX),
        ('platform: "pytorch_libtorch"', ["1/other"], TORCH),
        ('platform: "torch_aoti"', ["1/other"], AOTI),
        ('backend: "pytorch"', ["1/model.pt2"], AOTI),
        ('backend: "pytorch"', ["1/model.pt", "1/model.pt2"], TORCH),
        ('backend: "pytorch" runtime: "model.py"', ["1/model.py"], ("pytorch", "pytorch_libtorch", "")),
        ('platform: "tensorflow_savedmodel"', ["1/other"], SAVEDMODEL),
        ('backend: "tensorflow" default_model_filename: "model.graphdef"', ["1/other"], GRAPHDEF),
        ('backend: "tensorflow"', ["1/other"], ("tensorflow", "", "")),
        ('default_model_filename: "model.onnx"', ["1/other"], ONNX),
        ('default_model_filename: "model.pt"', ["1/other"], TORCH),
        ('default_model_filename: "model.py"', [], PYTHON),
        ('backend: "python" default_model_filename: "net.py"', [], ("python", "", "net.py")),
        ('backend: "identity"', ["1/other"], ("identity", "", "")),
        ('default_model_filename: "other"', ["1/other"], ("", "", "other")),
        ('platform: "foo"', ["1/model.py"], ("", "foo", "")),
        ('platform: "zz" default_model_filename: "model.xml"', [], ("openvino", "zz", "model.xml")),
        ('platform: "ensemble"', ["1/model.py"], ("", "ensemble", "")),
    ],
)
def test_what_is_left_out_is_filled_in(tmp_path: Path, text: str, paths: list[str], expected: tuple[str, str, str]) -> None:
    assert filled(tmp_path, text, *paths) == expected


def test_the_name_tells_the_backend_when_nothing_else_does(tmp_path: Path) -> None:
    assert filled(tmp_path, "", "1/other", name="x.identity") == ("identity", "", "model.identity")
    assert filled(tmp_path, "", name="x.identity.y") == ("identity.y", "", "model.identity.y")


@pytest.mark.parametrize("paths", [[], ["1/other"], ["1/model.plan/"], ["1/model.pt/"], ["1/model.savedmodel"]])
def test_nothing_tells_the_backend(tmp_path: Path, paths: list[str]) -> None:
    with pytest.raises(StatusError) as caught:
        filled(tmp_path, "", *paths)
    assert caught.value.code is Code.INVALID_ARG
    assert caught.value.message == (
        "Invalid model name: Could not determine backend for model 'm' with no backend in model configuration. "
        "Expected model name of the form 'model.<backend_name>'."
    )


def test_a_name_that_is_set_stays(tmp_path: Path) -> None:
    config = parse_text('name: "other" backend: "python"', "x")
    autofill(config, tmp_path, "m")
    assert config.name == "other"
