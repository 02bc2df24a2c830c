"""Models that load at their first request: many of them in a small budget, with all that can go wrong on the way."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ..ensembles import Step, TestEnsemble, write_ensembles
from ..model_repository import PLAIN, Flavour, write_model, write_repository
from ..servers import Server, child_pids, metric, run_tensorfarm, start_tensorfarm, tensorfarm, wait_until
from ..wire import Connection, Reply, compact, exchange, request_bytes

COUNT = 5
MANY = tuple(f"m{number:02}" for number in range(50))
LAZY = "--model-control-mode=lazy"
LENIENT = ("--exit-on-error=false", "--log-file=log")
VALUES = list(range(16))
BODY = {"inputs": [{"name": f"INPUT{at}", "shape": [16], "datatype": "INT32", "data": VALUES} for at in (0, 1)]}
SUM = [2 * value for value in VALUES]
ABSENT = "loads at its first request"

PYTHON = """\
import os
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        gate = {gate!r}
        if gate:
            open(gate + ".begun", "w").close()
        while gate and not os.path.exists(gate):
            time.sleep(0.01)

    def execute(self, requests):
        responses = []
        for request in requests:
            tensors = request.inputs()
            if {asked!r}:
                call = pb_utils.InferenceRequest(model_name={asked!r}, requested_output_names=["OUTPUT0", "OUTPUT1"], inputs=tensors)
                answer = call.exec()
                if answer.has_error():
                    raise pb_utils.TritonModelException(answer.error().message())
                outputs = answer.output_tensors()
            else:
                one, other = (tensor.as_numpy() for tensor in tensors)
                outputs = [pb_utils.Tensor("OUTPUT0", one + other), pb_utils.Tensor("OUTPUT1", one - other)]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
"""


def write_python(root: Path, name: str, asked: str = "", gate: Path | None = None) -> None:
    """A Python model that gives what ``asked`` gives, and whose load ends once ``gate`` is there."""
    folder = write_model(root, replace(PLAIN, name=name), Flavour.PYTHON)
    (folder / "1" / "model.py").write_text(PYTHON.format(asked=asked, gate="" if gate is None else str(gate)))


def write_chain(root: Path, name: str, first: str, second: str) -> None:
    """An ensemble that runs two models one after the other."""
    between = {"OUTPUT0": "sum", "OUTPUT1": "difference"}
    steps = (
        Step(first, {"INPUT0": "INPUT0", "INPUT1": "INPUT1"}, between),
        Step(second, {"INPUT0": "sum", "INPUT1": "difference"}, {"OUTPUT0": "OUTPUT0", "OUTPUT1": "OUTPUT1"}),
    )
    write_ensembles(root, [TestEnsemble(name, steps, PLAIN.inputs, PLAIN.outputs)])


def infer(server: Server, model: str) -> Reply:
    return server.ask("POST", f"/v2/models/{model}/infer", BODY)


def total(reply: Reply) -> list[int]:
    assert reply.status == 200, reply.body
    return list(reply.json["outputs"][0]["data"])


def page(server: Server) -> str:
    return exchange(server.metrics_port, "GET", "/metrics").body.decode()


def figure(server: Server, name: str) -> int:
    value = metric(page(server), f"tensorfarm_{name}")
    assert value is not None
    return int(value)


def index(server: Server) -> dict[str, tuple[str, str]]:
    """State and reason by model."""
    return {entry["name"]: (entry.get("state", ""), entry.get("reason", "")) for entry in server.ask("POST", "/v2/repository/index").json}


def log(server: Server) -> str:
    """All lines of the log, in their order."""
    return (server.folder / "log").read_text()


def most_in_log(log: str) -> int:
    """How many models were in memory at once, or on their way, by what the log says of each load and unload."""
    there: Counter[str] = Counter()
    most = 0
    for begun, failed, gone in re.findall(r"\"loading: (\w+):1\"|\"failed to load '(\w+)' version|unloaded '(\w+)' version", log):
        there[begun or failed or gone] += 1 if begun else -1
        assert all(count in (0, 1) for count in there.values()), f"a model was loaded or unloaded twice: {there}"
        most = max(most, sum(there.values()))
    return most


class Waiting:
    """A request on a connection of its own, whose answer somebody waits for in a thread."""

    def __init__(self, server: Server, model: str) -> None:
        self.replies: list[Reply | ConnectionError] = []
        self._connection = Connection(server.http_port)
        self._connection.send(request_bytes("GET", "/v2/health/live"))
        assert self._connection.receive().status == 200
        self._connection.send(request_bytes("POST", f"/v2/models/{model}/infer", compact(BODY)))
        # What is answered now came after it.
        index(server)
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()

    def _receive(self) -> None:
        with contextlib.closing(self._connection):
            try:
                self.replies.append(self._connection.receive())
            except ConnectionError as error:
                self.replies.append(error)

    def result(self) -> Reply:
        self._thread.join(20)
        reply = self.replies[0]
        assert isinstance(reply, Reply), reply
        return reply


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose files let the loads of the models end that are called after them."""
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, gates: Path) -> Path:
    """All models of these tests."""
    root = write_repository(tmp_path_factory.mktemp("lazy") / "models", [replace(PLAIN, name=name) for name in MANY], Flavour.ONNX)
    write_chain(root, "chain", "m01", "m02")
    write_python(root, "caller", asked="m03")
    write_python(root, "chain_caller", asked="chain")
    for name in ("slow", "left", "killed"):
        write_python(root, name, gate=gates / name)
    write_model(root, replace(PLAIN, name="broken", operation="fail"), Flavour.ONNX)
    (root / "unreadable").mkdir()
    (root / "unreadable" / "config.pbtxt").write_text("this is {")
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    """A server with room for five models; in the end nothing may have been more."""
    with tensorfarm(repository, LAZY, f"--lazy-model-count={COUNT}", *LENIENT, folder=repository.parent / "run") as server:
        yield server
        assert most_in_log(log(server)) == COUNT


