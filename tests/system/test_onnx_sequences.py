"""Sequences and ragged batches of ONNX models in a real server: controls, implicit state, whose state it is, and what is left of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ..servers import Server, tensorfarm, wait_until
from ..wire import Connection, Reply, compact, request_bytes
from ..workers.onnx_source import model, value
from .spinning import Asked, pending

LIMIT = 1000
"""The accumulator fails with numbers from here on."""


def accumulator() -> onnx.ModelProto:
    """OUT and TOTAL_OUT are IN plus TOTAL_IN; SEEN is what the controls say: START, END, READY and CORRID."""
    nodes = [
        helper.make_node("Gather", ["ZEROS", "IN"], ["ZERO"]),
        helper.make_node("Add", ["IN", "ZERO"], ["CHECKED"]),
        helper.make_node("Add", ["CHECKED", "TOTAL_IN"], ["OUT"]),
        helper.make_node("Identity", ["OUT"], ["TOTAL_OUT"]),
        *(helper.make_node("Cast", [name], [f"{name}64"], to=TensorProto.INT64) for name in ("START", "END", "READY", "CORRID")),
        helper.make_node("Concat", ["START64", "END64", "READY64", "CORRID64"], ["SEEN"], axis=1),
    ]
    kinds = {"IN": "INT32", "TOTAL_IN": "INT32", "START": "INT32", "END": "FP32", "READY": "BOOL", "CORRID": "UINT32"}
    return model(
        nodes,
        [value(name, datatype, ["b", 1]) for name, datatype in kinds.items()],
        [value("OUT", "INT32", ["b", 1]), value("TOTAL_OUT", "INT32", ["b", 1]), value("SEEN", "INT64", ["b", 4])],
        [helper.make_tensor("ZEROS", TensorProto.INT32, [LIMIT], [0] * LIMIT)],
    )


def collector() -> onnx.ModelProto:
    """The state has one more element with each step; OUT is their sum and LENGTH how many they are."""
    nodes = [
        helper.make_node("Concat", ["ALL_IN", "IN"], ["ALL_OUT"], axis=1),
        helper.make_node("ReduceSum", ["ALL_OUT", "AXES"], ["OUT"], keepdims=1),
        helper.make_node("Shape", ["ALL_OUT"], ["SHAPE"]),
        helper.make_node("Gather", ["SHAPE", "ONE"], ["COUNT"]),
        helper.make_node("Mul", ["IN64", "NONE"], ["ZEROS"]),
        helper.make_node("Add", ["ZEROS", "COUNT"], ["LENGTH"]),
    ]
    nodes.insert(4, helper.make_node("Cast", ["IN"], ["IN64"], to=TensorProto.INT64))
    return model(
        nodes,
        [value("IN", "INT32", ["b", 1]), value("ALL_IN", "INT32", ["b", "k"])],
        [value("OUT", "INT32", ["b", 1]), value("ALL_OUT", "INT32", ["b", "l"]), value("LENGTH", "INT64", ["b", 1])],
        [helper.make_tensor(name, TensorProto.INT64, [1], [number]) for name, number in (("AXES", 1), ("ONE", 1), ("NONE", 0))],
    )


def told() -> onnx.ModelProto:
    """ENDS and DIMS are what the batch inputs hold, the whole of it in each row; Y is X doubled."""
    nodes = [helper.make_node("Mul", ["ROW", "NONE"], ["ZEROS"]), helper.make_node("Add", ["X", "X"], ["Y"])]
    for name, out in (("END_OF", "ENDS"), ("DIMS_OF", "DIMS")):
        nodes.append(helper.make_node("Reshape", [name, "ONE_ROW"], [f"{out}_ROW"]))
        nodes.append(helper.make_node("Add", ["ZEROS", f"{out}_ROW"], [out]))
    return model(
        nodes,
        [
            value("X", "FP32", ["e"]),
            value("ROW", "INT32", ["b", 1]),
            value("END_OF", "INT32", ["r"]),
            value("DIMS_OF", "INT32", ["n", "k"]),
        ],
        [value("ENDS", "INT32", ["b", "s"]), value("DIMS", "INT32", ["b", "t"]), value("Y", "FP32", ["f"])],
        [helper.make_tensor("ONE_ROW", TensorProto.INT64, [2], [1, -1]), helper.make_tensor("NONE", TensorProto.INT32, [1], [0])],
    )


TOGETHER = "direct { minimum_slot_utilization: 1.0 max_queue_delay_microseconds: 60000000 }"
"""A batch has a request of each of the places, or a minute to wait for them."""

CONTROLS = """control_input [
  { name: "START", control [ { kind: CONTROL_SEQUENCE_START, int32_false_true: [ 0, 1 ] } ] },
  { name: "END", control [ { kind: CONTROL_SEQUENCE_END, fp32_false_true: [ 0, 1 ] } ] },
  { name: "READY", control [ { kind: CONTROL_SEQUENCE_READY, bool_false_true: [ false, true ] } ] },
  { name: "CORRID", control [ { kind: CONTROL_SEQUENCE_CORRID, data_type: TYPE_UINT32 } ] } ]"""
TENSORS = """input { name: "IN" data_type: TYPE_INT32 dims: 1 }
output [ { name: "OUT" data_type: TYPE_INT32 dims: 1 }, { name: "SEEN" data_type: TYPE_INT64 dims: 4 } ]"""


def summing(max_batch_size: int, strategy: str, state: str = "", idle_us: int = 60_000_000) -> str:
    total = f'state {{ input_name: "TOTAL_IN" output_name: "TOTAL_OUT" data_type: TYPE_INT32 dims: 1 {state} }}'
    idle = f"max_sequence_idle_microseconds: {idle_us}"
    return f"max_batch_size: {max_batch_size} {TENSORS} sequence_batching {{ {strategy} {idle} {CONTROLS} {total} }}"


FORTY = 'initial_state { name: "forty" data_type: TYPE_INT32 dims: 1 data_file: "forty" }'
SAMPLE = "".join(
    f"inputs {{ key: '{name}' value {{ data_type: TYPE_{datatype} dims: 1 {content}: true }} }}"
    for name, datatype, content in (
        ("IN", "INT32", "zero_data"),
        ("START", "INT32", "zero_data"),
        ("END", "FP32", "zero_data"),
        ("READY", "BOOL", "zero_data"),
        ("CORRID", "UINT32", "zero_data"),
        ("TOTAL_IN", "INT32", "random_data"),
    )
)
SUMMING = {
    "direct": summing(4, "direct {}"),
    "one_buffer": summing(4, "direct {}", "use_same_buffer_for_input_output: true"),
    "oldest": summing(4, "oldest { max_candidate_sequences: 8 }"),
    "single": summing(1, "direct {}", idle_us=300_000),
    "pair": summing(2, TOGETHER),
    "warm": summing(4, "direct {}", FORTY) + f' model_warmup {{ name: "warm" batch_size: 3 count: 2 {SAMPLE} }}',
}
"""Configurations of the accumulator. A batch of ``pair`` waits for both of its sequences."""

ALL = """state { input_name: "ALL_IN" output_name: "ALL_OUT" data_type: TYPE_INT32 dims: -1
  initial_state { name: "none" data_type: TYPE_INT32 dims: 1 zero_data: true } }"""


def collecting(max_batch_size: int, strategy: str) -> str:
    tensors = TENSORS.replace("SEEN", "LENGTH").replace("dims: 4", "dims: 1")
    return f"max_batch_size: {max_batch_size} {tensors} sequence_batching {{ {strategy} max_sequence_idle_microseconds: 60000000 {ALL} }}"


COLLECTING = {"growing": collecting(4, "oldest { max_candidate_sequences: 8 }"), "three": collecting(3, TOGETHER)}
"""Configurations of the collector. A batch of ``three`` waits for all of its sequences."""

RAGGED = """max_batch_size: 8 dynamic_batching { preferred_batch_size: 6 max_queue_delay_microseconds: 10000000 }
input [ { name: "X" data_type: TYPE_FP32 dims: [ -1, -1 ] allow_ragged_batch: true }, { name: "ROW" data_type: TYPE_INT32 dims: 1 } ]
batch_input [
  { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "END_OF" data_type: TYPE_INT32 source_input: "X" },
  { kind: BATCH_ITEM_SHAPE target_name: "DIMS_OF" data_type: TYPE_INT32 source_input: "X" } ]
