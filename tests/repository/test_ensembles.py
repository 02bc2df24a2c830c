from __future__ import annotations

from typing import Any

from tensorfarm.server.repository.ensemble_members import MemberState
from tensorfarm.server.repository.ensembles import ensembles_of, member_state, refused_at_once
from tensorfarm.server.repository.version import Model, State, VersionSlot
from tensorfarm.workers.contract.configuration import parse_text


def ensemble(name: str, *members: str) -> Any:
    steps = " ".join(f'step {{ model_name: "{member}" }}' for member in members)
    return parse_text(f'name: "{name}" platform: "ensemble" ensemble_scheduling {{ {steps} }}', "x")


CONFIGS = {
    "top": ensemble("top", "middle", "plain"),
    "middle": ensemble("middle", "bottom"),
    "bottom": ensemble("bottom", "plain"),
    "plain": parse_text('name: "plain" backend: "python"', "x"),
}


def test_members_come_before_those_that_run_them() -> None:
    assert list(ensembles_of(CONFIGS)) == ["bottom", "middle", "top"]


def test_circles_have_an_order_too() -> None:
    configs = {"a": ensemble("a", "b"), "b": ensemble("b", "a", "c"), "c": ensemble("c", "c")}
    assert sorted(ensembles_of(configs)) == ["a", "b", "c"]


def test_what_cannot_be_whatever_becomes_of_the_members() -> None:
    models = {name: Model(name, known=True) for name in CONFIGS}
    models["ambiguous"] = Model("ambiguous", ["one", "other"])
    ensembles = {**ensembles_of(CONFIGS), "double": ensemble("double", "plain", "ambiguous"), "round": ensemble("round", "round")}
    refused = refused_at_once(ensembles, {**models, "round": Model("round", known=True)})
    assert {name: error.message for name, error in refused.items()} == {
        "double": "ensemble double contains models that are not available or ambiguous: ambiguous",
        "round": "circular dependency between ensembles: round -> ... -> round -> round",
    }


def test_what_has_become_of_a_member() -> None:
    model = Model("m", known=True, fault="no version")
    assert member_state(model) == MemberState(reason="no version")
    model.slots = {2: VersionSlot(2, State.UNAVAILABLE, "Internal: b"), 1: VersionSlot(1, State.UNAVAILABLE, "Internal: a")}
    reason = "version 1 is at UNAVAILABLE state: Internal: a;version 2 is at UNAVAILABLE state: Internal: b;"
    assert member_state(model) == MemberState(reason=reason)
    assert member_state(Model("e", known=False, fault="bad")) == MemberState(error="bad")
