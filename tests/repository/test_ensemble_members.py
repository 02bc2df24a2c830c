"""Ensembles against their members; the texts are those that release 24.10 gives for the same configurations."""

from __future__ import annotations

from typing import Any

import pytest

from tensorfarm.server.repository.ensemble_members import (
    MemberState,
    check_available,
    check_loaded,
    check_tensors,
    circles,
    member_names,
)
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.status import Code, StatusError


def tensor(section: str, name: str, dims: str = "4", datatype: str = "INT32", extra: str = "") -> str:
    return f'{section} {{ name: "{name}" data_type: TYPE_{datatype} dims: [ {dims} ] {extra} }}'


def model(name: str, *tensors: str, max_batch_size: int = 0, decoupled: bool = False) -> Any:
    policy = "model_transaction_policy { decoupled: true }" if decoupled else ""
    tensors = tensors or (tensor("input", "IN"), tensor("output", "OUT"))
    return parse_text(f'name: "{name}" max_batch_size: {max_batch_size} {" ".join(tensors)} {policy}', "x")


MODELS = {
    one.name: one
    for one in (
        model("plain"),
        model("batch8", max_batch_size=8),
        model("batch8five", tensor("input", "IN", "5"), tensor("output", "OUT", "5"), max_batch_size=8),
        model("batch4", max_batch_size=4),
        model("float4", tensor("input", "IN", datatype="FP32"), tensor("output", "OUT", datatype="FP32")),
        model("wild", tensor("input", "IN", "-1"), tensor("output", "OUT", "-1")),
        model("wild2", tensor("input", "IN", "-1, 4"), tensor("output", "OUT", "-1, 4")),
        model("five", tensor("input", "IN", "5"), tensor("output", "OUT", "5")),
        model(
            "shaped",
            *(tensor(section, name, "2, 2", extra="reshape { shape: [ 4 ] }") for section, name in (("input", "IN"), ("output", "OUT"))),
        ),
        model("two", tensor("input", "A"), tensor("input", "B"), tensor("output", "OUT"), tensor("output", "EXTRA")),
        model("opt", tensor("input", "A"), tensor("input", "B", extra="optional: true"), tensor("output", "OUT")),
        model("flow", decoupled=True),
    )
}
X, Y = tensor("input", "X"), tensor("output", "Y")


def step(name: str, inputs: str = "IN=X", outputs: str = "OUT=Y", version: int = -1) -> str:
    maps = [("input_map", pair) for pair in inputs.split()] + [("output_map", pair) for pair in outputs.split()]
    pairs = [(field, *pair.split("=")) for field, pair in maps]
    return (
        f'step {{ model_name: "{name}" model_version: {version} '
        + " ".join(f'{field} {{ key: "{key}" value: "{value}" }}' for field, key, value in pairs)
        + " }"
    )


def ensemble(*steps: str, tensors: tuple[str, ...] = (X, Y), max_batch_size: int = 0, name: str = "e") -> Any:
    text = f'name: "{name}" platform: "ensemble" max_batch_size: {max_batch_size} {" ".join(tensors)} '
    return parse_text(f"{text} ensemble_scheduling {{ {' '.join(steps)} }}", "x")


def check(config: Any) -> bool:
    return check_tensors(config, lambda name, version: MODELS[name])


def wide(dims: str, other: str | None = None) -> tuple[str, str]:
    return tensor("input", "X", dims), tensor("output", "Y", dims if other is None else other)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ensemble(step("plain", "IN=X NOPE=X")), "in ensemble e, ensemble tensor X is mapping to non-existing input NOPE in model plain"),
        (ensemble(step("two", "A=X NOPE=X NAPE=X")), "in ensemble e, ensemble tensor X is mapping to non-existing input NAPE in model two"),
        (
            ensemble(step("plain", "IN=X", "NOPE=T OUT=Y"), step("plain", "IN=T", "OUT=Z"), tensors=(X, Y, tensor("output", "Z"))),
            "in ensemble e, ensemble tensor T is mapped from non-existing output NOPE in model plain",
        ),
        (ensemble(step("two", "A=X")), "in ensemble e, input B in model two is not mapped to any ensemble tensors"),
        (ensemble(step("two", "A=X", "OUT=Y R=Z")), "in ensemble e, input B in model two is not mapped to any ensemble tensors"),
        (
            ensemble(step("batch4"), max_batch_size=8),
            "ensemble e allows maximum batch size 8, but it contains model batch4 which only allows maximum batch size to be 4",
        ),
        (
            ensemble(step("batch8", "IN=X Q=X"), max_batch_size=16),
            "ensemble e allows maximum batch size 16, but it contains model batch8 which only allows maximum batch size to be 8",
        ),
        (
            ensemble(step("float4")),
            "in ensemble e, ensemble tensor X: inconsistent data type: TYPE_INT32 is inferred from model e while TYPE_FP32 is inferred from model float4",
        ),
        (
            ensemble(step("plain", "IN=X", "OUT=T"), step("float4", "IN=T"), tensors=(X, tensor("output", "Y", datatype="FP32"))),
            "in ensemble e, ensemble tensor T: inconsistent data type: TYPE_INT32 is inferred from model plain while TYPE_FP32 is inferred from model float4",
        ),
        (
            ensemble(step("two", "A=W"), tensors=(tensor("input", "W", datatype="FP32"), Y)),
            "in ensemble e, ensemble tensor W: inconsistent data type: TYPE_FP32 is inferred from model e while TYPE_INT32 is inferred from model two",
        ),
        (
            ensemble(step("five")),
            "in ensemble e, ensemble tensor X: inconsistent shape: [4] is inferred from model e while [5] is inferred from model five",
        ),
        (
            ensemble(step("plain"), tensors=wide("4", "5")),
            "in ensemble e, ensemble tensor Y: inconsistent shape: [5] is inferred from model e while [4] is inferred from model plain",
        ),
        (
            ensemble(step("wild2")),
            "in ensemble e, ensemble tensor X: inconsistent shape: [4] is inferred from model e while [-1,4] is inferred from model wild2",
        ),
        (
            ensemble(step("shaped")),
            "in ensemble e, ensemble tensor X: inconsistent shape: [4] is inferred from model e while [2,2] is inferred from model shaped",
        ),
        (
            ensemble(step("batch8five"), max_batch_size=8),
            "in ensemble e, ensemble tensor X: inconsistent shape: [-1,4] is inferred from model e while [-1,5] is inferred from model batch8five",
        ),
        (
            ensemble(step("plain"), tensors=wide("5"), max_batch_size=8),
            "in ensemble e, ensemble tensor X: inconsistent shape: [-1,5] is inferred from model e while [4] is inferred from model plain",
        ),
        (
            ensemble(step("batch8"), tensors=wide("-1, 5")),
            "in ensemble e, ensemble tensor X: inconsistent shape: [-1,5] is inferred from model e while [-1,4] is inferred from model batch8",
        ),
        (
            ensemble(step("batch8"), tensors=wide("1, 2, 4")),
            "in ensemble e, ensemble tensor X: inconsistent shape: [1,2,4] is inferred from model e while [-1,4] is inferred from model batch8",
        ),
    ],
)
def test_what_does_not_fit(config: Any, message: str) -> None:
    with pytest.raises(StatusError) as caught:
        check(config)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, message)