output [ { name: "ENDS" data_type: TYPE_INT32 dims: -1 }, { name: "DIMS" data_type: TYPE_INT32 dims: -1 },
  { name: "Y" data_type: TYPE_FP32 dims: [ -1, -1 ] } ]
batch_output { target_name: "Y" source_input: "X" }"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with every model of this file."""
    root = tmp_path_factory.mktemp("onnx-sequences")
    made = {name: (accumulator(), config) for name, config in SUMMING.items()}
    made |= {name: (collector(), config) for name, config in COLLECTING.items()}
    made["ragged"] = (told(), RAGGED)
    for name, (graph, config) in made.items():
        folder = root / "models" / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(graph.SerializeToString())
        (folder.parent / "config.pbtxt").write_text(f'backend: "onnxruntime" instance_group {{ kind: KIND_CPU count: 1 }} {config}')
    initial = root / "models" / "warm" / "initial_state"
    initial.mkdir()
    (initial / "forty").write_bytes(np.array([40], np.int32).tobytes())
    with tensorfarm(root / "models", folder=root / "run") as running:
        assert running.ready(), running.log
        yield running


def infer_body(number: int, sequence: int | str, start: bool = False, end: bool = False) -> bytes:
    parameters = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
    return compact({"parameters": parameters, "inputs": [{"name": "IN", "datatype": "INT32", "shape": [1, 1], "data": [number]}]})


