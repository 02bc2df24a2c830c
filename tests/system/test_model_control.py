"""Models that are replaced, loaded and unloaded under load: nobody who asks notices more than another answer."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ..generations import BODY, Askers, config_text, generation_of, replace, write_ensemble, write_generation
from ..servers import Server, child_pids, tensorfarm, wait_until

EXPLICIT = "--model-control-mode=explicit"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose models are loaded by request; its repository is ``repository_of``."""
    root = tmp_path_factory.mktemp("control")
    (root / "models").mkdir()
    with tensorfarm(root / "models", EXPLICIT, folder=root / "run") as running:
        yield running


def repository_of(server: Server) -> Path:
    """Where a server's models lie."""
    return server.folder.parent / "models"


def load(server: Server, name: str) -> int:
    """Load a model; returns the status."""
    return server.ask("POST", f"/v2/repository/models/{name}/load").status


def unload(server: Server, name: str) -> int:
    """Unload a model; returns the status."""
    return server.ask("POST", f"/v2/repository/models/{name}/unload").status


def generation(server: Server, name: str) -> int:
    """The generation that a model answers to be of."""
    return generation_of(server.ask("POST", f"/v2/models/{name}/infer", BODY))


def state(server: Server, name: str) -> str:
    """What the index says of a model that has one version."""
    (entry,) = [entry for entry in server.ask("POST", "/v2/repository/index").json if entry["name"] == name]
    return str(entry.get("state", ""))


def reload(server: Server, askers: Askers, write: Callable[[int], None], name: str, numbers: Iterable[int]) -> None:
    """Make these generations, one after another, each with answers of it."""
    for number in numbers:
        write(number)
        askers.most = number
        assert load(server, name) == 200, server.log[-3000:]
        askers.least = number
        answer_of(askers, number)


def answer_of(askers: Askers, number: int) -> None:
    """Wait until a generation has answered."""
    wait_until(lambda: askers.answered[number] or askers.problems, f"an answer of generation {number}")
    assert not askers.problems, askers.problems[:3]


@pytest.mark.parametrize(("backend", "times"), [("onnxruntime", 100), ("python", 12)])
def test_reloads_under_load(backend: str, times: int, server: Server) -> None:
    """Each answer is wholly of one generation, and of none that is older than the last load that had returned."""
    name = f"reloaded_{backend}"

    def write(number: int) -> None:
        write_generation(repository_of(server), name, number, backend)

    write(1)
    assert load(server, name) == 200
    with asking(server, name) as askers:
        reload(server, askers, write, name, range(2, 2 + times))
    assert len(askers.answered) == times + 1
    unload(server, name)


def test_member_reloaded_under_load(server: Server) -> None:
    """Clients ask the ensemble over it, which changes with it, or follows."""
    repository = repository_of(server)

    def both(number: int) -> None:
        write_generation(repository, "member", number, "onnxruntime")
        write_ensemble(repository, "over", "member", number)

    def member(number: int) -> None:
        write_generation(repository, "member", number, "onnxruntime")

    both(1)
    assert load(server, "over") == 200
    with asking(server, "over") as askers:
        reload(server, askers, both, "over", range(2, 22))
        reload(server, askers, member, "member", range(24, 84, 3))  # of one length, as the ensemble's configuration has it
    unload(server, "over")
    unload(server, "member")


