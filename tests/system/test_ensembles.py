"""Ensembles of ONNX models in a running server, in one worker and across several."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as client
import tritonclient.utils.shared_memory as shared_memory

from ..ensembles import Step, TestEnsemble, write_ensembles
from ..model_repository import BATCHED, CLASSES, IDENTITIES, PLAIN, SIMPLE, SPIN, Flavour, TestTensor, write_repository
from ..servers import Server, metric, run_tensorfarm, tensorfarm, wait_until
from ..wire import compact, exchange
from .spinning import Asked

ISOLATED = 'parameters { key: "isolate" value { string_value: "true" } }'
WIDE = 1 << 18
"""Elements of a tensor of 1 MiB: it travels in arenas."""

APART = replace(BATCHED, name="apart", extra=ISOLATED)
ALONE = replace(PLAIN, name="alone", extra=ISOLATED)
SUMS = replace(SIMPLE, name="sums")
BYTES = next(model for model in IDENTITIES if model.name == "identity_bytes")


def _fp32(*names: str) -> tuple[TestTensor, ...]:
    return tuple(TestTensor(name, "FP32", (-1,)) for name in names)


def _int32(*names: str) -> tuple[TestTensor, ...]:
    return tuple(TestTensor(name, "INT32", (16,)) for name in names)


def _pass(model: str, source: str, target: str) -> Step:
    return Step(model, {"INPUT0": source}, {"OUTPUT0": target})


CHAIN = TestEnsemble(
    "chain",
    (_pass("apart", "X", "T"), _pass("batched_fp32", "T", "U"), _pass("apart", "U", "Y")),
    _fp32("X"),
    _fp32("Y", "T"),
    max_batch_size=4,
    versions=(3,),
)
"""Two workers, back and forth; the tensor between the first steps is an output too."""

TREE = TestEnsemble(
    "tree",
    (
        Step("sums", {"INPUT0": "A", "INPUT1": "B"}, {"OUTPUT0": "S", "OUTPUT1": "D"}),
        Step("alone", {"INPUT0": "S", "INPUT1": "D"}, {"OUTPUT0": "TWICE_A", "OUTPUT1": "TWICE_B"}),
        Step("plain", {"INPUT0": "TWICE_A", "INPUT1": "S"}, {"OUTPUT0": "MORE"}),
    ),
    _int32("A", "B"),
    _int32("TWICE_A", "TWICE_B", "MORE"),
)
"""A batching member in an ensemble that does not batch."""

NESTED = TestEnsemble(
    "nested",
    (Step("tree", {"A": "P", "B": "Q"}, {"TWICE_A": "R"}), Step("plain", {"INPUT0": "R", "INPUT1": "P"}, {"OUTPUT1": "Y"})),
    _int32("P", "Q"),
    _int32("Y"),
)
LABELLED = TestEnsemble(
    "labelled",
    (Step("classes", {"SCORES": "X"}, {"LABELLED": "Y"}),),
    (TestTensor("X", "FP32", (4,)),),
    (TestTensor("Y", "FP32", (4,)),),
    max_batch_size=8,
)
NESTED_LABELS = replace(LABELLED, name="nested_labels", steps=(Step("labelled", {"X": "X"}, {"Y": "Y"}),))
TEXTS = TestEnsemble(
    "texts",
    (_pass("identity_bytes", "X", "T"), _pass("identity_bytes", "T", "Y")),
    (TestTensor("X", "BYTES", (-1,)),),
    (TestTensor("Y", "BYTES", (-1,)),),
)
NARROW = TestEnsemble(
    "narrow", (Step("plain", {"INPUT0": "X", "INPUT1": "X"}, {"OUTPUT0": "Y"}),), (TestTensor("X", "INT32", (-1,)),), _int32("Y")
)
SLOW = TestEnsemble(
    "slow",
    (
        Step("spin", {SPIN.inputs[0].name: "X"}, {SPIN.outputs[0].name: "T"}),
        Step("spin", {SPIN.inputs[0].name: "T"}, {SPIN.outputs[0].name: "Y"}),
    ),
    (replace(SPIN.inputs[0], name="X"),),
    (replace(SPIN.outputs[0], name="Y"),),
)
ENSEMBLES = (CHAIN, TREE, NESTED, LABELLED, NESTED_LABELS, TEXTS, NARROW, SLOW)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("ensembles")
    models = write_repository(root / "models", (BATCHED, APART, SUMS, ALONE, PLAIN, CLASSES, BYTES, SPIN), Flavour.ONNX)
    write_ensembles(models, ENSEMBLES)
    with tensorfarm(models, folder=root / "run") as running:
        assert running.ready(), running.log
        yield running


def _statistics(server: Server, model: str) -> Any:
    return exchange(server.http_port, "GET", f"/v2/models/{model}/stats").json["model_stats"][0]


def _arrays(
    server: Server, model: str, inputs: dict[str, np.ndarray[Any, Any]], outputs: tuple[str, ...] = ()
) -> dict[str, np.ndarray[Any, Any]]:
    """One inference with binary tensors."""
    types = {"f": "FP32", "i": "INT32", "O": "BYTES"}
    sent = []
    for name, array in inputs.items():
        tensor = client.InferInput(name, list(array.shape), types[array.dtype.kind])
        tensor.set_data_from_numpy(array)
        sent.append(tensor)
    wanted = [client.InferRequestedOutput(name) for name in outputs] or None
    body, json_size = client.InferenceServerClient.generate_request_body(sent, wanted)
    headers = {} if json_size is None else {"Inference-Header-Content-Length": str(json_size)}
    reply = exchange(server.http_port, "POST", f"/v2/models/{model}/infer", bytes(body), headers)
    assert reply.status == 200, reply.body
    length = reply.header("inference-header-content-length")
    result = client.InferenceServerClient.parse_response_body(reply.body, header_length=None if length is None else int(length))
    return {output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]}


def _used(server: Server) -> float:
    """Bytes in use in all arenas that the metrics page shows."""
    text = exchange(server.metrics_port, "GET", "/metrics").body.decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("tensorfarm_arena_used_bytes"))


def test_small_tensors_through_a_tree(server: Server) -> None:
    a, b = np.arange(16, dtype=np.int32), np.full(16, 3, np.int32)
    found = _arrays(server, "tree", {"A": a, "B": b})
    assert found.keys() == {"TWICE_A", "TWICE_B", "MORE"}
    np.testing.assert_array_equal(found["TWICE_A"], 2 * a)
    np.testing.assert_array_equal(found["TWICE_B"], 2 * b)
    np.testing.assert_array_equal(found["MORE"], 3 * a + b)


def test_an_ensemble_in_an_ensemble(server: Server) -> None:
    p, q = np.arange(16, dtype=np.int32), np.full(16, 3, np.int32)
    np.testing.assert_array_equal(_arrays(server, "nested", {"P": p, "Q": q})["Y"], p)


def test_steps_that_nobody_needs_do_not_run(server: Server) -> None:
    before = _statistics(server, "plain")["execution_count"]
    a = np.arange(16, dtype=np.int32)
    assert _arrays(server, "tree", {"A": a, "B": a}, ("TWICE_B",)).keys() == {"TWICE_B"}
    assert _statistics(server, "plain")["execution_count"] == before


def test_large_tensors_go_from_worker_to_worker(server: Server) -> None:
    x = np.random.default_rng(1).standard_normal((2, WIDE), np.float32)
    for _ in range(3):
        found = _arrays(server, "chain", {"X": x})
        assert found.keys() == {"Y", "T"}
        np.testing.assert_array_equal(found["Y"], x)
        np.testing.assert_array_equal(found["T"], x)
    wait_until(lambda: _used(server) == 0, "the arenas to be empty", 10.0)


def test_texts(server: Server) -> None:
    texts = np.array([b"some", b"", b"x" * 100_000], np.object_)
    np.testing.assert_array_equal(_arrays(server, "texts", {"X": texts})["Y"], texts)


def test_regions_in_and_out(server: Server) -> None:
    x = np.random.default_rng(2).standard_normal((1, WIDE), np.float32)
    region = shared_memory.create_shared_memory_region("ensembles", "/tensorfarm-ensembles", 2 * x.nbytes)
    try:
        shared_memory.set_shared_memory_region(region, [x])
        with client.InferenceServerClient(f"127.0.0.1:{server.http_port}") as connection:
            connection.register_system_shared_memory("ensembles", "/tensorfarm-ensembles", 2 * x.nbytes)
            given = client.InferInput("X", [1, WIDE], "FP32")
            given.set_shared_memory("ensembles", x.nbytes)
            wanted = client.InferRequestedOutput("T")
            wanted.set_shared_memory("ensembles", x.nbytes, offset=x.nbytes)
            result = connection.infer("chain", [given], outputs=[wanted, client.InferRequestedOutput("Y")])
            np.testing.assert_array_equal(result.as_numpy("Y"), x)
            np.testing.assert_array_equal(shared_memory.get_contents_as_numpy(region, np.float32, (2, WIDE))[1], x[0])
            connection.unregister_system_shared_memory("ensembles")
    finally:
        shared_memory.destroy_shared_memory_region(region)


def test_classes_have_the_labels_of_the_member(server: Server) -> None:
    inputs = [{"name": "X", "shape": [1, 4], "datatype": "FP32", "data": [1, 4, 2, 3]}]
    for model in ("labelled", "nested_labels"):
        body = compact({"inputs": inputs, "outputs": [{"name": "Y", "parameters": {"classification": 2}}]})
        reply = exchange(server.http_port, "POST", f"/v2/models/{model}/infer", body)
        assert reply.json["outputs"][0]["data"] == ["4.000000:1:dog", "3.000000:3"], model


def test_what_a_step_refuses(server: Server) -> None:
    inputs = [{"name": "X", "shape": [5], "datatype": "INT32", "data": [1] * 5}]
    reply = exchange(server.http_port, "POST", "/v2/models/narrow/infer", compact({"id": "q", "inputs": inputs}))
    assert reply.status == 400
    assert reply.json == {
        "error": "in ensemble 'narrow', [request id: q] unexpected shape for input 'INPUT1' for model 'plain'. Expected [16], got [5]. "
    }
    statistics = _statistics(server, "narrow")
    assert statistics["inference_stats"]["fail"]["count"] == 1
    assert statistics["execution_count"] == 0


def test_statistics_and_metrics(server: Server) -> None:
    before = _statistics(server, "chain")
    _arrays(server, "chain", {"X": np.ones((3, 7), np.float32)})
    after = _statistics(server, "chain")
    assert after["version"] == "3"
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 1
    stats = after["inference_stats"]
    assert stats["success"]["count"] == stats["queue"]["count"] == stats["compute_infer"]["count"]
    assert 0 < stats["compute_infer"]["ns"] < stats["success"]["ns"]
    assert any(row["batch_size"] == 3 and row["compute_infer"]["count"] == 1 for row in after["batch_stats"])
    page = exchange(server.metrics_port, "GET", "/metrics").body.decode()
    assert metric(page, "nv_inference_request_success", model="chain", version="1") == stats["success"]["count"]
    assert metric(page, "nv_inference_request_success", model="chain", version="3") is None


def test_many_at_once(server: Server) -> None:
    def one(seed: int) -> bool:
        x = np.random.default_rng(seed).standard_normal((1 + seed % 3, 20_000), np.float32)
        return bool((_arrays(server, "chain", {"X": x})["Y"] == x).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(64)))
    wait_until(lambda: _used(server) == 0, "the arenas to be empty", 10.0)


def test_clients_that_leave_end_the_whole(server: Server) -> None:
    """What waits does not begin, and what runs is not followed by the next step."""
    before = _statistics(server, "spin")["inference_stats"]["success"]["count"]
    body = compact({"inputs": [{"name": "X", "shape": [1], "datatype": "INT64", "data": [8000]}]})
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"

    def page() -> str:
        return exchange(server.metrics_port, "GET", "/metrics").body.decode()

    with contextlib.ExitStack() as stack:
        for _ in range(6):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.http_port)))
            # It leaves without a word, rather than ending its side and waiting.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(head.encode() + body)
        wait_until(lambda: metric(page(), "nv_inference_pending_request_count", model="spin"), "requests to wait for the first step")
    wait_until(lambda: metric(page(), "nv_inference_request_failure", model="slow", reason="CANCELED") == 6, "all to be cancelled", 30.0)
    assert _statistics(server, "spin")["inference_stats"]["success"]["count"] <= before + 3
    assert _statistics(server, "slow")["inference_stats"]["success"]["count"] == 0


def test_metadata_and_configuration(server: Server) -> None:
    metadata = exchange(server.http_port, "GET", "/v2/models/chain").json
    assert (metadata["platform"], metadata["versions"]) == ("ensemble", ["3"])
    config = exchange(server.http_port, "GET", "/v2/models/chain/config").json
    assert config["backend"] == ""
    assert config["model_transaction_policy"] == {"decoupled": False}
    assert server.model_ready("chain")


def test_a_worker_that_dies_under_a_step(server: Server) -> None:
    """The ensemble's client hears of it as of any error of a step, and the next one is served again."""
    asked = Asked(
        server, "/v2/models/slow/infer", compact({"inputs": [{"name": "X", "shape": [1], "datatype": "INT64", "data": [200_000]}]})
    )
    cores = {pid: _ticks(pid) for pid in server.workers()}
    wait_until(lambda: max(_ticks(pid) - cores[pid] for pid in cores) > 10, "a worker to be busy")
    busy = max(cores, key=lambda pid: _ticks(pid) - cores[pid])
    os.kill(busy, signal.SIGKILL)
    reply = asked.result()
    assert reply.status == 503
    assert reply.json["error"].startswith("in ensemble 'slow', ")
    wait_until(lambda: server.model_ready("slow"), "the ensemble to be ready again", 30.0)
    a = np.arange(16, dtype=np.int32)
    np.testing.assert_array_equal(_arrays(server, "tree", {"A": a, "B": a})["TWICE_A"], 2 * a)


