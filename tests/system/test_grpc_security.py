"""The gRPC port over TLS, with and without clients' certificates, and methods that only those may call who know a key."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as client_module
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from ..certificates import Authority, Pair
from ..model_repository import IDENTITIES, PLAIN, Flavour, write_repository
from ..servers import free_ports, run_tensorfarm
from .grpc_farm import PATIENCE_S, Answers, GrpcFarm, grpc_farm, tensor

FP32 = next(model for model in IDENTITIES if model.name == "identity_fp32")
REFUSED_S = 5.0
"""Within which a client must hear that it is refused."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("grpc-security") / "models", (PLAIN, FP32), Flavour.ONNX)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("grpc-tls"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that the server knows nothing of."""
    return Authority(tmp_path_factory.mktemp("grpc-stranger"), "stranger")


@dataclass(frozen=True)
class Secure:
    """A farm whose gRPC port speaks TLS, and who has signed its certificate."""

    farm: GrpcFarm
    authority: Authority

    def client(self, pair: Pair | None = None, root: Path | None = None) -> Any:
        """The stock client with this certificate of its own, which trusts ``root``, or else the server's authority."""
        own = {} if pair is None else {"private_key": str(pair.key), "certificate_chain": str(pair.cert)}
        trusted = str(root or self.authority.root)
        return client_module.InferenceServerClient(f"localhost:{self.farm.port}", ssl=True, root_certificates=trusted, **own)

    def refuses(self, client: Any) -> None:
        """The client gets no connection."""
        with contextlib.closing(client), pytest.raises(InferenceServerException) as caught:
            client.is_server_live(client_timeout=REFUSED_S)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"


@contextlib.contextmanager
def _secure(models: Path, authority: Authority, folder: Path, *flags: str) -> Iterator[Secure]:
    pair = authority.pair(folder.name)
    files = (f"--grpc-server-cert={pair.cert}", f"--grpc-server-key={pair.key}", f"--grpc-root-cert={authority.root}")
    with grpc_farm(models, *files, *flags, folder=folder) as farm:
        yield Secure(farm, authority)


