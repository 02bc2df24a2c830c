"""Sequences of Python models on both servers: what each execution is given, who waits, who is refused, and what is counted.

Not compared: which of two instances is given the first sequence, which is not the same from load to load, and what lies in the rows that
stand for no request.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from .recorder_script import FREED_S, Outcomes, Pair, Play, Run, recorder, recording

CONTROLS = """
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
  control_input { name: "END" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [ 0, 1 ] } }
  control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } }"""
OTHER_CONTROLS = """
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START bool_false_true: [ true, false ] } }
  control_input { name: "END" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 3, -5 ] } }
  control_input { name: "READY" control { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ -1, 2.5 ] } }"""
STATE = """state { input_name: "S" output_name: "S_OUT" data_type: TYPE_INT32 dims: [ 1 ]
  initial_state { name: "nothing" data_type: TYPE_INT32 dims: [ 1 ] zero_data: true } }"""
OPTIONAL = (
    """input [ { name: "X", data_type: TYPE_INT32, dims: [ -1 ] }, { name: "A", data_type: TYPE_INT32, dims: [ -1 ], optional: true } ]"""
)
DECOUPLED = "model_transaction_policy { decoupled: true }"
DELAY_S = 0.7
DELAY = "max_queue_delay_microseconds: 700000"
IDLE_S = 0.5


def _corrid(datatype: str) -> str:
    return f'control_input {{ name: "CORRID" control {{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_{datatype} }} }}'


def _batching(strategy: str = "", controls: str = CONTROLS, idle_s: float = 60, more: str = "") -> str:
    return f"sequence_batching {{ {strategy} max_sequence_idle_microseconds: {int(idle_s * 1e6)} {controls} {more} }}"


OLDEST = "oldest { max_candidate_sequences: 4 }"
ITERATIVE = "iterative_sequence: true"
ENSEMBLE = """platform: "ensemble"
input [ { name: "X", data_type: TYPE_INT32, dims: [ 1 ] } ]
output [ { name: "Y", data_type: TYPE_INT32, dims: [ -1 ] } ]
ensemble_scheduling { step [ { model_name: "alone" model_version: -1
  input_map { key: "X" value: "X" } output_map { key: "Y" value: "Y" } } ] }"""

MODELS = {
    "rows": recorder(_batching("direct {}", CONTROLS + _corrid("UINT64"))),
    "alone": recorder(_batching("", OTHER_CONTROLS + _corrid("INT64")), 0),
    "pairs": recorder(_batching("direct {}"), 2, instances=2),
    "shapes": recorder(_batching("direct {}"), inputs=OPTIONAL),
    "oldest_pairs": recorder(_batching("oldest {}"), 2, instances=2),
    "fills": recorder(_batching(f"direct {{ {DELAY} minimum_slot_utilization: 0.5 }}")),
    "oldest": recorder(_batching(OLDEST)),
    "delayed": recorder(_batching(f"oldest {{ max_candidate_sequences: 8 preferred_batch_size: [ 2, 4 ] {DELAY} }}"), 8),
    "narrow": recorder(_batching("direct {}"), 1),
    "silent": recorder(_batching("direct {}", idle_s=IDLE_S), 1),
    "busy": recorder(_batching(OLDEST, idle_s=IDLE_S)),
    "numbers": recorder(_batching("direct {}", CONTROLS + _corrid("INT32"))),
    "names": recorder(_batching("direct {}", CONTROLS + _corrid("STRING"))),
    "state": recorder(_batching("direct {}", more=STATE)),
    "rounds": recorder(_batching("direct {}", CONTROLS + _corrid("UINT64"), more=ITERATIVE)),
    "oldest_rounds": recorder(_batching(OLDEST, more=ITERATIVE)),
    "streamed_rounds": recorder(f"{DECOUPLED} {_batching(OLDEST, more=ITERATIVE)}"),
    "alone_rounds": recorder(_batching("oldest {}", more=ITERATIVE), 0),
    "over": ENSEMBLE,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both servers with these models."""
    with recording(tmp_path_factory.mktemp("sequences"), MODELS) as both:
        yield both