def test_at_start_nothing_is_loaded_and_what_is_broken_is_known(server: Server) -> None:
    entries = index(server)
    assert all(entries[name] == ("UNAVAILABLE", ABSENT) for name in (*MANY, "chain", "caller", "broken"))
    state, reason = entries["unreadable"]
    assert state == "UNAVAILABLE" and reason not in ("", ABSENT)
    assert "Poll failed for model directory 'unreadable'" in log(server)
    assert server.ready() and server.model_ready("m00") and server.model_ready("chain") and not server.model_ready("unreadable")
    assert not server.model_ready("nosuch")
    assert figure(server, "resident_models") == 0 and "loading:" not in log(server)
    assert infer(server, "nosuch").status == 404
    refused = server.ask("POST", "/v2/repository/models/m00/load")
    assert (refused.status, refused.error) == (503, "explicit model load / unload is not allowed if polling is enabled")


def test_fifty_models_in_a_budget_of_five(server: Server) -> None:
    """All answer, to eight clients at once in any order; never more than five are there."""
    over = threading.Event()
    seen: list[int] = []

    def watch() -> None:
        while not over.wait(0.01):
            seen.append(figure(server, "resident_models"))
            seen.append(sum(state in ("READY", "LOADING", "UNLOADING") for state, _ in index(server).values()))

    def ask_all(number: int) -> None:
        names = [*MANY, "chain"]
        random.Random(number).shuffle(names)  # noqa: S311  # any order will do
        with Connection(server.http_port) as connection:
            for name in names:
                connection.send(request_bytes("POST", f"/v2/models/{name}/infer", compact(BODY)))
                assert total(connection.receive()) == ([2 * value for value in VALUES] if name == "chain" else SUM), name

    with ThreadPoolExecutor(9) as pool:
        watching = pool.submit(watch)
        clients = [pool.submit(ask_all, number) for number in range(8)]
        try:
            for client in clients:
                client.result(60)
        finally:
            over.set()
        watching.result(20)
    assert max(seen) == COUNT and len(seen) > 20
    assert most_in_log(log(server)) == COUNT
    loads, evictions = figure(server, "lazy_loads_total"), figure(server, "lazy_evictions_total")
    assert loads >= 51 and loads - evictions == figure(server, "resident_models") == COUNT
    ready = [name for name, (state, _) in index(server).items() if state == "READY"]
    assert len(ready) == COUNT
    assert metric(page(server), "nv_inference_request_success", model=next(name for name in ready if name != "chain"), version="1") >= 8


