"""Statistics, metrics and log lines of Python models, after the same requests."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ..servers import Server, wait_until
from ..wire import compact, exchange
from .case import OURS, Case, check, infer, stream, tensor, verb


def _counts(port: int, model: str) -> Any:
    """A model's statistics: every member and every count; times only as nought or not."""

    def plain(pairs: Sequence[tuple[str, Any]]) -> Any:
        return [(name, bool(value) if name in ("ns", "last_inference") else value) for name, value in pairs if name not in OURS]

    (entry,) = [dict(stats) for stats in dict(json.loads(_statistics(port, model), object_pairs_hook=plain))["model_stats"]]
    return entry


def _statistics(port: int, model: str) -> bytes:
    reply = exchange(port, "GET", f"/v2/models/{model}/stats")
    assert reply.status == 200
    return reply.body


def _settled(port: int, model: str, executions: int) -> Any:
    """The statistics once so many executions have been counted: it may happen after the client has its reply."""
    wait_until(lambda: _counts(port, model)["execution_count"] >= executions, f"{executions} executions of {model}")
    return _counts(port, model)


def _same_counts(model: str, cases: Sequence[Case], executions: int, ports: Sequence[int]) -> None:
    """Ask both servers one after another, then compare the counts."""
    replies = [[case.send(port) for case in cases] for port in ports]
    assert [(reply.status, reply.body) for reply in replies[1]] == [(reply.status, reply.body) for reply in replies[0]]
    theirs, ours = (_settled(port, model, executions) for port in ports)
    for counts in (theirs, ours):
        counts.pop("response_stats")  # newer releases keep them for decoupled models, 24.10 for none
    assert ours == theirs


COUNTED = {
    "counted_answers": ["texts", "NOT_FOUND", "nothing", "tuple", "no responses", "complex", "two responses"],
    "counted_faults": ["none of them", "value", "exit", "none of them"],
    "counted_senders": ["none", "list_of_none", "error", "late", "only_final"],
}
"""Requests, one execution each, to models that do what their input VERB says."""


@pytest.mark.parametrize("model", COUNTED)
def test_counts(model: str, python_oracle: int, python_farm: int) -> None:
    cases = [verb(model, what) for what in COUNTED[model]]
    _same_counts(model, cases, len(cases), (python_oracle, python_farm))


STREAMED = (
    *("no_response", "one_response", "three_responses", "empty_between", "error_first", "error_later", "from_thread"),
    *("raised", "raised_later", "raised_last", "returned"),
)


def test_counts_of_a_decoupled_model(python_oracle: int, python_farm: int) -> None:
    cases = [stream("counted_streams", what) for what in STREAMED]
    _same_counts("counted_streams", cases, len(cases), (python_oracle, python_farm))


BATCHES = {
    "all answered": (["a"], ["b"], ["c", "c"]),
    "one error": (["a"], ["error"], ["c", "c"]),
    "one by sender": (["send", "send"], ["b", "b"]),
    "one raises": (["a"], ["raise"], ["c", "c"]),
    "one is no response": (["number"], ["b", "b", "b"]),
    "a full batch": (["a", "a", "a", "a"],),
}
"""The requests that make up one batch each, by the VERB of each of their elements."""


def _batch(port: int, model: str, requests: Sequence[Sequence[str]]) -> list[tuple[int, bytes]]:
    """Requests at the same time; they are executed together once the four elements that the model waits for are there."""

    def send(verbs: Sequence[str]) -> tuple[int, bytes]:
        content = {"inputs": [tensor("VERB", "BYTES", [len(verbs), 1], list(verbs))]}
        reply = exchange(port, "POST", f"/v2/models/{model}/infer", compact(content))
        return reply.status, reply.body

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(send, requests))


def test_batches(python_oracle: int, python_farm: int) -> None:
    ports = (python_oracle, python_farm)
    for number, (name, requests) in enumerate(BATCHES.items(), 1):
        theirs, ours = (_batch(port, "counted_batches", requests) for port in ports)
        assert ours == theirs, name
        expected, got = (_settled(port, "counted_batches", number) for port in ports)
        assert got == expected, name