@pytest.fixture(scope="module")
def outcomes(pair: Pair) -> Outcomes:
    """What came of all scripts."""
    return pair.play_all(SCRIPTS)


BEGIN = {"sequence_start": True}
END = {"sequence_end": True}
WHOLE = {**BEGIN, **END}


def rows(run: Run) -> None:
    """A sequence has a row of its own; rows without a request are there below the last one that has one."""
    run.hold("rows", "hold a1", sequence_id=1, **BEGIN)
    run.queue("rows", "b1", sequence_id=2, **BEGIN)
    run.queue("rows", "c1", sequence_id=3, **BEGIN)
    run.queue("rows", "a2", sequence_id=1)
    run.queue("rows", "b2", sequence_id=2)
    run.release("hold a1")
    run.replies()
    run.ask("rows", "c2", sequence_id=3)
    run.shown("rows")
    run.ask("rows", "fault c3", sequence_id=3)
    run.ask("rows", "refuse c4", sequence_id=3)
    run.ask("rows", "c5", sequence_id=3, **END)
    run.ask("rows", "fault a3", sequence_id=1, **END)
    run.ask("rows", "a4 after the end", sequence_id=1)
    run.ask("rows", "fault d1", sequence_id=4, **BEGIN)
    run.ask("rows", "d2", sequence_id=4, x=7)
    run.ask("rows", "b3 is a new beginning", sequence_id=2, **BEGIN)
    run.ask("rows", "b4 is all", sequence_id=2, **WHOLE)
    run.ask("rows", "b5 after the end", sequence_id=2)
    run.ask("rows", "large id", sequence_id=2**64 - 1, **WHOLE)
    run.hold("rows", "hold d3", sequence_id=4)
    run.queue("rows", "e1", sequence_id=5, **BEGIN)
    run.queue("rows", "fault f1", sequence_id=6, **BEGIN)
    run.release("hold d3")
    run.replies()
    run.ask("rows", "e2", sequence_id=5, **END)
    run.ask("rows", "f2", sequence_id=6, **END)
    run.shown("rows")
    _refusals(run)


def _refusals(run: Run) -> None:
    run.ask("rows", "without a sequence")
    run.ask("rows", "sequence 0", sequence_id=0, **BEGIN)
    run.ask("rows", "sequence without a name", sequence_id="", **BEGIN)
    run.ask("rows", "no begin", sequence_id=9)
    run.ask("rows", "no begin but an end", sequence_id=9, **END)
    run.ask("rows", "two", shape=(2, 1))
    run.ask("rows", "two of a sequence", shape=(2, 1), sequence_id=4)
    run.ask("rows", "too many", shape=(9, 1), sequence_id=4)
    run.ask("rows", "control", inputs={"X": (1, 1), "START": (1, 1)}, sequence_id=4)
    run.ask("rows", "", sequence_id=9)
    run.ask("rows", "generated", path="generate", sequence_id=4)
    run.ask("rows", "d3", sequence_id=4)
    run.batches("rows")


def alone(run: Run) -> None:
    """Without batches controls have one dim; their values and datatypes are the model's choice. An ensemble passes sequences on."""
    run.ask("alone", "a1", sequence_id=2**63 + 5, **BEGIN)
    run.ask("alone", "a2", sequence_id=2**63 + 5)
    run.ask("alone", "a3", sequence_id=2**63 + 5, **END)
    run.ask("over", "b1", sequence_id=1, **BEGIN)
    run.ask("alone", "b2", sequence_id=1)
    run.ask("over", "b3", sequence_id=1, **END)
    run.ask("over", "b4", sequence_id=1)
    run.ask("over", "b5")
    run.fails_otherwise("over", "OTHER", "the real server counts an ensemble's failed request twice", 4, 2)
    run.shown("alone")