@contextlib.contextmanager
def asking(server: Server, name: str, **how: Any) -> Iterator[Askers]:
    """Clients that ask a model all the time, and get right answers only."""
    askers = Askers(server.http_port, name, **how)
    try:
        yield askers
    finally:
        askers.stop()


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_failed_reloads_under_load(backend: str, server: Server) -> None:
    """The old generation goes on, the answer and the index say why, and the next one that is right takes over."""
    name = f"failing_{backend}"
    folder = repository_of(server) / name
    broken: list[tuple[str, Callable[[], None], str]] = [
        ("config.pbtxt", lambda: replace(folder / "config.pbtxt", b"{"), "failed to read text proto"),
        ("backend", lambda: replace(folder / "config.pbtxt", b'name: "%b" backend: "nosuch"' % name.encode()), "nosuch"),
        ("versions", lambda: shutil.rmtree(folder / "1"), "at least one version must be available"),
    ]
    if backend == "python":
        broken.append(("initialize", lambda: write(99, initialize="raise ValueError('not this one')"), "not this one"))
        broken.append(("dies", lambda: write(99, initialize="os._exit(3)"), ""))
    else:
        broken.append(("file", lambda: replace(folder / "1" / "model.onnx", b"no model"), "onnx"))
        broken.append(("outputs", lambda: replace(folder / "config.pbtxt", config_text(name, 1, backend).encode()), "the model expects"))

    def write(number: int, **how: str) -> None:
        write_generation(repository_of(server), name, number, backend, **how)

    write(1)
    assert load(server, name) == 200
    with asking(server, name) as askers:
        for number, (what, spoil, why) in enumerate(broken, 2):
            spoil()
            reply = server.ask("POST", f"/v2/repository/models/{name}/load")
            assert reply.status in (400, 500) and why in reply.error, (what, reply.body)
            (entry,) = [entry for entry in server.ask("POST", "/v2/repository/index").json if entry["name"] == name]
            assert entry["state"] == "READY" and entry["reason"] and why in entry["reason"], (what, entry)
            assert server.model_ready(name)
            write(number)
            askers.most = number
            assert load(server, name) == 200, what
            askers.least = number
            answer_of(askers, number)
            (entry,) = [entry for entry in server.ask("POST", "/v2/repository/index").json if entry["name"] == name]
            assert entry == {"name": name, "version": "1", "state": "READY"}
    unload(server, name)


STORM_S = 2.0


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_loads_and_unloads_of_one_model_at_once(backend: str, server: Server) -> None:
    """All are answered, nothing hangs, and the last one counts."""
    name = f"storm_{backend}"
    number = itertools.count(4, 3)  # of one length, so that any of them fits the configuration
    write_generation(repository_of(server), name, 1, backend)
    assert load(server, name) == 200
    end = time.monotonic() + STORM_S
    statuses: list[int] = []

    def change(at: int) -> None:
        verbs = itertools.cycle(["load", "load", "unload"] if at % 2 else ["load", "unload"])
        while time.monotonic() < end:
            if at == 0:
                newest = next(number)
                askers.most = newest
                write_generation(repository_of(server), name, newest, backend)
            statuses.append(server.ask("POST", f"/v2/repository/models/{name}/{next(verbs)}").status)

    with asking(server, name, count=4, may_be_absent=True) as askers, ThreadPoolExecutor(16) as executor:
        for one in [executor.submit(change, at) for at in range(16)]:
            one.result()
        assert set(statuses) == {200}
        assert load(server, name) == 200
        assert generation(server, name) == askers.most
        assert unload(server, name) == 200
        assert server.ask("POST", f"/v2/models/{name}/infer", BODY).status == 404
        wait_until(lambda: state(server, name) == "UNAVAILABLE", "the end of all versions")
    assert askers.total
    assert load(server, name) == 200
    assert generation(server, name) == askers.most
    assert unload(server, name) == 200


def test_nothing_is_left(server: Server) -> None:
    """After all that: no process of a model, no file, nothing in flight."""
    wait_until(lambda: len(child_pids(server.pid)) <= 1, "the models' processes to end")
    assert not [entry for entry in server.ask("POST", "/v2/repository/index", {"ready": True}).json]


def test_everything_is_given_back(tmp_path: Path) -> None:
    """Descriptors and processes to the last one; memory, of which a short run tells little, within some bounds."""
    program = Path(__file__).resolve().parents[2] / "scripts" / "soak_model_control.py"

    def soak(backend: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / backend
        folder.mkdir()
        command = [sys.executable, str(program), "--cycles=25", "--first=8", "--requests=2", "--most-growth=10", f"--backend={backend}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=folder, check=False)  # noqa: S603 # our own program

    with ThreadPoolExecutor() as executor:
        for done in executor.map(soak, ("onnxruntime", "python")):
            assert done.returncode == 0, done.stdout + done.stderr
