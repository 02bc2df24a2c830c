"""Clients that go: what they wait for leaves the queue, or the model hears of it, and nothing of it stays."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from ..ensembles import Step, TestEnsemble, write_ensembles
from ..model_repository import TestTensor
from ..servers import Server, metric, tensorfarm, wait_until
from ..wire import Connection, compact, exchange, request_bytes
from .test_python_models import put

POSTS = 1000
AT_ONCE = 50
LARGE = 50_000
"""Elements of a tensor of 200 kB: its body lies in the arena."""

STAGED = 2
"""Batches that an instance has beside the running one before its speed is known (dispatch/instance.py): no queue any more."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TENSORS = ((TestTensor("X", "FP32", (-1,)),), (TestTensor("Y", "FP32", (-1,)),))
CHAIN = TestEnsemble("chain", (Step("passer", {"X": "X"}, {"Y": "T"}), Step("queued", {"X": "T"}, {"Y": "Y"})), *TENSORS)

_numbers = itertools.count()


class Farm:
    """A running server and the folder in which its models write down what they do."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder

    def notes(self, model: str, name: str = "") -> list[str]:
        """What a model says of a request, or of all whose id begins so."""
        path = self.folder / f"{model}.notes"
        return [line for line in path.read_text().splitlines() if line.startswith(name)] if path.exists() else []

    def open(self, name: str) -> None:
        """Let the model go on with a request."""
        (self.folder / name).touch()

    def post(self, model: str, name: str, elements: int = 4) -> Connection:
        """Begin an inference on a connection of its own."""
        connection = Connection(self.server.http_port)
        connection.send(infer_bytes(model, name, elements))
        return connection

    @contextlib.contextmanager
    def held(self, model: str = "queued") -> Iterator[None]:
        """Keep a model's only instance busy; what did so is answered in the end."""
        name = f"deaf-{next(_numbers)}"
        with self.post(model, name) as connection:
            try:
                wait_until(lambda: self.notes(model, f"{name} begun"), "the model to run")
                yield
            finally:
                self.open(name)
            assert connection.receive().status == 200

    def answers(self, model: str = "gate") -> bool:
        """A request is answered: no instance is stuck."""
        with self.post(model, "plain") as connection:
            return connection.receive().status == 200

    def metric(self, name: str, **labels: str) -> float:
        value = metric(exchange(self.server.metrics_port, "GET", "/metrics").body.decode(), name, **labels)
        assert value is not None
        return value

    def pending(self, model: str = "queued") -> float:
        return self.metric("nv_inference_pending_request_count", model=model)

    def cancelled(self, model: str = "queued") -> float:
        return self.metric("nv_inference_request_failure", model=model, reason="CANCELED")

    def executions(self, model: str = "queued") -> float:
        return self.metric("nv_inference_exec_count", model=model)

    def arenas(self) -> list[str]:
        """What is in use of all shared memory."""
        text = exchange(self.server.metrics_port, "GET", "/metrics").body.decode()
        return re.findall(r"^(?:tensorfarm_arena_used_bytes|nv_pinned_memory_pool_used_bytes).*$", text, re.M)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.server.pid}/fd"))

    def own_memory(self) -> int:
        """Bytes of the server's memory that it shares with nobody."""
        fields = re.findall(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{self.server.pid}/status").read_text(), re.M)
        return int(fields[0]) * 1024


def infer_bytes(model: str, name: str, elements: int = 4) -> bytes:
    content = struct.pack("<f", 1.5) * elements
    tensor = {"name": "X", "datatype": "FP32", "shape": [elements], "parameters": {"binary_data_size": len(content)}}
    head = compact({"id": name, "parameters": {"binary_data_output": True}, "inputs": [tensor]})
    return request_bytes("POST", f"/v2/models/{model}/infer", head + content, {"Inference-Header-Content-Length": str(len(head))})


def put_queued(repository: Path, folder: Path) -> None:
    """A model with a queue policy: nothing is staged at its instance, all that does not run waits in the queue."""
    config = put(repository, "queued", "system_gate", FOLDER=str(folder)) / "config.pbtxt"
    config.write_text(config.read_text() + "dynamic_batching { default_queue_policy { max_queue_size: 1000000 } }\n")


def write_models(repository: Path, folder: Path) -> None:
    put_queued(repository, folder)
    put(repository, "gate", "system_gate", FOLDER=str(folder))
    put(repository, "passer", "system_gate", FOLDER=str(folder), PASSES="1")
    put(repository, "caller", "system_gate", FOLDER=str(folder), NEXT="gate")
    config = put(repository, "streamer", "system_gate", FOLDER=str(folder)) / "config.pbtxt"
    config.write_text(config.read_text() + "model_transaction_policy { decoupled: true }\n")
    write_ensembles(repository, [CHAIN])


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    root = tmp_path_factory.mktemp("cancellation")
    write_models(root / "models", root)
    flags = ("--model-control-mode=explicit", "--load-model=*", "--pinned-memory-pool-byte-size=67108864")
    with tensorfarm(root / "models", *flags, folder=root / "run") as server:
        yield Farm(server, root)


Going = Callable[[Connection], None]
GOING: dict[str, Going] = {"reset": Connection.abort, "closed": Connection.close}


def test_a_thousand_aborted_posts(farm: Farm) -> None:
    """Small and large, reset and closed, once they wait and at once: almost none runs, and nothing stays."""
    holder = farm.post("gate", "deaf-thousand")
    wait_until(lambda: farm.notes("gate", "deaf-thousand begun"), "the model to run")
    ran, cancelled = farm.executions("gate"), farm.cancelled("gate")
    kept = farm.arenas(), farm.descriptors()
    memory = certain = 0
    rounds = [(going, waits) for waits in (True, False) for going in GOING.values() for _ in range(POSTS // AT_ONCE // 4)]
    for number, (going, waits) in enumerate(rounds):
        posts = [farm.post("gate", f"post-{number}-{at}", LARGE if at % 2 else 4) for at in range(AT_ONCE)]
        if waits:
            wait_until(lambda: farm.pending("gate") >= AT_ONCE - STAGED, "the posts to wait")
        if waits or going is Connection.close:
            # The kernel forgets what a reset overtakes.
            certain += AT_ONCE
        for post in posts:
            going(post)
        if waits:
            wait_until(lambda: farm.pending("gate") == 0, "the posts to leave the queue", 5.0)
            memory = farm.own_memory()
    wait_until(lambda: farm.pending("gate") == 0, "the posts to leave the queue", 5.0)
    assert len(rounds) * AT_ONCE == POSTS
    assert certain - STAGED <= farm.cancelled("gate") - cancelled <= POSTS
    wait_until(lambda: farm.descriptors() <= kept[1], "all connections to end")
    assert farm.metric("nv_pinned_memory_pool_used_bytes") < STAGED * 5 * LARGE, "the bodies of those that are staged"
    assert farm.own_memory() - memory < 4 << 20
    farm.open("deaf-thousand")
    with holder:
        assert holder.receive().status == 200
    assert farm.answers()
    needless = [line for line in farm.notes("gate", "post-") if "begun" in line]
    assert len(needless) <= STAGED and all(line.endswith("given up") for line in needless), "what was staged before it was given up"
    assert farm.executions("gate") - ran == len(needless) + 2
    assert farm.pending("gate") == 0
    wait_until(lambda: farm.arenas() == kept[0], "all memory to come back")


def test_one_that_waits_keeps_nothing_of_those_that_went(farm: Farm) -> None:
    """Behind a client that is patient, hundreds that are not leave nothing."""
    with contextlib.ExitStack() as stack:
        with farm.held():
            patient = stack.enter_context(farm.post("queued", "patient"))
            wait_until(lambda: farm.pending() == 1, "the patient one to wait")
            memory = farm.own_memory()
            for _ in range(10):
                posts = [farm.post("queued", "impatient", 15_000) for _ in range(AT_ONCE)]
                wait_until(lambda: farm.pending() == 1 + AT_ONCE, "the posts to wait")
                for post in posts:
                    post.abort()
                wait_until(lambda: farm.pending() == 1, "the posts to leave the queue")
            assert farm.own_memory() - memory < 15 << 20, "30 MB have come and gone"
        assert patient.receive().status == 200
    assert not farm.notes("queued", "impatient")


# what runs


class Http2:
    """An HTTP/2 client that asks and goes."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 20.0)
        self._state = H2Connection(H2Configuration(client_side=True))
        self._state.initiate_connection()

    def post(self, request: bytes) -> int:
        """Send what would be a request of HTTP/1.1; the stream's number."""
        head, _, body = request.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = [(name.lower(), value) for name, _, value in (field.partition(": ") for field in fields) if name != "Host"]
        stream = int(self._state.get_next_available_stream_id())
        own = [(":method", "POST"), (":path", line.split()[1]), (":scheme", "http"), (":authority", "x")]
        self._state.send_headers(stream, own + headers)
        self._state.send_data(stream, body, end_stream=True)
        self._flush()
        return stream

    def reset(self, stream: int) -> None:
        self._state.reset_stream(stream, 8)
        self._flush()

    def _flush(self) -> None:
        self._socket.sendall(self._state.data_to_send())

    def close(self) -> None:
        self._socket.close()


def test_streams_that_are_reset_leave_the_queue(farm: Farm) -> None:
    """Half of those on a connection, then, with the connection, the others."""
    cancelled = farm.cancelled()
    with farm.held(), contextlib.closing(Http2(farm.server.http_port)) as client:
        streams = [client.post(infer_bytes("queued", "stream")) for _ in range(AT_ONCE)]
        wait_until(lambda: farm.pending() == AT_ONCE, "the requests to wait")
        for stream in streams[::2]:
            client.reset(stream)
        wait_until(lambda: farm.pending() == AT_ONCE // 2, "half of them to leave the queue", 5.0)
        client.close()
        wait_until(lambda: farm.pending() == 0, "the others to leave the queue", 5.0)
    assert farm.cancelled() - cancelled == AT_ONCE and not farm.notes("queued", "stream")


def generate_bytes(name: str) -> bytes:
    return request_bytes("POST", "/v2/models/streamer/generate_stream", compact({"id": name, "X": [1.5]}))


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("model", ["gate", "streamer"])
@pytest.mark.parametrize("going", ["ended", "closed"])
def test_a_model_that_runs_hears_of_it(farm: Farm, model: str, http2: bool, going: str) -> None:
    """``ended``: by a reset of the connection or, over HTTP/2, of the stream alone."""
    # A client that closes right behind its request may still read, as far as anybody can see, until it is sent something.
    name = f"{'talks' if model == 'streamer' and going == 'closed' else 'held'}-{next(_numbers)}"
    request = generate_bytes(name) if model == "streamer" else infer_bytes(model, name)
    with contextlib.ExitStack() as stack:
        if http2:
            client = stack.enter_context(contextlib.closing(Http2(farm.server.http_port)))
            stream = client.post(request)
            wait_until(lambda: farm.notes(model, f"{name} begun"), "the model to run")
            if going == "ended":
                client.reset(stream)
            else:
                client.close()
        else:
            connection = stack.enter_context(Connection(farm.server.http_port))
            connection.send(request)
            wait_until(lambda: farm.notes(model, f"{name} begun"), "the model to run")
            if model == "streamer":
                connection.wait_for(b"data: ")
            (Connection.abort if going == "ended" else Connection.close)(connection)
        wait_until(lambda: farm.notes(model, f"{name} ended, given up"), "the model to hear of it", 5.0)
    if model == "gate":
        assert farm.answers()


def test_one_that_ends_its_side_right_behind_its_request_gets_the_reply(farm: Farm) -> None:
    """However long that takes; it is asked whether it is there by what means nothing."""
    name = f"held-{next(_numbers)}"
    with farm.post("gate", name) as connection:
        connection.end()
        connection.wait_for(CONTINUE + CONTINUE)
        farm.open(name)
        assert connection.receive().status == 200
        assert connection.closed_by_server()
    assert farm.notes("gate", f"{name} ended") == [f"{name} ended"]


def test_what_waits_behind_on_the_same_connection(farm: Farm) -> None:
    """The request that is being answered is cancelled, and those behind it are not begun."""
    name = f"held-{next(_numbers)}"
    with farm.post("gate", name) as connection:
        wait_until(lambda: farm.notes("gate", f"{name} begun"), "the model to run")
        for at in range(5):
            connection.send(infer_bytes("gate", f"behind-{at}", LARGE if at % 2 else 4))
        connection.abort()
    wait_until(lambda: farm.notes("gate", f"{name} ended, given up"), "the model to hear of it")
    assert farm.answers() and not farm.notes("gate", "behind-")
    wait_until(lambda: farm.metric("nv_pinned_memory_pool_used_bytes") == 0, "their bodies' memory to come back")


@pytest.mark.parametrize("going", GOING)
def test_requests_that_are_still_being_read(farm: Farm, going: str) -> None:
    counted = farm.executions(), farm.cancelled(), farm.descriptors()
    whole = infer_bytes("gate", "half", LARGE)
    connections = [Connection(farm.server.http_port) for _ in range(AT_ONCE)]
    for at, connection in enumerate(connections):
        connection.send(whole[: at * len(whole) // AT_ONCE])
    wait_until(lambda: farm.metric("nv_pinned_memory_pool_used_bytes") > 0, "bodies to be read")
    for connection in connections:
        GOING[going](connection)
    wait_until(lambda: farm.metric("nv_pinned_memory_pool_used_bytes") == 0, "their memory to come back")
    wait_until(lambda: farm.descriptors() <= counted[2], "their connections to end")
    assert (farm.executions(), farm.cancelled()) == counted[:2] and not farm.notes("gate", "half")


# models that ask models


def test_the_step_of_an_ensemble_leaves_the_queue(farm: Farm) -> None:
    cancelled, passed = (farm.cancelled(), farm.cancelled("chain")), farm.executions("passer")
    with farm.held():
        posts = [farm.post("chain", "step", LARGE if at % 2 else 4) for at in range(20)]
        wait_until(lambda: farm.pending() == 20, "the second steps to wait")
        for at, post in enumerate(posts):
            (Connection.abort if at % 3 else Connection.close)(post)
        wait_until(lambda: farm.pending() == 0, "them to leave the queue", 5.0)
        assert (farm.cancelled() - cancelled[0], farm.cancelled("chain") - cancelled[1]) == (20, 20)
        assert farm.pending("chain") == 0 and farm.executions("passer") == passed + 20
        wait_until(lambda: all(line.endswith(" 0") for line in farm.arenas()), "the tensors between the steps to come back")
    assert not farm.notes("queued", "step")


def test_a_running_step_hears_of_it(farm: Farm) -> None:
    name = f"held-{next(_numbers)}"
    with farm.post("chain", name) as post:
        wait_until(lambda: farm.notes("queued", f"{name} begun"), "the step to run")
        post.abort()
        wait_until(lambda: farm.notes("queued", f"{name} ended, given up"), "the step's model to hear of it")
    assert farm.answers("chain")


def test_a_call_of_a_model_goes_on(farm: Farm) -> None:
    """As with the original: the caller hears that its client has gone; whether its calls are still of use is for it to say."""
    name = f"calls-{next(_numbers)}"
    with farm.post("caller", name) as post:
        wait_until(lambda: farm.notes("gate", f"deaf-{name} begun"), "the call to run")
        post.abort()
    farm.open(f"deaf-{name}")
    wait_until(lambda: farm.notes("caller", f"{name} ended"), "the caller to go on")
    assert farm.notes("caller", name) == [f"{name} begun", f"{name} heard an answer, given up", f"{name} ended, given up"]
    assert farm.notes("gate", f"deaf-{name}") == [f"deaf-{name} begun", f"deaf-{name} ended"]
    assert farm.answers("caller")


# models and servers that end


def test_an_unload_waits_for_nobody_who_has_gone(farm: Farm) -> None:
    with farm.held():
        posts = [farm.post("queued", "late") for _ in range(20)]
        wait_until(lambda: farm.pending() == 20, "the posts to wait")
        for model in ("chain", "queued"):
            assert farm.server.ask("POST", f"/v2/repository/models/{model}/unload").status == 200
        for at, post in enumerate(posts):
            (Connection.abort if at % 2 else Connection.close)(post)
        wait_until(lambda: farm.pending() == 0, "the posts to leave", 5.0)
    wait_until(lambda: "UNAVAILABLE" in str(index(farm)["queued"]), "the model to be gone")
    assert not farm.notes("queued", "late")
    for model in ("queued", "chain"):
        assert farm.server.ask("POST", f"/v2/repository/models/{model}/load").status == 200
    assert farm.answers("chain")


def index(farm: Farm) -> dict[str, dict[str, str]]:
    return {entry["name"]: entry for entry in farm.server.ask("POST", "/v2/repository/index").json}


def test_an_end_waits_for_nobody_who_has_gone(tmp_path: Path) -> None:
    """What runs is answered, what waits for clients that went is not run, and then the server ends."""
    put_queued(tmp_path / "models", tmp_path)
    with tensorfarm(tmp_path / "models", folder=tmp_path / "run") as server:
        farm = Farm(server, tmp_path)
        with farm.held():
            posts = [farm.post("queued", "late") for _ in range(20)]
            wait_until(lambda: farm.pending() == 20, "the posts to wait")
            server.process.terminate()
            wait_until(lambda: "Waiting for in-flight requests" in server.log, "the end to begin")
            for at, post in enumerate(posts):
                (Connection.abort if at % 2 else Connection.close)(post)
            wait_until(lambda: "(version 1) has 1 in-flight inferences" in server.log, "the posts to leave", 5.0)
        began = time.monotonic()
        assert server.wait_exit() == 0 and time.monotonic() - began < 5, server.log
        assert not farm.notes("queued", "late"), server.log