def places(run: Run) -> None:
    """The lowest place first, of all instances; a sequence stays where it is."""
    _places(run, "pairs")


def places_of_the_oldest(run: Run) -> None:
    _places(run, "oldest_pairs")


def _places(run: Run, model: str) -> None:
    for number in range(1, 5):
        run.ask(model, f"s{number}", sequence_id=number, **BEGIN)
    for number in (3, 2):
        run.ask(model, f"e{number}", sequence_id=number, **END)
    for number in (5, 6):
        run.ask(model, f"s{number}", sequence_id=number, **BEGIN)
    run.queue(model, "s7", sequence_id=7, **BEGIN)
    for number in (5, 1, 4, 6):
        run.ask(model, f"t{number}", sequence_id=number, **END)
    run.replies()
    run.shown(model)


def shapes(run: Run) -> None:
    """Those of another shape, or with other inputs, wait."""
    sets = [{"X": (1, 2)}, {"X": (1, 3)}, {"X": (1, 2)}, {"X": (1, 2), "A": (1, 1)}]
    run.hold("shapes", "hold", sequence_id=1, **BEGIN)
    for number, inputs in enumerate(sets, 1):
        run.queue("shapes", f"r{number}", sequence_id=number, inputs=inputs, **(BEGIN if number > 1 else {}))
    run.release("hold")
    run.replies()
    run.shown("shapes")


def fills(run: Run) -> None:
    """A batch waits while too few of its rows have a request, but not for ever."""
    _delays(run, "fills")


def delayed(run: Run) -> None:
    """The same of the oldest: until there is a preferred size."""
    _delays(run, "delayed")


def _delays(run: Run, model: str) -> None:
    def since(what: str) -> None:
        run.note(f"{what} only after the delay", time.monotonic() - start_s >= DELAY_S)

    start_s = time.monotonic()
    run.ask(model, "a1", sequence_id=1, **BEGIN)
    since("one")
    start_s = time.monotonic()
    run.queue(model, "a2", sequence_id=1)
    run.send(model, "b1", sequence_id=2, **BEGIN)
    run.replies()
    since("two")
    run.batches(model)


def oldest(run: Run) -> None:
    """One request of each sequence at a time, in the order in which they could go; the fifth sequence waits for a place.

    Never do two get ready by the end of one batch: which of them is in the next is a matter of chance at the real server.
    """
    run.hold("oldest", "hold a1", sequence_id=1, **BEGIN)
    for id, number, flags in (("b1", 2, BEGIN), ("c1", 3, BEGIN), ("b2", 2, {}), ("d1", 4, BEGIN)):
        run.queue("oldest", id, sequence_id=number, **flags)
    run.release("hold a1")
    run.replies()
    run.hold("oldest", "hold b3", sequence_id=2)
    run.queue("oldest", "e1", sequence_id=5, **BEGIN)
    run.queue("oldest", "c2", sequence_id=3, **END)
    run.release("hold b3")
    run.replies()
    run.shown("oldest")
    run.hold("oldest", "hold b4", sequence_id=2)
    for id, number in (("a4", 1), ("e2", 5), ("fault d2", 4)):
        run.queue("oldest", id, sequence_id=number)
    run.release("hold b4")
    run.replies()
    for id, number in (("a5", 1), ("refuse b4", 2), ("b5", 2)):
        run.ask("oldest", id, sequence_id=number)
    for id, number in (("a6", 1), ("fault b6", 2), ("refuse d3", 4), ("e3", 5)):
        run.ask("oldest", id, sequence_id=number, **END)
    run.ask("oldest", "b7 after the end", sequence_id=2)
    run.ask("oldest", "a number", sequence_id=7, **BEGIN)
    run.ask("oldest", "a name that looks alike", sequence_id="7")
    run.ask("oldest", "that name", sequence_id="7", **BEGIN)
    run.ask("oldest", "its end", sequence_id="7", **END)
    run.ask("oldest", "the number's end", sequence_id=7, **END)
    run.shown("oldest")


