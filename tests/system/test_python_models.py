"""Python models in a real server: large tensors wherever they lie, calls between models, readiness, log, clients that go away."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as client_module
import tritonclient.utils.shared_memory as shm

from ..servers import Server, child_pids, tensorfarm, wait_until
from ..wire import Connection, Reply, compact, exchange, request_bytes

MODELS = Path(__file__).resolve().parent.parent / "python_models"
LINKS = {"link_1": "link_2", "link_2": "link_3", "link_3": "", "link_self": "link_self"}
ELEMENTS = 2 << 20
"""Of a tensor of 8 MiB."""


def put(repository: Path, name: str, model: str, **parameters: str) -> Path:
    """A copy of a model under another name."""
    folder = Path(shutil.copytree(MODELS / model, repository / name))
    config = folder / "config.pbtxt"
    if config.exists():
        lines = [f'parameters [ {{ key: "{key}", value {{ string_value: "{value}" }} }} ]\n' for key, value in parameters.items()]
        config.write_text(config.read_text().replace(f'"{model}"', f'"{name}"') + "".join(lines))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a model and the tests leave files for each other."""
    return tmp_path_factory.mktemp("between")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Server]:
    """A server with Python models whose outputs leave no page behind once they are given back."""
    root = tmp_path_factory.mktemp("python")
    repository = root / "models"
    for name, follower in LINKS.items():
        put(repository, name, "system_link", **({"NEXT": follower} if follower else {}))
    put(repository, "system_change", "system_change")
    put(repository, "system_keep", "system_keep")
    put(repository, "system_tool", "system_tool", FOLDER=str(folder))
    with tensorfarm(repository, "--pinned-memory-pool-byte-size=0", folder=root / "run") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[client_module.InferenceServerClient]:
    """The stock client."""
    with contextlib.closing(client_module.InferenceServerClient(f"127.0.0.1:{server.http_port}", network_timeout=60)) as made:
        yield made


def floats(value: float, count: int = ELEMENTS) -> np.ndarray:
    return np.full(count, value, np.float32)


def ask(server: Server, model: str, array: np.ndarray, datatype: str = "FP32", **parameters: object) -> Reply:
    """One input X as binary data; the outputs come as binary data too."""
    content = array.tobytes()
    head = compact({
        "parameters": {"binary_data_output": True, **parameters},
        "inputs": [{"name": "X", "datatype": datatype, "shape": list(array.shape), "parameters": {"binary_data_size": len(content)}}],
    })  # fmt: skip
    path = f"/v2/models/{model}/infer"
    return exchange(server.http_port, "POST", path, head + content, {"Inference-Header-Content-Length": str(len(head))})


def answered(reply: Reply, dtype: type = np.float32) -> np.ndarray:
    assert reply.status == 200, reply.body[:500]
    # there is none where no output has any bytes
    head_byte_size = reply.header("inference-header-content-length")
    return np.frombuffer(reply.body[len(reply.body) if head_byte_size is None else int(head_byte_size) :], dtype)


def verb(server: Server, name: str) -> Reply:
    body = compact({"inputs": [{"name": "VERB", "datatype": "BYTES", "shape": [1], "data": [name]}]})
    return server.ask("POST", "/v2/models/system_tool/infer", body)


def said(reply: Reply) -> str:
    assert reply.status == 200, reply.body
    return str(reply.json["outputs"][0]["data"][0])


def arena_byte_size(server: Server, model: str) -> int:
    """What the outputs of a model's process hold of memory."""
    (worker,) = [pid for pid in child_pids(server.pid) if Path(f"/proc/{pid}/comm").read_text().strip() == model]
    memory = [link for link in Path(f"/proc/{worker}/fd").iterdir() if "memfd:" in os.readlink(link)]
    # It may write to its own, and only to that.
    (own,) = {link.stat().st_ino: link for link in memory if _access(worker, link.name) == os.O_RDWR}.values()
    return own.stat().st_blocks * 512


def _access(pid: int, descriptor: str) -> int:
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines())
    return int(fields["flags"].strip(), 8) & os.O_ACCMODE


# tensors


def test_large_tensors_in_bodies(server: Server) -> None:
    for value in (1, 2, 3):
        array = floats(value).reshape(2, -1)
        array[:, 0] = value + 10
        np.testing.assert_array_equal(answered(ask(server, "system_change", array)), array.reshape(-1) + 1)


