"""A model's file: found, imported, its hooks called, and what its readiness check may do."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tensorfarm.workers.backends.backend import ModelSource
from tensorfarm.workers.contract.messages import InstanceSpec, RequestBody
from tensorfarm.workers.contract.status import Code, StatusError
from tensorfarm.workers.python import module as module_module
from tensorfarm.workers.python.module import PythonModel, Unimplemented, completed, model_file

from .fake_host import FakeHost

INSTANCE = InstanceSpec(4, "m_0_1", "KIND_CPU", 0)
HEAD = "import threading, time\nimport triton_python_backend_utils as pb_utils\n"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, fake_host: FakeHost) -> Iterator[FakeHost]:
    """Modules and paths as before, whatever is imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield fake_host
    for name in set(sys.modules) - before:
        del sys.modules[name]


def source(folder: Path, code: str, name: str = "model.py", backend_file: str = "", **config: Any) -> ModelSource:
    path = folder / "m" / "1" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD + code)
    document = json.dumps({"name": "m", "backend": "python", **config}).encode()
    return ModelSource(str(folder / "m"), 1, document, {"cmdline": {}}, backend_file)


def model(folder: Path, body: str, **config: Any) -> PythonModel:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return PythonModel(source(folder, f"class TritonPythonModel:\n    x = 1\n{lines}\n", **config), INSTANCE)


def refusal(folder: Path, code: str, **more: Any) -> StatusError:
    with pytest.raises(StatusError) as raised:
        PythonModel(source(folder, code, **more), INSTANCE)
    return raised.value


def test_a_sequence_model_has_places(tmp_path: Path) -> None:
    """With the states of its configuration, whose files are read when it is loaded."""
    code = "def execute(self, requests):\n    return None"
    assert model(tmp_path, code).places is None
    assert model(tmp_path, code, sequence_batching={}).places is not None
    assert [model(tmp_path, code, sequence_batching={"iterative_sequence": value}).iterative for value in (False, True)] == [False, True]
    initial = {"name": "i", "data_type": "TYPE_INT32", "dims": ["2"], "data_file": "begin"}
    state = {"input_name": "I", "output_name": "O", "data_type": "TYPE_INT32", "dims": [2], "initial_state": [initial]}
    with pytest.raises(StatusError, match="begin"):
        model(tmp_path, code, sequence_batching={"state": [state]})
    (tmp_path / "m" / "initial_state").mkdir()
    (tmp_path / "m" / "initial_state" / "begin").write_bytes(bytes([1, 0, 0, 0, 2, 0, 0, 0]))
    places = model(tmp_path, code, sequence_batching={"state": [state]}).places
    assert places is not None
    ((spec, array),) = places._states.inputs(RequestBody("", 1, [], [], {}))
    assert spec.input_name == "I" and array.tolist() == [1, 2]


def test_initialize_gets_texts(tmp_path: Path) -> None:
    made = model(tmp_path, "def initialize(self, args):\n    self.args = args\ndef execute(self, requests):\n    return self.args")
    args = made.execute([])
    assert list(args) == [
        *("model_config", "model_instance_kind", "model_instance_name", "model_instance_device_id"),
        *("model_repository", "model_version", "model_name"),
    ]
    assert args["model_instance_kind"] == "CPU" and args["model_repository"] == str(tmp_path / "m")
    assert json.loads(args.pop("model_config"))["name"] == "m" and {type(value) for value in args.values()} == {str}
    assert not made.checks and made.ready() and not made.decoupled


def test_the_module_is_called_after_its_version_and_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "near.py").write_text("NAME = 'near'")
    (tmp_path / "m" / "upper.py").write_text("NAME = 'upper'")
    code = "import near, upper\nfrom . import near as again\nclass TritonPythonModel:\n"
    code += "    def execute(self, requests):\n        return [__name__, __package__, near.NAME, again.NAME, upper.NAME]\n"
    assert PythonModel(source(tmp_path, code), INSTANCE).execute([]) == ["1.model", "1", "near", "near", "upper"]


@pytest.mark.parametrize("name", ["mine.py", "sub/mine.py"])
def test_other_file_names(tmp_path: Path, name: str) -> None:
    made = source(tmp_path, "", name, default_model_filename=name)
    assert model_file(made, json.loads(made.document)) == str(tmp_path / "m" / "1" / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mine.txt", "Model name must end with '.py'. Model name is \"mine.txt\"."),
        ("../../outside.py", "model file '../../outside.py' leaves the folder of version 1 of model 'm'"),
        ("nosuch.py", "Python model file not found in '{}/m/1/nosuch.py'."),
    ],
)
def test_file_names_that_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "outside.py").write_text("")
    with pytest.raises(StatusError) as raised:
        model_file(source(tmp_path, ""), {"name": "m", "default_model_filename": name})
    assert raised.value.message == text.format(tmp_path)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("x = 1", "AttributeError: module '1.model' has no attribute 'TritonPythonModel'"),
        ("TritonPythonModel = 3", "TypeError: 'int' object is not callable"),
        ("import no_such_module_x", "ModuleNotFoundError: No module named 'no_such_module_x'\n\nAt:\n"),
        ("raise SystemExit(3)", "SystemExit: 3\n\nAt:\n"),
        ("class TritonPythonModel:\n    def __init__(self): raise ValueError", "ValueError: <EMPTY MESSAGE>\n\nAt:\n"),
        ("class TritonPythonModel:\n    def initialize(self, args): raise ValueError('no')", "ValueError: no\n\nAt:\n"),
        ("class TritonPythonModel:\n    def initialize(self, args): raise KeyboardInterrupt", "KeyboardInterrupt: <EMPTY MESSAGE>"),
    ],
)
def test_models_that_cannot_be_made(tmp_path: Path, code: str, text: str) -> None:
    error = refusal(tmp_path, code)
    assert error.code is Code.INTERNAL and error.message.startswith(text)


