"""A model as it is found: its configuration, its versions, its files; and what is said where it cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorfarm.server.command_line import parse
from tensorfarm.server.repository.override import Override, OverrideFiles
from tensorfarm.server.repository.sighting import DUPLICATE, NotFound, NoVersions, Sighting, Unreadable, check_name, look
from tensorfarm.workers.contract.status import StatusError, internal

from .control import Memory, plain

CONFIG = '{"backend": "python"}'


def seen(source: Memory, name: str = "m", *more: Memory, override: Override | None = None, flags: tuple[str, ...] = ()) -> Sighting:
    return look(name, [source, *more], parse(["--model-repository=r", *flags]), override)


@pytest.fixture
def source(tmp_path: Path) -> Memory:
    return Memory(tmp_path)


def test_a_model_with_its_versions(source: Memory) -> None:
    source.write("m", plain("version_policy { latest { num_versions: 2 } }"), (1, 2, 10), **{"x/file": ""})
    found = seen(source)
    assert (found.name, found.versions, found.overridden) == ("m", (2, 10), False)
    assert found.stamps == source.stamps("m") and found.copy is source.copies[0]
    assert found.warnings == ("ignore version directory 'x' which fails to convert to integral number",)
    assert source.used == source.copies


def test_versions_that_are_not_there_are_told_of(source: Memory) -> None:
    source.write("m", plain("version_policy { specific { versions: [1, 5] } }"))
    assert len(seen(source).errors) == 1


@pytest.mark.parametrize("config", ["{{{", 'name: "other"', 'backend: "python" input [{ name: "X" }]', None])
def test_what_cannot_be_read_says_why_and_keeps_nothing(source: Memory, config: str | None, tmp_path: Path) -> None:
    source.write("m", config)
    with pytest.raises(Unreadable) as raised:
        seen(source, flags=("--disable-auto-complete-config",))
    assert str(tmp_path) not in raised.value.message
    assert raised.value.log.startswith("Poll failed for model directory 'm': ")
    assert source.used == [] and len(source.copies) == 1


def test_no_version_is_no_reading_fault(source: Memory) -> None:
    source.write("m", plain(), ())
    with pytest.raises(NoVersions, match="at least one version must be available under the version policy of model 'm'"):
        seen(source)
    assert source.used == []


def test_nobody_has_it_or_several_have(source: Memory, tmp_path: Path) -> None:
    other = Memory(tmp_path / "other", "other")
    with pytest.raises(NotFound, match="model not found in any model repository"):
        seen(source, "m", other)
    for each in (source, other):
        each.write("m", plain())
    with pytest.raises(NotFound, match=DUPLICATE):
        seen(source, "m", other)
    assert source.copies == other.copies == []


def test_a_repository_that_fails_is_no_model_that_is_not_there(source: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: str) -> None:
        raise internal("no network")

    monkeypatch.setattr(source, "stamps", fail)
    with pytest.raises(Unreadable, match="no network") as raised:
        seen(source)
    assert not isinstance(raised.value, NotFound)


@pytest.mark.parametrize("name", [".", "..", ".m", "m\0", "x" * 256])
def test_names_that_no_folder_has_are_not_looked_for(source: Memory, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "stamps", lambda model: pytest.fail("looked for"))
    with pytest.raises(NotFound):
        seen(source, name)


@pytest.mark.parametrize("name", ["", " ", "\n", "..", " .. ", "a/b", "/", "../m"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(StatusError):
        check_name(name)


@pytest.mark.parametrize("name", ["m", "a b", ".m", "ü", "%2e%2e", "a:b"])
def test_names_that_are_not(name: str) -> None:
    check_name(name)


def test_a_configuration_that_takes_the_place_of_the_files(source: Memory) -> None:
    source.write("m", "{{{", (1, 2))
    found = seen(source, override=Override(CONFIG))
    assert found.overridden and found.versions == (2,) and found.config.name == "m" and found.config.backend == "python"
    with pytest.raises(NotFound):
        seen(source, "absent", override=Override(CONFIG))
    with pytest.raises(Unreadable, match="Invalid config override"):
        seen(source, override=Override("{"))
    assert len(source.used) == 1


def test_files_that_take_the_place_of_the_repository(source: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = OverrideFiles()
    source.write("m", plain())
    override = Override(CONFIG, {"7/model.py": b"x"}, place)
    found = seen(source, override=override)
    assert found.versions == (7,) and not found.overridden and source.copies == []
    assert (found.copy.directory / "7/model.py").read_bytes() == b"x"
    with pytest.raises(NoVersions):
        seen(source, override=Override(CONFIG, {"x": b""}, place))
    found.copy.release()
    [private] = tmp_path.glob("tensorfarm-*")
    assert [path.name for path in private.iterdir()] == ["lock"]
    place.close()