def test_large_tensors_in_regions_written_to_by_the_model(server: Server, client: client_module.InferenceServerClient) -> None:
    key = f"/tensorfarm-python-{os.getpid()}"
    byte_size = 4 * ELEMENTS
    sent = shm.create_shared_memory_region("sent", f"{key}-in", byte_size)
    got = shm.create_shared_memory_region("got", f"{key}-out", byte_size)
    try:
        client.register_system_shared_memory("sent", f"{key}-in", byte_size)
        client.register_system_shared_memory("got", f"{key}-out", byte_size)
        tensor = client_module.InferInput("X", [1, ELEMENTS], "FP32")
        tensor.set_shared_memory("sent", byte_size)
        wanted = client_module.InferRequestedOutput("Y")
        wanted.set_shared_memory("got", byte_size)
        for value in (5, 6, 7):
            array = floats(value)
            shm.set_shared_memory_region(sent, [array])
            client.infer("system_change", [tensor], outputs=[wanted])
            np.testing.assert_array_equal(shm.get_contents_as_numpy(got, np.float32, [ELEMENTS]), array + 1)
            np.testing.assert_array_equal(shm.get_contents_as_numpy(sent, np.float32, [ELEMENTS]), array)
    finally:
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(sent)
        shm.destroy_shared_memory_region(got)
    workers = [pid for pid in child_pids(server.pid)]
    wait_until(lambda: not any(key in Path(f"/proc/{pid}/maps").read_text() for pid in workers), "the regions to be unmapped")


def test_requests_of_one_batch_that_come_from_one_region(server: Server, client: client_module.InferenceServerClient) -> None:
    """The model changes its inputs in place: each request has its own."""
    key = f"/tensorfarm-python-{os.getpid()}-one"
    sent = shm.create_shared_memory_region("one", key, 4 * 40_000)
    try:
        client.register_system_shared_memory("one", key, 4 * 40_000)
        shm.set_shared_memory_region(sent, [floats(3, 40_000)])
        body = compact({
            "inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 40_000],
                        "parameters": {"shared_memory_region": "one", "shared_memory_byte_size": 160_000}}],
            "parameters": {"binary_data_output": True},
        })  # fmt: skip
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: server.ask("POST", "/v2/models/system_change/infer", body), range(24)))
        assert [set(answered(reply).tolist()) for reply in replies] == [{4.0}] * 24
        np.testing.assert_array_equal(shm.get_contents_as_numpy(sent, np.float32, [40_000]), floats(3, 40_000))
    finally:
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(sent)
    statistics = server.ask("GET", "/v2/models/system_change/stats").json["model_stats"][0]
    assert any(entry["batch_size"] > 1 for entry in statistics["batch_stats"]), "they shared batches"


def test_requests_that_are_kept(server: Server) -> None:
    """Read only when others have come: each shows what it had."""
    sums: list[int] = []
    for value in range(1, 6):
        array = np.full(100_000, value, np.int64)
        assert answered(ask(server, "system_keep", array, "INT64"), np.int64).tolist() == sums
        sums.append(int(array.sum()))
    assert answered(ask(server, "system_keep", np.zeros(1, np.int64), "INT64"), np.int64).tolist() == sums


# calls


@pytest.mark.parametrize(("parameters", "more"), [({}, 3), ({"as it is": True}, 1)], ids=["changed", "passed on"])
def test_a_chain_of_three_models(server: Server, parameters: dict[str, object], more: int) -> None:
    for value in (1, 20):
        # the parameter reaches the first link alone
        expected = value + (2 if parameters else more)
        np.testing.assert_array_equal(answered(ask(server, "link_1", floats(value), **parameters)), floats(expected))
    for link in ("link_1", "link_2", "link_3"):
        wait_until(lambda link=link: arena_byte_size(server, link) == 0, f"the memory of {link} to come back")  # type: ignore[misc]


def test_outputs_of_calls_that_are_kept(server: Server) -> None:
    """Their memory comes back when the model drops them, and not before."""
    for value in range(6):
        kept = answered(ask(server, "link_2", floats(value), keep=3))
        assert kept.tolist() == [float(one + 2) for one in range(max(0, value - 2), value + 1)]
    wait_until(lambda: arena_byte_size(server, "link_3") == 3 * 4 * ELEMENTS, "three outputs to be left")
    assert answered(ask(server, "link_2", floats(0), keep=0)).tolist() == []
    wait_until(lambda: arena_byte_size(server, "link_3") == 0, "nothing to be left")


def test_a_model_that_calls_itself_is_told(server: Server) -> None:
    reply = ask(server, "link_self", floats(1, 4))
    assert reply.status == 500 and "would wait for ever" in reply.error
    assert ask(server, "link_self", floats(1, 40_000)).status == 500, "and is not stuck"


def test_many_chains_at_once(server: Server) -> None:
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda value: ask(server, "link_1", floats(value, 30_000)), range(30)))
    assert [set(answered(reply).tolist()) for reply in replies] == [{value + 3.0} for value in range(30)]


