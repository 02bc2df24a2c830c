"""Dynamic batching with Python models on both servers: which requests share a batch, who comes first, who is refused, and what is counted.

Models have a queue policy wherever compositions depend on more than the order of arrival: without one the real server forms batches
ahead of time, of what is there just then.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from .recorder_script import INPUT, Outcomes, Pair, Play, Run, recorder, recording

ROOMY = "max_queue_size: 100"
"""A policy that changes nothing but that the real server forms its batches when an instance is free."""

LONG = "default_timeout_microseconds: 60000000"


def _batching(text: str = "", policy: str = ROOMY) -> str:
    return f"dynamic_batching {{ {text} {f'default_queue_policy {{ {policy} }}' if policy else ''} }}"


DELAY_S = 0.7
TWICE = "the real server counts an ensemble's failed request twice"
LEVEL_LIMITS = (
    """priority_queue_policy { key: 1 value { max_queue_size: 2 } } priority_queue_policy { key: 2 value { max_queue_size: 3 } }"""
)
DELAYED = f"timeout_action: DELAY {LONG} allow_timeout_override: true"
RAGGED = """input [ { name: "X", data_type: TYPE_INT32, dims: [ -1 ] },
  { name: "A", data_type: TYPE_INT32, dims: [ -1 ], allow_ragged_batch: true } ]"""
OPTIONAL = """input [ { name: "X", data_type: TYPE_INT32, dims: [ -1 ] }, { name: "A", data_type: TYPE_INT32, dims: [ -1 ], optional: true },
  { name: "B", data_type: TYPE_INT32, dims: [ -1 ], optional: true } ]"""


def _ensemble(member: str, max_batch_size: int) -> str:
    step = f'model_name: "{member}" model_version: -1 input_map {{ key: "X" value: "X" }} output_map {{ key: "Y" value: "Y" }}'
    return f"""platform: "ensemble" max_batch_size: {max_batch_size} {INPUT}
output [ {{ name: "Y", data_type: TYPE_INT32, dims: [ -1 ] }} ] ensemble_scheduling {{ step [ {{ {step} }} ] }}"""


MODELS = {
    "plain": recorder(""),
    "growing": recorder(_batching(policy="")),
    "limited": recorder(_batching(policy=f"{ROOMY} allow_timeout_override: true")),
    "preferred": recorder(_batching("preferred_batch_size: [ 2, 4 ]"), 8),
    "delayed": recorder(_batching("preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 700000"), 8),
    "levels": recorder(_batching("priority_levels: 5 default_priority_level: 3", "")),
    "level_limits": recorder(_batching(f"priority_levels: 3 default_priority_level: 3 {LEVEL_LIMITS}", "max_queue_size: 1"), 1),
    "level_delayed": recorder(
        _batching(f"priority_levels: 2 default_priority_level: 2 priority_queue_policy {{ key: 1 value {{ {DELAYED} }} }}", ""), 1
    ),
    "small": recorder(_batching(policy="max_queue_size: 2"), 8),
    "unbatched": recorder(_batching(policy="max_queue_size: 2 default_timeout_microseconds: 500000"), 0),
    "shortened": recorder(_batching(policy=f"{LONG} allow_timeout_override: true")),
    "put_off": recorder(_batching(policy=DELAYED)),
    "ordered": recorder(_batching("preserve_ordering: true", "max_queue_size: 1"), 1, instances=2),
    "ragged": recorder(_batching(), inputs=RAGGED),
    "optional": recorder(_batching(policy=LONG), inputs=OPTIONAL),
    "over_small": _ensemble("small", 1),
    "over_unbatched": _ensemble("unbatched", 0),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both servers with these models."""
    with recording(tmp_path_factory.mktemp("queues"), MODELS) as both:
        yield both


@pytest.fixture(scope="module")
def outcomes(pair: Pair) -> Outcomes:
    """What came of all scripts."""
    return pair.play_all(SCRIPTS)


