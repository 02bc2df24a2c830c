"""Python models whose inputs and outputs lie in regions of clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .case import Case, infer, tensor
from .scenario import KEYS, Scenario, check_scenario, register, remove_objects


@pytest.fixture(autouse=True)
def no_objects() -> Iterator[None]:
    yield
    remove_objects()


def _region(name: str, byte_size: int, offset: int = 0) -> dict[str, object]:
    return {"shared_memory_region": name, "shared_memory_byte_size": byte_size, "shared_memory_offset": offset}


def _typed(name: str, shape: list[int], byte_size: int, output: dict[str, object], offset: int = 0) -> Case:
    source = tensor(name, name, shape, **_region("in", byte_size, offset))
    outputs = [{"name": "FACTS"}, {"name": f"{name}_OUT", "parameters": output}]
    return infer(f"{name} {shape}", "typed", {"inputs": [source], "outputs": outputs})


BOTH = (register("in"), register("out", KEYS[1]))

SCENARIOS = [
    Scenario("from region to region", (*BOTH, _typed("FP64", [64], 512, _region("out", 512)))),
    Scenario("at offsets", (*BOTH, _typed("INT32", [64], 256, _region("out", 256, 128), 512))),
    Scenario("from region to body", (*BOTH, _typed("UINT8", [1000], 1000, {"binary_data": True}))),
    Scenario("into the same bytes", (*BOTH, _typed("INT16", [8], 16, _region("in", 16)))),
    Scenario("room to spare", (*BOTH, _typed("UINT64", [2], 16, _region("out", 1024)))),
    Scenario("too little room", (*BOTH, _typed("UINT64", [2], 16, _region("out", 15)))),
    Scenario(
        "a model that writes to its input leaves the region as it is",
        (
            *BOTH,
            infer(
                "kept",
                "kept",
                {
                    "inputs": [tensor("X", "INT64", [4], **_region("in", 32))],
                    "outputs": [{"name": "X_CHANGED", "parameters": _region("out", 32)}],
                },
            ),
        ),
    ),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.id)
def test_scenario(scenario: Scenario, python_oracle: int, python_farm: int) -> None:
    check_scenario(scenario, python_oracle, python_farm, {})
