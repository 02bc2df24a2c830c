"""Front ends that die, workers that die behind them, the end of their server, ports that cannot be had, TLS, and limits that all share."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from ..certificates import Authority
from ..model_repository import IDENTITIES, PLAIN, Flavour, write_repository
from ..servers import alive, free_ports, marked, run_tensorfarm, wait_until
from ..wire import Connection, Reply, compact, exchange, request_bytes
from .front_ends import CHANNEL, COUNT, FLAG, FrontEndFarm, front_end_farm, say
from .grpc_farm import PATIENCE_S, Answers, start_grpc_farm, tensor, wait_open
from .test_python_models import put
from .test_regions import Object

MIB = 1 << 20
LIMIT = 4
BACK_S = 5.0
"""Within which whoever comes is answered while a front end is started again."""

PROMPT_S = 0.5
"""Within which whoever comes is answered while it takes longer to start one again."""

EXIT_S = 5.0
"""Within which a server ends that has nothing left to do."""

PLAIN_BODY = {"inputs": [{"name": f"INPUT{at}", "shape": [16], "datatype": "INT32", "data": list(range(16))} for at in (0, 1)]}
PLAIN_PATH = "/v2/models/plain/infer"
INPUTS = [{"name": "X", "datatype": "FP32", "shape": [4], "data": [1.5] * 4}]

_numbers = itertools.count()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("front-end-faults")


@pytest.fixture(scope="module")
def repository(root: Path) -> Path:
    used = ("identity_int32", "identity_uint8")
    repository = write_repository(root / "models", (PLAIN, *(model for model in IDENTITIES if model.name in used)), Flavour.ONNX)
    put(repository, "gate", "system_gate", FOLDER=str(root))
    return repository


@pytest.fixture
def farm(repository: Path, root: Path) -> Iterator[FrontEndFarm]:
    """A server of the test's own."""
    with front_end_farm(repository, folder=root / f"run-{next(_numbers)}") as running:
        yield running


def _name(kind: str) -> str:
    return f"{kind}-{next(_numbers)}"


def _gate(name: str, byte_size: int = 0) -> bytes:
    """An inference of the model that waits; ``byte_size``: how long an id of no meaning its parameters have."""
    content = {"id": name, "parameters": {"filling": "x" * byte_size}, "inputs": INPUTS}
    return request_bytes("POST", "/v2/models/gate/infer", compact(content))


def _rpc_inputs() -> list[Any]:
    return [tensor("X", np.full(4, 1.5, np.float32), "FP32")]


def _noted(root: Path, line: str) -> None:
    path = root / "gate.notes"
    wait_until(lambda: path.exists() and line in path.read_text().splitlines(), f"the model to note: {line}")


def _in_flight(farm: FrontEndFarm, model: str = "gate") -> float:
    return farm.metric("tensorfarm_requests_in_flight", model=model)


def _success(farm: FrontEndFarm) -> int:
    (stats,) = farm.server.ask("GET", "/v2/models/plain/stats").json["model_stats"]
    return int(stats["inference_stats"]["success"]["count"])


def _wait_back(farm: FrontEndFarm, gone: list[int]) -> None:
    """Wait for the next ones of front ends that were killed."""
    wait_until(lambda: len(farm.front_ends()) == COUNT and not {*gone} & {*farm.front_ends()}, "the front ends to be back")
    # Both serve.
    with farm.connections() as connections:
        for connection in connections:
            assert say(connection, "POST", PLAIN_PATH, PLAIN_BODY).status == 200


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), "it to be dead", interval_s=0.001)


def _come(farm: FrontEndFarm, count: int) -> float:
    """New clients, all of which must be answered; the longest time that it took."""
    longest = 0.0
    for number in range(count):
        began = time.monotonic()
        if number % 5:
            assert exchange(farm.server.http_port, "POST", PLAIN_PATH, compact(PLAIN_BODY)).status == 200
        else:
            with farm.client(channel_args=CHANNEL) as client:
                assert client.is_server_live(client_timeout=PATIENCE_S)
        longest = max(longest, time.monotonic() - began)
    return longest


