"""What the gRPC port bears: large messages, many streams, deadlines, pings, connections that grow old, and its own end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import hpack
import hyperframe.frame as frames
import numpy as np
import pytest
import tritonclient.grpc as client_module
from h2.errors import ErrorCodes
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from ..model_repository import IDENTITIES, PLAIN, Flavour, write_repository
from ..servers import free_ports, run_tensorfarm, wait_until
from .grpc_farm import PATIENCE_S, Answers, GrpcFarm, grpc_farm, start_grpc_farm, tensor, wait_open
from .test_python_models import put

MIB = 1 << 20
UINT8 = next(model for model in IDENTITIES if model.name == "identity_uint8")
STREAMS = 300
AGE_S, GRACE_S = 0.8, 0.4
"""Of connections to the server that lets none grow old."""

PING_S = 0.2
"""After which another server asks a silent client whether it is there, and how long it waits for the answer."""

LOOK_S = 1.5
"""How much later than a limit says a server may notice it: it looks at its connections now and then."""

EXIT_S = 5.0
"""Within which a server ends that has nothing left to do."""

_numbers = itertools.count()


def write_models(root: Path) -> Path:
    repository = write_repository(root / "models", (PLAIN, UINT8), Flavour.ONNX)
    put(repository, "gate", "system_gate", FOLDER=str(root))
    config = put(repository, "streamer", "system_gate", FOLDER=str(root)) / "config.pbtxt"
    config.write_text(config.read_text() + "model_transaction_policy { decoupled: true }\n")
    return repository


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grpc-limits")


@pytest.fixture(scope="module")
def repository(root: Path) -> Path:
    return write_models(root)


@pytest.fixture(scope="module")
def farm(repository: Path, root: Path) -> Iterator[GrpcFarm]:
    """A server that says nothing of connections."""
    with grpc_farm(repository, folder=root / "run") as running:
        yield running


@pytest.fixture(scope="module")
def ageing(repository: Path, root: Path) -> Iterator[GrpcFarm]:
    """One that lets no connection grow old, and puts up with any number of pings."""
    flags = (f"--grpc-max-connection-age={round(1000 * AGE_S)}", f"--grpc-max-connection-age-grace={round(1000 * GRACE_S)}")
    with grpc_farm(repository, *flags, "--grpc-http2-max-ping-strikes=0", folder=root / "ageing") as running:
        yield running


@pytest.fixture(scope="module")
def asking(repository: Path, root: Path) -> Iterator[GrpcFarm]:
    """One that looks after silent clients."""
    flags = [f"--grpc-keepalive-{name}={round(1000 * PING_S)}" for name in ("time", "timeout")]
    with grpc_farm(repository, *flags, folder=root / "asking") as running:
        yield running


@dataclass(frozen=True)
class Servers:
    """All that run through the whole module."""

    farm: GrpcFarm
    ageing: GrpcFarm
    asking: GrpcFarm


def _noted(root: Path, model: str, line: str) -> None:
    path = root / f"{model}.notes"
    wait_until(lambda: path.exists() and line in path.read_text().splitlines(), f"{model} to note: {line}")


def _gate(request_id: str, model: str = "gate") -> Any:
    content = np.full(4, 1.5, np.float32).tobytes()
    source = {"name": "X", "datatype": "FP32", "shape": [4]}
    return service_pb2.ModelInferRequest(model_name=model, id=request_id, inputs=[source], raw_input_contents=[content])


# large messages


@pytest.mark.parametrize("byte_size", [16 * MIB, 64 * MIB])
def test_large_tensors(farm: GrpcFarm, byte_size: int) -> None:
    """Both ways, unary and on a stream."""
    sent = np.random.default_rng(5).integers(0, 256, byte_size, np.uint8)
    inputs = [tensor("INPUT0", sent, "UINT8")]
    answers = Answers()
    with farm.client() as client:
        assert np.array_equal(client.infer("identity_uint8", inputs, client_timeout=PATIENCE_S).as_numpy("OUTPUT0"), sent)
        client.start_stream(answers)
        client.async_stream_infer("identity_uint8", inputs)
        assert np.array_equal(answers.result().as_numpy("OUTPUT0"), sent)
        client.stop_stream()
    wait_until(lambda: not farm.under_way() and all(line.endswith(" 0") for line in farm.arenas()), "their memory to come back")


def test_large_tensors_beside_small_ones(farm: GrpcFarm) -> None:
    """A channel that carries large messages goes on with small ones meanwhile."""
    large, small = np.zeros(32 * MIB, np.uint8), np.arange(16, dtype=np.int32)
    with farm.client() as client:
        answers = [Answers() for _ in range(3)]
        for one in answers:
            client.async_infer("identity_uint8", [tensor("INPUT0", large, "UINT8")], one, client_timeout=PATIENCE_S)
        for _ in range(20):
            got = client.infer("plain", [tensor(f"INPUT{at}", small, "INT32") for at in (0, 1)], client_timeout=PATIENCE_S)
            assert got.as_numpy("OUTPUT0").tolist() == (2 * small).tolist()
        for one in answers:
            assert len(one.result().as_numpy("OUTPUT0")) == len(large)


def test_messages_above_a_client_s_own_limit(farm: GrpcFarm) -> None:
    """It refuses to send or to take them; the server loses nothing by it."""
    limits = [("grpc.max_receive_message_length", MIB)]
    with farm.client(channel_args=limits) as client:
        for byte_size, good in ((MIB // 2, True), (2 * MIB, False), (MIB // 4, True)):
            inputs = [tensor("INPUT0", np.zeros(byte_size, np.uint8), "UINT8")]
            if good:
                assert len(client.infer("identity_uint8", inputs).as_numpy("OUTPUT0")) == byte_size
                continue
            with pytest.raises(InferenceServerException) as caught:
                client.infer("identity_uint8", inputs)
            assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
            answers = Answers()
            client.start_stream(answers)
            client.async_stream_infer("identity_uint8", inputs)
            assert answers.error().status() == "StatusCode.RESOURCE_EXHAUSTED"
            client.stop_stream()
    wait_until(lambda: not farm.under_way() and all(line.endswith(" 0") for line in farm.arenas()), "their memory to come back")


def test_a_client_that_does_not_read(farm: GrpcFarm) -> None:
    """What it is sent piles up within bounds, and comes to it once it reads."""
    sent = np.zeros(4 * MIB, np.uint8)
    request = service_pb2.ModelInferRequest(
        model_name="identity_uint8",
        inputs=[{"name": "INPUT0", "datatype": "UINT8", "shape": [len(sent)]}],
        raw_input_contents=[sent.tobytes()],
    )
    count = 24
    with grpc.insecure_channel(farm.address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        replies = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([request] * count), timeout=2 * PATIENCE_S)
        memory = farm.own_memory()
        assert not next(replies).error_message
        wait_until(lambda: not [line for line in farm.under_way() if "requests_in_flight" in line], "what was read to be answered")
        assert farm.own_memory() - memory < 80 * MIB
        assert sum(1 for _ in replies) == count - 1
    wait_until(lambda: not farm.under_way(), "all to be sent")


# many at once


def test_many_streams_on_one_channel(farm: GrpcFarm) -> None:
    """All of them open at the same time, each answered once it asks, and again."""
    content = np.arange(16, dtype=np.int32).tobytes()
    sources = [{"name": f"INPUT{at}", "datatype": "INT32", "shape": [16]} for at in (0, 1)]

    async def talk() -> None:
        async with grpc.aio.insecure_channel(farm.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            streams = [stub.ModelStreamInfer(timeout=2 * PATIENCE_S) for _ in range(STREAMS)]
            for turn in range(2):
                for number, stream in enumerate(streams):
                    name = f"{turn}-{number}"
                    await stream.write(
                        service_pb2.ModelInferRequest(model_name="plain", id=name, inputs=sources, raw_input_contents=[content] * 2)
                    )
                for number, stream in enumerate(streams):
                    assert (await stream.read()).infer_response.id == f"{turn}-{number}"
            for stream in streams:
                await stream.done_writing()
            for stream in streams:
                assert await stream.read() is grpc.aio.EOF and await stream.code() is grpc.StatusCode.OK

    asyncio.run(talk())
    wait_until(lambda: not farm.under_way(), "nothing to be under way")


# deadlines


def test_deadlines(farm: GrpcFarm, root: Path) -> None:
    """Of any length; what is late is given up while it runs and while it waits, and harms nobody else."""
    with farm.client() as client:
        inputs = [tensor("X", np.full(4, 1.5, np.float32), "FP32")]
        assert client.infer("gate", inputs, client_timeout=1e6).as_numpy("Y")[0] == 1.5
        for timeout_s in (1e-6, 0.001):
            with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
                client.infer("gate", inputs, request_id=f"held-{next(_numbers)}", client_timeout=timeout_s)
        holding, waiting = Answers(), [Answers() for _ in range(10)]
        name = f"held-{next(_numbers)}"
        client.async_infer("gate", inputs, holding, request_id=name)
        _noted(root, "gate", f"{name} begun")
        for one in waiting:
            client.async_infer("gate", inputs, one, request_id="too-late", client_timeout=0.2)
        assert [one.error().status() for one in waiting] == ["StatusCode.DEADLINE_EXCEEDED"] * 10
        wait_until(lambda: farm.metric("nv_inference_pending_request_count", model="gate") == 0, "those that are late to leave the queue")
        assert holding.empty
        (root / name).touch()
        assert holding.result().get_response().id == name
    wait_until(lambda: not farm.under_way(), "nothing to be under way")


class Http2:
    """A client of HTTP/2 that sees each frame, for what the stock client hides."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._encoder, self._decoder = hpack.Encoder(), hpack.Decoder()
        self._received = b""
        self._next_stream = 1
        self.closed = False
        self._send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames.SettingsFrame(0).serialize())

    def _send(self, content: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(content)

    def call(self, method: str, message: Any, *fields: tuple[str, str]) -> int:
        """Begin a unary call; the stream's number."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        head = [(":method", "POST"), (":scheme", "http"), (":path", f"/inference.GRPCInferenceService/{method}"), (":authority", "x")]
        block = self._encoder.encode([*head, ("te", "trailers"), ("content-type", "application/grpc"), *fields])
        content = message.SerializeToString()
        message_frame = frames.DataFrame(stream, b"\0" + len(content).to_bytes(4, "big") + content, flags=["END_STREAM"])
        self._send(frames.HeadersFrame(stream, block, flags=["END_HEADERS"]).serialize() + message_frame.serialize())
        return stream

    def ping(self) -> None:
        """Send one."""
        self._send(frames.PingFrame(0, b"testping").serialize())

    def pinged(self) -> bool:
        """Send one; whether it is answered, rather than the client told to go."""
        self.ping()
        return isinstance(self.next(frames.PingFrame, frames.GoAwayFrame), frames.PingFrame)

    def next(self, *kinds: Any, answer: bool = True) -> Any:
        """The next frame of one of these kinds, or None once the connection is closed; ``answer``: acknowledge pings that come before."""
        while (frame := self._frame()) is not None:
            if isinstance(frame, frames.SettingsFrame) and "ACK" not in frame.flags:
                self._send(frames.SettingsFrame(0, flags=["ACK"]).serialize())
            own = isinstance(frame, frames.PingFrame) and "ACK" in frame.flags
            if isinstance(frame, frames.PingFrame) and not own and answer:
                self._send(frames.PingFrame(0, frame.opaque_data, flags=["ACK"]).serialize())
            elif isinstance(frame, kinds):
                return frame
        return None

    def _frame(self) -> Any:
        head = self._take(9)
        if head is None:
            return None
        frame, length = frames.Frame.parse_frame_header(memoryview(head))
        body = self._take(length)
        if body is None:
            return None
        frame.parse_body(memoryview(body))
        return frame

    def _take(self, count: int) -> bytes | None:
        while len(self._received) < count:
            try:
                content = self._socket.recv(1 << 16)
            except ConnectionResetError:
                content = b""
            if not content:
                self.closed = True
                return None
            self._received += content
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def status(self, stream: int) -> str | None:
        """The ``grpc-status`` that a call ends with, or None where it has none."""
        while frame := self.next(frames.HeadersFrame, frames.RstStreamFrame):
            if isinstance(frame, frames.RstStreamFrame):
                if frame.stream_id == stream:
                    return None
                continue
            found = dict(self._decoder.decode(frame.data, raw=True))
            if frame.stream_id == stream and b"grpc-status" in found:
                return found[b"grpc-status"].decode()
        return None

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


@contextlib.contextmanager
def http2(farm: GrpcFarm) -> Iterator[Http2]:
    with contextlib.closing(Http2(farm.port)) as client:
        yield client


def test_the_server_minds_the_deadline_itself(farm: GrpcFarm, root: Path) -> None:
    """For clients that do not."""
    name = f"held-{next(_numbers)}"
    with http2(farm) as client:
        began = time.monotonic()
        stream = client.call("ModelInfer", _gate(name), ("grpc-timeout", "300m"))
        status = client.status(stream)
        assert 0.25 < time.monotonic() - began < 3.0
        # either says it: the status, or the end of the stream without one
        assert status in (str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0]), None) and not client.closed
        _noted(root, "gate", f"{name} ended, given up")
        assert client.status(client.call("ServerLive", service_pb2.ServerLiveRequest())) == "0"


# pings


def test_too_many_pings(farm: GrpcFarm) -> None:
    """They are answered until there are too many: then the client is told so, and the connection closed."""
    with http2(farm) as client:
        assert client.status(client.call("ServerLive", service_pb2.ServerLiveRequest())) == "0"
        for _ in range(20):
            client.ping()
        event = client.next(frames.GoAwayFrame)
        assert event is not None and event.error_code == ErrorCodes.ENHANCE_YOUR_CALM
        assert event.additional_data == b"too_many_pings"
        assert client.next(frames.HeadersFrame) is None and client.closed
    with http2(farm) as client:
        assert client.status(client.call("ServerLive", service_pb2.ServerLiveRequest())) == "0"


def test_two_bad_pings_are_borne(farm: GrpcFarm) -> None:
    """The first one is good, those that follow it at once are not; an answered call makes up for them."""
    with http2(farm) as client:
        for _ in range(5):
            assert all(client.pinged() for _ in range(3))
            assert client.status(client.call("ServerLive", service_pb2.ServerLiveRequest())) == "0"
        assert all(client.pinged() for _ in range(3))
        client.ping()
        event = client.next(frames.GoAwayFrame)
        assert event is not None and event.error_code == ErrorCodes.ENHANCE_YOUR_CALM


def test_any_number_of_pings_where_strikes_do_not_count(ageing: GrpcFarm) -> None:
    with http2(ageing) as client:
        assert all(client.pinged() for _ in range(50))


def the_stock_client_after_too_many_pings(servers: Servers, root: Path) -> None:
    """It connects again; what it asks next is answered."""
    options = client_module.KeepAliveOptions(
        keepalive_time_ms=50, keepalive_timeout_ms=5000, keepalive_permit_without_calls=True, http2_max_pings_without_data=0
    )
    with servers.farm.client(keepalive_options=options) as client:
        assert client.is_server_live()
        answers = Answers()
        name = f"held-{next(_numbers)}"
        client.async_infer("gate", [tensor("X", np.full(4, 1.5, np.float32), "FP32")], answers, request_id=name)
        assert answers.error().status() == "StatusCode.UNAVAILABLE"
        _noted(root, "gate", f"{name} ended, given up")
        assert client.is_server_live()


def a_silent_client_is_asked_and_then_cut_off(servers: Servers, root: Path) -> None:
    """One that does not answer the server's pings; its request is given up. One that does is left in peace."""
    silent, patient = (f"held-{next(_numbers)}" for _ in range(2))
    with http2(servers.asking) as client:
        began = time.monotonic()
        client.call("ModelInfer", _gate(silent))
        assert client.next(frames.PingFrame, answer=False) is not None
        assert PING_S * 0.9 < time.monotonic() - began < PING_S + LOOK_S
        while not client.closed:
            client.next(frames.Frame, answer=False)
        assert 1.9 * PING_S < time.monotonic() - began < 2 * (PING_S + LOOK_S)
    _noted(root, "gate", f"{silent} ended, given up")
    with servers.asking.client() as stock:
        answers = Answers()
        stock.async_infer("gate", [tensor("X", np.full(4, 1.5, np.float32), "FP32")], answers, request_id=patient)
        time.sleep(3 * PING_S)
        (root / patient).touch()
        assert answers.result().get_response().id == patient


# connections that grow old


def an_old_connection_is_told_to_go(servers: Servers, root: Path) -> None:
    """Without an error; what runs on it is answered within the grace, and then it is closed. What outlasts the grace is cut off."""
    name = f"held-{next(_numbers)}"
    with http2(servers.ageing) as client:
        began = time.monotonic()
        stream = client.call("ModelInfer", _gate(name))
        event = client.next(frames.GoAwayFrame)
        assert event is not None and event.error_code == ErrorCodes.NO_ERROR
        assert AGE_S * 0.85 < time.monotonic() - began < AGE_S * 1.15 + LOOK_S
        (root / name).touch()
        assert client.status(stream) == "0"
        assert client.next(frames.HeadersFrame) is None and client.closed
    with grpc.insecure_channel(servers.ageing.address) as channel:
        name = f"held-{next(_numbers)}"
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(_gate(name), timeout=PATIENCE_S)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - began > (AGE_S + GRACE_S) * 0.85
    _noted(root, "gate", f"{name} ended, given up")


def stock_clients_do_not_notice_the_age_of_connections(servers: Servers, root: Path) -> None:
    """They connect again while they go on asking, and none of their calls fails."""
    wrong: list[BaseException] = []
    asked: list[int] = []
    end = time.monotonic() + 2.5 * AGE_S
    inputs = [tensor(f"INPUT{at}", np.arange(16, dtype=np.int32), "INT32") for at in (0, 1)]

    def ask() -> None:
        try:
            with servers.ageing.client(channel_args=[("grpc.use_local_subchannel_pool", 1)]) as client:
                while time.monotonic() < end:
                    assert client.infer("plain", inputs, client_timeout=PATIENCE_S).as_numpy("OUTPUT0")[1] == 2
                    asked.append(1)
        except (InferenceServerException, AssertionError) as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert not wrong and len(asked) > 100


SLOW = (
    the_stock_client_after_too_many_pings,
    a_silent_client_is_asked_and_then_cut_off,
    an_old_connection_is_told_to_go,
    stock_clients_do_not_notice_the_age_of_connections,
)
"""What mostly waits until something is old enough; all of it waits at the same time."""


@pytest.fixture(scope="module")
def waiting(farm: GrpcFarm, ageing: GrpcFarm, asking: GrpcFarm, root: Path) -> Iterator[dict[Any, Future[None]]]:
    """What comes of each of SLOW."""
    servers = Servers(farm, ageing, asking)
    with ThreadPoolExecutor(len(SLOW)) as pool:
        yield {check: pool.submit(check, servers, root) for check in SLOW}


@pytest.mark.parametrize("check", SLOW, ids=lambda check: check.__name__)
def test_in_time(check: Any, waiting: dict[Any, Future[None]]) -> None:
    waiting[check].result(PATIENCE_S)


# the port's beginning and end


def test_a_port_in_use(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (http_port,) = free_ports(1)
        port = taken.getsockname()[1]
        flags = ("--http-address=127.0.0.1", f"--http-port={http_port}", "--grpc-address=127.0.0.1", f"--grpc-port={port}")
        ended = run_tensorfarm(f"--model-repository={tmp_path / 'models'}", *flags, "--allow-metrics=false", folder=tmp_path / "run")
    assert ended.code == 1
    text = f"failed to start GRPC service: Unavailable - Socket '127.0.0.1:{port}' already in use "
    assert text in ended.stdout + ended.stderr, ended.stdout + ended.stderr


def test_two_servers_share_a_port(tmp_path: Path) -> None:
    repository = write_models(tmp_path)
    with grpc_farm(repository, "--reuse-grpc-port=true", folder=tmp_path / "first") as first:
        with grpc_farm(repository, "--reuse-grpc-port=true", folder=tmp_path / "second", port=first.port) as second:
            with second.client() as client:
                assert client.is_server_live()


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[tuple[GrpcFarm, Path]]:
    """A server that its test stops, and the folder of its models; killed if the test does not."""
    farm = start_grpc_farm(write_models(tmp_path), folder=tmp_path / "run")
    try:
        farm.server.wait_live()
        wait_open(farm)
        yield farm, tmp_path
    finally:
        if not farm.server.stopped:
            farm.server.kill()


def _end(farm: GrpcFarm) -> None:
    farm.server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: f"Signal ({signal.SIGTERM.value}) received." in farm.server.stdout, "the signal to be noticed")


def test_idle_clients_do_not_hold_the_end(starting: tuple[GrpcFarm, Path]) -> None:
    """Neither channels nor streams, used before or not; the streams end."""
    farm, _ = starting
    with farm.client() as client, farm.client() as idle, grpc.insecure_channel(farm.address) as channel:
        assert idle.is_server_live()
        used = Answers()
        client.start_stream(used)
        client.async_stream_infer("gate", [tensor("X", np.full(4, 1.5, np.float32), "FP32")])
        used.result()
        ended = threading.Event()

        def requests() -> Iterator[Any]:
            ended.wait(PATIENCE_S)
            yield from ()

        unused = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())
        began = time.monotonic()
        _end(farm)
        assert farm.server.wait_exit() == 0, farm.server.log
        assert time.monotonic() - began < EXIT_S
        assert unused.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK, grpc.StatusCode.CANCELLED)
        ended.set()
        client.stop_stream(cancel_requests=True)