def ask(server: Server, name: str, number: int, sequence: int | str, start: bool = False, end: bool = False) -> Reply:
    return server.ask("POST", f"/v2/models/{name}/infer", infer_body(number, sequence, start, end))


def asked(server: Server, name: str, number: int, sequence: int | str, start: bool = False, end: bool = False) -> Asked:
    """The same in a thread of its own."""
    return Asked(server, f"/v2/models/{name}/infer", infer_body(number, sequence, start, end))


def outputs(reply: Reply) -> dict[str, list[Any]]:
    assert reply.status == 200, reply.body
    return {output["name"]: output["data"] for output in reply.json["outputs"]}


def total(reply: Reply) -> int:
    """OUT, of a reply that has what its model lists and nothing else: not the state."""
    made = outputs(reply)
    assert set(made) in ({"OUT", "SEEN"}, {"OUT", "LENGTH"})
    return int(made["OUT"][0])


def totals(server: Server, name: str, sequence: int | str, numbers: list[int]) -> list[int]:
    """A whole sequence."""
    last = len(numbers) - 1
    return [total(ask(server, name, number, sequence, at == 0, at == last)) for at, number in enumerate(numbers)]


def not_begun(sequence: int | str, name: str) -> tuple[int, dict[str, str]]:
    text = f"inference request for sequence {sequence} to model '{name}' must specify the START flag on the first request of the sequence"
    return 400, {"error": text}


def lost(sequence: int | str, name: str, how: str = " with the START flag") -> tuple[int, dict[str, str]]:
    text = f"the state of sequence {sequence} of model '{name}' was lost when its worker ended; begin the sequence again{how}"
    return 503, {"error": text}


def refused(reply: Reply) -> tuple[int, Any]:
    return reply.status, reply.json


@pytest.mark.parametrize("name", ["direct", "one_buffer", "oldest", "warm"])
def test_a_sequence_adds_up(server: Server, name: str) -> None:
    first = 40 if name == "warm" else 0
    for number, start, end, expected in ((1, True, False, 1), (2, False, False, 3), (3, False, True, 6), (4, True, True, 4)):
        made = outputs(ask(server, name, number, 7, start, end))
        assert made == {"OUT": [first + expected], "SEEN": [int(start), int(end), 1, 7]}
    assert refused(ask(server, name, 5, 7)) == not_begun(7, name)