def _refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5.0).close()
    except ConnectionRefusedError:
        return True
    return False


# front ends that die


def test_death_of_a_front_end(farm: FrontEndFarm, root: Path) -> None:
    """Its own clients lose their connections and what they asked is given up; nobody else notices."""
    server = farm.server
    assert not farm.under_way()
    before = farm.settled_descriptors()[server.pid]
    values = np.arange(16, dtype=np.int32)
    with Object("front-end-death", 128) as memory:
        memory.write(0, values)
        body = {"key": memory.key, "offset": 0, "byte_size": 128}
        assert server.ask("POST", "/v2/systemsharedmemory/region/kept/register", body).status == 200
        succeeded = _success(farm)
        with farm.connections() as (lost, kept), farm.grpc_clients() as (lost_client, kept_client):
            for connection in (lost, kept):
                assert say(connection, "POST", PLAIN_PATH, PLAIN_BODY).status == 200
            doomed, other = farm.front_ends()
            running, first, second = _name("held"), _name("deaf"), _name("deaf")
            lost.send(_gate(running))
            _noted(root, f"{running} begun")
            lost_answers, kept_answers, large = Answers(), Answers(), Answers()
            kept.send(_gate(first))
            kept_client.async_infer("gate", _rpc_inputs(), kept_answers, request_id=second)
            lost_client.async_infer("gate", _rpc_inputs(), lost_answers, request_id="held-never")
            many = tensor("X", np.zeros(MIB, np.float32), "FP32")
            lost_client.async_infer("gate", [many], large, request_id="held-never")
            wait_until(lambda: _in_flight(farm) == 5, "all to be in flight")
            _kill(doomed)
            assert _come(farm, 40) < BACK_S
            assert lost.closed_by_server()
            assert [one.error().status() for one in (lost_answers, large)] == ["StatusCode.UNAVAILABLE"] * 2
            _noted(root, f"{running} ended, given up")
            wait_until(lambda: _in_flight(farm) == 2, "what it asked for to be given up")
            assert kept_answers.empty
            for name in (first, second):
                (root / name).touch()
            assert kept.receive().json["id"] == first
            assert kept_answers.result().get_response().id == second
            assert farm.metric("nv_inference_pending_request_count", model="gate") == 0
            _wait_back(farm, [doomed])
            assert other in farm.front_ends()
            assert say(kept, "POST", PLAIN_PATH, PLAIN_BODY).status == 200
            # The channel finds the way back by itself.
            wait_until(lambda: _live(lost_client), "the client to have a connection again")
        assert "never begun" not in (root / "gate.notes").read_text()
        assert f"(pid {doomed}) was killed by signal 9 (SIGKILL); it is started again at once" in server.stderr
        assert _success(farm) == succeeded + 2 + 32 + COUNT + 1
        with farm.connections() as connections:
            for at, connection in enumerate(connections, 1):
                place = {"shared_memory_region": "kept", "shared_memory_byte_size": 64}
                content = {"inputs": [{"name": "INPUT0", "shape": [16], "datatype": "INT32", "parameters": place}]}
                memory.write(0, values * at)
                assert (
                    say(connection, "POST", "/v2/models/identity_int32/infer", content).json["outputs"][0]["data"] == (values * at).tolist()
                )
        assert server.ask("POST", "/v2/systemsharedmemory/region/kept/unregister").status == 200
    wait_until(lambda: not farm.under_way() and all(line.endswith(" 0") for line in farm.arenas()), "nothing to be left")
    wait_until(lambda: farm.all_descriptors()[server.pid] == before, "the server's descriptors to be as many as before")


def _live(client: Any) -> bool:
    try:
        return bool(client.is_server_live(client_timeout=1.0))
    except InferenceServerException:
        return False


