"""Statistics after the same requests: every member and every count; times only as nought or not."""

from __future__ import annotations

import json
from typing import Any

from ..model_repository import COUNTED
from ..wire import compact, exchange
from .case import OURS

PATH = f"/v2/models/{COUNTED.name}"
REQUESTS: tuple[tuple[int, dict[str, Any]], ...] = (
    (1, {}),
    (8, {}),
    (3, {}),
    (3, {"outputs": [{"name": "OUTPUT1"}]}),
    (9, {}),
    (1, {"outputs": [{"name": "OUTPUTX"}]}),
    (1, {"outputs": [{"name": "OUTPUT0", "parameters": {"classification": 2}}]}),
)
"""Batch size and more members of each request, in order; some are refused."""


def _plain(value: Any) -> Any:
    """Replace what must differ: times and memory sizes."""
    if isinstance(value, list) and value and all(isinstance(one, tuple | list) and len(one) == 2 for one in value):
        return [(name, _member(name, one)) for name, one in value if name not in OURS]
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def _member(name: str, value: Any) -> Any:
    if name in ("ns", "last_inference"):
        return "nought" if value == 0 else "some"
    if name == "memory_usage":
        return type(value).__name__
    return _plain(value)


def _statistics(port: int, path: str) -> Any:
    reply = exchange(port, "GET", path)
    assert reply.status == 200
    assert reply.header("content-type") == "application/json"
    return _plain(json.loads(reply.body, object_pairs_hook=list))


def _ask(port: int) -> list[int]:
    statuses = []
    for batch, more in REQUESTS:
        inputs = [{"name": f"INPUT{at}", "shape": [batch, 16], "datatype": "INT32", "data": list(range(16 * batch))} for at in (0, 1)]
        statuses.append(exchange(port, "POST", f"{PATH}/infer", compact({"inputs": inputs, **more})).status)
    return statuses


def test_counts(oracle: int, farm: int) -> None:
    for path in (f"{PATH}/stats", f"{PATH}/versions/1/stats"):
        assert _statistics(farm, path) == _statistics(oracle, path)
    assert _ask(farm) == _ask(oracle)
    for path in (f"{PATH}/stats", f"{PATH}/versions/1/stats"):
        assert _statistics(farm, path) == _statistics(oracle, path)


def test_all_models(oracle: int, farm: int) -> None:
    """The same models and versions in the same order, with the same members."""
    both = [exchange(port, "GET", "/v2/models/stats").json["model_stats"] for port in (oracle, farm)]
    named = [
        [
            (entry["name"], entry["version"], [name for name in entry if name not in OURS], list(entry["inference_stats"]))
            for entry in entries
        ]
        for entries in both
    ]
    assert named[1] == named[0]
