"""Models that share resources under ``--rate-limit=execution_count``: never together, each in its turn, and nobody else waits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from ..limited_models import Gates, put, resource, shares
from ..servers import Server, tensorfarm, wait_until
from .test_python_death import instances

R, S = resource("R", 1), resource("S", 1)


@pytest.fixture(scope="module")
def server_and_gates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Gates]]:
    root = tmp_path_factory.mktemp("limited")
    models = root / "models"
    put(models, root, "first", f"{R} priority: 1", calls="second")
    put(models, root, "second", f"{R} priority: 2")
    put(models, root, "other", S)
    put(models, root, "free", "")
    put(models, root, "needy", resource("R", 2))
    put(models, root, "unheard", resource("T", 1))
    put(models, root, "both", f"{S} {resource('S', 1, everywhere=True)}")
    flags = ("--rate-limit=execution_count", "--rate-limit-resource=R:1", "--rate-limit-resource=S:1:0", "--disable-auto-complete-config")
    loads = [f"--load-model={name}" for name in ("first", "second", "other", "free")]
    with tensorfarm(models, *flags, "--model-control-mode=explicit", *loads, folder=root / "run") as server:
        yield server, Gates(server, root)


@pytest.fixture
def server(server_and_gates: tuple[Server, Gates]) -> Server:
    return server_and_gates[0]


@pytest.fixture
def gates(server_and_gates: tuple[Server, Gates]) -> Iterator[Gates]:
    yield server_and_gates[1]
    server_and_gates[1].finish()


def test_turns_by_priority_and_never_together(gates: Gates) -> None:
    assert shares(gates, "first", "second") == (6, 3)


def test_nobody_waits_for_what_others_share(gates: Gates) -> None:
    gates.ask("first")
    gates.wait_running("first")
    gates.queue(["second"])
    for name in ("other", "free"):
        gates.ask(name)
    gates.wait_running("first", "free", "other")
    gates.queue(["other"])
    gates.end_any("first")
    gates.wait_running("second", "free", "other")


LIMITED = 'Resource count for "{}" is limited to {} which will prevent scheduling of one or more model instances, the minimum required count is {}'


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("needy", LIMITED.format("R", 1, 2)),
        ("unheard", LIMITED.format("T", 0, 1)),
        ("both", 'Resource "S" is present as both global and device-specific resource in the model configuration.'),
    ],
)
def test_loads_that_fail(model: str, reason: str, server: Server) -> None:
    reply = server.ask("POST", f"/v2/repository/models/{model}/load", {})
    assert reply.status == 400
    assert f"Invalid argument: {reason}" in reply.error
    [entry] = [one for one in server.ask("POST", "/v2/repository/index").json if one["name"] == model]
    assert entry["reason"] == f"Invalid argument: {reason}"


def test_a_call_to_one_that_needs_what_its_caller_holds(gates: Gates) -> None:
    """It fails at once, and the caller goes on."""
    name = gates.ask("first", "calls")
    assert gates.end(name).status == 200
    notes = (gates.folder / "first.notes").read_text()
    assert f"{name} heard" in notes and "this call would wait for ever" in notes


def test_a_dead_worker_holds_nothing(server: Server, gates: Gates) -> None:
    name = gates.ask("first")
    gates.wait_running("first")
    gates.queue(["second"])
    [worker] = instances(server, "first")
    os.kill(worker, signal.SIGKILL)
    assert gates.lost(name).status == 503
    gates.wait_running("second")
    wait_until(lambda: server.model_ready("first"), "the model to be there again")
