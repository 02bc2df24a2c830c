"""Repositories that are folders: what a model's stamps tell, and where looking ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tensorfarm.server.repository import folder
from tensorfarm.server.repository.folder import Folder, FolderCopy


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_stamps_change_with_a_file_and_only_with_it(tmp_path: Path) -> None:
    for name in ("config.pbtxt", "1/model.py", "1/__pycache__/model.pyc"):
        write(tmp_path / "m" / name)
    source = Folder(str(tmp_path))
    before = source.stamps("m")
    assert before is not None and set(before) == {"config.pbtxt", "1/", "1/model.py"}
    assert source.stamps("m") == before
    write(tmp_path / "m" / "1" / "model.py", "new")
    after = source.stamps("m")
    assert after is not None and {name for name in after if after[name] != before[name]} == {"1/model.py"}


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "m/1", "m\0", "n" * 300, "file"])
def test_what_is_no_model(tmp_path: Path, name: str) -> None:
    write(tmp_path / "m" / "1" / "model.py")
    write(tmp_path / ".hidden" / "1" / "model.py")
    write(tmp_path / "file")
    assert Folder(str(tmp_path)).stamps(name) is None


def test_links_back_end_and_pipes_are_not_opened(tmp_path: Path) -> None:
    write(tmp_path / "m" / "1" / "model.py")
    (tmp_path / "m" / "1" / "back").symlink_to(tmp_path / "m")
    (tmp_path / "m" / "nowhere").symlink_to("nowhere")
    os.mkfifo(tmp_path / "m" / "config.pbtxt")
    stamps = Folder(str(tmp_path)).stamps("m")
    assert stamps is not None and set(stamps) == {"config.pbtxt", "1/", "1/model.py", "nowhere"}


def test_a_link_to_much_is_not_followed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        write(tmp_path / "much" / f"{number}" / "file")
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    (tmp_path / "models" / "m" / "link").symlink_to(tmp_path / "much")
    looked: list[str] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (looked.append(path), real(path))[1])
    monkeypatch.setattr(folder, "MAX_FILES", 20)
    stamps = Folder(str(tmp_path / "models")).stamps("m")
    assert stamps is not None and len(stamps) == 20
    assert len(looked) < 20, "and no more is looked at"


def test_models_are_the_visible_folders(tmp_path: Path) -> None:
    for name in ("b", "a", ".git", "model..1"):
        (tmp_path / name).mkdir()
    (tmp_path / "README.md").write_text("no model")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    assert Folder(str(tmp_path)).model_names() == ["a", "b", "linked", "model..1"]


@pytest.mark.parametrize("name", ["", ".", "..", "../one", "a/../b", "/etc", ".hidden", "a\0", "file", "a/1", "x" * 300])
def test_a_name_never_leads_out_of_the_repository(tmp_path: Path, name: str) -> None:
    for path in ("a/1", ".hidden"):
        (tmp_path / "one" / path).mkdir(parents=True)
    (tmp_path / "one" / "file").write_text("")
    assert Folder(str(tmp_path / "one")).stamps(name) is None
    assert Folder(str(tmp_path / "one")).stamps("a") == {"1/": None}


def test_a_copy_knows_which_versions_have_changed(tmp_path: Path) -> None:
    """Its configurations are others' business."""
    for name in ("config.pbtxt", "labels.txt", "1/model.py", "2/model.py"):
        write(tmp_path / "m" / name)
    source = Folder(str(tmp_path))

    def changed() -> list[bool]:
        return [copy.changed(1), copy.changed(2)]

    def copied() -> FolderCopy:
        stamps = source.stamps("m")
        assert stamps is not None
        return source.copy("m", stamps)

    copy = copied()
    write(tmp_path / "m" / "config.pbtxt", "other")
    write(tmp_path / "m" / "3" / "model.py")
    assert changed() == [False, False]
    write(tmp_path / "m" / "2" / "model.py", "other")
    assert changed() == [False, True]
    copy = copied()
    write(tmp_path / "m" / "labels.txt", "other")
    assert changed() == [True, True]
    copy = copied()
    (tmp_path / "m").rename(tmp_path / "gone")
    assert changed() == [True, True]
