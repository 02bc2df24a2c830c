"""What a load request brings: checked, written to a private folder, gone afterwards."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.repository.override import Override, OverrideFiles, override_of
from tensorfarm.workers.contract.status import StatusError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OverrideFiles:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return OverrideFiles()


def of(**files: bytes) -> Override:
    found = override_of({"config": "{}", **{f"file:{path}": content for path, content in files.items()}}, OverrideFiles())
    assert found is not None
    return found


def test_nothing_is_asked_for() -> None:
    assert override_of({}, OverrideFiles()) is None


def test_a_configuration_alone_needs_no_folder() -> None:
    assert override_of({"config": "{}"}, OverrideFiles()) is not None


@pytest.mark.parametrize(
    ("path", "kept"), [("1/model.py", "1/model.py"), ("./1//model.py", "1/model.py"), ("1/../2/x", "2/x"), ("ü/~", "ü/~")]
)
def test_paths_are_brought_to_one_form(path: str, kept: str) -> None:
    assert list(of(**{path: b""}).files) == [kept]


@pytest.mark.parametrize("path", ["", ".", "..", "../x", "1/../../x", "/etc/x", "//x", "a\0b"])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(StatusError, match="must stay within model directory"):
        of(**{path: b""})


@pytest.mark.parametrize("parameters", [{"config": "{}", "file": b""}, {"config": "{}", "x": b""}, {"config": "{}", "file:x": "text"}])
def test_parameters_that_nobody_knows_are_refused(parameters: dict[str, object]) -> None:
    with pytest.raises(StatusError, match="Unrecognized load parameter"):
        override_of(parameters, OverrideFiles())


def test_files_without_a_configuration_are_refused() -> None:
    with pytest.raises(StatusError, match="'config' must be specified"):
        override_of({"file:1/x": b""}, OverrideFiles())


def test_stamps_are_those_of_the_content() -> None:
    one, same, other = of(**{"1/a/x": b"1", "y": b""}), of(**{"y": b"", "1/a/x": b"1"}), of(**{"1/a/x": b"2", "y": b""})
    assert one.stamps() == same.stamps() != other.stamps()
    assert {path for path, stamp in one.stamps().items() if stamp is None} == {"1/", "1/a/"}


def test_files_are_written_and_go_again(place: OverrideFiles, tmp_path: Path) -> None:
    override = override_of({"config": "{}", "file:1/model.py": b"x", "file:7/deep/er/y": b"yy"}, place)
    assert override is not None
    copies = [override.copy("m"), override.copy("m")]
    for copy in copies:
        assert (copy.directory / "1/model.py").read_bytes() == b"x" and (copy.directory / "7/deep/er/y").read_bytes() == b"yy"
        assert copy.directory.stat().st_uid == os.geteuid()
    [private] = tmp_path.glob("tensorfarm-*")
    assert private.stat().st_mode & 0o077 == 0
    copies[0].release()
    assert not copies[0].directory.exists() and copies[1].directory.exists()
    copies[0].release()
    place.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("paths", [("1", "1/x"), ("x" * 300,), ("/".join("d" * 250 for _ in range(20)),)])
def test_files_that_cannot_be_written_leave_nothing(place: OverrideFiles, tmp_path: Path, paths: tuple[str, ...]) -> None:
    override = override_of({"config": "{}", **{f"file:{path}": b"" for path in paths}}, place)
    assert override is not None
    with pytest.raises(StatusError, match="could not be written") as raised:
        override.copy("m")
    assert str(tmp_path) not in raised.value.message
    [private] = tmp_path.glob("tensorfarm-*")
    assert [path.name for path in private.iterdir()] == ["lock"]
    place.close()


def test_no_room_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(StatusError, match="could not be kept: No such file"):
        OverrideFiles().folder()


def test_many_at_once_share_one_private_folder(place: OverrideFiles, tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def make() -> None:
        start.wait(10)
        place.folder()

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    [private] = tmp_path.glob("tensorfarm-*")
    assert len(list(private.iterdir())) == 8 + 1
    place.close()


@given(st.text(st.sampled_from("./a\0\udcff~ "), max_size=12))
def test_no_path_ever_leads_out(path: str) -> None:
    try:
        override = override_of({"config": "{}", f"file:{path}": b""}, OverrideFiles())
    except StatusError:
        return
    assert override is not None
    [kept] = override.files
    assert os.path.normpath(os.path.join("/r/m", kept)).startswith("/r/m/")
