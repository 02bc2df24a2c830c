"""What doors are told about models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tensorfarm.server.repository.catalogue import UNLOADED, Catalogue, IndexEntry
from tensorfarm.server.repository.sighting import DUPLICATE
from tensorfarm.server.repository.version import Model, State, VersionSlot
from tensorfarm.workers.contract.status import Code, StatusError


def served(healthy: bool = True) -> Any:
    return SimpleNamespace(healthy=healthy)


def slot(version: int, state: State, reason: str = "", healthy: bool = True) -> VersionSlot:
    return VersionSlot(
        version, state, reason, served(healthy) if state is State.READY else None, served() if state is State.UNLOADING else None
    )


def model(name: str, *slots: VersionSlot, wanted: bool = True, known: bool = True, fault: str = "") -> Model:
    return Model(name, {one.version: one for one in slots}, wanted=wanted, known=known, fault=fault)


def catalogue(*models: Model) -> Catalogue:
    made = Catalogue()
    made.models = {one.name: one for one in models}
    return made


READY, LOADING, UNLOADING, UNAVAILABLE = State.READY, State.LOADING, State.UNLOADING, State.UNAVAILABLE
FULL = catalogue(
    model(
        "m",
        slot(10, READY),
        slot(2, READY),
        slot(11, LOADING),
        slot(1, UNLOADING),
        slot(3, UNAVAILABLE, "bad"),
        slot(4, UNAVAILABLE, UNLOADED),
    ),
    model("gone", slot(1, UNAVAILABLE, UNLOADED), wanted=False),
    model("unread", known=False, fault="no configuration"),
)


def test_what_can_be_asked() -> None:
    models = FULL.models["m"]
    assert FULL.find("m", "") is models.slots[10].served and FULL.find("m", "2") is models.slots[2].served
    assert FULL.find_number("m", -1) is models.slots[10].served and FULL.find_number("m", 2) is models.slots[2].served
    assert FULL.ready_versions("m") == [2, 10] and FULL.ready_versions("nobody") == FULL.ready_versions("gone") == []
    assert FULL.versions() == [models.slots[2].served, models.slots[10].served]
    assert FULL.counted() == [models.slots[1].leaving, models.slots[2].served, models.slots[10].served]


@pytest.mark.parametrize(
    ("name", "version", "code", "text"),
    [
        ("nobody", "", Code.NOT_FOUND, "'nobody' is not found"),
        ("unread", "1", Code.NOT_FOUND, "'unread' is not found"),
        ("gone", "", Code.NOT_FOUND, "'gone' has no available versions"),
        ("gone", "1", Code.UNAVAILABLE, "'gone' version 1 is not at ready state"),
        ("m", "9", Code.NOT_FOUND, "'m' version 9 is not found"),
        *[("m", str(version), Code.UNAVAILABLE, f"'m' version {version} is not at ready state") for version in (1, 3, 4, 11)],
    ],
)
def test_what_cannot(name: str, version: str, code: Code, text: str) -> None:
    with pytest.raises(StatusError) as raised:
        FULL.find(name, version)
    assert raised.value.code is code and raised.value.message == f"Request for unknown model: {text}"


@pytest.mark.parametrize(
    ("one", "ready"),
    [
        (model("m"), False),
        (model("m", slot(1, READY)), True),
        (model("m", slot(1, READY, "it could not be replaced")), True),
        (model("m", slot(1, READY, healthy=False)), False),
        (model("m", slot(1, READY), slot(2, LOADING)), False),
        (model("m", slot(1, READY), slot(2, UNLOADING)), False),
        (model("m", slot(1, READY), slot(2, UNAVAILABLE, UNLOADED)), True),
        (model("m", slot(1, READY), slot(2, UNAVAILABLE, "bad")), False),
        (model("m", slot(1, UNAVAILABLE, "bad")), False),
        (model("m", slot(1, UNAVAILABLE, "bad"), wanted=False), True),
        (model("m", known=False, fault="bad"), True),
    ],
)
def test_which_models_make_the_server_unready(one: Model, ready: bool) -> None:
    assert catalogue(one, model("n", slot(1, READY))).all_ready() is ready


def test_the_index() -> None:
    places = {"m": 1, "gone": 1, "unread": 1, "new": 1, "twice": 2}
    lines = FULL.index(places, False)
    assert lines == [
        IndexEntry("gone", "1", "UNAVAILABLE", UNLOADED),
        IndexEntry("m", "1", "UNLOADING"),
        IndexEntry("m", "2", "READY"),
        IndexEntry("m", "3", "UNAVAILABLE", "bad"),
        IndexEntry("m", "4", "UNAVAILABLE", UNLOADED),
        IndexEntry("m", "10", "READY"),
        IndexEntry("m", "11", "LOADING"),
        IndexEntry("new"),
        IndexEntry("twice", "", "UNAVAILABLE", DUPLICATE),
        IndexEntry("unread", "", "UNAVAILABLE", "no configuration"),
    ]
    assert FULL.index(places, True) == [line for line in lines if line.state == "READY" or line.name == "twice"]
    assert FULL.index({}, False) == [], "what came with a request is in no repository"


def test_a_change_that_was_not_taken_over_is_told_of_what_serves() -> None:
    there = catalogue(model("m", slot(1, READY), slot(2, UNAVAILABLE, UNLOADED), fault="broken file"))
    assert [line.reason for line in there.index({"m": 1}, False)] == ["broken file", UNLOADED]