# processes


def test_two_instances_in_parallel(server: Server, folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        names = [said(reply) for reply in pool.map(lambda _: verb(server, "meet"), range(2))]
    assert sorted(names) == ["system_tool_0_0", "system_tool_0_1"]


def test_what_a_model_says(server: Server) -> None:
    assert verb(server, "speak").status == 200
    wait_until(lambda: "err: three" in server.log and "log: four" in server.log and "log: odd" in server.log, "the model's lines")
    for line in ("out: one", "out: two", "err: three"):
        assert re.search(rf'^I\d{{4}} .*\] "\[worker system_tool:1@?[^\]]*\] {line}"$', server.stdout, re.M), server.log
    assert re.search(r'^W\d{4} .* \d+ model\.py:\d+\] "log: four"$', server.stderr, re.M), server.log
    assert r"log: odd \\udcff" in server.stdout


def test_what_a_model_gets_wrong_costs_nothing_else(server: Server) -> None:
    """An error text that is no UTF-8, and a thread of the model's own that fails."""
    pids = {said(verb(server, "pid")) for _ in range(8)}
    reply = verb(server, "odd")
    assert reply.status == 500 and r"ValueError: odd \udcff" in reply.error
    assert said(verb(server, "thread")) == "alive"
    wait_until(lambda: "ZeroDivisionError" in server.log, "the thread's last words")
    assert {said(verb(server, "pid")) for _ in range(8)} <= {str(pid) for pid in child_pids(server.pid)}
    assert pids <= {str(pid) for pid in child_pids(server.pid)}


@pytest.mark.parametrize(("says", "ready"), [("false", False), ("later", False), ("raise", False), ("number", False), ("true", True)])
def test_readiness_is_the_models_own(server: Server, folder: Path, says: str, ready: bool) -> None:
    (folder / "ready").write_text(says)
    try:
        assert server.model_ready("system_tool") is ready and server.ready() is ready and server.model_ready("system_keep")
        assert said(verb(server, "pid")), "it is asked all the same"
    finally:
        (folder / "ready").unlink()
    assert server.model_ready("system_tool")


def test_a_client_that_goes_away(server: Server, folder: Path) -> None:
    body = compact({"inputs": [{"name": "VERB", "datatype": "BYTES", "shape": [1], "data": ["wait"]}]})
    connection = Connection(server.http_port)
    connection.send(request_bytes("POST", "/v2/models/system_tool/infer", body))
    wait_until((folder / "waiting").exists, "the model to run")
    connection.abort()
    wait_until((folder / "cancelled").exists, "the model to see it")
    assert said(verb(server, "pid"))


# backends in Python, and the end


def test_backends_in_python_and_the_end(tmp_path: Path) -> None:
    repository, backends = tmp_path / "models", tmp_path / "backends"
    shutil.copytree(MODELS / "system_backend", backends / "words")
    for name, backend in (("shared", "words"), ("own", "own_words")):
        version = repository / name / "1"
        version.mkdir(parents=True)
        (version / "words.json").write_text(json.dumps([name, "data"]))
        (repository / name / "config.pbtxt").write_text(f'backend: "{backend}"\n')
    shutil.copy(MODELS / "system_backend" / "model.py", repository / "own" / "backend.py")
    put(repository, "system_tool", "system_tool", FOLDER=str(tmp_path))
    with tensorfarm(repository, f"--backend-directory={backends}", folder=tmp_path / "run") as server:
        for name in ("shared", "own"):
            reply = server.ask("POST", f"/v2/models/{name}/infer", {"inputs": []})
            assert reply.status == 200, reply.body
            assert reply.json["outputs"][0]["data"] == [name, "data"]
        assert server.ask("GET", "/v2/models/shared").json["platform"] == "words"
    for number in (0, 1):
        assert f'"finalized system_tool_0_{number}"' in server.stdout, server.log


def test_the_end_of_a_server_whose_model_waits(tmp_path: Path) -> None:
    """The exit timeout ends what the model would not."""
    put(tmp_path / "models", "system_tool", "system_tool", FOLDER=str(tmp_path))
    with tensorfarm(tmp_path / "models", "--exit-timeout-secs=1", folder=tmp_path / "run") as server:
        replies: list[Reply] = []
        waiting = threading.Thread(target=lambda: replies.append(verb(server, "wait")))
        waiting.start()
        wait_until((tmp_path / "waiting").exists, "the model to run")
        server.process.terminate()
        assert server.wait_exit() == 1
        waiting.join(20)
        assert replies[0].status == 503