CALLED = {
    "adder": (11, ("plain", "no outputs asked", "unknown output", "unknown version", "error", "raises", "async together", "large")),
    "repeater": (5, ("decoupled none", "decoupled one", "decoupled three", "decoupled as plain", "decoupled raises", "async decoupled")),
}
"""Calls from model to model, by the model that is called and how often it is executed then."""


def _totals(port: int, model: str) -> dict[str, int]:
    counts = _counts(port, model)
    stats = {name: dict(value)["count"] for name, value in counts["inference_stats"]}
    return {**stats, "inferences": counts["inference_count"], "executions": counts["execution_count"]}


@pytest.mark.parametrize("model", CALLED)
def test_counts_of_called_models(model: str, python_oracle: int, python_farm: int) -> None:
    """Calls count as requests of clients do; those that are refused do not count."""
    executions, calls = CALLED[model]
    grown = []
    for port in (python_oracle, python_farm):
        before = _totals(port, model)
        for what in calls:
            assert verb("calls", f"call: {what}").send(port).status == 200
        _settled(port, model, before["executions"] + executions)
        grown.append({name: value - before[name] for name, value in _totals(port, model).items()})
    assert grown[1] == grown[0]
    assert grown[1]["executions"] == executions


METRICS = ("nv_inference_request_success", "nv_inference_request_failure", "nv_inference_count", "nv_inference_exec_count")


def _metrics(server: Server, pattern: str) -> list[str]:
    lines = exchange(server.metrics_port, "GET", "/metrics").body.decode().splitlines()
    return [line for line in lines if re.search(pattern, line)]


def test_metrics_of_failures(python_servers: tuple[Server, Server]) -> None:
    """Errors that a model answers count as success; what it raises counts as a failure of the backend."""
    cases = [verb("faults", "value"), verb("answers", "NOT_FOUND"), verb("answers", "tuple")]
    grown = []
    for server in python_servers:
        before = _numbers(server)
        for case in cases:
            case.send(server.http_port)
        wait_until(lambda server=server, before=before: len(_growth(before, _numbers(server))) >= 5, "metrics")
        grown.append(_growth(before, _numbers(server)))
    assert grown[1] == grown[0]


def _numbers(server: Server) -> dict[str, float]:
    """The series that count, by name and sorted labels."""
    found = {}
    for line in _metrics(server, rf'^({"|".join(METRICS)})\{{.*model="(faults|answers)"'):
        series, _, value = line.rpartition(" ")
        name, _, labels = series.rstrip("}").partition("{")
        found[name + "{" + ",".join(sorted(labels.split(",")))] = float(value)
    return found


def _growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {series: after[series] - value for series, value in before.items() if after[series] != value}


def test_own_metrics(python_servers: tuple[Server, Server]) -> None:
    """A model's metrics: their values and errors as the model sees them, their lines as a scraper does."""
    theirs, ours = python_servers
    for what in ("observe", "misuse", "observe"):
        check(verb("measured", what), theirs.http_port, ours.http_port, {})
    assert sorted(_metrics(ours, "own_")) == sorted(_metrics(theirs, "own_"))
    assert len(_metrics(ours, "own_")) >= 14


def _logged(server: Server) -> list[str]:
    """The Logger's lines, without times and process ids, sorted: tensorfarm's go to two streams."""
    found = re.findall(r'^([IWE])\d{4} \S+ \d+ (\S+\] "own line.*")$', server.stdout + server.stderr, re.MULTILINE)
    return sorted(f"{severity} {rest}" for severity, rest in found)


def test_log(python_servers: tuple[Server, Server]) -> None:
    """Lines by the Logger carry the model's file and line. What it prints comes out; tensorfarm says whose it is, in a log line."""
    outcomes = []
    for server in python_servers:
        reply = infer("logs", "logs", {"inputs": [tensor("X", "INT32", [1], [1])]}).send(server.http_port)
        assert reply.status == 200
        wait_until(lambda server=server: len(_logged(server)) >= 7, "the model's lines")
        for text in ("own line: printed", "own line: printed as an error"):
            line = re.compile(rf"(^|\]) ?{text}\"?$", re.MULTILINE)
            wait_until(lambda server=server, line=line: line.search(server.stdout + server.stderr), text)
        outcomes.append(_logged(server))
    assert outcomes[1] == outcomes[0]
