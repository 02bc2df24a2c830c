"""Interpreters that models bring: found, tried once, unpacked safely from archives, and told apart from what does not work."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tensorfarm.server.farm import archive as archive_module
from tensorfarm.server.farm import interpreter as interpreter_module
from tensorfarm.server.farm.environments import Environments
from tensorfarm.server.farm.interpreter import OWN, Interpreter, resolve
from tensorfarm.workers.contract.status import Code, StatusError

from .archives import add_file, archive_of

PATIENCE_S = 30.0

# libuv makes a pipe with its first loop and keeps it: that is to be before the leak check looks
uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The system's folder for temporary files, of this test alone."""
    # pytest's own folder, which it makes at the first question, is to outlive the test
    tmp_path_factory.getbasetemp()
    with tempfile.TemporaryDirectory(prefix="tf-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def run(work: Callable[[Environments], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        environments = Environments()
        try:
            await asyncio.wait_for(work(environments), PATIENCE_S)
        finally:
            await environments.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def script(path: Path, line: str) -> Path:
    """An executable file that runs a line of shell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def working(folder: Path, tally: Path | None = None) -> Path:
    """An environment whose Python is this one; each run of it adds a line to ``tally``."""
    count = f"echo >> '{tally}'\n" if tally else ""
    script(folder / "bin" / "python", f"{count}exec '{sys.executable}' \"$@\"")
    (folder / "bin" / "activate").touch()
    return folder


def refusal(path_text: str | Path, model_directory: str = "/models/m") -> str:
    """What is said of an interpreter that is refused."""
    said = []

    async def work(environments: Environments) -> None:
        with pytest.raises(StatusError) as raised:
            await resolve(str(path_text), model_directory, environments)
        assert raised.value.code is Code.INTERNAL
        said.append(raised.value.message)

    run(work)
    return said[0]


# where it is


def test_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PYTHONHOME": "/of/the/server",
        "CONDA_PREFIX": "/x",
        "VIRTUAL_ENV": "/y",
        "PATH": "/bin:/usr/bin",
        "LD_LIBRARY_PATH": "/lib",
        "KEPT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    home = working(tmp_path / "env")

    async def work(environments: Environments) -> None:
        found = await resolve(str(home), "/models/m", environments)
        assert found.program == str(home / "bin" / "python")
        environment = found.environment()
        assert environment is not None and environment["KEPT"] == "1"
        assert environment["CONDA_PREFIX"] == str(home) and not {"PYTHONHOME", "VIRTUAL_ENV"} & set(environment)
        assert environment["PATH"] == f"{home}/bin:/bin:/usr/bin" and environment["LD_LIBRARY_PATH"] == f"{home}/lib:/lib"
        monkeypatch.delenv("LD_LIBRARY_PATH")
        (home / "pyvenv.cfg").touch()
        environment = (await resolve(str(home), "/models/m", environments)).environment()
        assert environment is not None and environment["VIRTUAL_ENV"] == str(home) and "CONDA_PREFIX" not in environment
        assert environment["LD_LIBRARY_PATH"] == f"{home}/lib"

    monkeypatch.delenv("PYTHONHOME")
    run(work)


def test_the_own_interpreter_gets_the_servers_environment() -> None:
    assert OWN.program == sys.executable and OWN.environment() is None
    environment = Interpreter(sys.executable, {"NEW": "1"}).environment()
    assert environment is not None and environment["NEW"] == "1"


def test_a_place_in_the_models_directory(tmp_path: Path) -> None:
    working(tmp_path / "env")

    async def work(environments: Environments) -> None:
        found = await resolve("$$TRITON_MODEL_DIRECTORY/env", str(tmp_path), environments)
        assert found.program == str(tmp_path / "env" / "bin" / "python")

    run(work)
    assert refusal("/x/$$TRITON_MODEL_DIRECTORY", str(tmp_path)) == "Failed to get the canonical path for /x/$$TRITON_MODEL_DIRECTORY."


def test_a_program(tmp_path: Path) -> None:
    program = working(tmp_path).joinpath("bin", "python")
    link = tmp_path / "link"
    link.symlink_to(program)

    async def work(environments: Environments) -> None:
        assert await resolve(str(link), "/models/m", environments) == Interpreter(str(link), {})

    run(work)


def test_what_is_nothing_of_the_kind(tmp_path: Path) -> None:
    file = tmp_path / "environment.zip"
    file.touch()
    assert refusal(file) == f"EXECUTION_ENV_PATH '{file}' is neither a directory nor an archive (.tar.gz, .tgz, .tar) nor a program"
    os.mkfifo(tmp_path / "pipe.tar")
    assert "neither a directory" in refusal(tmp_path / "pipe.tar")
    assert refusal(tmp_path / "none") == f"Failed to get the canonical path for {tmp_path}/none."
    assert refusal("a\0b").startswith("Failed to get the canonical path for ")
    assert refusal(tmp_path) == f"Path {tmp_path}/bin/activate does not exist. The Python environment should contain an 'activate' script."
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    assert refusal(tmp_path) == f"the Python environment '{tmp_path}' has no program bin/python that can be run on this machine"


# whether it works


@pytest.mark.parametrize(("line", "complaint"), [
    ("exit 3", "does not work: it ended with code 3 before it ran anything"),
    ("echo tensorfarm python 3.9; echo tensorfarm numpy 2.0.0", "is version 3.9; workers need 3.10 or later"),
    ("echo tensorfarm python 3.10; echo tensorfarm numpy 1.21.6", "has numpy 1.21.6; workers need 1.22 or later"),
    ("echo tensorfarm python 3.12; kill -SEGV $$", "ended with code -11 while it imported numpy"),
    (f"exec '{sys.executable}' -I -S \"$@\"", "has no numpy that can be imported; install it there, workers need nothing else"),
])  # fmt: skip
def test_interpreters_that_do_not_work(tmp_path: Path, line: str, complaint: str) -> None:
    assert refusal(script(tmp_path / "python", line)) == f"the Python of '{tmp_path}/python' {complaint}"


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_bytes(b"\x7fELF of another machine")
    program.chmod(0o755)
    assert re.search("cannot be run: Exec format error$|it ended with code 127 before it ran anything$", refusal(program))


def test_an_interpreter_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter_module, "CHECK_TIMEOUT_SECS", 0.1)
    assert "did not import numpy within 0.1 s" in refusal(script(tmp_path / "python", "sleep 100 & sleep 100"))


def test_an_interpreter_that_talks_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter_module, "CHECK_TIMEOUT_SECS", 0.5)
    assert "did not import numpy within 0.5 s" in refusal(script(tmp_path / "python", "exec yes tensorfarm"))


def test_the_folder_the_server_was_started_in_is_no_place_to_import_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)
    home = working(tmp_path / "env")

    async def work(environments: Environments) -> None:
        await resolve(str(home), "/models/m", environments)

    run(work)


def test_an_interpreter_is_tried_once_and_failures_are_forgotten(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    home = working(tmp_path / "env", tally)

    async def work(environments: Environments) -> None:
        program = home / "bin" / "python"
        program.chmod(0o644)
        with pytest.raises(StatusError):
            await resolve(str(home), "/models/m", environments)
        program.chmod(0o755)
        await asyncio.gather(*[resolve(str(home), "/models/m", environments) for _ in range(3)])
        await resolve(str(home), "/models/other", environments)
        assert tally.read_text() == "\n"
        script(program, "exit 1")
        for _ in range(2):
            with pytest.raises(StatusError, match="code 1"):
                await resolve(str(home), "/models/m", environments)
        working(home, tally)
        await resolve(str(home), "/models/m", environments)

    run(work)


# archives


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar"])
def test_an_archive_is_unpacked_once(tmp_path: Path, temporary: Path, suffix: str) -> None:
    packed = archive_of(working(tmp_path / "env"), tmp_path / f"packed{suffix}")

    async def work(environments: Environments) -> None:
        first, second = await asyncio.gather(*[resolve(str(packed), f"/models/{number}", environments) for number in range(2)])
        assert first == second
        (private,) = temporary.iterdir()
        assert private.stat().st_mode & 0o777 == 0o700 and Path(first.program).is_relative_to(private)
        assert sorted(path.name for path in private.iterdir()) == ["1", "lock"]
        os.utime(packed, (1, 1))
        again = await resolve(str(packed), "/models/m", environments)
        assert again.program == str(private / "2" / "bin" / "python")

    run(work)
    assert list(temporary.iterdir()) == []


def test_a_refused_archive_leaves_nothing_and_is_looked_at_again(tmp_path: Path, temporary: Path) -> None:
    packed = tmp_path / "packed.tar.gz"

    async def work(environments: Environments) -> None:
        for content in (b"no archive", b"\x1f\x8bno archive", b""):
            packed.write_bytes(content)
            with pytest.raises(
                StatusError, match=f"^the Python environment '{packed}' could not be unpacked: it is damaged, or no tar archive"
            ) as raised:
                await resolve(str(packed), "/models/m", environments)
            assert raised.value.code is Code.INTERNAL
        archive_of(working(tmp_path / "env"), packed)
        whole = packed.read_bytes()
        packed.write_bytes(whole[:-20])
        with pytest.raises(StatusError, match="damaged"):
            await resolve(str(packed), "/models/m", environments)
        assert [path.name for path in next(temporary.iterdir()).iterdir()] == ["lock"]
        packed.write_bytes(whole)
        await resolve(str(packed), "/models/m", environments)

    run(work)


def test_an_archive_without_python(tmp_path: Path) -> None:
    packed = archive_of(script(tmp_path / "env" / "file", "").parent, tmp_path / "packed.tar.gz")
    assert refusal(packed) == f"Path {packed}/bin/activate does not exist. The Python environment should contain an 'activate' script."


def test_an_archive_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = archive_of(working(tmp_path / "env"), tmp_path / "packed.tar")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert refusal(packed) == f"the Python environment '{packed}' could not be unpacked: No such file or directory"


def test_the_servers_end_stops_unpacking(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "packed.tar"
    add_file(packed, "large", 64 << 20)
    monkeypatch.setattr(archive_module, "_READ_BYTE_SIZE", 64)

    async def main() -> None:
        environments = Environments()
        waiting = asyncio.ensure_future(resolve(str(packed), "/models/m", environments))
        deadline = time.monotonic() + PATIENCE_S
        while not list(temporary.glob("*/1/large")):
            assert time.monotonic() < deadline and not waiting.done()
            await asyncio.sleep(0.001)
        await environments.close()
        with pytest.raises((StatusError, asyncio.CancelledError)):
            await waiting
        assert list(temporary.iterdir()) == []

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_one_who_gives_up_waiting_stops_nobody_else(tmp_path: Path) -> None:
    packed = archive_of(working(tmp_path / "env"), tmp_path / "packed.tar")

    async def work(environments: Environments) -> None:
        first, second = (asyncio.ensure_future(resolve(str(packed), "/models/m", environments)) for _ in range(2))
        while not environments._tasks:
            await asyncio.sleep(0.001)
        first.cancel()
        assert Path((await second).program).exists()

    run(work)


def test_what_killed_servers_left_is_swept(temporary: Path) -> None:
    stale = temporary / "tensorfarm-stale"
    (stale / "1" / "bin").mkdir(parents=True)
    (stale / "lock").touch()
    foreign = temporary / "tensorfarm-of-somebody"
    foreign.mkdir()

    async def work(environments: Environments) -> None:
        assert list(temporary.iterdir()) == [foreign]

    run(work)


def test_a_hasty_end_removes_what_was_unpacked(tmp_path: Path, temporary: Path) -> None:
    packed = archive_of(working(tmp_path / "env"), tmp_path / "packed.tar")

    async def work(environments: Environments) -> None:
        await resolve(str(packed), "/models/m", environments)
        environments.end_now()
        assert list(temporary.iterdir()) == []

    run(work)


def test_a_real_environment_of_another_python(foreign: Path) -> None:
    async def work(environments: Environments) -> None:
        found = await resolve(str(foreign), "/models/m", environments)
        assert found.variables["VIRTUAL_ENV"] == str(foreign)

    run(work)