@pytest.mark.parametrize("name", ["direct", "one_buffer", "oldest", "growing"])
def test_sequences_beside_each_other(server: Server, name: str) -> None:
    """More of them than there are places; a sum of others' numbers would show."""
    sent = {sequence: [sequence * 7**power for power in range(3)] for sequence in range(1, 9)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda item: totals(server, name, *item), sent.items()))
    assert found == [np.cumsum(numbers).tolist() for numbers in sent.values()]


def test_state_that_grows(server: Server) -> None:
    """Sequences of different lengths in one batch, one of which begins anew."""
    for at, (starts, counts) in enumerate((((1, 2, 3), (2, 2, 2)), ((2,), (3, 2, 3)), ((), (4, 3, 4)))):
        together = [asked(server, "three", sequence, sequence, sequence in starts, at == 2) for sequence in (1, 2, 3)]
        found = [outputs(one.result()) for one in together]
        steps = [count - 1 for count in counts]
        assert found == [{"OUT": [sequence * step], "LENGTH": [step + 1]} for sequence, step in zip((1, 2, 3), steps, strict=True)]
    assert batch_sizes(server, "three") == {3: 3}


def batch_sizes(server: Server, name: str) -> dict[int, int]:
    """How many batches of each size there were."""
    (found,) = server.ask("GET", f"/v2/models/{name}/stats").json["model_stats"]
    return {entry["batch_size"]: entry["compute_infer"]["count"] for entry in found["batch_stats"]}


