"""Sequences of Python models in a real server: controls, state, requests that come again, over HTTP."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as client_module

from ..servers import Server, tensorfarm
from ..wire import Reply, compact

MODEL = Path(__file__).resolve().parent.parent / "python_models" / "system_sequence"

IDLE = "max_sequence_idle_microseconds: 60000000"
CONTROLS = """control_input [
  { name: "START", control [ { kind: CONTROL_SEQUENCE_START, int32_false_true: [ 0, 1 ] } ] },
  { name: "END", control [ { kind: CONTROL_SEQUENCE_END, fp32_false_true: [ 0, 1 ] } ] },
  { name: "READY", control [ { kind: CONTROL_SEQUENCE_READY, bool_false_true: [ false, true ] } ] },
  { name: "CORRID", control [ { kind: CONTROL_SEQUENCE_CORRID, data_type: TYPE_UINT64 } ] } ]"""
STATE = """state [ { input_name: "STATE_IN", output_name: "STATE_OUT", data_type: TYPE_INT32, dims: [ 1 ],
  initial_state: { name: "zero", data_type: TYPE_INT32, dims: [ 1 ], zero_data: true } } ]"""
ITERATIVE = "iterative_sequence: true"
CONFIGS = {
    "direct": f"max_batch_size: 4 sequence_batching {{ direct {{}} {IDLE} {CONTROLS} }}",
    "oldest": f"max_batch_size: 4 sequence_batching {{ oldest {{ max_candidate_sequences: 4 }} {IDLE} {CONTROLS} }}",
    "state": f"max_batch_size: 4 sequence_batching {{ direct {{}} {IDLE} {STATE} }}",
    "state_alone": f"max_batch_size: 0 sequence_batching {{ {IDLE} {STATE} }}",
    "iterative": f"max_batch_size: 4 sequence_batching {{ oldest {{ max_candidate_sequences: 4 }} {IDLE} {ITERATIVE} {CONTROLS} }}",
    "streaming": f"model_transaction_policy {{ decoupled: true }} sequence_batching {{ {IDLE} {ITERATIVE} {STATE} }}",
    "caller": 'max_batch_size: 4 parameters [ { key: "NEXT", value { string_value: "oldest_numbered" } } ]',
    "oldest_numbered": f"max_batch_size: 4 sequence_batching {{ oldest {{ max_candidate_sequences: 4 }} {IDLE} }}",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the model under every configuration."""
    root = tmp_path_factory.mktemp("sequences")
    for name, text in CONFIGS.items():
        folder = Path(shutil.copytree(MODEL, root / "models" / name))
        config = folder / "config.pbtxt"
        config.write_text(config.read_text().replace('"system_sequence"', f'"{name}"') + text)
    with tensorfarm(root / "models", folder=root / "run") as running:
        yield running


def ask(server: Server, model: str, value: int, sequence: int | str = 0, start: bool = False, end: bool = False) -> Reply:
    shape = [1] if model == "state_alone" else [1, 1]
    parameters = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
    body = {"parameters": parameters, "inputs": [{"name": "X", "datatype": "INT32", "shape": shape, "data": [value]}]}
    return server.ask("POST", f"/v2/models/{model}/infer", compact(body))


def send(server: Server, model: str, value: int, sequence: int | str = 0, start: bool = False, end: bool = False) -> tuple[int, Any]:
    """Y and SEEN."""
    reply = ask(server, model, value, sequence, start, end)
    assert reply.status == 200, reply.body
    outputs = {output["name"]: output["data"][0] for output in reply.json["outputs"]}
    assert set(outputs) == {"Y", "SEEN"}
    return outputs["Y"], json.loads(outputs["SEEN"] or "null")


def sums(server: Server, model: str, sequence: int | str, values: list[int]) -> list[int]:
    """A whole sequence."""
    last = len(values) - 1
    return [send(server, model, value, sequence, number == 0, number == last)[0] for number, value in enumerate(values)]


def test_controls_say_where_a_request_stands(server: Server) -> None:
    def controls(start: int, end: float) -> dict[str, Any]:
        return {"START": start, "END": end, "READY": True, "CORRID": 7}

    for model in ("direct", "oldest"):
        assert send(server, model, 1, 7, start=True) == (1, [controls(1, 0.0), 7, 1, [True]])
        assert send(server, model, 2, 7) == (3, [controls(0, 0.0), 7, 0, [True]])
        assert send(server, model, 3, 7, end=True) == (6, [controls(0, 1.0), 7, 2, [True]])
        assert send(server, model, 4, 7, start=True, end=True) == (4, [controls(1, 1.0), 7, 3, [True]])


