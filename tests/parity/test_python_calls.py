"""Calls from one Python model to another (BLS): what comes back, the errors and their texts, what calls do to statistics."""

from __future__ import annotations

import pytest

from .case import Case, Difference, check, verb

CALLS = (
    *("plain", "everything said", "correlation id as text", "version", "unknown version", "unknown model", "unknown model decoupled"),
    *("no outputs asked", "one output asked", "outputs asked in reverse", "output asked twice", "unknown output", "no inputs"),
    *("unknown input", "input twice", "other datatype", "texts for numbers", "other rank", "empty input", "batch", "batch too big"),
    *("no batch dim", "error", "raises", "plain as decoupled", "decoupled by position", "decoupled as plain", "decoupled none"),
    *("decoupled one", "decoupled three", "decoupled with its end", "decoupled raises", "decoupled again", "decoupled by steps"),
    *("async", "async together", "async decoupled", "async decoupled as plain", "in a thread", "one request twice", "output changed"),
    *("output passed on", "large"),
)

MADE = (
    *("all by position", "by default", "empty model name", "outputs twice", "memory", "parameters", "no parameters", "float parameter"),
    *("none parameter", "list parameter", "parameter name", "none as input", "none as input and an id", "correlation id float"),
    *("correlation id none", "correlation id list", "no model name", "no inputs", "no output names", "output names as text"),
    *("output names as numbers", "inputs as numbers", "id as number", "model name as number", "version as text", "timeout negative"),
    "unknown argument",
)

READINESS = ("ready", "ready version", "ready unknown version", "ready unknown model", "ready decoupled")

CASES = [
    *(verb("calls", f"call: {name}") for name in CALLS),
    *(verb("calls", f"make: {name}") for name in MADE),
    *(verb("calls", name) for name in (*READINESS, "initialized")),
]

DIFFERENCES: dict[str, Difference] = {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_call(case: Case, python_oracle: int, python_farm: int) -> None:
    check(case, python_oracle, python_farm, DIFFERENCES)
