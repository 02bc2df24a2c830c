"""Which backend a configuration asks for, and where a Python file that is one may lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tensorfarm.server.repository.backend_choice import BackendChoice, choose_backend, environment_path
from tensorfarm.workers.contract.configuration import ModelConfig
from tensorfarm.workers.contract.status import Code, StatusError


def chosen(config: Any, root: Path) -> BackendChoice:
    return choose_backend(config, root / "models" / "m", 3, root / "backends")


def put(root: Path, path: str) -> str:
    """Write a file below a folder, and return where it is."""
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("")
    return str(place)


@pytest.mark.parametrize("name", ["onnxruntime", "python"])
def test_ours_are_never_looked_for(name: str, tmp_path: Path) -> None:
    put(tmp_path, f"backends/{name}/model.py")
    put(tmp_path, "models/m/backend.py")
    assert chosen(ModelConfig(backend=name), tmp_path) == BackendChoice(name)


def test_the_nearest_file_counts(tmp_path: Path) -> None:
    config = ModelConfig(backend="mine")
    for path in ("backends/mine/backend.py", "backends/mine/model.py", "models/m/backend.py", "models/m/3/backend.py"):
        file = put(tmp_path, path)
        assert chosen(config, tmp_path) == BackendChoice("python", file)


def test_other_versions_and_folders_do_not_count(tmp_path: Path) -> None:
    put(tmp_path, "models/m/1/backend.py")
    put(tmp_path, "models/m/3/model.py")
    put(tmp_path, "backends/other/model.py")
    (tmp_path / "backends" / "mine" / "model.py").mkdir(parents=True)
    with pytest.raises(StatusError) as raised:
        chosen(ModelConfig(backend="mine"), tmp_path)
    assert raised.value.code is Code.INVALID_ARG
    assert raised.value.message == ("unable to find backend library for backend 'mine', try specifying runtime on the model configuration.")


@pytest.mark.parametrize("name", ["", ".", "..", "../outside", "a/b", "mine\n", "/etc", "a\0b"])
def test_a_name_cannot_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    for path in ("model.py", "backends/model.py", "outside/model.py", "backends/a/b/model.py", "backends/mine/model.py"):
        put(tmp_path, path)
    with pytest.raises(StatusError, match="unable to find backend library"):
        chosen(ModelConfig(backend=name), tmp_path)


@pytest.mark.parametrize("name", ["my-backend", "my.backend", "v1+cu12", "m..."])
def test_names_of_folders(name: str, tmp_path: Path) -> None:
    file = put(tmp_path, f"backends/{name}/model.py")
    assert chosen(ModelConfig(backend=name), tmp_path) == BackendChoice("python", file)


def test_the_runtime_names_the_file(tmp_path: Path) -> None:
    put(tmp_path, "backends/mine/model.py")
    file = put(tmp_path, "backends/mine/other.py")
    assert chosen(ModelConfig(backend="mine", runtime="other.py"), tmp_path) == BackendChoice("python", file)
    for runtime in ("nosuch.py", "../mine/model.py", "libtriton_mine.so", "."):
        with pytest.raises(StatusError, match="unable to find backend library"):
            chosen(ModelConfig(backend="mine", runtime=runtime), tmp_path)


def test_the_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker does not run where the server does."""
    file = put(tmp_path, "backends/mine/model.py")
    monkeypatch.chdir(tmp_path)
    assert choose_backend(ModelConfig(backend="mine"), Path("models/m"), 1, Path("backends")).file == file


def with_parameters(**values: str) -> Any:
    config = ModelConfig()
    for name, value in values.items():
        config.parameters[name].string_value = value
    return config


def test_the_environment() -> None:
    assert environment_path(with_parameters()) == ""
    assert environment_path(with_parameters(EXECUTION_ENV_PATH="/env.tar.gz", other="x")) == "/env.tar.gz"
    for value in ("yes", "no"):
        assert environment_path(with_parameters(FORCE_CPU_ONLY_INPUT_TENSORS=value)) == ""
    with pytest.raises(StatusError) as raised:
        environment_path(with_parameters(FORCE_CPU_ONLY_INPUT_TENSORS="maybe"))
    assert (raised.value.code, raised.value.message) == (
        Code.UNSUPPORTED,
        "Incorrect value for FORCE_CPU_ONLY_INPUT_TENSORS: maybe'",
    )
