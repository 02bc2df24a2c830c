from __future__ import annotations

import os
from pathlib import Path

import pytest

from tensorfarm.server.repository.labels import read_labels
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.status import Code, StatusError


def test_one_label_a_line_and_the_line_is_the_class(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("cat\n\nsheep dog\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("é", encoding="utf-8")
    config = parse_text(
        'output { name: "x" label_filename: "a.txt" } output { name: "y" } output { name: "z" label_filename: "b.txt" }', "x"
    )
    assert read_labels(tmp_path, config) == {"x": ["cat", "", "sheep dog"], "z": ["é"]}


def test_a_missing_file_is_named_without_the_directories_of_the_server(tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.mkdir()
    with pytest.raises(StatusError) as caught:
        read_labels(model, parse_text('output { name: "x" label_filename: "l.txt" }', "x"))
    assert caught.value.code is Code.INTERNAL
    assert caught.value.message == "failed to open text file for read m/l.txt: No such file or directory"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "link"])
def test_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    model = tmp_path / "m"
    model.mkdir()
    (tmp_path / "secret").write_text("s")
    (model / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(StatusError, match="^label file '.*' must stay within the model directory$") as caught:
        read_labels(model, parse_text(f'output {{ name: "x" label_filename: "{name}" }}', "x"))
    assert caught.value.code is Code.INVALID_ARG


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"cat\r\ndog\r\n")
    assert read_labels(tmp_path, parse_text('output { name: "x" label_filename: "a.txt" }', "x")) == {"x": ["cat", "dog"]}


def test_a_pipe_is_no_label_file(tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.mkdir()
    os.mkfifo(model / "pipe")
    with pytest.raises(StatusError) as caught:
        read_labels(model, parse_text('output { name: "x" label_filename: "pipe" }', "x"))
    assert caught.value.message == "failed to open text file for read m/pipe: not a regular file"
