"""A whole server over TLS: the stock client with and without a certificate, the plain ports beside it, a start that fails."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as client_module
from tritonclient.utils import InferenceServerException

from ..certificates import Authority, Pair
from ..servers import Server, run_tensorfarm, start_tensorfarm, wait_until
from ..wire import exchange


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(models: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks clients for certificates."""
    pair = authority.pair("server")
    flags = (f"--http-server-cert={pair.cert}", f"--http-server-key={pair.key}", f"--http-root-cert={authority.root}")
    folder = tmp_path_factory.mktemp("tls-server")
    started = start_tensorfarm(models, "--http-use-ssl-mutual=true", *flags, folder=folder, wait=False)
    try:
        wait_until(lambda: "Started Metrics Service" in started.log or started.process.poll() is not None, "the server to start", 90.0)
        yield started
        started.terminate()
    finally:
        if not started.stopped:
            started.kill()


def _client(server: Server, authority: Authority, pair: Pair | None) -> Any:
    options = {"ca_certs": str(authority.root)}
    if pair is not None:
        options |= {"certfile": str(pair.cert), "keyfile": str(pair.key)}
    return client_module.InferenceServerClient(f"localhost:{server.http_port}", ssl=True, ssl_options=options)


def test_stock_client(server: Server, authority: Authority) -> None:
    """Probes, metadata, a small inference and one of 16 MiB each way."""
    with _client(server, authority, authority.pair("client")) as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.get_model_metadata("simple")["name"] == "simple"
        for count in (3, 4 << 20):
            sent = np.arange(count, dtype=np.float32)
            tensor = client_module.InferInput("INPUT0", [count], "FP32")
            tensor.set_data_from_numpy(sent)
            assert np.array_equal(client.infer("identity_fp32", [tensor]).as_numpy("OUTPUT0"), sent)


def test_stock_client_without_a_certificate_is_refused(server: Server, authority: Authority) -> None:
    with _client(server, authority, None) as client, pytest.raises((ssl.SSLError, ConnectionError, InferenceServerException)):
        client.is_server_live()


def test_plain_requests(server: Server) -> None:
    """The TLS port answers a plain one with advice; the metrics port stays plain."""
    assert server.ask("GET", "/v2/health/live").error == "this port speaks TLS: use https"
    metrics = exchange(server.metrics_port, "GET", "/metrics")
    assert metrics.status == 200 and b"nv_inference_request_success" in metrics.body
    assert f"Started HTTPService over TLS at 127.0.0.1:{server.http_port}" in server.log


def test_start_fails_before_any_model_is_loaded(models: Path, authority: Authority, tmp_path: Path) -> None:
    missing = tmp_path / "none.key"
    flags = ("--http-use-ssl=true", f"--http-server-cert={authority.root}", f"--http-server-key={missing}")
    ended = run_tensorfarm(f"--model-repository={models}", *flags, folder=tmp_path / "run")
    assert ended.code == 1
    reason = f"--http-server-key: cannot read '{missing}': No such file or directory"
    assert f"error: creating server: Invalid argument - {reason}" in ended.stderr
    assert "simple" not in ended.stdout + ended.stderr
