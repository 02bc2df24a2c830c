"""Explicit mode while something takes time: loads that are not done, requests that are answered by what is replaced or unloaded."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from ..wire import Reply
from .control_script import Outcomes, Play, Script, infer_body, infer_path


def begin_infer(run: Script, name: str) -> Future[Reply]:
    return run.begin("POST", infer_path(name), infer_body())


def begin_load(run: Script, name: str) -> Future[Reply]:
    return run.begin("POST", f"/v2/repository/models/{name}/load")


def first_load_takes_time(run: Script) -> None:
    """Several ask for it, which are answered together; other models are loaded meanwhile."""
    run.model("slow", initialize=run.gate("slow"))
    run.model("quick")
    loads = [begin_load(run, "slow")]
    run.wait_gate("slow")
    run.index(settled=False)
    run.look("slow")
    run.look("slow", 1)
    run.statistics("slow")
    run.ask("POST", "/v2/repository/models/quick/load")
    run.infer("quick")
    loads.append(begin_load(run, "slow"))
    run.open_gate("slow")
    for load in loads:
        run.end(load, "a load")
    run.index()
    run.look("slow")


def unload_of_what_loads(run: Script) -> None:
    """It comes to its turn once the load is done."""
    run.model("hasty", initialize=run.gate("hasty"))
    load = begin_load(run, "hasty")
    run.wait_gate("hasty")
    unload = run.begin("POST", "/v2/repository/models/hasty/unload")
    run.open_gate("hasty")
    run.end(load, "the load")
    run.end(unload, "the unload")
    run.index()
    run.look("hasty")


def reload_takes_time(run: Script) -> None:
    run.model("replaced")
    run.load("replaced")
    run.source("replaced", 2, initialize=run.gate("replaced-init"))
    load = begin_load(run, "replaced")
    run.wait_gate("replaced-init")
    run.infer("replaced")
    run.index(settled=False)
    run.look("replaced")
    run.statistics("replaced", 2)
    run.open_gate("replaced-init")
    run.end(load, "the load")
    run.index()
    run.infer("replaced")
    run.statistics("replaced", 1)


def requests_of_a_replaced_model(run: Script) -> None:
    """What runs and what waits is answered by the old one; what comes later by the new one, at once."""
    run.config("drains")
    run.source("drains", 1, execute=run.gate("drains"))
    run.load("drains")
    asked = [begin_infer(run, "drains")]
    run.wait_gate("drains")
    asked += [begin_infer(run, "drains") for _ in range(3)]
    run.wait_taken("drains", 4)
    run.source("drains", 2)
    run.load("drains")
    run.infer("drains")
    run.open_gate("drains")
    run.answers("drains", asked)
    run.infer("drains")
    run.statistics("drains", 2)
    run.counted("drains", v1=6)


def requests_of_an_unloaded_model(run: Script) -> None:
    """They are answered; meanwhile it cannot be asked, and may be loaded again beside what it was."""
    run.config("leaves")
    run.source("leaves", 1, execute=run.gate("leaves"))
    run.load("leaves")
    asked = [begin_infer(run, "leaves")]
    run.wait_gate("leaves")
    asked += [begin_infer(run, "leaves") for _ in range(3)]
    run.wait_taken("leaves", 4)
    run.ask("POST", "/v2/repository/models/leaves/unload")
    run.index(settled=False)
    run.look("leaves")
    run.look("leaves", 1)
    run.statistics("leaves")
    run.ask("POST", "/v2/repository/models/leaves/unload")
    run.source("leaves", 2)
    run.ask("POST", "/v2/repository/models/leaves/load")
    run.index(settled=False)
    run.infer("leaves")
    run.open_gate("leaves")
    run.answers("leaves", asked)
    run.index()
    run.infer("leaves")
    run.unload("leaves")
    run.look("leaves")


def many_at_once(run: Script) -> None:
    """Loads of many models, and of one and the same, are all answered with 200, and so are unloads of many."""
    names = [f"many{number}" for number in range(4)]
    for name in names:
        run.model(name)
    for verb in ("load", "load", "unload"):
        # Unloads of one model at the same time get in each other's way in the original.
        times = 3 if verb == "load" else 1
        asked = [run.begin("POST", f"/v2/repository/models/{name}/{verb}") for name in names for _ in range(times)]
        for one in asked:
            run.end(one, verb)
        run.index()
    for name in names:
        run.look(name)


SCRIPTS = (
    first_load_takes_time,
    unload_of_what_loads,
    reload_takes_time,
    requests_of_a_replaced_model,
    requests_of_an_unloaded_model,
    many_at_once,
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_script(script: Play, outcomes: Outcomes) -> None:
    outcomes.check(script)
