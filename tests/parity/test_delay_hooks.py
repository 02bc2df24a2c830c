"""The environment's test hooks, which hold back a model's first batch until enough requests wait, on both servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import pytest

from .recorder_script import Outcomes, Play, Run, recorder, recording

QUEUED = "TRITONSERVER_DELAY_SCHEDULER"
BACKLOGGED = "TRITONSERVER_BACKLOG_DELAY_SCHEDULER"

BEGIN = {"sequence_start": True}
END = {"sequence_end": True}


def _batching(strategy: str) -> str:
    ready = 'control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } }'
    return f"sequence_batching {{ {strategy} max_sequence_idle_microseconds: 60000000 {ready} }}"


PLAIN = {"plain": recorder(""), "batching": recorder("dynamic_batching { }")}
DIRECT = {"direct": recorder(_batching("direct { }"))}
NARROW = {"narrow": recorder(_batching("direct { }"), 1)}
OLDEST = {"oldest": recorder(_batching("oldest { max_candidate_sequences: 4 }"))}


def without_batching(run: Run) -> None:
    """Held back by nothing."""
    run.ask("plain", "r1")


def three_requests(run: Run) -> None:
    """For the first time only; batch sizes do not count."""
    run.queue("batching", "r1", shape=(2, 1))
    run.queue("batching", "r2")
    run.batches("batching")
    run.send("batching", "r3")
    run.replies()
    run.ask("batching", "r4")
    run.batches("batching")


def three_requests_of_sequences(run: Run) -> None:
    """All that wait at an instance, also those of one sequence."""
    run.queue("direct", "a1", sequence_id=1, **BEGIN)
    run.queue("direct", "a2", sequence_id=1)
    run.batches("direct")
    run.send("direct", "b1", sequence_id=2, **BEGIN)
    run.replies()
    run.ask("direct", "b2", sequence_id=2)
    run.shown("direct")


def three_sequences(run: Run) -> None:
    """Of the oldest strategy those count that could run: one of each sequence."""
    run.queue("oldest", "a1", sequence_id=1, **BEGIN)
    run.queue("oldest", "a2", sequence_id=1)
    run.queue("oldest", "b1", sequence_id=2, **BEGIN)
    run.batches("oldest")
    run.send("oldest", "c1", sequence_id=3, **BEGIN)
    run.replies()
    run.ask("oldest", "b2", sequence_id=2)
    run.shown("oldest")


def backlog(run: Run) -> None:
    """Two at the instance and one in the backlog."""
    run.queue("narrow", "a1", sequence_id=1, **BEGIN)
    run.queue("narrow", "a2", sequence_id=1)
    run.queue("narrow", "a3", sequence_id=1)
    run.batches("narrow")
    run.send("narrow", "b1", sequence_id=2, **BEGIN)
    run.wait_answered("a1", "a2", "a3")
    run.ask("narrow", "a4", sequence_id=1, **END)
    run.replies()
    run.batches("narrow")


def no_backlog(run: Run) -> None:
    """The oldest strategy does not look at the backlog."""
    run.queue("oldest", "a1", sequence_id=1, **BEGIN)
    run.batches("oldest")
    run.send("oldest", "b1", sequence_id=2, **BEGIN)
    run.replies()
    run.batches("oldest")


def nothing(run: Run) -> None:
    """The backlog does not count alone; what is no number is none."""
    run.ask("direct", "a1", sequence_id=1, **BEGIN)
    run.ask("batching", "r1")


Setting = tuple[Mapping[str, str], Mapping[str, str], tuple[Play, ...]]

SETTINGS: tuple[Setting, ...] = (
    ({QUEUED: "3"}, {**PLAIN, **DIRECT, **OLDEST}, (without_batching, three_requests, three_requests_of_sequences, three_sequences)),
    ({QUEUED: "2", BACKLOGGED: "1"}, {**NARROW, **OLDEST}, (backlog, no_backlog)),
    ({QUEUED: "abc", BACKLOGGED: "2"}, {**PLAIN, **DIRECT}, (nothing,)),
)
"""Environment, models, scripts."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[Play, Outcomes]]:
    """What came of all scripts."""
    played = {}
    with contextlib.ExitStack() as pairs:
        for environment, models, scripts in SETTINGS:
            pair = pairs.enter_context(recording(tmp_path_factory.mktemp("delays"), models, environment))
            played.update(dict.fromkeys(scripts, pair.play_all(scripts)))
        yield played


@pytest.mark.parametrize("script", [script for *_, scripts in SETTINGS for script in scripts], ids=lambda script: script.__name__)
def test_script(script: Play, outcomes: Mapping[Play, Outcomes]) -> None:
    outcomes[script].check(script)