def _behind(run: Run, model: str, requests: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Requests that all wait behind one that runs; then what came of them."""
    run.hold(model, "hold", **requests[0][1])
    for id, more in requests:
        run.queue(model, id, **more)
    run.release("hold")
    run.replies()
    run.batches(model)


def _sizes(*sizes: int) -> list[tuple[str, dict[str, Any]]]:
    return [(f"r{at}", {"shape": (size, 1)}) for at, size in enumerate(sizes, 1)]


def without_batching(run: Run) -> None:
    _behind(run, "plain", [(id, {**more, "timeout": 1}) for id, more in _sizes(1, 1, 3, 1)])
    run.ask("plain", "too large", shape=(5, 1))


def batching(run: Run) -> None:
    """Once, while our server does not know how fast the model is: later it gives it work ahead of time, as the other does."""
    _behind(run, "growing", _sizes(*[1] * 5))


def batching_behind_a_policy(run: Run) -> None:
    """Whose time limit is none, so that a request has none of its own either."""
    for sizes in ((1,), [1] * 6, (3, 2, 1), (1, 3, 2, 2, 4, 1)):
        _behind(run, "limited", [(id, {**more, "timeout": 1}) for id, more in _sizes(*sizes)])
    run.ask("limited", "too large", shape=(5, 1))
    _behind(run, "limited", [("r1", {}), ("fault 2", {}), ("r3", {})])
    _behind(run, "limited", [("r1", {}), ("refuse 2", {}), ("r3", {})])


def preferred_sizes(run: Run) -> None:
    """The largest of them that the requests make; none, and a batch goes no further than the largest of all."""
    for sizes in ([1] * 3, [1] * 5, [1] * 7, [1] * 9, (1, 1, 3, 8, 2), (3, 2, 1), (3, 3, 3, 1, 2, 5, 5, 3)):
        _behind(run, "preferred", _sizes(*sizes))


def delay(run: Run) -> None:
    """It counts from the arrival of the oldest; a preferred size does not wait, what is left waits for its own time."""

    def since(what: str) -> None:
        run.note(f"{what} only after the delay", time.monotonic() - start_s >= DELAY_S)

    start_s = time.monotonic()
    run.queue("delayed", "r1")
    run.let_pass(DELAY_S / 2)
    run.queue("delayed", "hold")
    run.wait_running("delayed", "hold")
    since("two")
    run.note("and not after that of the second", time.monotonic() - start_s < 1.5 * DELAY_S)
    start_s = time.monotonic()
    for at in range(1, 6):
        run.queue("delayed", f"s{at}")
    run.release("hold")
    run.wait_answered("r1", "hold", "s1", "s2", "s3", "s4")
    since("a preferred size")
    run.wait_answered("s5")
    since("what is left")

    # Nothing is preferred any more once the oldest has waited for so long.
    run.queue("delayed", "t1")
    run.hold("delayed", "hold again")
    for at in range(2, 8):
        run.queue("delayed", f"t{at}")
    run.let_pass(DELAY_S + 0.1)
    run.release("hold again")
    run.replies()
    run.batches("delayed")


def levels(run: Run) -> None:
    """The first level goes first, then arrival; what is no level is the default one. Batches hold requests of any."""
    numbers = (5, 4, 3, None, 2, 1, 6, 0, 1, 2**64 - 1)
    _behind(run, "levels", [(f"{at} level {level}", {} if level is None else {"priority": level}) for at, level in enumerate(numbers)])


def limits_of_levels(run: Run) -> None:
    run.hold("level_limits", "hold")
    for level, count in ((1, 2), (2, 3), (3, 1)):
        for at in range(count):
            run.queue("level_limits", f"r{level} {at}", priority=level)
        run.ask("level_limits", f"r{level} more", priority=level)
    run.ask("level_limits", "no level")
    run.release("hold")
    run.replies()
    run.batches("level_limits")


def full_queue(run: Run) -> None:
    """Requests are counted, whatever their batch sizes; those that are refused are not."""
    run.hold("small", "hold")
    for id in ("r1", "r2"):
        run.queue("small", id, shape=(3, 1))
    run.ask("small", "r3")
    run.ask("small", "")
    run.ask("over_small", "r4")
    run.fails_otherwise("over_small", "OTHER", TWICE, 2, 1)
    run.release("hold")
    run.replies()
    run.batches("small")
    run.ask("small", "r5")


def time_limit(run: Run) -> None:
    """Who has waited for too long is told so while the instance is busy, and counted; the request has no say. Here without batches."""
    run.hold("unbatched", "hold")
    run.queue("unbatched", "r1")
    run.queue("over_unbatched", "r2", member="unbatched", timeout=60_000_000)
    run.ask("unbatched", "r3")
    run.wait_answered("r1", "r2")
    run.fails_otherwise("over_unbatched", "OTHER", TWICE, 2, 1)
    run.release("hold")
    run.replies()
    run.batches("unbatched")


def shortened_time_limit(run: Run) -> None:
    """A request may have less time than the model gives it, if that says so, and never more."""
    run.hold("shortened", "hold")
    for id, timeout in (("r1", 100_000), ("r2", 0), ("r3", 2**63 - 1)):
        run.queue("shortened", id, timeout=timeout)
    run.wait_answered("r1")
    run.release("hold")
    run.replies()
    run.batches("shortened")


def _put_off(run: Run, model: str, late: int, fresh: Sequence[int]) -> None:
    """Two requests whose time runs out, then others; levels are given."""
    run.hold(model, "hold")
    for at in range(2):
        run.queue(model, f"late {at}", timeout=100_000, priority=late)
    run.let_pass(0.15)
    for at, level in enumerate(fresh):
        run.queue(model, f"fresh {at}", priority=level)
    run.release("hold")
    run.replies()
    run.batches(model)


def put_off(run: Run) -> None:
    """Who has waited for too long goes last, if the model says so, and is served all the same."""
    _put_off(run, "put_off", 0, (0, 0))


def put_off_in_its_level(run: Run) -> None:
    _put_off(run, "level_delayed", 1, (2, 1))


def order_of_replies(run: Run) -> None:
    """What has run is held back until what came before it is answered; who is refused is told at once."""
    run.hold("ordered", "hold 1")
    for count in (1, 2):
        run.send("ordered", f"r{count}")
        run.wait_executions("ordered", count)
    run.answered()
    run.hold("ordered", "hold 2")
    run.queue("ordered", "r3")
    run.ask("ordered", "r4")
    run.answered()
    run.release("hold 1", "hold 2")
    run.replies()


def _shapes(*shapes: dict[str, tuple[int, int]]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"r{at}", {"inputs": inputs}) for at, inputs in enumerate(shapes, 1)]


def ragged(run: Run) -> None:
    """A ragged input's shape does not matter, another's does."""
    _behind(run, "ragged", _shapes(*({"X": (1, x), "A": (1, a)} for x, a in ((1, 1), (1, 5), (2, 5), (2, 1), (2, 2), (1, 2)))))


def optional(run: Run) -> None:
    """Which inputs there are matters, their order does not."""
    shapes = [{name: (1, 1) for name in names} for names in ("X", "X", "XA", "AX", "XAB", "XB", "XA")]
    _behind(run, "optional", [(id, {**more, "timeout": 1}) for id, more in _shapes(*shapes, {"X": (1, 2), "A": (1, 1)})])


SCRIPTS: tuple[Play, ...] = (
    *(preferred_sizes, batching_behind_a_policy, delay, time_limit, shortened_time_limit, put_off, put_off_in_its_level),
    *(without_batching, batching, levels, limits_of_levels, full_queue, order_of_replies, ragged, optional),
)


@pytest.mark.parametrize("model", MODELS)
def test_description(model: str, pair: Pair) -> None:
    pair.compare_descriptions(model)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_script(script: Play, outcomes: Outcomes) -> None:
    outcomes.check(script)