def test_metadata_and_configuration_load_a_model_and_statistics_do_not(server: Server) -> None:
    for name, path in (("m40", ""), ("m41", "/config"), ("m42", "/versions/1"), ("m43", "/generate")):
        body = {"INPUT0": VALUES, "INPUT1": VALUES} if path == "/generate" else b""
        reply = server.ask("POST" if body else "GET", f"/v2/models/{name}{path}", body)
        assert reply.status == 200, reply.body
        assert index(server)[name][0] == "READY"
    assert server.ask("GET", "/v2/models/m00/stats").status == 400
    assert index(server)["m00"] == ("UNAVAILABLE", ABSENT)
    missing = server.ask("GET", "/v2/models/m00/versions/9")
    assert (missing.status, missing.error) == (404, "Request for unknown model: 'm00' version 9 is not found")


def test_a_model_asks_models_that_are_not_there(server: Server) -> None:
    for name in ("m10", "m11", "m12", "m13", "m14"):
        infer(server, name)
    assert total(infer(server, "caller")) == SUM and {"caller", "m03"} <= _ready(server)
    assert total(infer(server, "chain_caller")) == SUM
    assert _ready(server) >= {"chain_caller", "chain", "m01", "m02"}


def _ready(server: Server) -> set[str]:
    return {name for name, (state, _) in index(server).items() if state == "READY"}


def test_a_broken_model_stops_no_other(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda at: infer(server, "broken"), range(4)))
    for reply in (*replies, infer(server, "broken")):
        assert reply.status == 503 and reply.error.startswith("model 'broken' could not be loaded: "), reply.body
    state, reason = index(server)["broken"]
    assert state == "UNAVAILABLE" and reason not in ("", ABSENT)
    assert log(server).count('"loading: broken:1"') == 1, "who asks again at once is told at once"
    assert not server.model_ready("broken") and server.ready()
    reply = infer(server, "unreadable")
    assert reply.status == 503 and "model 'unreadable' could not be loaded" in reply.error
    assert total(infer(server, "m20")) == SUM


def test_a_client_that_leaves_while_its_model_loads(server: Server, gates: Path) -> None:
    with Connection(server.http_port) as connection:
        connection.send(request_bytes("POST", "/v2/models/left/infer", compact(BODY)))
        wait_until(lambda: index(server)["left"][0] == "LOADING", "the load")
        connection.abort()
    assert total(infer(server, "m21")) == SUM, "others are served meanwhile"
    (gates / "left").touch()
    wait_until(lambda: index(server)["left"][0] == "READY", "the load to end")
    assert metric(page(server), "nv_inference_request_success", model="left", version="1") == 0
    for name in MANY[:COUNT]:
        assert total(infer(server, name)) == SUM
    assert index(server)["left"] == ("UNAVAILABLE", ABSENT), "nothing keeps it"


def test_a_worker_that_is_killed_while_a_model_loads(server: Server, gates: Path) -> None:
    before = set(child_pids(server.pid))
    waiting = [Waiting(server, "killed") for _ in range(2)]
    wait_until((gates / "killed.begun").exists, "the model's code to run")
    (worker,) = set(child_pids(server.pid)) - before
    os.kill(worker, signal.SIGKILL)
    for one in waiting:
        reply = one.result()
        assert reply.status == 503 and reply.error.startswith("model 'killed' could not be loaded: "), reply.body
    (gates / "killed").touch()
    wait_until(lambda: infer(server, "killed").status == 200, "it to be tried again", 10.0, 0.2)