def test_ragged_requests_share_a_batch(server: Server) -> None:
    """Each gets its own part of what was made for all; the model is told where each begins, and what shape it has."""
    shapes = [(1, 2, 3), (1, 5, 1), (2, 1, 4), (1, 3, 3), (1, 0, 2)]
    arrays = [np.random.default_rng(rows * dim).random(shape, np.float32) for shape in shapes for rows, dim in [shape[:2]]]

    def body(array: np.ndarray) -> bytes:
        rows = {"name": "ROW", "datatype": "INT32", "shape": [len(array), 1], "data": [0] * len(array)}
        return compact({"inputs": [{"name": "X", "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}, rows]})

    together = [Asked(server, "/v2/models/ragged/infer", body(array)) for array in arrays]
    found = [outputs(one.result()) for one in together]
    assert batch_sizes(server, "ragged") == {6: 1}
    for array, made in zip(arrays, found, strict=True):
        assert made["Y"] == (2 * array).ravel().tolist()
        assert all(made[name] == found[0][name] * len(array) for name in ("ENDS", "DIMS"))
    ends, dims = found[0]["ENDS"], found[0]["DIMS"]
    assert sorted(np.diff([0, *ends]).tolist()) == sorted(array.size for array in arrays) and ends == sorted(ends)
    items = [shape[1:] for shape in shapes for _ in range(shape[0])]
    assert sorted(zip(dims[::2], dims[1::2], strict=True)) == sorted(items)


def test_a_place_is_reused_after_silence(server: Server) -> None:
    """A sequence that waits for the only place gets it with nothing left in it, and the silent one has ended."""
    assert total(ask(server, "single", 5, 11, start=True)) == 5
    assert total(ask(server, "single", 70, 12, start=True)) == 70
    assert refused(ask(server, "single", 6, 11)) == not_begun(11, "single")
    assert total(ask(server, "single", 7, 13, start=True, end=True)) == 7


def test_a_place_is_reused_after_a_failed_start(server: Server) -> None:
    """A sequence whose first request fails is there all the same, and has nothing of the one before it."""
    assert total(ask(server, "single", 5, 14, start=True)) == 5
    reply = ask(server, "single", LIMIT, 15, start=True)
    assert reply.status == 500 and "indices element out of data bounds" in reply.error
    assert total(ask(server, "single", 3, 15, end=True)) == 3
    assert total(ask(server, "single", 5, 16, start=True)) == 5
    assert ask(server, "single", LIMIT, 16).status == 500
    assert total(ask(server, "single", 4, 16, end=True)) == 9, "a request that fails leaves the state as it was"


def test_a_place_is_reused_after_a_cancel(server: Server) -> None:
    """The client that has gone takes its sequence with it; its neighbour keeps what it has."""
    begun = [asked(server, "pair", number, sequence, start=True) for number, sequence in ((5, 17), (600, 18))]
    assert [total(one.result()) for one in begun] == [5, 600]
    with Connection(server.http_port) as connection:
        connection.send(request_bytes("POST", "/v2/models/pair/infer", infer_body(1, 17)))
        wait_until(lambda: pending(server, "pair") == 1, "a request to wait for its neighbour")
        connection.abort()
    wait_until(lambda: pending(server, "pair") == 0, "the request to be cancelled")
    assert refused(ask(server, "pair", 2, 17)) == not_begun(17, "pair")
    ending = [asked(server, "pair", 30, 12, start=True), asked(server, "pair", 1, 18, end=True)]
    assert [total(one.result()) for one in ending] == [30, 601]
    ending = [asked(server, "pair", 1, 12, end=True), asked(server, "pair", 2, 13, start=True, end=True)]
    assert [total(one.result()) for one in ending] == [31, 2]


@pytest.mark.skipif(not (os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")), reason="no perf_analyzer here")
def test_perf_analyzer(server: Server) -> None:
    """NVIDIA's load generator, unmodified, with more sequences than there are places."""
    program = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")
    assert program is not None
    command = [program, "-m", "direct", "-i", "http", "-u", f"127.0.0.1:{server.http_port}", "--input-data", "zero"]
    command += ["--sequence-length", "8", "--concurrency-range", "8", "-p", "1000", "-s", "80", "-r", "3"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603  # the program is the tester's
    assert "Throughput" in finished.stdout, finished.stdout + finished.stderr
    assert "Failed" not in finished.stdout, finished.stdout
    (found,) = server.ask("GET", "/v2/models/direct/stats").json["model_stats"]
    assert found["inference_stats"]["fail"]["count"] == 0


def test_a_worker_dies(server: Server) -> None:
    """What had begun there is lost, and says so until it begins again, with nothing left; what waits is told at once."""
    live = [("direct", 41), ("direct", 42), ("oldest", 43), ("growing", "by name")]
    for number, (name, sequence) in enumerate(live, 1):
        assert total(ask(server, name, 100 * number, sequence, start=True)) == 100 * number
    begun = [asked(server, "pair", 5, sequence, start=True) for sequence in (19, 20)]
    assert [total(one.result()) for one in begun] == [5, 5]
    waits = asked(server, "pair", 1, 19)
    wait_until(lambda: pending(server, "pair") == 1, "a request to wait for its neighbour")
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    assert refused(waits.result()) == lost(19, "pair", "")
    wait_until(lambda: server.workers() not in ([], [worker]) and server.ready(), "the next worker")
    for name, sequence in [*live, ("pair", 19), ("pair", 20)]:
        assert refused(ask(server, name, 1, sequence)) == lost(sequence, name)
        assert refused(ask(server, name, 1, sequence, end=True)) == lost(sequence, name)
    for number, (name, sequence) in enumerate(live, 1):
        assert totals(server, name, sequence, [number, 10]) == [number, number + 10]
        assert refused(ask(server, name, 1, sequence)) == not_begun(sequence, name)
    # Every place is free.
    barrier = threading.Barrier(4)

    def hold(number: int) -> list[int]:
        first = total(ask(server, "direct", number, number, start=True))
        barrier.wait(20)
        return [first, total(ask(server, "direct", number, number, end=True))]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(hold, range(1, 5))) == [[number, 2 * number] for number in range(1, 5)]
