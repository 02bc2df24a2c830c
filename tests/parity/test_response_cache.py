"""Statistics and metrics of cached models, after the same requests.

What is not asked here is where we mean to differ: the original gives the same answer to requests of equal bytes whatever their shape,
parameters and outputs, and keeps the answers that failed as ones without outputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from .. import cached_models
from .. import oracle as real
from ..servers import Server, start_tensorfarm, stopping, wait_until
from ..wire import exchange

Asked = tuple[str, Sequence[int]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """The real server and tensorfarm, with cached models and a cache each."""
    real.require()
    root = tmp_path_factory.mktemp("cached")
    flags = ("--cache-config=local,size=1048576", "--metrics-config=summary_latencies=true", "--metrics-interval-ms=100")
    started = [
        real.start(cached_models.write(root / "theirs"), *flags, folder=root / "oracle"),
        start_tensorfarm(cached_models.write(root / "ours"), *flags, folder=root / "farm", wait=False),
    ]
    with stopping(*started) as (theirs, ours):
        for server in (theirs, ours):
            wait_until(server.ready, "the models to be ready", 60.0, 0.05)
        yield theirs, ours


def ask(server: Server, model: str, values: Sequence[int]) -> Any:
    tensor = {"name": "X", "datatype": "INT32", "shape": [1, len(values)], "data": list(values)}
    wanted = [{"name": "Y"}, {"name": "RUN"}]
    reply = server.ask("POST", f"/v2/models/{model}/infer", {"inputs": [tensor], "outputs": wanted})
    # the original gives an ensemble's outputs in no certain order
    return reply.status, sorted((one["name"], one["shape"], one["data"]) for one in reply.json["outputs"]), "parameters" in reply.json


def counts(server: Server, model: str) -> Any:
    """A model's statistics but for times, of which it counts whether there are any."""

    def plain(pairs: Sequence[tuple[str, Any]]) -> Any:
        return [(name, bool(value) if name in ("ns", "last_inference") else value) for name, value in pairs]

    (entry,) = json.loads(server.ask("GET", f"/v2/models/{model}/stats").body, object_pairs_hook=plain)[0][1]
    return [member for member in entry if member[0] != "batch_cuts"]  # which only we have


SCRIPTS: dict[str, list[Asked]] = {
    "a miss and two hits": [("cached", [1, 2])] * 3,
    "with dynamic batching": [("batched", [1, 2]), ("batched", [2, 1]), ("batched", [1, 2])],
    "models of their own": [("cached", [3]), ("batched", [3]), ("plain", [3]), ("plain", [3])],
    "a whole ensemble": [("whole", [4]), ("whole", [5]), ("whole", [4])],
    "a cached step": [("step", [6]), ("step", [6]), ("cached", [6])],
    "a call": [("asking", [7]), ("asking", [7]), ("cached", [7])],
    "large": [("cached", list(range(70_000)))] * 2,
    "larger than the cache": [("cached", list(range(400_000)))] * 2,
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_counts(script: str, pair: tuple[Server, Server]) -> None:
    theirs, ours = ([ask(server, *asked) for asked in SCRIPTS[script]] for server in pair)
    assert ours == theirs
    for model in dict.fromkeys([*[model for model, _ in SCRIPTS[script]], "cached", "plain"]):
        their_counts = counts(pair[0], model)
        wait_until(
            lambda model=model, wanted=their_counts: counts(pair[1], model) == wanted, f"{counts(pair[1], model)} = {their_counts}", 5.0
        )


def test_metrics(pair: tuple[Server, Server]) -> None:
    for server in pair:
        for model in ("cached", "batched", "whole"):
            ask(server, model, [8])
            ask(server, model, [8])

    def series(server: Server) -> dict[str, str]:
        """The per-model series of the cache, times left out, and what there is of request summaries."""
        text = exchange(server.metrics_port, "GET", "/metrics").body.decode()
        found = re.findall(
            r"^(nv_cache_\w+_per_model(?:_count)?\{[^}]*\}|nv_inference_request_summary_us_count\{[^}]*\}) (\S+)$", text, re.MULTILINE
        )
        return {name: value if "duration" not in name else str(float(value) > 0) for name, value in found if "quantile" not in name}

    theirs = series(pair[0])
    assert len(theirs) > 15
    wait_until(lambda: series(pair[1]) == theirs, f"{series(pair[1])} = {theirs}", 5.0)
    helps = [
        set(re.findall(r"^# \w+ nv_cache_\w+_per_model .*$", exchange(server.metrics_port, "GET", "/metrics").body.decode(), re.MULTILINE))
        for server in pair
    ]
    assert helps[0] == helps[1]
