"""The example models: fetched, converted, laid out; held against onnxruntime in this process."""

from __future__ import annotations

import io
import pickle  # noqa: TID251 - makes the hostile checkpoint that the reader must refuse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from .tree import ROOT, Import

PIPELINES = {
    "image_decoder": "python",
    "class_ranking": "python",
    "image_to_classes": "ensemble",
    "page_to_lines": "python",
    "sound_to_speech": "python",
}
NETWORKS = ["add_sub", "image_classifier", "text_detector", "text_recognizer", "voice_activity", "voice_stream"]


def test_configurations_fit_their_models(repository: Path, load: Import) -> None:
    configs = {
        folder.name: text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        for folder in repository.iterdir()
    }
    assert sorted(configs) == sorted([*NETWORKS, *PIPELINES])
    for name, kind in PIPELINES.items():
        assert (configs[name].name, configs[name].platform or configs[name].backend) == (name, kind)
        assert (repository / name / "1").is_dir()
    for name in NETWORKS:
        config = configs[name]
        model = load("demo.reference").session(repository, name)
        assert config.name == name
        kept = config.sequence_batching.state
        assert {tensor.name for tensor in config.input} | {state.input_name for state in kept} == {
            tensor.name for tensor in model.get_inputs()
        }
        assert {tensor.name for tensor in config.output} | {state.output_name for state in kept} == {
            tensor.name for tensor in model.get_outputs()
        }
    for name in ("image_classifier", "class_ranking"):
        assert (repository / name / "labels.txt").read_text().splitlines()[967] == "espresso"
    (steps,) = load("demo.reference").session(repository, "text_recognizer").get_outputs()
    # one class is "nothing", one the space
    assert len((repository / "page_to_lines" / "alphabet.txt").read_text().split("\n")[:-1]) == steps.shape[2] - 2


@pytest.mark.parametrize(
    ("picture", "classes", "scores"),
    [("cat.png", [282, 285, 281], [0.385, 0.363, 0.167]), ("coffee.png", [967, 968, 925], [0.951, 0.015, 0.008])],
)
def test_pictures_are_recognised(
    repository: Path, pictures: Path, load: Import, picture: str, classes: list[int], scores: list[float]
) -> None:
    image = load("demo.pictures").load(pictures / picture)
    (probabilities,) = load("demo.reference").session(repository, "image_classifier").run(None, {"image": image})
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
