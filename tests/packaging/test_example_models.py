"""The example models: fetched, converted, laid out; held against onnxruntime in this process."""

from __future__ import annotations

import importlib
import io
import pickle  # noqa: TID251 - makes the hostile checkpoint that the reader must refuse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from .tree import ROOT

COULD_NOT_DOWNLOAD = 75


Import = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Import:
    """Imports modules of scripts/."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository made by the command; the downloads come from the user's cache where they are there already."""
    folder = tmp_path_factory.mktemp("examples") / "models"
    command = [sys.executable, str(ROOT / "scripts" / "fetch_models.py"), "--into", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, cwd=folder.parent)
    if done.returncode == COULD_NOT_DOWNLOAD:
        pytest.skip(f"the example models could not be downloaded: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return folder


def test_configurations_fit_their_models(repository: Path, load: Import) -> None:
    names = sorted(folder.name for folder in repository.iterdir())
    assert names == ["add_sub", "image_classifier", "voice_activity"]
    for name in names:
        config = text_format.Parse((repository / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        model = load("demo.reference").session(repository, name)
        assert config.name == name
        assert [tensor.name for tensor in config.input] == [tensor.name for tensor in model.get_inputs()]
        assert {tensor.name for tensor in config.output} == {tensor.name for tensor in model.get_outputs()}
    assert (repository / "image_classifier" / "labels.txt").read_text().splitlines()[967] == "espresso"


@pytest.mark.parametrize(
    ("picture", "classes", "scores"),
    [("cat.png", [282, 285, 281], [0.385, 0.363, 0.167]), ("coffee.png", [967, 968, 925], [0.951, 0.015, 0.008])],
)
def test_pictures_are_recognised(repository: Path, load: Import, picture: str, classes: list[int], scores: list[float]) -> None:
    folder = load("models.cache").cache_folder() / "pictures"
    (probabilities,) = (
        load("demo.reference").session(repository, "image_classifier").run(None, {"image": load("demo.pictures").load(folder / picture)})
    )
    best = np.argsort(probabilities[0])[::-1][:3]
    assert best.tolist() == classes
    np.testing.assert_allclose(probabilities[0][best], scores, atol=2e-3)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_a_second_run_changes_nothing(repository: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*") if path.is_file()}
    command = [sys.executable, str(ROOT / "scripts" / "fetch_models.py"), "--into", str(repository)]
    subprocess.run(command, check=True, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*") if path.is_file()} == before


class Hostile:
    """Pickled, this asks the reader to call ``eval``."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("1 / 0",)


def test_the_checkpoint_reader_calls_nothing(load: Import) -> None:
    checkpoint = load("models.checkpoint")
    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {}, {"weight": Hostile()}, []):
        pickle.dump(value, stream, protocol=2)
    with pytest.raises(ValueError, match="no use for __builtin__.eval"):
        checkpoint.state_dict(stream.getvalue())


@pytest.mark.parametrize("offset", [-1, 1, 3])
def test_the_checkpoint_reader_stays_inside_its_storage(load: Import, offset: int) -> None:
    checkpoint = load("models.checkpoint")
    cut = checkpoint._Cut("0", offset, (2, 2), (2, 1))
    with pytest.raises(ValueError, match="outside its storage"):
        checkpoint._array(np.arange(4, dtype=np.float32), cut)


def test_a_wheel_with_other_content_is_refused(load: Import, tmp_path: Path) -> None:
    wheels = load("models.wheels")
    (tmp_path / "other.whl").write_bytes(b"not that one")
    with pytest.raises(wheels.FetchError, match="sha256"):
        wheels._check(wheels.SILERO_VAD, tmp_path / "other.whl")
