from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.repository.layout import (
    NoVersion,
    chosen_versions,
    find_config,
    open_file,
    present_versions,
    read_text_file,
    resolve_inside,
    stays_inside,
    subdirectories,
)
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.status import Code, StatusError


def directories(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StatusError, match="failed to open directory") as caught:
        subdirectories(tmp_path / "nowhere")
    assert caught.value.code is Code.INTERNAL


def test_version_directories_as_the_server_reads_them(tmp_path: Path) -> None:
    names = (" 4", "+5", "1e3", "0x10", "12-old", "0", "00", "abc", "-x", "-3", "7 ", ".8", "9.5")
    directories(tmp_path, *names, "warmup", "configs", "initial_state", "9" * 19, "9" * 200)
    (tmp_path / "15").write_text("a file")
    present = present_versions(tmp_path)
    assert present.numbers == (0, 1, 4, 5, 7, 9, 12)
    assert sorted(present.notes) == sorted(
        [
            *(f"ignore version directory '{name}' which contains leading zeros in its directory name" for name in ("00", "0x10")),
            *(
                f"ignore version directory '{name}' which fails to convert to integral number"
                for name in ("-3", "-x", ".8", "abc", "9" * 19, "9" * 200)
            ),
        ]
    )


@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60))
def test_any_name_is_a_version_or_noted(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    if name in (".", "..", "warmup", "configs", "initial_state"):
        return
    root = tmp_path_factory.mktemp("model")
    try:
        (root / name).mkdir()
    except OSError:
        return
    present = present_versions(root)
    match = re.match(r"[ \t-\r]*\+?([0-9]+)", name)
    if len(name) > 1 and name.startswith("0"):
        assert present.numbers == () and "leading zeros" in present.notes[0]
    elif match and int(match[1]) < 2**63:
        assert present.numbers == (int(match[1]),) and present.notes == ()
    else:
        assert present.numbers == () and "fails to convert" in present.notes[0]


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("", (10,)),
        ("version_policy { latest { num_versions: 1 } }", (10,)),
        ("version_policy { latest { num_versions: 2 } }", (9, 10)),
        ("version_policy { latest { num_versions: 9 } }", (1, 2, 9, 10)),
        ("version_policy { all {} }", (1, 2, 9, 10)),
        ("version_policy {}", (1, 2, 9, 10)),
        ("version_policy { specific { versions: [9, 1, 9] } }", (1, 9)),
    ],
)
def test_version_policy(policy: str, chosen: tuple[int, ...]) -> None:
    versions = chosen_versions(parse_text(f'name: "m" {policy}', "x"), [10, 1, 9, 2])
    assert (versions.numbers, versions.notes) == (chosen, ())


def test_specific_versions_that_are_missing_are_noted() -> None:
    config = parse_text('name: "m" version_policy { specific { versions: [1, 8] } }', "x")
    note = "version 8 is specified for model 'm', but the version directory is not present"
    versions = chosen_versions(config, [1, 2])
    assert (versions.numbers, versions.notes) == ((1,), (note,))
    with pytest.raises(NoVersion, match="^at least one version must be available under the version policy of model 'm'$") as caught:
        chosen_versions(config, [2])
    assert caught.value.notes[-1] == note


def test_no_version_at_all() -> None:
    for policy in ("", "version_policy { latest { num_versions: 0 } }"):
        with pytest.raises(NoVersion):
            chosen_versions(parse_text(f'name: "m" {policy}', "x"), [1] if policy else [])


def test_named_configuration_files(tmp_path: Path) -> None:
    assert find_config(tmp_path, "") is None
    directories(tmp_path, "configs")
    (tmp_path / "config.pbtxt").write_text("")
    (tmp_path / "configs" / "big.pbtxt").write_text("")
    assert find_config(tmp_path, "") == tmp_path / "config.pbtxt"
    assert find_config(tmp_path, "big") == tmp_path / "configs" / "big.pbtxt"
    for name in ("small", "../config", "/etc/x"):
        assert find_config(tmp_path, name) == tmp_path / "config.pbtxt"


@pytest.mark.parametrize("path", ["..", "../x", "a/../../x", "/etc/passwd", "a\0b", "a/.."])
def test_paths_that_lead_out(tmp_path: Path, path: str) -> None:
    assert not stays_inside(path)
    with pytest.raises(StatusError, match="must stay within the model directory"):
        resolve_inside(tmp_path, path, "label file")


def test_paths_that_stay(tmp_path: Path) -> None:
    model = directories(tmp_path, "real/m/sub") / "real" / "m"
    (tmp_path / "link").symlink_to(model)
    (model / "alias").symlink_to(model / "sub")
    (model / "out").symlink_to(tmp_path)
    for path in ("", "x", "sub/x", "alias/x", "..x", "a..b/c", "./x"):
        assert stays_inside(path)
        assert resolve_inside(tmp_path / "link", path, "label file").is_relative_to(model)
    with pytest.raises(StatusError, match="^label file 'out/x' must stay within the model directory$"):
        resolve_inside(model, "out/x", "label file")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file$"):
        open_file(tmp_path / "pipe")


def test_texts_have_a_bound(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("x")
    assert read_text_file(file) == b"x"
    os.truncate(file, 1 << 40)
    with pytest.raises(OSError, match="longer than 16 MiB$"):
        read_text_file(file)
