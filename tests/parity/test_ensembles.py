"""Ensembles of Python models: the same folders at both servers.

The real server gives outputs in the order of a hash table, and repeats the sequence parameters for each of them; so
replies are compared as values, outputs by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from .. import oracle as real
from ..ensembles import Member, Step, TestEnsemble, write_ensembles, write_members
from ..model_repository import TestTensor
from ..servers import Server, metric, start_tensorfarm, stopping, wait_until
from ..wire import compact, exchange
from .case import OURS, Case, check, infer, tensor

DECOUPLED = "model_transaction_policy { decoupled: true }"


def _t(name: str, dims: tuple[int, ...] = (4,), datatype: str = "INT32", **more: Any) -> TestTensor:
    return TestTensor(name, datatype, dims, **more)


IN, OUT = (_t("IN"),), (_t("OUT"),)
ONE_IN, ONE_OUT = (_t("IN", (1,)),), (_t("OUT", (1,)),)
MEMBERS = (
    Member("plain", "sum", IN, OUT),
    Member("batch8", "sum", IN, (_t("OUT", label_filename="l.txt"),), max_batch_size=8, files={"l.txt": "a\nb\nc\nd\n"}),
    Member("wild", "sum", (_t("IN", (-1,)),), (_t("OUT", (-1,)),)),
    Member("wild2", "sum", (_t("IN", (-1, 4)),), (_t("OUT", (-1, 4)),)),
    Member("shaped", "sum", (_t("IN", (2, 2), reshape=(4,)),), (_t("OUT", (2, 2), reshape=(4,)),)),
    Member("two", "sum", (_t("A"), _t("B")), (_t("OUT"), _t("EXTRA"))),
    Member("opt", "sum", (_t("A"), _t("B")), OUT, optional=("B",)),
    Member("half", "half", IN, (_t("OUT"), _t("MORE"))),
    Member("none", "none", IN, OUT),
    Member("tell", "tell", IN, (_t("OUT", (1,), "BYTES"),)),
    Member("versions", "tell", IN, (_t("OUT", (1,), "BYTES"),), versions=(1, 2), extra="version_policy { all { } }"),
    Member("flow", "repeat", ONE_IN, ONE_OUT, extra=DECOUPLED),
    Member("flow2", "repeat", ONE_IN, ONE_OUT, extra=DECOUPLED),
    Member("flowfail", "repeat", ONE_IN, ONE_OUT, extra=DECOUPLED, settings={"fail_after": "2"}),
    Member("one", "sum", ONE_IN, ONE_OUT),
    Member("join", "sum", (_t("A", (1,)), _t("B", (1,))), ONE_OUT),
    Member("broken", "fail", IN, OUT),
)
X, Y, Z = _t("X"), _t("Y"), _t("Z")
X1, Y1 = (_t("X", (1,)),), (_t("Y", (1,)),)
TEXT = (_t("Y", (1,), "BYTES"),)


def _s(model: str, inputs: str = "IN=X", outputs: str = "OUT=Y", version: int = -1) -> Step:
    pairs = [dict(pair.split("=") for pair in text.split()) for text in (inputs, outputs)]
    return Step(model, *pairs, version=version)


def _e(name: str, *steps: Step, inputs: tuple[TestTensor, ...] = (X,), outputs: tuple[TestTensor, ...] = (Y,), **more: Any) -> TestEnsemble:
    return TestEnsemble(name, steps, inputs, outputs, **more)


def _wide(*dims: int) -> dict[str, tuple[TestTensor, ...]]:
    return {"inputs": (_t("X", dims),), "outputs": (_t("Y", dims),)}


OPTIONAL: dict[str, Any] = {"inputs": (X, _t("O")), "optional": ("O",)}
ENSEMBLES = (
    _e("e_chain", _s("plain", outputs="OUT=T"), _s("plain", "IN=T"), versions=(5,)),
    _e("e_nest", _s("e_chain", "X=X", "Y=Y")),
    _e("e_batch", _s("batch8", outputs="OUT=T"), _s("batch8", "IN=T"), max_batch_size=8),
    _e("e_nest_batch", _s("e_batch", "X=X", "Y=Y"), max_batch_size=8),
    _e(
        "e_branch",
        _s("plain", outputs="OUT=T"),
        _s("plain", "IN=T"),
        _s("two", "A=T B=X", "OUT=U EXTRA=Z"),
        _s("plain", "IN=U", "OUT=V"),
        outputs=(Y, Z, _t("V")),
    ),
    _e("e_mbs0", _s("plain", outputs="OUT=T"), _s("plain", "IN=T"), max_batch_size=8),
    _e("e_merge", _s("batch8"), **_wide(-1, 4)),
    _e("e_merge_fixed", _s("batch8"), **_wide(2, 4)),
    _e("e_split", _s("batch8", outputs="OUT=T"), _s("plain", "IN=T")),
    _e("e_whole", _s("wild2"), max_batch_size=8),
    _e("e_mid", _s("batch8", outputs="OUT=T"), _s("wild2", "IN=T", "OUT=U"), _s("batch8", "IN=U"), max_batch_size=8),
    _e("e_shaped", _s("shaped"), **_wide(2, 2)),
    _e("e_reshape", _s("plain"), inputs=(_t("X", (2, 2), reshape=(4,)),), outputs=(_t("Y", (2, 2), reshape=(4,)),)),
    _e("e_wild", _s("wild", outputs="OUT=T"), _s("plain", "IN=T"), **_wide(-1)),
    _e("e_half", _s("half", outputs="OUT=Y MORE=T"), _s("plain", "IN=T", "OUT=Z"), outputs=(Y, Z)),
    _e("e_half_out", _s("half", outputs="OUT=Y MORE=Z"), outputs=(Y, Z)),
    _e("e_half_optional", _s("half", outputs="OUT=Y MORE=T"), _s("opt", "A=X B=T", "OUT=Z"), outputs=(Y, Z)),
    _e("e_none", _s("none")),
    _e("e_none_other", _s("none"), _s("plain", outputs="OUT=Z"), outputs=(Y, Z)),
    _e("e_optional", _s("opt", "A=X B=O"), **OPTIONAL),
    _e("e_optional_chain", _s("plain", "IN=O", "OUT=P"), _s("opt", "A=X B=P"), **OPTIONAL),
    _e("e_optional_needed", _s("two", "A=X B=O"), **OPTIONAL),
    _e("e_through", _s("plain"), outputs=(Y, X)),
    _e("e_tell", _s("tell"), outputs=TEXT),
    _e("e_newest", _s("versions"), outputs=TEXT),
    _e("e_version", _s("versions", version=1), outputs=TEXT),
    _e("e_declared", _s("plain"), extra=DECOUPLED),
    _e("e_counted", _s("batch8", outputs="OUT=T"), _s("batch8", "IN=T"), max_batch_size=8, versions=(7,)),
    _e("e_counted_flow", _s("flow", outputs="OUT=T"), _s("one", "IN=T"), inputs=X1, outputs=Y1),
    _e("e_flow", _s("flow"), inputs=X1, outputs=Y1),
    _e("e_flow_one", _s("flow", outputs="OUT=T"), _s("one", "IN=T"), inputs=X1, outputs=Y1),
    _e("e_one_flow_one", _s("one", outputs="OUT=T"), _s("flow", "IN=T", "OUT=U"), _s("one", "IN=U"), inputs=X1, outputs=Y1),
    _e("e_flow_join", _s("flow", outputs="OUT=T"), _s("one", "IN=T", "OUT=U"), _s("join", "A=T B=U"), inputs=X1, outputs=Y1),
    _e("e_flow_two", _s("flow", outputs="OUT=Z"), _s("one", "IN=Z"), inputs=X1, outputs=(*Y1, _t("Z", (1,)))),
    _e("e_flow_flow", _s("flow", outputs="OUT=T"), _s("flow2", "IN=T"), inputs=X1, outputs=Y1),
    _e("e_flow_fail", _s("flowfail", outputs="OUT=T"), _s("one", "IN=T"), inputs=X1, outputs=Y1),
    _e("e_nest_flow", _s("e_flow", "X=X", "Y=Y"), inputs=X1, outputs=Y1),
)

_JOIN = {"inputs": X1, "outputs": Y1}
REFUSED = (
    _e("r_missing", _s("nowhere", outputs="OUT=T"), _s("nobody", "IN=T")),
    _e("r_above_missing", _s("r_missing", "X=X", "Y=T"), _s("plain", "IN=T")),
    _e("r_broken", _s("broken")),
    _e("r_version", _s("versions", version=9)),
    _e("r_version_0", _s("plain", version=0)),
    _e("r_order", _s("r_missing", "X=X", "Y=T"), _s("versions", "IN=T", version=9)),
    _e("r_no_input", _s("plain", "IN=X NOPE=X")),
    _e("r_no_output", _s("plain", outputs="OUT=Y NOPE=T"), _s("plain", "IN=T", "OUT=Z"), outputs=(Y, Z)),
    _e("r_unmapped", _s("two", "A=X")),
    _e("r_batch", _s("batch8", "IN=X Q=X"), max_batch_size=16),
    _e("r_type", _s("plain"), inputs=(_t("X", datatype="FP32"),)),
    _e("r_shape", _s("plain"), outputs=(_t("Y", (5,)),)),
    _e("r_shape_batch", _s("batch8"), inputs=(_t("X", (5,)),), max_batch_size=8),
    _e("r_shape_mixed", _s("batch8"), inputs=(_t("X", (1, 2, 4)),)),
    _e("r_shaped", _s("shaped")),
    _e("r_join", _s("flow", outputs="OUT=T"), _s("join", "A=T B=X"), **_JOIN),
    _e("r_join_flows", _s("flow", outputs="OUT=T"), _s("flow2", "IN=T", "OUT=U"), _s("join", "A=T B=U"), **_JOIN),
    _e("r_join_outputs", _s("flow"), _s("one", outputs="OUT=Z"), inputs=X1, outputs=(*Y1, _t("Z", (1,)))),
    _e("r_above_type", _s("r_type", "X=X", "Y=Y")),
)
"""Those that no server takes; circles are not among them, because they kill release 24.10."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """The real server and tensorfarm with one and the same repository."""
    real.require()
    root = tmp_path_factory.mktemp("ensembles")
    models = write_ensembles(write_members(root / "models", MEMBERS), (*ENSEMBLES, *REFUSED))
    flags = ("--disable-auto-complete-config", "--exit-on-error=false", "--strict-readiness=false")
    started = [real.start(models, *flags, folder=root / "oracle"), start_tensorfarm(models, *flags, folder=root / "farm", wait=False)]
    with stopping(*started) as (theirs, ours):
        yield theirs, ours


def _named(reply: Any) -> Any:
    return {**reply, "outputs": {output["name"]: output for output in reply["outputs"]}}


def _without_newer(config: Any) -> Any:
    """A configuration, members in order, without what releases after 24.10 have in it."""
    config["ensemble_scheduling"].pop("max_inflight_requests", None)
    return [(name, json.dumps(value)) for name, value in config.items()]


def _ask(title: str, model: str, shape: list[int], first: int = 0, more: dict[str, list[int]] | None = None, **content: Any) -> Case:
    """An inference with X (and more inputs) counting from ``first``."""
    shapes = {"X": shape, **(more or {})}
    inputs = []
    for name, each in shapes.items():
        count = 1
        for dim in each:
            count *= dim
        inputs.append(tensor(name, "INT32", each, list(range(first, first + count))))
    case = infer(title, model, {**content, "inputs": inputs})
    return Case(case.id, case.method, case.path, case.body, case.headers, _named)


CASES = [
    _ask("chain", "e_chain", [4]),
    _ask("chain with id and sequence", "e_chain", [4], id="abc", parameters={"a": 1, "sequence_id": 5, "sequence_end": True}),
    _ask("chain with a named sequence", "e_chain", [4], parameters={"sequence_id": "s", "sequence_start": True}),
    _ask("nested", "e_nest", [4]),
    _ask("a step fails", "e_chain", [4], -9),
    _ask("a step fails, id", "e_chain", [4], -9, id="q"),
    _ask("a nested step fails", "e_nest", [4], -9, id="q"),
    _ask("batch", "e_batch", [3, 4]),
    _ask("batch too large", "e_batch", [9, 4]),
    _ask("batch of another shape", "e_batch", [2, 5]),
    _ask("classes", "e_batch", [2, 4], outputs=[{"name": "Y", "parameters": {"classification": 2}}]),
    _ask("nested classes", "e_nest_batch", [2, 4], outputs=[{"name": "Y", "parameters": {"classification": 2}}]),
    _ask("all branches", "e_branch", [4]),
    _ask("one branch", "e_branch", [4], outputs=[{"name": "Z"}]),
    _ask("two branches", "e_branch", [4], outputs=[{"name": "V"}, {"name": "Y"}]),
    *(_ask(f"no batch inside a batch of {size}", "e_mbs0", [size, 4]) for size in (1, 2)),
    *(_ask(f"the first dim as a batch of {size}", "e_merge", [size, 4]) for size in (1, 2, 9)),
    _ask("a fixed first dim as a batch", "e_merge_fixed", [2, 4]),
    _ask("a batch of one, put before and taken away", "e_split", [4]),
    *(_ask(f"a batch of {size} as a dim", "e_whole", [size, 4]) for size in (1, 3)),
    *(_ask(f"a batch of {size} as a dim and back", "e_mid", [size, 4]) for size in (1, 3)),
    infer("a member's reshape by itself", "shaped", {"inputs": [tensor("IN", "INT32", [2, 2], [1, 2, 3, 4])]}),
    _ask("a member's reshape", "e_shaped", [2, 2]),
    _ask("the ensemble's reshape", "e_reshape", [2, 2]),
    _ask("a step refuses", "e_wild", [5], id="q"),
    _ask("a step takes", "e_wild", [4]),
    _ask("an output left out, needed", "e_half", [4], id="q"),
    _ask("an output left out, not wanted", "e_half", [4], outputs=[{"name": "Y"}]),
    _ask("an output left out at the end", "e_half_out", [4]),
    _ask("an output left out, optional", "e_half_optional", [4]),
    _ask("no outputs", "e_none", [4], id="q"),
    _ask("no outputs of one step", "e_none_other", [4]),
    _ask("optional, not given", "e_optional", [4]),
    _ask("optional, given", "e_optional", [4], more={"O": [4]}),
    _ask("optional down a chain, not given", "e_optional_chain", [4]),
    _ask("optional down a chain, given", "e_optional_chain", [4], more={"O": [4]}),
    _ask("optional yet needed", "e_optional_needed", [4]),
    _ask("optional and needed, given", "e_optional_needed", [4], more={"O": [4]}),
    _ask("an input as an output", "e_through", [4]),
    _ask("what a step is told", "e_tell", [4]),
    _ask(
        "what a step is told of everything",
        "e_tell",
        [4],
        id="abc",
        parameters={"a": 1, "b": "z", "c": True, "sequence_id": 5, "sequence_start": True, "priority": 2, "timeout": 123456},
    ),
    _ask("the newest version", "e_newest", [4]),
    _ask("a version", "e_version", [4]),
    _ask("declared decoupled", "e_declared", [4]),
    _ask("decoupled", "e_flow", [1]),
    _ask("another shape", "e_chain", [5]),
    _ask("an unknown output", "e_chain", [4], outputs=[{"name": "T"}]),
    _ask("a refused ensemble", "r_type", [4]),
    infer("no inputs", "e_chain", {"inputs": []}),
    *(Case(f"metadata of {model}", "GET", f"/v2/models/{model}") for model in ("e_chain", "e_flow", "e_nest_batch")),
    *(
        Case(f"config of {model}", "GET", f"/v2/models/{model}/config", rewrite=_without_newer)
        for model in ("e_chain", "e_flow", "e_declared")
    ),
    *(Case(f"{path} of a refused one", "GET", f"/v2/models/r_type{path}") for path in ("", "/config", "/ready", "/stats")),
    Case("ready", "GET", "/v2/models/e_nest/ready"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_requests(case: Case, pair: tuple[Server, Server]) -> None:
    theirs, ours = pair
    check(case, theirs.http_port, ours.http_port, {})


def _events(port: int, model: str, value: int) -> list[Any]:
    reply = exchange(port, "POST", f"/v2/models/{model}/generate_stream", compact({"X": [value]}))
    return [json.loads(event.removeprefix("data: ")) for event in reply.body.decode().split("\n\n") if event]


@pytest.mark.parametrize("value", [1, 2, 3])
@pytest.mark.parametrize("model", ["e_flow", "e_flow_one", "e_one_flow_one", "e_flow_join", "e_flow_two", "e_nest_flow", "e_flow_flow"])
def test_streams(model: str, value: int, pair: tuple[Server, Server]) -> None:
    theirs, ours = (_events(server.http_port, model, value) for server in pair)
    if model == "e_flow_flow":  # several streams at once: only each by itself has an order
        theirs, ours = (sorted(events, key=str) for events in (theirs, ours))
    assert ours == theirs


def test_a_stream_that_fails(pair: tuple[Server, Server]) -> None:
    """How much comes before the error is a matter of luck, at both."""
    theirs, ours = (_events(server.http_port, "e_flow_fail", 3) for server in pair)
    assert ours[-1] == theirs[-1] == {"error": "in ensemble 'e_flow_fail', no more"}
    assert len(ours) <= 3


def _entry(port: int, model: str) -> Any:
    def plain(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: plain(member, key) for key, member in value.items() if key not in OURS}
        if isinstance(value, list):
            return [plain(member) for member in value]
        return bool(value) if name in ("ns", "last_inference") else value

    return plain(exchange(port, "GET", f"/v2/models/{model}/stats").json["model_stats"][0])


def test_counts(pair: tuple[Server, Server]) -> None:
    cases = [_ask(str(size), "e_counted", [size, 4]) for size in (1, 3, 3, 8, 9)]
    entries = []
    for server in pair:
        for case in cases:
            case.send(server.http_port)
        wait_until(lambda port=server.http_port: _entry(port, "e_counted")["execution_count"] == 4, "the counts to settle")  # type: ignore[misc]
        entries.append(_entry(server.http_port, "e_counted"))
    assert entries[1] == entries[0]
    names = ("nv_inference_request_success", "nv_inference_count", "nv_inference_exec_count")
    pages = [exchange(server.metrics_port, "GET", "/metrics").body.decode() for server in pair]
    theirs, ours = ({name: metric(page, name, model="e_counted", version="1") for name in names} for page in pages)
    assert ours == theirs == dict(zip(names, (4, 15, 4), strict=True))


def test_counts_of_a_stream(pair: tuple[Server, Server]) -> None:
    entries = []
    for server in pair:
        for value in (3, 1, 0):
            _events(server.http_port, "e_counted_flow", value)
        wait_until(lambda port=server.http_port: _entry(port, "e_counted_flow")["execution_count"] == 3, "the counts to settle")  # type: ignore[misc]
        entries.append(_entry(server.http_port, "e_counted_flow"))
    assert entries[1] == entries[0]


def test_a_failure_is_counted_once(pair: tuple[Server, Server]) -> None:
    """Release 24.10 counts a request twice whose last step under way fails."""
    counts = []
    for server in pair:
        before = _entry(server.http_port, "e_nest")["inference_stats"]["fail"]["count"]
        _ask("fails", "e_nest", [4], -9).send(server.http_port)
        wait_until(
            lambda port=server.http_port, before=before: _entry(port, "e_nest")["inference_stats"]["fail"]["count"] > before,  # type: ignore[misc]
            "the failure to be counted",
        )
        counts.append(_entry(server.http_port, "e_nest")["inference_stats"]["fail"]["count"] - before)
    assert counts == [2, 1]


def test_refused_ensembles(pair: tuple[Server, Server]) -> None:
    """In the index, and what the log says about them. Our index says it too."""
    found = []
    for server in pair:
        index = {entry["name"]: entry for entry in exchange(server.http_port, "POST", "/v2/repository/index", b"").json}
        if server is pair[1]:
            assert [(index[one.name].pop("state"), bool(index[one.name].pop("reason"))) for one in REFUSED] == [
                ("UNAVAILABLE", True)
            ] * len(REFUSED)
        lines = set(re.findall(r'"?(Invalid argument: (?:in )?ensemble .*)', server.stdout + server.stderr))
        texts = {line.rstrip('"').replace(r"\"", '"') for line in lines}
        assert len(texts) >= len(REFUSED), texts
        # what a Python model raised is told with where it happened
        texts = {text.partition("Internal: ")[0] for text in texts}
        found.append(([index[ensemble.name] for ensemble in REFUSED], texts))
    theirs, ours = found
    assert ours == theirs
