"""What a model version's files come to."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import text_format

from tensorfarm.server.repository.fingerprint import fingerprint
from tensorfarm.workers.contract.configuration import ModelConfig

CONFIG = 'name: "m" backend: "python" max_batch_size: 4'


def config(text: str = CONFIG) -> object:
    return text_format.Parse(text, ModelConfig())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    (folder / "1" / "weights").mkdir(parents=True)
    (folder / "2").mkdir()
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "labels.txt").write_text("a\nb\n")
    (folder / "1" / "model.py").write_text("one")
    (folder / "1" / "weights" / "w").write_bytes(b"12345678")
    (folder / "2" / "model.py").write_text("two")
    return folder


def test_equal_files_come_to_the_same_wherever_they_lie(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "elsewhere")
    assert fingerprint(model, 1, config()) == fingerprint(tmp_path / "elsewhere", 1, config())


@pytest.mark.parametrize(
    "change",
    [
        lambda model: (model / "1" / "model.py").write_text("ONE"),
        lambda model: (model / "1" / "weights" / "w").write_bytes(b"12345679"),
        lambda model: (model / "1" / "weights" / "w").rename(model / "1" / "weights" / "v"),
        lambda model: (model / "1" / "more").write_text(""),
        lambda model: (model / "labels.txt").unlink(),
    ],
)
def test_another_file_makes_another_model(model: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(model, 1, config())
    change(model)
    assert fingerprint(model, 1, config()) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda model: (model / "2" / "model.py").write_text("other"),
        lambda model: (model / "1" / "__pycache__").mkdir(),
        lambda model: (model / "config.pbtxt").write_text("# another comment"),
        lambda model: (model / "1" / "nowhere").symlink_to("not there"),
        lambda model: (model / "1" / "weights" / "up").symlink_to(".."),
    ],
)
def test_what_is_no_part_of_a_version_does_not_count(model: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(model, 1, config())
    change(model)
    assert fingerprint(model, 1, config()) == before


def test_configurations_count_but_for_where_instances_run(model: Path) -> None:
    plain = fingerprint(model, 1, config())
    assert fingerprint(model, 1, config(CONFIG + " instance_group { count: 7 }")) == plain
    assert fingerprint(model, 1, config(CONFIG + ' parameters { key: "k" value { string_value: "v" } }')) != plain
    assert fingerprint(model, 2, config()) != plain


def test_a_backend_in_python_counts(model: Path, tmp_path: Path) -> None:
    backend, copy = tmp_path / "backend.py", tmp_path / "copy.py"
    backend.write_text("one")
    copy.write_text("one")
    found = fingerprint(model, 1, config(), str(backend))
    assert found == fingerprint(model, 1, config(), str(copy)) != fingerprint(model, 1, config())
    backend.write_text("two")
    assert fingerprint(model, 1, config(), str(backend)) != found


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        fingerprint(tmp_path / "none", 1, config())
