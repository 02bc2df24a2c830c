from __future__ import annotations

import pytest

from tensorfarm.server.repository.ensemble_graph import validate_ensemble
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.status import Code, StatusError

E = 'name: "e" platform: "ensemble" input { name: "a" } output { name: "o" }'


def step(inputs: str, outputs: str) -> str:
    """A step from space-separated ``input=tensor`` and ``output=tensor`` pairs; ``x`` alone is ``x=x``."""
    maps = [("input_map", pair) for pair in inputs.split()] + [("output_map", pair) for pair in outputs.split()]
    parts = []
    for field, pair in maps:
        key, _, value = pair.partition("=")
        parts.append(f"{field} {{ key: '{key}' value: '{value or key}' }}")
    return f"step {{ model_name: 'base' {' '.join(parts)} }}"


def check(*steps: str, head: str = E) -> None:
    validate_ensemble(parse_text(f"{head} ensemble_scheduling {{ {' '.join(steps)} }}", "x"))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "must specify 'step' for ensemble 'e'"),
        (["step {}"], "must specify 'model_name' in step 0 of ensemble 'e'"),
        ([step("a", "o"), "step { model_name: 'b' }"], "must specify 'input_map' in step 1 of ensemble 'e'"),
        ([step("a", "")], "must specify 'output_map' in step 0 of ensemble 'e'"),
        ([step("a", "o"), step("a", "o")], "ensemble tensor 'o' can appear in an output map only once for ensemble 'e' step 1"),
        ([step("a=zz", "o")], "ensemble input 'a' for ensemble e' is not used"),
        ([step("a", "o=zz")], "ensemble output 'o' for ensemble e' is not used"),
        (
            [step("a=q b=a", "o")],
            "output 'o' for ensemble 'e' is not written: at least one of its depending tensors, 'q', is not connected",
        ),
        (
            [step("a=m b=a", "o"), step("a=q", "o=m")],
            "output 'o' for ensemble 'e' is not written: at least one of its depending tensors, 'q', is not connected",
        ),
        (
            [step("a=z", "o"), step("a", "o=b")],
            "output 'o' for ensemble 'e' is not written: at least one of its depending tensors, 'z', is not connected",
        ),
        ([step("a=o", "o=z"), step("a", "o=y")], "output 'o' for ensemble 'e' is not written"),
        ([step("a b=t", "o"), step("a=o", "o=t")], "output 'o' for ensemble 'e' is not written"),
        ([step("a", "o p=pp")], "ensemble tensor 'pp' is unused in ensemble 'e'"),
        ([step("a", "o"), step("a=n", "o=m")], "ensemble tensor 'n' is unused in ensemble 'e'"),
    ],
)
def test_messages(steps: list[str], message: str) -> None:
    with pytest.raises(StatusError) as caught:
        check(*steps)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARG, message)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ('name: "e" platform: "x"', "ensemble scheduling cannot be set for model 'e' whose platform is not ensemble"),
        (f"{E} instance_group {{}}", "instance group should not be specified for ensemble 'e'"),
        (f"{E} optimization {{}}", "optimization should not be specified for ensemble 'e'"),
        (f"{E} model_warmup {{}}", "model_warmup can not be specified for ensemble 'e'"),
    ],
)
def test_sections_an_ensemble_has_not(head: str, message: str) -> None:
    with pytest.raises(StatusError) as caught:
        check(step("a", "o"), head=head)
    assert caught.value.message == message


@pytest.mark.parametrize(
    "steps",
    [
        [step("a", "o")],
        [step("x=a y=a", "o=t"), step("x=t", "o")],
        [step("x=t", "o"), step("x=a", "o=t")],
        [step("x=a", "p=l q=r"), step("x=l y=r", "o")],
    ],
)
def test_connected_graphs(steps: list[str]) -> None:
    check(*steps)


def test_a_long_chain_is_no_problem() -> None:
    links = [step(f"x=t{number}", f"o=t{number + 1}") for number in range(3000)]
    check(step("x=a", "o=t0"), *links, step("x=t3000", "o"))