def test_a_sequence_keeps_its_row(server: Server) -> None:
    """Rows before it that have no request are there all the same, and say so."""
    rows = [send(server, "direct", 1, sequence, start=True)[1][3] for sequence in (11, 12, 13)]
    assert rows == [[True], [False, True], [False, False, True]]
    assert [send(server, "direct", 10, sequence, end=True)[0] for sequence in (13, 11, 12)] == [11, 11, 11]


@pytest.mark.parametrize("model", ["direct", "oldest", "state", "state_alone"])
def test_sequences_beside_each_other(server: Server, model: str) -> None:
    """More of them than there are places."""
    values = {sequence: [sequence * number for number in range(1, 7)] for sequence in range(1, 13)}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda item: sums(server, model, *item), values.items()))
    assert found == [np.cumsum(sent).tolist() for sent in values.values()]


@pytest.mark.parametrize("model", ["state", "state_alone"])
def test_a_sequence_begins_with_its_initial_state(server: Server, model: str) -> None:
    """Also where it begins anew, or its place has been another's."""
    assert send(server, model, 5, "text", start=True)[0] == 5
    assert send(server, model, 6, "text")[0] == 11
    assert send(server, model, 7, "text", start=True)[0] == 7
    assert send(server, model, 8, "text", end=True)[0] == 15
    assert sums(server, model, "other", [1, 2]) == [1, 3]


@pytest.mark.parametrize("model", ["direct", "state"])
def test_a_sequence_that_has_not_begun(server: Server, model: str) -> None:
    model_of = f"to model '{model}' must specify"
    for sequence, text in (
        (99, f"inference request for sequence 99 {model_of} the START flag on the first request of the sequence"),
        (0, f"inference request {model_of} a non-zero or non-empty correlation ID"),
    ):
        reply = ask(server, model, 1, sequence)
        assert (reply.status, reply.json) == (400, {"error": text})


def test_a_request_comes_again_until_it_is_answered(server: Server) -> None:
    """Each is a sequence of its own, with an id from the server, and begins only once."""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda rounds: send(server, "iterative", rounds), [1, 5, 2, 7, 3, 4]))
    assert [total for total, _ in found] == [1, 5, 2, 7, 3, 4]
    assert [seen[2] for _, seen in found] == [1, 0, 0, 0, 0, 0]
    assert len({seen[1] for _, seen in found}) == 6


def test_rounds_of_a_sequence_with_an_id(server: Server) -> None:
    """Its one request may say so at both ends; the original never answers those that have an end."""
    for end in (False, True):
        total, seen = send(server, "iterative", 3, 77, start=True, end=end)
        assert (total, seen[1], seen[2]) == (3, 77, 2 * end)
    assert ask(server, "iterative", 1, 77).status == 400, "it is over once it is answered"


def test_rounds_count_as_executions(server: Server) -> None:
    def counts() -> tuple[int, int]:
        (model,) = server.ask("GET", "/v2/models/iterative/stats").json["model_stats"]
        return model["inference_count"], model["execution_count"]

    before = counts()
    assert send(server, "iterative", 5)[0] == 5
    assert [after - earlier for after, earlier in zip(counts(), before, strict=True)] == [5, 5]


def test_every_round_of_a_decoupled_model_is_heard_of(server: Server) -> None:
    """In order; what one round has sent is not lost though another socket brings the round's end."""

    def stream(rounds: int) -> list[int]:
        reply = server.ask("POST", "/v2/models/streaming/generate_stream", compact({"X": rounds}))
        assert reply.status == 200, reply.body
        return [json.loads(line[6:])["Y"] for line in reply.body.decode().splitlines() if line.startswith("data: ")]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(stream, [1, 40, 25, 30]))
    assert found == [list(range(1, rounds + 1)) for rounds in (1, 40, 25, 30)]


def test_a_model_that_calls_has_sequences_too(server: Server) -> None:
    assert send(server, "caller", 4)[0] == 12


def test_the_stock_client(server: Server) -> None:
    tensor = client_module.InferInput("X", [1, 1], "INT32")
    with contextlib.closing(client_module.InferenceServerClient(f"127.0.0.1:{server.http_port}", network_timeout=60)) as client:
        found = []
        for value, start, end in ((1, True, False), (2, False, False), (3, False, True)):
            tensor.set_data_from_numpy(np.array([[value]], np.int32))
            answer = client.infer("state", [tensor], sequence_id="by name", sequence_start=start, sequence_end=end)
            found.append(answer.as_numpy("Y").tolist())
    assert found == [[[1]], [[3]], [[6]]]