def test_death_of_all_front_ends(farm: FrontEndFarm) -> None:
    """Whoever comes meanwhile waits until they are back."""
    gone = farm.front_ends()
    for pid in gone:
        _kill(pid)
    clients = [socket.create_connection(("127.0.0.1", farm.server.http_port), 20.0) for _ in range(20)]
    try:
        for client in clients:
            client.sendall(request_bytes("POST", PLAIN_PATH, compact(PLAIN_BODY)))
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
    finally:
        for client in clients:
            client.close()
    _wait_back(farm, gone)


def test_deaths_under_load(farm: FrontEndFarm) -> None:
    """Clients that connect again whenever they lose their connection get right answers only."""
    answered = [0] * 4
    wrong: list[str] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        while not stop.is_set():
            try:
                with Connection(farm.server.http_port) as connection:
                    while not stop.is_set():
                        reply = say(connection, "POST", PLAIN_PATH, PLAIN_BODY)
                        if (reply.status, reply.json["outputs"][0]["data"]) != (200, [2 * at for at in range(16)]):
                            wrong.append(f"{reply.status} {reply.body!r}")
                        answered[number] += 1
            except ConnectionRefusedError:
                wrong.append("refused")
            except (ConnectionError, ValueError):
                pass

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(len(answered))]
    for thread in threads:
        thread.start()
    try:
        for victim in (0, 1):
            before = list(answered)
            wait_until(lambda before=before: all(now > then + 50 for now, then in zip(answered, before, strict=True)), "answers")  # type: ignore[misc]
            pid = farm.front_ends()[victim]
            _kill(pid)
            wait_until(lambda pid=pid: len(farm.front_ends()) == COUNT and pid not in farm.front_ends(), "it to be back")  # type: ignore[misc]
        before = list(answered)
        wait_until(lambda: all(now > then + 50 for now, then in zip(answered, before, strict=True)), "answers")
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not wrong, wrong[:5]
    wait_until(lambda: not farm.under_way() and all(line.endswith(" 0") for line in farm.arenas()), "nothing to be left")


def test_death_of_the_server(farm: FrontEndFarm) -> None:
    """Its front ends go with it, and their ports are free."""
    with farm.connections():
        os.kill(farm.server.pid, signal.SIGKILL)
        farm.server.process.wait()
        wait_until(lambda: not marked(farm.server.mark), "all to end", 5.0)
    wait_until(lambda: _refuses(farm.server.http_port) and _refuses(farm.port), "the ports to be free")
    farm.server.kill()


# workers that die


def test_death_of_workers(farm: FrontEndFarm, root: Path) -> None:
    """What ran is answered with the reason, at both doors; replies that were not sent yet come to no harm, or to an end."""
    array = np.random.default_rng(3).integers(0, 256, 16 * MIB, np.uint8)
    content = array.tobytes()
    source = {"name": "INPUT0", "shape": [len(content)], "datatype": "UINT8", "parameters": {"binary_data_size": len(content)}}
    head = compact({"parameters": {"binary_data_output": True}, "inputs": [source]})
    large = request_bytes("POST", "/v2/models/identity_uint8/infer", head + content, {"Inference-Header-Content-Length": str(len(head))})
    with farm.connections() as readers, farm.connections() as connections, farm.grpc_clients() as clients:
        for reader in readers:
            reader.send(large)
        answered = {"model": "identity_uint8", "version": "1"}
        wait_until(lambda: farm.metric("nv_inference_request_success", **answered) == COUNT, "the replies to wait for their clients")
        running = _name("held")
        connections[0].send(_gate(running))
        _noted(root, f"{running} begun")
        gone = farm.workers()
        for pid in gone:
            _kill(pid)
        reply = connections[0].receive()
        assert reply.status == 503 and ("signal" in reply.error.lower() or "exited" in reply.error), reply.body
        wait_until(lambda: farm.workers() and not {*gone} & {*farm.workers()} and farm.server.ready(), "the workers to be back")
        for reader in readers:
            try:
                got = reader.receive()
            except ConnectionError:
                continue
            assert got.status == 200 and got.body.endswith(content[-MIB:])
        for connection in connections:
            assert say(connection, "POST", PLAIN_PATH, PLAIN_BODY).status == 200
            connection.send(large)
            assert connection.receive().body.endswith(content)
        for client in clients:
            assert client.infer("gate", _rpc_inputs()).as_numpy("Y")[0] == 1.5
        running, answers = _name("held"), Answers()
        clients[1].async_infer("gate", _rpc_inputs(), answers, request_id=running)
        _noted(root, f"{running} begun")
        for pid in farm.workers():
            _kill(pid)
        error = answers.error()
        assert error.status() == "StatusCode.UNAVAILABLE" and error.message() == reply.error
    wait_until(lambda: not farm.under_way() and all(line.endswith(" 0") for line in farm.arenas()), "nothing to be left")