@pytest.mark.parametrize(
    "config",
    [
        ensemble(step("plain")),
        ensemble(step("wild")),
        ensemble(step("plain"), tensors=wide("-1")),
        ensemble(step("plain"), max_batch_size=8),
        ensemble(step("batch8"), max_batch_size=4),
        ensemble(step("batch8")),
        ensemble(step("batch8"), tensors=wide("-1, 4")),
        ensemble(step("batch8"), tensors=wide("2, 4")),
        ensemble(step("wild2"), max_batch_size=8),
        ensemble(step("shaped"), tensors=wide("2, 2")),
        ensemble(
            step("plain"),
            tensors=tuple(
                tensor(section, name, "2, 2", extra="reshape { shape: [ 4 ] }") for section, name in (("input", "X"), ("output", "Y"))
            ),
        ),
        ensemble(step("opt", "A=X")),
        ensemble(step("two", "A=X B=O"), tensors=(X, tensor("input", "O", extra="optional: true"), Y)),
        ensemble(step("plain", "IN=T"), step("plain", "IN=X", "OUT=T")),
    ],
)
def test_what_fits(config: Any) -> None:
    assert check(config) is False


def test_an_ensemble_with_a_decoupled_member_is_decoupled() -> None:
    assert check(ensemble(step("plain", "IN=X", "OUT=T"), step("flow", "IN=T")))


def test_the_first_member_that_is_not_there_is_told() -> None:
    config = ensemble(step("nowhere", "IN=X", "OUT=T"), step("nobody", "IN=T"))
    with pytest.raises(StatusError) as caught:
        check_available(config, lambda name: False)
    assert caught.value.reason == "Invalid argument: ensemble e contains models that are not available or ambiguous: nowhere"
    check_available(config, lambda name: True)
    assert member_names(config) == ["nowhere", "nobody"]
    assert member_names(MODELS["plain"]) == []


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (MemberState(error="bad e"), "ensemble 'e' depends on 'm' which is not valid. Model 'm' failed with error: bad e"),
        (MemberState(), "ensemble 'e' depends on 'm' which has no loaded version"),
        (
            MemberState(reason="version 1 is at UNAVAILABLE state: Internal: no;"),
            "ensemble 'e' depends on 'm' which has no loaded version. Model 'm' loading failed with error: version 1 is at UNAVAILABLE state: Internal: no;",
        ),
        (MemberState({1: None, 4: None}), "ensemble 'e' depends on 'm' whose required version 3 is not loaded."),
    ],
)
def test_members_that_are_not_loaded(state: MemberState, message: str) -> None:
    config = ensemble(step("m", "IN=X", "OUT=T", version=1), step("m", "IN=T", version=3))
    with pytest.raises(StatusError) as caught:
        check_loaded(config, lambda name: state)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, message)


def test_the_last_step_is_looked_at_first() -> None:
    config = ensemble(step("one", "IN=X", "OUT=T"), step("two", "IN=T"))
    with pytest.raises(StatusError, match="depends on 'two'"):
        check_loaded(config, lambda name: MemberState())
    check_loaded(config, lambda name: MemberState({7: None}))


def test_circles() -> None:
    members = {"a": ["b", "plain"], "b": ["c"], "c": ["a"], "d": ["a"], "self": ["self"], "fine": ["plain"]}
    assert {name: error.message for name, error in circles(members).items()} == {
        "a": "circular dependency between ensembles: a -> ... -> c -> a",
        "b": "circular dependency between ensembles: b -> ... -> a -> b",
        "c": "circular dependency between ensembles: c -> ... -> b -> c",
        "self": "circular dependency between ensembles: self -> ... -> self -> self",
    }
