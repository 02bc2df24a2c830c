"""The folders of a repository."""

from __future__ import annotations

from pathlib import Path

from tensorfarm.server.check.findings import Severity
from tensorfarm.server.check.run import DUPLICATE

from .found import IO, check, found, lines, onnx_folder, python_model


def test_folders_that_look_like_versions_and_are_none(tmp_path: Path) -> None:
    for name in ("v1", "01", "1.0", "2-old"):
        python_model(tmp_path, f"m{name}", version=name)
    folder = python_model(tmp_path, "good")
    for name in ("configs", "warmup", "initial_state", "__pycache__", ".git"):
        (folder / name).mkdir()
    (folder / "assets").mkdir()
    by_model = found(str(tmp_path))
    assert lines(by_model["good"], tmp_path) == ["good/assets note is ignored: its name is no version number"]
    assert lines(by_model["mv1"], tmp_path) == [
        "mv1 error has no version: a version is a folder whose name is a number",
        "mv1/v1 warning is ignored: its name is no version number",
    ]
    assert by_model["mv1"][1].hint == "if it is a version, rename it to 1"
    assert "leading zeros" in by_model["m01"][1].message
    assert [each.message for each in by_model["m1.0"]] == ["is read as version 1, whose files are looked for in '1'", "is missing"]
    assert [each.severity for each in by_model["m2-old"]] == [Severity.WARNING, Severity.ERROR]


def test_model_files_and_configurations_in_the_wrong_place(tmp_path: Path) -> None:
    folder = onnx_folder(tmp_path, "m")
    (folder / "1" / "model.onnx").rename(folder / "model.onnx")
    (folder / "config.pbtxt.txt").touch()
    (tmp_path / "model.py").touch()
    by_model = found(str(tmp_path))
    warnings = [each for each in by_model["m"] if each.severity is Severity.WARNING]
    assert {Path(each.path).name: each.hint for each in warnings} == {
        "model.onnx": f"move it to {folder / '1' / 'model.onnx'}",
        "config.pbtxt.txt": "rename it to config.pbtxt",
    }
    assert any(each.severity is Severity.ERROR for each in by_model["m"])
    assert lines(by_model[""], tmp_path) == ["model.py warning is not read: a model file lies in <model>/<version>/"]


def test_circles_and_dangling_links_spoil_nothing_else(tmp_path: Path) -> None:
    folder = python_model(tmp_path, "good")
    for place in (tmp_path, folder):
        (place / "circle").symlink_to("circle")
        (place / "nowhere").symlink_to("missing")
    (folder / "parent").symlink_to("..")
    by_model = found(str(tmp_path))
    assert [each.severity for each in by_model[""]] == [Severity.WARNING] * 2
    assert {Path(each.path).name: each.severity for each in by_model["good"]} == {
        "circle": Severity.WARNING,
        "nowhere": Severity.WARNING,
        "parent": Severity.NOTE,
    }


def test_what_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    python_model(tmp_path / "models", "m")
    (tmp_path / "nothing").mkdir()
    for name, severity, text in (
        ("missing", Severity.ERROR, "No such file or directory"),
        ("file", Severity.ERROR, "Not a directory"),
        ("nothing", Severity.WARNING, "has no models"),
        ("models/m", Severity.WARNING, "has a config.pbtxt itself"),
    ):
        first = found(str(tmp_path / name))[""][0]
        assert first.severity is severity
        assert text in first.message
        assert first.path == str(tmp_path / name)


def test_one_name_in_two_repositories(tmp_path: Path) -> None:
    for name in ("one", "two"):
        python_model(tmp_path / name, "m")
    words = [str(tmp_path / "one"), str(tmp_path / "two")]
    reports = check(*words)
    assert [(report.name, [each.message for each in report.findings]) for report in reports] == [("m", [DUPLICATE]), ("m", [DUPLICATE])]
    assert str(tmp_path / "two" / "m") in reports[0].findings[0].hint
    assert [report.findings for report in check(*words, "--model-namespacing=true")] == [(), ()]


def test_versions_of_a_policy(tmp_path: Path) -> None:
    folder = python_model(tmp_path, "m", IO + "version_policy { latest { num_versions: 1 } }")
    (folder / "2").mkdir()
    [one] = found(str(tmp_path))["m"]
    assert (one.path, one.message) == (str(folder / "2" / "model.py"), "is missing")