def test_a_model_without_execute(tmp_path: Path) -> None:
    made = model(tmp_path, "")
    with pytest.raises(Unimplemented, match="does not implement `execute` method."):
        made.execute([])
    made.finalize()


def test_finalize_that_raises_is_logged(tmp_path: Path, surroundings: FakeHost) -> None:
    model(tmp_path, "def finalize(self): raise SystemExit(4)").finalize()
    (said,) = surroundings.told
    assert said.severity == "I" and said.text.startswith("SystemExit: 4")


# readiness


@pytest.mark.parametrize(
    ("body", "ready"),
    [
        ("def is_ready(self): return True", True),
        ("def is_ready(self): return False", False),
        ("async def is_ready(self): return self.x == 1", True),
        ("def is_ready(self): return 1", "is_ready() must return a boolean value"),
        ("def is_ready(self): raise ValueError('not yet')", "ValueError: not yet"),
        ("def is_ready(self): raise SystemExit(3)", "SystemExit: 3"),
        ("async def is_ready(self): raise ValueError('not yet')", "ValueError: not yet"),
    ],
)
def test_readiness_checks(tmp_path: Path, body: str, ready: bool | str) -> None:
    made = model(tmp_path, body)
    assert made.checks
    if isinstance(ready, bool):
        assert made.ready() is ready
    else:
        with pytest.raises(StatusError) as raised:
            made.ready()
        assert raised.value.message.startswith(ready)


def test_a_readiness_check_that_hangs_is_not_asked_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_module, "READY_CHECK_TIMEOUT_SECS", 0.01)
    made = model(
        tmp_path, "go = threading.Event()\ndef is_ready(self): return self.go.wait(10)\ndef execute(self, requests): return self.go"
    )
    for _ in range(3):
        with pytest.raises(StatusError) as raised:
            made.ready()
        assert raised.value.code is Code.UNAVAILABLE and "took longer" in raised.value.message
    (hanging,) = [thread for thread in threading.enumerate() if thread.name == "is_ready"]
    made.execute([]).set()
    hanging.join(10)
    monkeypatch.setattr(module_module, "READY_CHECK_TIMEOUT_SECS", 10.0)
    assert made.ready()


# completion


def test_completion(tmp_path: Path) -> None:
    code = "class TritonPythonModel:\n    @staticmethod\n    def auto_complete_config(config):\n"
    code += "        config.set_max_batch_size(8)\n        return config\n"
    made = source(tmp_path, code)
    assert json.loads(completed(made))["max_batch_size"] == 8 and made.spent


def test_nothing_to_complete(tmp_path: Path) -> None:
    made = source(tmp_path, "class TritonPythonModel: pass")
    assert completed(made) == made.document and not made.spent


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("return None", "auto_complete_config function in model 'm' must return a valid pb.ModelConfig object."),
        ("return {}", "auto_complete_config function in model 'm' must return a valid pb.ModelConfig object."),
        ("raise SystemExit(4)", "SystemExit: 4\n\nAt:\n"),
    ],
)
def test_completion_that_fails(tmp_path: Path, body: str, text: str) -> None:
    made = source(tmp_path, f"class TritonPythonModel:\n    @staticmethod\n    def auto_complete_config(config):\n        {body}\n")
    with pytest.raises(StatusError) as raised:
        completed(made)
    assert raised.value.message.startswith(text)


def test_a_backend_in_python(tmp_path: Path) -> None:
    """One file for many models: it is not of the model's folder, and has an ``initialize`` of its own."""
    folder = tmp_path / "backends" / "mine"
    folder.mkdir(parents=True)
    file = folder / "model.py"
    file.write_text(
        "SEEN = []\ndef initialize(args): SEEN.append(args)\n"
        "class TritonPythonModel:\n    def execute(self, requests): return [__name__, __file__, SEEN]\n"
    )
    made = source(tmp_path, "raise ValueError('the model has a file as well, which is not asked')", backend_file=str(file), backend="mine")
    name, path, ((args,)) = PythonModel(made, INSTANCE).execute([])
    assert (name, path, args["backend_name"]) == ("model", str(file), "mine") and "backend_config" in args