def backlog(run: Run) -> None:
    """Sequences that wait for a place get it in the order of their first requests, and keep it to their end."""
    run.hold("narrow", "hold a1", sequence_id=1, **BEGIN)
    for id, number, flags in (
        ("b1", 2, BEGIN), ("c1", 3, BEGIN), ("b2", 2, {}), ("c2", 3, END), ("b3", 2, END), ("d1", 4, WHOLE), ("c3", 3, BEGIN),
    ):  # fmt: skip
        run.queue("narrow", id, sequence_id=number, **flags)
    run.ask("narrow", "e1", sequence_id=5)
    run.queue("narrow", "a2", sequence_id=1, **END)
    run.release("hold a1")
    run.replies()
    run.ask("narrow", "c4", sequence_id=3, **END)
    run.batches("narrow")

    # A time limit counts in the backlog only, and for all of a sequence.
    run.hold("narrow", "hold f1", sequence_id=6, **BEGIN)
    run.queue("narrow", "g1", sequence_id=7, timeout=700_000, **BEGIN)
    run.queue("narrow", "g2", sequence_id=7)
    run.queue("narrow", "h1", sequence_id=8, **BEGIN)
    run.queue("narrow", "h2", sequence_id=8, timeout=200_000)
    run.queue("narrow", "i1", sequence_id=9, **BEGIN)
    run.queue("narrow", "i2", sequence_id=9, **WHOLE)
    run.queue("narrow", "f2", sequence_id=6, timeout=1, **END)
    run.wait_answered("h1", "h2", "g1", "g2")
    run.ask("narrow", "g3", sequence_id=7)
    run.release("hold f1")
    run.replies()
    run.shown("narrow")


def silent(run: Run) -> None:
    """A sequence of which nothing is heard loses its place; one in the backlog waits for as long as it takes."""
    run.ask("silent", "a1", sequence_id=1, **BEGIN)
    run.queue("silent", "b1", sequence_id=2, **BEGIN)
    run.queue("silent", "c1", sequence_id=3, **WHOLE)
    run.replies()
    run.ask("silent", "a2", sequence_id=1)
    run.ask("silent", "b2", sequence_id=2)
    run.shown("silent")


def busy(run: Run) -> None:
    """A sequence is not silent while the model works for it."""
    run.leave_counters("busy", "one serves a request more")
    run.hold("busy", "hold a1", sequence_id=1, **BEGIN)
    run.let_pass(IDLE_S + 0.1)
    run.release("hold a1")
    run.replies()
    text = "inference request for sequence 1 to model 'busy' must specify the START flag on the first request of the sequence"
    why = "the original counts from the last arrival, so a model slower than the limit loses its sequences"
    run.ask("busy", "a2", why, (400, text), (200, ""), sequence_id=1)


def numbers(run: Run) -> None:
    """An id is cut to the low bits of its control."""
    for number in (2**40 + 7, 2**31, 2**32 - 1, 2**63 + 1):
        run.ask("numbers", f"{number}", sequence_id=number, **WHOLE)
    run.shown("numbers")
    run.leave_counters("numbers", "one takes what the other refuses")
    text = "sequence batching control 'CORRID' data-type is 'BYTES', but model 'numbers' expects 'INT32'"
    why = "the original gives the model the first bytes of the name as a number, where its documentation promises this error"
    run.ask("numbers", "name", why, (200, ""), (400, text), sequence_id="five", **WHOLE)
    why = "the original says in its log that this model may not do so, and never answers"
    run.ask("numbers", "reschedule", why, None, (500, RESCHEDULED), fatal=True, sequence_id=1, **WHOLE)


RESCHEDULED = (
    "Failed to release request: Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, "
    "while the model is not configured to handle such a flag."
)


