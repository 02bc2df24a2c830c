"""Dynamic batching with Python models on both servers: which requests share a batch, who comes first, who is refused, and what is counted.

Models have a queue policy wherever compositions are compared that depend on preferred sizes: without one the real server forms batches
ahead of time, of what is there just then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from ..wire import exchange
from .recorder_script import OURS, PATIENCE_S, VARIABLE, Pair, Run, recorder, recording

ROOMY = "max_queue_size: 100"
"""A policy that changes nothing but that the real server forms its batches when an instance is free."""


def _batching(text: str = "", policy: str = ROOMY) -> str:
    return f"dynamic_batching {{ {text} {f'default_queue_policy {{ {policy} }}' if policy else ''} }}"


LIMITS = """priority_queue_policy { key: 1 value { max_queue_size: 2 } } priority_queue_policy { key: 2 value { max_queue_size: 3 } }"""
DELAYED_LEVEL = """priority_queue_policy { key: 1 value {
  timeout_action: DELAY default_timeout_microseconds: 60000000 allow_timeout_override: true } }"""
TWO = 'input [ { name: "X", data_type: TYPE_INT32, dims: [ -1 ] }, { name: "A", data_type: TYPE_INT32, dims: [ -1 ], allow_ragged_batch: true } ]'
OPTIONAL = " ".join(
    f'input {{ name: "{name}", data_type: TYPE_INT32, dims: [ 1 ]{", optional: true" if name != "X" else ""} }}' for name in "XAB"
)
ENSEMBLE = """platform: "ensemble" max_batch_size: 1
input [ { name: "X", data_type: TYPE_INT32, dims: [ 1 ] } ]
output [ { name: "Y", data_type: TYPE_INT32, dims: [ -1 ] } ]
ensemble_scheduling { step [ { model_name: "small" model_version: -1
  input_map { key: "X" value: "X" } output_map { key: "Y" value: "Y" } } ] }"""

MODELS = {
    "plain": recorder(""),
    "growing": recorder(_batching(policy="")),
    "limited": recorder(_batching()),
    "preferred": recorder(_batching("preferred_batch_size: [ 2, 4 ]"), 8),
    "threes": recorder(_batching("preferred_batch_size: [ 3 ]"), 8),
    "waits": recorder(_batching("max_queue_delay_microseconds: 700000")),
    "prefers": recorder(_batching("preferred_batch_size: [ 2 ] max_queue_delay_microseconds: 700000"), 8),
    "levels": recorder(_batching("priority_levels: 2 default_priority_level: 2", ""), 1),
    "mixed": recorder(_batching("priority_levels: 5 default_priority_level: 3", "")),
    "limits": recorder(_batching(f"priority_levels: 3 default_priority_level: 3 {LIMITS}", "max_queue_size: 1"), 1),
    "delayed_level": recorder(_batching(f"priority_levels: 2 default_priority_level: 2 {DELAYED_LEVEL}", ""), 1),
    "small": recorder(_batching(policy="max_queue_size: 2"), 1),
    "small_batches": recorder(_batching(policy="max_queue_size: 2"), 8),
    "unbatched": recorder(_batching(policy="max_queue_size: 2 default_timeout_microseconds: 300000"), 0),
    "expires": recorder(_batching(policy="default_timeout_microseconds: 300000")),
    "stays": recorder(_batching(policy="default_timeout_microseconds: 60000000")),
    "shortens": recorder(_batching(policy="default_timeout_microseconds: 60000000 allow_timeout_override: true")),
    "endless": recorder(_batching(policy="allow_timeout_override: true")),
    "delays": recorder(_batching(policy="timeout_action: DELAY default_timeout_microseconds: 60000000 allow_timeout_override: true"), 1),
    "delays_batches": recorder(
        _batching(policy="timeout_action: DELAY default_timeout_microseconds: 60000000 allow_timeout_override: true")
    ),
    "ordered": recorder(_batching("preserve_ordering: true", "max_queue_size: 1"), 1, instances=2),
    "unordered": recorder(_batching(), 1, instances=2),
    "shapes": recorder(_batching(), inputs=VARIABLE),
    "ragged": recorder(_batching(), inputs=VARIABLE.replace(" } ]", ", allow_ragged_batch: true } ]")),
    "ragged_too": recorder(_batching(), inputs=TWO),
    "optional": recorder(_batching(), inputs=OPTIONAL),
    "over": ENSEMBLE,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both servers with these models."""
    with recording(tmp_path_factory.mktemp("queues"), MODELS) as both:
        yield both


def test_configurations(pair: Pair) -> None:
    for model in MODELS:
        texts = [exchange(server.http_port, "GET", f"/v2/models/{model}/config").body for server in pair.servers]
        texts = [OURS.sub(b"", text).replace(str(folder).encode(), b"") for text, folder in zip(texts, pair.folders, strict=True)]
        theirs, ours = map(json.loads, texts)  # a map's members come in any order
        assert ours == theirs


def _behind(run: Run, model: str, requests: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Requests that all wait behind one that runs; then what came of them."""
    held = f"hold {len(run.seen)} {model}"
    run.hold(model, held)
    for id, more in requests:
        run.queue(model, id, **more)
    run.release(held)
    run.replies()
    run.batches(model)


def _sizes(*sizes: int) -> list[tuple[str, dict[str, Any]]]:
    return [(f"r{at}", {"shape": (size, 1)}) for at, size in enumerate(sizes, 1)]


@pytest.mark.parametrize(
    ("model", "counts"),
    [("plain", (3,)), ("growing", (1, 5, 13)), ("limited", (1, 6, 9)), ("preferred", (2, 3, 5, 7, 9)), ("threes", (4, 5, 7))],
)
def test_single_requests(pair: Pair, model: str, counts: tuple[int, ...]) -> None:
    def script(run: Run) -> None:
        for count in counts:
            _behind(run, model, _sizes(*[1] * count))

    pair.play(script)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [("limited", (3, 2, 1)), ("limited", (1, 3, 2, 2, 4, 1)), ("preferred", (1, 1, 3, 8, 2)), ("plain", (3, 1))],
)
def test_batched_requests(pair: Pair, model: str, sizes: tuple[int, ...]) -> None:
    def script(run: Run) -> None:
        _behind(run, model, _sizes(*sizes))
        run.ask(model, "too large", shape=(9, 1))

    pair.play(script)