# the end


def _end(farm: FrontEndFarm) -> None:
    farm.server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: f"Signal ({signal.SIGTERM.value}) received." in farm.server.stdout, "the signal to be noticed")


def test_what_is_in_flight_is_answered_before_the_end(farm: FrontEndFarm, root: Path) -> None:
    """Of clients of each front end; new ones are refused, and idle ones hold nothing up."""
    names = [_name("deaf") for _ in range(2 * COUNT)]
    with farm.connections() as connections, farm.connections() as idle, farm.grpc_clients() as clients:
        answers = [Answers() for _ in clients]
        for connection, name in zip(connections, names, strict=False):
            connection.send(_gate(name))
        for client, one, name in zip(clients, answers, names[COUNT:], strict=True):
            client.async_infer("gate", _rpc_inputs(), one, request_id=name)
        wait_until(lambda: _in_flight(farm) == len(names), "all to be in flight")
        _end(farm)
        for port in (farm.server.http_port, farm.port):
            wait_until(lambda port=port: _refuses(port), "new clients to be refused", 5.0)  # type: ignore[misc]
        assert farm.server.process.poll() is None
        for name in names:
            (root / name).touch()
        assert [connection.receive().json["id"] for connection in connections] == names[:COUNT]
        assert [one.result().get_response().id for one in answers] == names[COUNT:]
        began = time.monotonic()
        assert farm.server.wait_exit() == 0, farm.server.log
        assert time.monotonic() - began < EXIT_S
        assert all(one.closed_by_server() for one in idle)
    assert not marked(farm.server.mark)


def test_second_signal_ends_it_now(farm: FrontEndFarm, root: Path) -> None:
    with farm.connections() as connections:
        for connection in connections:
            connection.send(_gate(_name("deaf")))
        wait_until(lambda: _in_flight(farm) == COUNT, "all to be in flight")
        _end(farm)
        began = time.monotonic()
        farm.server.process.send_signal(signal.SIGTERM)
        assert farm.server.wait_exit() == 1, farm.server.log
        assert time.monotonic() - began < EXIT_S