@pytest.fixture(scope="module")
def tls(models: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """A server that shows its own certificate and asks for none."""
    with _secure(models, authority, tmp_path_factory.mktemp("grpc-tls-server"), "--grpc-use-ssl=true") as secure:
        yield secure


@pytest.fixture(scope="module")
def mutual(models: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """One that asks for certificates; that it speaks TLS goes without saying."""
    with _secure(models, authority, tmp_path_factory.mktemp("grpc-mutual-server"), "--grpc-use-ssl-mutual=true") as secure:
        yield secure


def _serves(client: Any) -> None:
    """A call without tensors, one with 16 MiB each way, and a stream."""
    assert client.is_server_live() and client.get_model_metadata("plain").name == "plain"
    for count in (3, 4 << 20):
        sent = np.arange(count, dtype=np.float32)
        got = client.infer("identity_fp32", [tensor("INPUT0", sent, "FP32")], client_timeout=PATIENCE_S).as_numpy("OUTPUT0")
        assert np.array_equal(got, sent)
    answers = Answers()
    client.start_stream(answers)
    for value in range(20):
        client.async_stream_infer("identity_fp32", [tensor("INPUT0", np.full(50_000, value, np.float32), "FP32")])
    assert [answers.result().as_numpy("OUTPUT0")[-1] for _ in range(20)] == list(range(20))
    client.stop_stream()


# TLS


def test_tls(tls: Secure, authority: Authority) -> None:
    with tls.client() as client:
        _serves(client)
    with tls.client(authority.pair("volunteer")) as client:
        assert client.is_server_live(), "a certificate that nobody has asked for does no harm"
    assert tls.farm.server.live(), "HTTP beside it stays plain"
    assert f"Started GRPCInferenceService over TLS at 127.0.0.1:{tls.farm.port}" in tls.farm.server.log


def test_mutual_tls(mutual: Secure, authority: Authority) -> None:
    with mutual.client(authority.pair("client")) as client:
        _serves(client)


def test_clients_that_do_not_trust_the_server(tls: Secure, stranger: Authority) -> None:
    tls.refuses(tls.client(root=stranger.root))
    with tls.client() as client:
        assert client.is_server_live()


def test_clients_that_the_server_does_not_trust(mutual: Secure, stranger: Authority, authority: Authority) -> None:
    """Those without a certificate, with another authority's, and with one that has expired."""
    mutual.refuses(mutual.client())
    mutual.refuses(mutual.client(stranger.pair("intruder")))
    mutual.refuses(mutual.client(authority.pair("late", days=-1)))
    with mutual.client(authority.pair("trusted")) as client:
        assert client.is_server_live()


def test_plain_and_encrypted_clients_at_the_wrong_port(tls: Secure, models: Path, tmp_path: Path) -> None:
    tls.refuses(client_module.InferenceServerClient(f"localhost:{tls.farm.port}"))
    with tls.client() as client:
        assert client.is_server_live()
    with grpc_farm(models, folder=tmp_path / "plain") as plain:
        Secure(plain, tls.authority).refuses(Secure(plain, tls.authority).client())
        with plain.client() as client:
            assert client.is_server_live()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_what_tls_agrees_on(tls: Secure) -> None:
    """HTTP/2, which gRPC is spoken over, in TLS 1.2 or 1.3; nothing older."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = tls.authority.client(alpn=("h2", "http/1.1"))
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(("127.0.0.1", tls.farm.port), PATIENCE_S) as raw:
            with context.wrap_socket(raw, server_hostname="localhost") as wrapped:
                assert wrapped.selected_alpn_protocol() == "h2"
    with socket.create_connection(("127.0.0.1", tls.farm.port), PATIENCE_S) as raw:
        old = tls.authority.client(alpn=("h2",))
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            old.wrap_socket(raw, server_hostname="localhost").close()


def test_silent_connections_delay_nobody(tls: Secure) -> None:
    """Those that never begin their handshake, or break off in the midst of it."""
    with contextlib.ExitStack() as stack:
        for number in range(50):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", tls.farm.port), PATIENCE_S))
            idle.sendall(b"\x16\x03\x01\x02\x00\x01"[: number % 7])
        with tls.client() as client:
            assert client.is_server_live(client_timeout=REFUSED_S)


@pytest.mark.parametrize("flags", [("--grpc-use-ssl=true",), ("--grpc-use-ssl-mutual=true",)])
@pytest.mark.parametrize("files", ["none", "missing", "no certificate"])
def test_a_start_without_good_files(flags: tuple[str, ...], files: str, authority: Authority, tmp_path: Path) -> None:
    """It fails before it answers anybody."""
    http_port, grpc_port = free_ports(2)
    named: tuple[str, ...] = ()
    if files != "none":
        bad = tmp_path / "bad.pem"
        if files == "no certificate":
            bad.write_text("no certificate\n")
        named = (f"--grpc-server-cert={bad}", f"--grpc-server-key={bad}", f"--grpc-root-cert={authority.root}")
    (tmp_path / "models").mkdir()
    ports = ("--http-address=127.0.0.1", f"--http-port={http_port}", f"--grpc-port={grpc_port}", "--grpc-address=127.0.0.1")
    repository = f"--model-repository={tmp_path / 'models'}"
    ended = run_tensorfarm(repository, *ports, "--allow-metrics=false", *flags, *named, folder=tmp_path / "run", timeout_s=15)
    assert ended.code == 1, ended.stdout + ended.stderr
    assert "Started GRPCInferenceService" not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


# restricted protocols

KEY = "triton-grpc-protocol-admin"
SECRET = {KEY: "let-me-in"}
INFER_KEY = {"triton-grpc-protocol-infer": "me-too"}


@pytest.fixture(scope="module")
def restricted(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcFarm]:
    """A server that keeps inference for some, and most of the rest for others."""
    flags = (
        "--grpc-restricted-protocol=model-repository,model-config,statistics,shared-memory,trace,logging,health:admin=let-me-in",
        "--grpc-restricted-protocol=inference:infer=me-too",
    )
    with grpc_farm(models, *flags, folder=tmp_path_factory.mktemp("grpc-restricted") / "run") as farm:
        yield farm


def _denied(call: Callable[[], object], key: str = KEY) -> None:
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert caught.value.message() == f"This protocol is restricted, expecting header '{key}'"


def test_restricted_methods(restricted: GrpcFarm) -> None:
    """Each needs the key of its category, with its very value; metadata has none here."""
    with restricted.client() as client:
        assert client.get_server_metadata().name == "triton" and client.get_model_metadata("plain").name == "plain"
        methods: dict[Callable[..., Any], tuple[Any, ...]] = {
            client.is_server_live: (),
            client.is_server_ready: (),
            client.is_model_ready: ("plain",),
            client.get_model_config: ("plain",),
            client.get_inference_statistics: ("plain",),
            client.get_model_repository_index: (),
            client.get_log_settings: (),
            client.get_system_shared_memory_status: (),
            client.get_cuda_shared_memory_status: (),
        }
        for method, arguments in methods.items():
            for headers in (None, {KEY: "wrong"}, {KEY: ""}, {KEY: "LET-ME-IN"}, INFER_KEY, {"admin": "let-me-in"}):
                _denied(lambda m=method, a=arguments, h=headers: m(*a, headers=h))  # type: ignore[misc]
            method(*arguments, headers=SECRET)
        for change in (client.load_model, client.unload_model):
            _denied(lambda c=change: c("plain"))  # type: ignore[misc]
            with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
                change("plain", headers=SECRET)
        _denied(lambda: client.get_trace_settings())
        _denied(lambda: client.update_log_settings({}))


def test_restricted_inference(restricted: GrpcFarm) -> None:
    """Unary and on streams, which end before their first answer."""
    inputs = [tensor(f"INPUT{at}", np.arange(16, dtype=np.int32), "INT32") for at in (0, 1)]
    key = next(iter(INFER_KEY))
    with restricted.client() as client:
        _denied(lambda: client.infer("plain", inputs), key)
        _denied(lambda: client.infer("plain", inputs, headers=SECRET), key)
        _denied(lambda: client.infer("nosuch", inputs), key)
        assert client.infer("plain", inputs, headers=INFER_KEY).as_numpy("OUTPUT0")[1] == 2
        for headers in (None, SECRET):
            answers = Answers()
            client.start_stream(answers, headers=headers)
            error = answers.error()
            assert (error.status(), error.message()) == (
                "StatusCode.UNAVAILABLE",
                f"This protocol is restricted, expecting header '{key}'",
            )
            client.stop_stream()
            assert answers.empty
        answers = Answers()
        client.start_stream(answers, headers=INFER_KEY)
        client.async_stream_infer("plain", inputs)
        assert answers.result().as_numpy("OUTPUT0")[1] == 2
        client.stop_stream()


def test_a_restricted_standard_health_service(restricted: GrpcFarm) -> None:
    with grpc.insecure_channel(restricted.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S, metadata=list(SECRET.items()))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError):
            stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S, metadata=[(KEY, "wrong"), (KEY, "let-me-in")])


def test_http_is_not_restricted_by_it(restricted: GrpcFarm) -> None:
    assert restricted.server.ask("GET", "/v2/models/plain/config").status == 200