def names(run: Run) -> None:
    run.leave_counters("names", "one refuses what the other takes")
    why = "the original sends the model a control of 132 bytes whatever the name, which its own check refuses"
    text = "unexpected number of string elements 2 for inference input 'CORRID', expecting 1"
    for name in ("five", "grüße"):
        run.ask("names", name, why, (400, text), (200, ""), sequence_id=name, **WHOLE)
    shown = [execution["requests"][0]["inputs"]["CORRID"] for execution in run.executions("names")]
    run.note("controls", shown, why, [], [["object", [1, 1], [name.encode().decode("latin-1")]] for name in ("five", "grüße")])


def state(run: Run) -> None:
    for at in range(3):
        run.ask("state", f"a{at}", sequence_id=1, x=at + 1, sequence_start=not at)
    states = [execution["requests"][0]["inputs"]["S"] for execution in run.executions("state")]
    why = "the original's Python backend gives every request the initial state"
    run.note("states", states, why, [["int32", [1, 1], [0]]] * 3, [["int32", [1, 1], [value]] for value in (0, 1, 3)])


CANCELED = "the original counts the end that it makes up for each sequence of rounds as a cancelled request"


def rounds(run: Run) -> None:
    """A request that the model wants again comes again, as a sequence of its own."""
    for id, more in (
        ("a", {"x": 3}),
        ("b", {"x": 1, "sequence_id": 0}),
        ("c", {"x": 2, **END}),
        ("d", {"x": 2, "sequence_id": 77, **BEGIN}),
        ("no begin", {"x": 2, "sequence_id": 77}),
        ("late", {"x": 3}),
        ("kept", {"x": 2}),
        ("refuse", {"x": 2}),
        ("e", {"x": 2, "path": "generate", "sequence_id": 5, "sequence_start": True}),
    ):
        run.ask("rounds", id, **more)
        run.let_pass(FREED_S)
    run.hold("rounds", "hold f", x=1)
    run.queue("rounds", "g", x=1)
    run.queue("rounds", "h", x=1)
    run.release("hold f")
    run.replies()
    run.shown("rounds")
    run.fails_otherwise("rounds", "CANCELED", CANCELED, 11, 0, besides=2)


def rounds_of_the_oldest(run: Run) -> None:
    """Which of two that get ready together are in the next batch is a matter of chance at the real server, so one has more than a round."""
    run.hold("oldest_rounds", "hold a", x=1)
    for id, x in (("b", 1), ("c", 3), ("d", 1)):
        run.queue("oldest_rounds", id, x=x)
    run.release("hold a")
    run.replies()
    run.ask("oldest_rounds", "late", x=3)
    run.shown("oldest_rounds")
    run.fails_otherwise("oldest_rounds", "CANCELED", CANCELED, 5, 0, besides=1)


def rounds_that_answer(run: Run) -> None:
    run.ask("streamed_rounds", "a", x=3, path="generate_stream")
    run.ask("streamed_rounds", "b", x=1, path="generate")
    run.shown("streamed_rounds")
    run.fails_otherwise("streamed_rounds", "CANCELED", CANCELED, 2, 0)


def rounds_alone(run: Run) -> None:
    run.ask("alone_rounds", "a", x=2)
    run.shown("alone_rounds")
    run.leave_counters("alone_rounds", "one is not asked all")
    why = "the original never answers: its own next round is refused, because the sequence has had its end"
    run.ask("alone_rounds", "b", why, None, (200, ""), fatal=True, x=2, sequence_id=9, **WHOLE)


SCRIPTS: tuple[Play, ...] = (
    *(rows, oldest, backlog, silent, busy, fills, delayed, alone, places, places_of_the_oldest, shapes),
    *(numbers, names, state, rounds, rounds_of_the_oldest, rounds_that_answer, rounds_alone),
)


@pytest.mark.parametrize("model", MODELS)
def test_description(model: str, pair: Pair) -> None:
    pair.compare_descriptions(model)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_script(script: Play, outcomes: Outcomes) -> None:
    outcomes.check(script)