@pytest.mark.parametrize("which", ["http", "grpc"])
def test_ports_in_use(which: str, farm: FrontEndFarm, tmp_path: Path) -> None:
    """By a server with front ends of its own: its ports are not shared with others."""
    (tmp_path / "models").mkdir()
    ports = dict(zip(("http", "grpc"), free_ports(2), strict=True))
    ports[which] = {"http": farm.server.http_port, "grpc": farm.port}[which]
    flags = [flag for name, port in ports.items() for flag in (f"--{name}-address=127.0.0.1", f"--{name}-port={port}")]
    ended = run_tensorfarm(f"--model-repository={tmp_path / 'models'}", *flags, "--allow-metrics=false", FLAG, folder=tmp_path / "run")
    assert ended.code == 1
    text = f"failed to start {which.upper()} service: Unavailable - Socket '127.0.0.1:{ports[which]}' already in use "
    assert text in ended.stdout + ended.stderr, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def test_tls(repository: Path, root: Path, tmp_path: Path) -> None:
    """At both doors of each front end."""
    authority = Authority(tmp_path / "tls")
    pair = authority.pair("server")
    flags = [
        flag
        for door in ("http", "grpc")
        for flag in (f"--{door}-use-ssl=true", f"--{door}-server-cert={pair.cert}", f"--{door}-server-key={pair.key}")
    ]
    started = start_grpc_farm(repository, FLAG, f"--grpc-root-cert={authority.root}", *flags, folder=root / "tls")
    farm = FrontEndFarm(started.server, started.port)
    try:
        wait_until(
            lambda: "Started GRPCInferenceService over TLS" in farm.server.log or farm.server.process.poll() is not None, "the port", 60
        )
        wait_open(farm)

        def connect_http() -> Any:
            options = {"ca_certs": str(authority.root)}
            client = tritonclient.http.InferenceServerClient(
                f"127.0.0.1:{farm.server.http_port}", concurrency=1, ssl=True, ssl_options=options
            )
            assert client.is_server_live()
            return client

        def connect_grpc() -> Any:
            client = tritonclient.grpc.InferenceServerClient(
                farm.address, ssl=True, root_certificates=str(authority.root), channel_args=CHANNEL
            )
            assert client.is_server_live()
            return client

        https = farm.one_each(farm.server.http_port, connect_http, lambda client: client.close())
        for client in https.values():
            made = tritonclient.http.InferInput("INPUT0", [MIB], "UINT8")
            made.set_data_from_numpy(np.ones(MIB, np.uint8))
            assert int(client.infer("identity_uint8", [made]).as_numpy("OUTPUT0").sum()) == MIB
            client.close()
        secured = farm.one_each(farm.port, connect_grpc, lambda client: client.close())
        for client in secured.values():
            assert int(client.infer("identity_uint8", [tensor("INPUT0", np.ones(MIB, np.uint8), "UINT8")]).as_numpy("OUTPUT0").sum()) == MIB
            client.close()
        farm.server.terminate()
    finally:
        if not farm.server.stopped:
            farm.server.kill()


# limits


def test_requests_in_flight_are_counted_together(repository: Path, root: Path) -> None:
    """However they are spread; who is refused is told when to come again, and is served then."""
    with (
        front_end_farm(repository, f"--max-inflight-requests={LIMIT}", folder=root / "limits") as farm,
        farm.connections() as connections,
        farm.grpc_clients() as clients,
    ):
        for most in (LIMIT - 1, 1):
            names = [_name("deaf") for _ in range(LIMIT)]
            answers = [Answers() for _ in names]
            for number, (name, one) in enumerate(zip(names, answers, strict=True)):
                clients[number >= most].async_infer("gate", _rpc_inputs(), one, request_id=name)
            wait_until(lambda: _in_flight(farm) == LIMIT, "all to be in flight")
            for connection in connections:
                for reply in (
                    say(connection, "POST", PLAIN_PATH, PLAIN_BODY),
                    say(connection, "POST", "/v2/models/gate/generate", {"X": [1.0]}),
                ):
                    _check_refusal(reply)
            for client in clients:
                with pytest.raises(InferenceServerException) as caught:
                    client.infer("gate", _rpc_inputs())
                assert caught.value.status() == "StatusCode.UNAVAILABLE"
                assert caught.value.message().startswith(f"too many requests in flight (limit {LIMIT}); retry after ")
            for name in names:
                (root / name).touch()
            assert [one.result().get_response().id for one in answers] == names
            for connection in connections:
                assert say(connection, "POST", PLAIN_PATH, PLAIN_BODY).status == 200
            for client in clients:
                assert client.infer("gate", _rpc_inputs()).as_numpy("Y")[0] == 1.5


def _check_refusal(reply: Reply) -> None:
    assert reply.status == 503, reply.body
    seconds = int(reply.header("retry-after") or 0)
    assert 1 <= seconds <= 30
    assert reply.error == f"too many requests in flight (limit {LIMIT}); retry after {seconds} s"