def test_what_is_in_flight_is_answered_before_the_end(starting: tuple[GrpcFarm, Path]) -> None:
    """Unary, and on a stream with a model that goes on sending; probes hear of the end meanwhile, and nothing new is begun."""
    farm, root = starting
    with farm.client() as client, farm.client() as other:
        unary, streamed = Answers(), Answers()
        inputs = [tensor("X", np.full(4, 1.5, np.float32), "FP32")]
        client.async_infer("gate", inputs, unary, request_id="held-unary")
        client.start_stream(streamed)
        client.async_stream_infer("streamer", inputs, request_id="talks-streamed", enable_empty_final_response=True)
        _noted(root, "gate", "held-unary begun")
        streamed.result()
        _end(farm)
        with pytest.raises(InferenceServerException) as caught:
            other.infer("plain", [tensor(f"INPUT{at}", np.arange(16, dtype=np.int32), "INT32") for at in (0, 1)])
        assert caught.value.status() in ("StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND")
        with pytest.raises(InferenceServerException) as caught:
            other.is_server_ready(client_timeout=PATIENCE_S)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        assert unary.empty and farm.server.process.poll() is None
        (root / "held-unary").touch()
        assert unary.result().get_response().id == "held-unary"
        (root / "talks-streamed").touch()
        while not (response := streamed.result().get_response()).parameters["triton_final_response"].bool_param:
            assert response.id == "talks-streamed"
        began = time.monotonic()
        assert farm.server.wait_exit() == 0, farm.server.log
        assert time.monotonic() - began < EXIT_S
        client.stop_stream(cancel_requests=True)
    assert unary.empty