def _ticks(pid: int) -> int:
    """The processor time that a process has used, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_ensembles_that_cannot_be(tmp_path: Path) -> None:
    """The index and the log say why, and the rest is served."""
    models = write_repository(tmp_path / "models", (PLAIN, replace(PLAIN, name="broken", operation="fail")), Flavour.ONNX)
    maps = {"INPUT0": "X", "INPUT1": "X"}, {"OUTPUT0": "Y"}
    good = TestEnsemble("good", (Step("plain", *maps),), _int32("X"), _int32("Y"), versions=(1, 2), extra="version_policy { all { } }")

    def bad(name: str, *steps: Step) -> TestEnsemble:
        return replace(good, name=name, steps=steps, versions=(1,))

    step = Step("plain", *maps)
    write_ensembles(
        models,
        (
            good,
            bad("missing", replace(step, model="nowhere")),
            bad("above_missing", Step("missing", {"X": "X"}, {"Y": "Y"})),
            bad("above_broken", replace(step, model="broken")),
            bad("version", replace(step, version=9)),
            bad("round", Step("about", {"X": "X"}, {"Y": "Y"})),
            bad("about", Step("round", {"X": "X"}, {"Y": "Y"})),
            bad("unmapped", replace(step, inputs={"INPUT0": "X"})),
            replace(good, name="twice", versions=(1, 2)),
        ),
    )
    with tensorfarm(models, "--exit-on-error=false", "--strict-readiness=false", folder=tmp_path / "run") as server:
        index = exchange(server.http_port, "POST", "/v2/repository/index", b"").json
        entries = {entry["name"]: entry for entry in index if entry.get("state") != "READY"}
        names = ("above_broken", "above_missing", "about", "missing", "round", "unmapped", "version")
        assert [(entry.pop("state"), bool(entry.pop("reason"))) for entry in map(entries.get, names)] == [("UNAVAILABLE", True)] * len(
            names
        )
        assert [entries[name] for name in names] == [{"name": name} for name in names]
        assert entries.keys() - set(names) == {"broken"}
        for text in (
            "Invalid argument: ensemble missing contains models that are not available or ambiguous: nowhere",
            "Invalid argument: ensemble 'above_missing' depends on 'missing' which is not valid. Model 'missing' failed with error: "
            "ensemble missing contains models that are not available or ambiguous: nowhere",
            "Invalid argument: ensemble 'above_broken' depends on 'broken' which has no loaded version. Model 'broken' loading failed with error: "
            "version 1 is at UNAVAILABLE state: ",
            "Invalid argument: ensemble 'version' depends on 'plain' whose required version 9 is not loaded.",
            "Invalid argument: circular dependency between ensembles: round -> ... -> about -> round",
            "Invalid argument: in ensemble unmapped, input INPUT1 in model plain is not mapped to any ensemble tensors",
        ):
            assert text in server.log.replace('\\"', '"'), text
        for version in (1, 2, 2):
            body = compact({"inputs": [{"name": "X", "shape": [16], "datatype": "INT32", "data": [1] * 16}]})
            reply = exchange(server.http_port, "POST", f"/v2/models/good/versions/{version}/infer", body)
            assert json.loads(reply.body)["outputs"][0]["data"] == [2] * 16
        page = exchange(server.metrics_port, "GET", "/metrics").body.decode()
        assert metric(page, "nv_inference_count", model="good", version="1") == 3
        assert page.count('nv_inference_count{model="good"') == 1
        assert exchange(server.http_port, "GET", "/v2/models/missing").status == 404
    ended = run_tensorfarm(
        f"--model-repository={models}", "--http-port=0", "--allow-metrics=false", "--allow-grpc=false", folder=tmp_path / "strict"
    )
    assert ended.code == 1
