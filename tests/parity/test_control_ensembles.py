"""Ensembles in explicit mode: what is loaded with them, what they lose with their members, and how they come back."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from .conftest import controlled
from .control_script import Outcomes, Play, Script

ENSEMBLE = """\
name: "{name}"
platform: "ensemble"
max_batch_size: 0
input [ {{ name: "X", data_type: TYPE_INT32, dims: [ 1 ] }} ]
output [ {outputs} ]
ensemble_scheduling {{ step [ {steps} ] }}
"""
OUTPUT = '{{ name: "{output}", data_type: TYPE_INT32, dims: [ 3 ] }}'
STEP = (
    '{{ model_name: "{member}" model_version: {version} input_map {{ key: "X" value: "X" }} output_map {{ key: "Y" value: "{output}" }} }}'
)


def ensemble_text(name: str, *members: str, version: int = -1) -> str:
    """The configuration of an ensemble that asks all of these members and answers what they say."""
    named = [(member, f"Y{number}" if number else "Y") for number, member in enumerate(members)]
    steps = ", ".join(STEP.format(member=member, version=version, output=output) for member, output in named)
    outputs = ", ".join(OUTPUT.format(output=output) for _, output in named)
    return ENSEMBLE.format(name=name, outputs=outputs, steps=steps)


def ensemble(run: Script, name: str, *members: str, version: int = -1, versions: bool = True) -> None:
    """Write an ensemble."""
    run.write(f"{name}/config.pbtxt", ensemble_text(name, *members, version=version))
    if versions:
        run.write(f"{name}/1/.keep", "")


def with_members(run: Script) -> None:
    run.model("with_m1")
    ensemble(run, "with_e", "with_m1")
    ensemble(run, "with_ee", "with_e")
    run.load("with_e")
    run.look("with_e")
    run.infer("with_m1")
    run.load("with_e")
    run.infer("with_e")
    run.statistics("with_e", 2)
    run.unload("with_e")
    run.look("with_e")
    run.look("with_e", 1)
    run.statistics("with_e")
    run.infer("with_m1")
    run.load("with_ee")
    run.look("with_ee")
    run.unload("with_ee", {"parameters": {"unload_dependents": True}})
    run.look("with_m1")


WITH_DEPENDENTS = {"parameters": {"unload_dependents": True}}


def dependents(run: Script) -> None:
    """Members that were asked for by name stay; those that another ensemble runs too."""
    for name in ("dep_m1", "dep_m2", "dep_m3"):
        run.model(name)
    ensemble(run, "dep_e1", "dep_m1", "dep_m2")
    ensemble(run, "dep_e2", "dep_m2", "dep_m3")
    run.load("dep_m1")
    run.load("dep_e1")
    run.load("dep_e2")
    run.unload("dep_e1", WITH_DEPENDENTS)
    run.infer("dep_m1")
    run.unload("dep_e2", WITH_DEPENDENTS)
    run.load("dep_e1")
    run.load("dep_m2")
    run.unload("dep_e1", WITH_DEPENDENTS)
    run.unload("dep_m1", WITH_DEPENDENTS)
    run.unload("dep_m2", {"parameters": {"unload_dependents": "x"}})


def member_goes_and_comes(run: Script) -> None:
    run.model("go_m1")
    run.model("go_m2", 2)
    ensemble(run, "go_e", "go_m1", "go_m2")
    ensemble(run, "go_ee", "go_e")
    run.load("go_ee")
    run.infer("go_ee")
    run.unload("go_m1")
    for name in ("go_m1", "go_e", "go_ee"):
        run.look(name)
        run.statistics(name)
    run.load("go_m1")
    for name in ("go_m1", "go_e", "go_ee"):
        run.look(name)
    run.source("go_m1", 11)
    run.load("go_m1")
    run.infer("go_ee")
    run.statistics("go_ee", 1)
    run.source("go_m2", 22)
    run.load("go_e")
    run.infer("go_m2")
    run.statistics("go_ee")
    run.statistics("go_m1", 1)
    run.touch("go_e/config.pbtxt")
    run.load("go_e")
    run.statistics("go_m1", 1)
    run.config("go_m1", count=2)
    run.load("go_m1")
    run.statistics("go_m1", 1)
    run.unload("go_m1", WITH_DEPENDENTS)


def member_fails(run: Script) -> None:
    run.model("bad_m", initialize="raise ValueError('no')")
    run.model("good_m")
    ensemble(run, "bad_e", "bad_m")
    ensemble(run, "bad_ee", "bad_e")
    ensemble(run, "half_e", "good_m", "bad_m")
    bad = "version 1 is at UNAVAILABLE state: Internal: ValueError: no\n\nAt:\n  ROOT/bad_m/1/model.py(18): initialize\n;"
    no_version = "ensemble '{}' depends on 'bad_m' which has no loaded version. Model 'bad_m' loading failed with error: " + bad
    nested = f"ensemble 'bad_ee' depends on 'bad_e' which is not valid. Model 'bad_e' failed with error: {no_version.format('bad_e')}"
    bare(run, {"bad_e": no_version.format("bad_e")})
    run.load("bad_e")
    run.look("bad_e")
    bare(run, {"bad_ee": nested})
    run.load("bad_ee")
    bare(run, {"half_e": no_version.format("half_e")})
    run.load("half_e")
    run.infer("good_m")
    for name in ("bad_e", "bad_ee", "half_e"):
        run.listed(name)
    run.source("bad_m", 3)
    run.load("bad_m")
    for name in ("bad_e", "bad_ee", "half_e"):
        run.infer(name)
    run.source("bad_m", 4, initialize="raise ValueError('no')")
    why = "Internal: ValueError: no\n\nAt:\n  ROOT/bad_m/1/model.py(18): initialize\n"
    ready = {"version": "1", "state": "READY"}
    run.listed("bad_m", "the index tells why what serves could not be replaced", [ready], [{**ready, "reason": why}])
    run.load("bad_m")
    run.infer("bad_ee")
    run.listed("bad_m")
    run.source("bad_m", 5)
    run.load("bad_m")
    run.infer("bad_ee")
    run.unload("bad_m")


def bare(run: Script, reasons: Mapping[str, str]) -> None:
    """From here on these ensembles have a reason in the index, and no version; the real server lists their names alone."""
    for name, reason in reasons.items():
        run.listed(name, "the index tells why an ensemble could not be loaded", [{}], [{"state": "UNAVAILABLE", "reason": reason}])


def not_valid(run: Script) -> None:
    run.model("valid_m1")
    ensemble(run, "miss_e", "miss_m")
    bare(run, {"miss_e": "ensemble miss_e contains models that are not available or ambiguous: miss_m"})
    run.load("miss_e")
    run.look("miss_e")
    run.listed("miss_e")
    run.model("miss_m")
    run.load("miss_m")
    run.infer("miss_e")
    ensemble(run, "version_e", "valid_m1", version=7)
    bare(run, {"version_e": "ensemble 'version_e' depends on 'valid_m1' whose required version 7 is not loaded."})
    run.load("version_e")
    for name, other in (("c1", "c2"), ("c2", "c1"), ("self_e", "self_e")):
        ensemble(run, name, other)
    bare(run, {"self_e": "circular dependency between ensembles: self_e -> ... -> self_e -> self_e"})
    run.load("self_e")
    ensemble(run, "empty_e", "valid_m1", versions=False)
    why = "at least one version must be available under the version policy of model 'empty_e'"
    run.listed("empty_e", "the index tells why an ensemble could not be loaded", [], [{"state": "UNAVAILABLE", "reason": why}])
    run.load("empty_e")
    run.look("empty_e")


def member_does_not_fit_any_more(run: Script) -> None:
    """The member is replaced all the same, and the ensembles over it go until it fits again."""
    run.model("fit_m1")
    ensemble(run, "fit_e", "fit_m1")
    ensemble(run, "fit_ee", "fit_e")
    run.load("fit_ee")
    run.config("fit_m1", datatype="TYPE_INT64")
    run.load("fit_m1")
    run.look("fit_e")
    run.infer("fit_m1", datatype="INT64")
    run.load("fit_e")
    run.config("fit_m1")
    run.load("fit_m1")
    run.look("fit_ee")
    run.unload("fit_m1")


def in_flight(run: Script) -> None:
    """A request of an ensemble is finished by the members it began with."""
    run.config("flight_m")
    run.source("flight_m", 1, execute=run.gate("flight"))
    ensemble(run, "flight_e", "flight_m")
    run.load("flight_e")
    asked = run.begin("POST", "/v2/models/flight_e/infer", BODY)
    run.wait_gate("flight")
    run.source("flight_m", 2, execute=run.gate("flight-2"))
    run.load("flight_m")
    run.open_gate("flight")
    run.answers("asked before", [asked])
    asked = run.begin("POST", "/v2/models/flight_e/infer", BODY)
    run.wait_gate("flight-2")
    run.ask("POST", "/v2/repository/models/flight_m/unload")
    run.index(settled=False)
    run.look("flight_e")
    run.open_gate("flight-2")
    run.answers("asked before", [asked])
    run.index()


BODY = {"inputs": [{"name": "X", "datatype": "INT32", "shape": [1], "data": [7]}]}


SCRIPTS = (with_members, dependents, member_goes_and_comes, member_fails, not_valid, member_does_not_fit_any_more, in_flight)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What came of the scripts, all at the same time, but with servers of their own: the real one may make any ensemble anew when
    some other one is loaded."""
    root = tmp_path_factory.mktemp("ensembles")

    def run(script: Play) -> Outcomes:
        with controlled(root / script.__name__, "--model-control-mode=explicit") as pair:
            return pair.play_all([script])

    with ThreadPoolExecutor(len(SCRIPTS)) as executor:
        played = list(executor.map(run, SCRIPTS))
    return Outcomes({script: runs for one in played for script, runs in one.runs.items()})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_script(script: Play, outcomes: Outcomes) -> None:
    outcomes.check(script)