def test_what_a_budget_has_no_room_for_is_refused(repository: Path, tmp_path: Path) -> None:
    with tensorfarm(repository, LAZY, "--lazy-model-count=1", *LENIENT, folder=tmp_path / "run") as server:
        reply = infer(server, "chain")
        assert reply.status == 503 and "--lazy-model-count allows 1; raise it to 3 at least" in reply.error
        reply = infer(server, "caller")
        assert reply.status == 500 and "it would wait for models that wait for it to leave; raise --lazy-model-count" in reply.error
        assert total(infer(server, "m00")) == SUM
        assert figure(server, "resident_models") == 1 and most_in_log(log(server)) == 1


def test_memory_is_a_budget_too(repository: Path, tmp_path: Path) -> None:
    """A worker without any model takes more than this, so each model is alone, and the log says why."""
    with tensorfarm(repository, LAZY, "--lazy-memory-byte-size=1000000", *LENIENT, folder=tmp_path / "run") as server:
        for name in ("m00", "m01", "m02"):
            assert total(infer(server, name)) == SUM
            assert _ready(server) == {name}
        assert total(infer(server, "chain")) == SUM
        assert _ready(server) == {"chain", "m01", "m02"}
        assert "is loaded with no other beside it" in log(server)


def test_a_start_that_stops_at_what_cannot_be_read(repository: Path, tmp_path: Path) -> None:
    finished = run_tensorfarm(f"--model-repository={repository}", LAZY, "--allow-http=false", "--allow-metrics=false", folder=tmp_path)
    assert finished.code == 1
    assert "error: creating server: Internal - failed to load all models" in finished.stderr
    assert "Poll failed for model directory 'unreadable'" in finished.stderr


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with a model that loads when a test lets it, and one that is quick; killed if the test does not stop them."""
    root = write_repository(tmp_path / "models", [replace(PLAIN, name="quick")], Flavour.ONNX)
    write_python(root, "slow", gate=tmp_path / "gate")
    started: list[Server] = []

    def start(*flags: str) -> Server:
        started.append(start_tensorfarm(root, LAZY, "--lazy-model-count=1", *flags, folder=tmp_path / "run"))
        return started[-1]

    yield start
    for server in started:
        if not server.stopped:
            server.kill()


def _stop(server: Server) -> None:
    os.kill(server.pid, signal.SIGTERM)
    wait_until(lambda: "Signal (15) received." in server.stdout, "the signal to be noticed")


def test_what_waits_for_a_load_is_answered_before_the_end(small: Callable[..., Server], tmp_path: Path) -> None:
    server = small()
    waiting = [Waiting(server, "slow"), Waiting(server, "quick")]
    wait_until(lambda: "loading: slow" in server.stdout, "the load")
    _stop(server)
    assert "loading: quick" not in server.stdout and not any(one.replies for one in waiting)
    (tmp_path / "gate").touch()
    assert [total(one.result()) for one in waiting] == [SUM, SUM]
    assert server.wait_exit() == 0, server.log


def test_a_load_that_does_not_end_holds_nobody_longer_than_the_exit_timeout(small: Callable[..., Server]) -> None:
    server = small("--exit-timeout-secs=1")
    slow = Waiting(server, "slow")
    wait_until(lambda: "loading: slow" in server.stdout, "the load")
    quick = Waiting(server, "quick")
    began = time.monotonic()
    _stop(server)
    for one in (slow, quick):
        reply = one.result()
        assert (reply.status, reply.error) == (503, "Server is stopping; its exit timeout has expired")
    assert server.wait_exit() == 1
    assert time.monotonic() - began < 6.0


def test_a_load_that_nobody_waits_for_does_not_hold_the_end(small: Callable[..., Server]) -> None:
    server = small()
    with Connection(server.http_port) as connection:
        connection.send(request_bytes("POST", "/v2/models/slow/infer", compact(BODY)))
        wait_until(lambda: "loading: slow" in server.stdout, "the load")
        connection.abort()
    began = time.monotonic()
    _stop(server)
    assert server.wait_exit() == 0, server.log
    assert time.monotonic() - began < 6.0
