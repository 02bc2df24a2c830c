"""Models with little or no configuration, several versions, restricted endpoints, and what the start says about them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from ..model_repository import BATCHED, FIXED, IDENTITIES, PLAIN, SIMPLE, Flavour, onnx_model, write_model, write_model_file
from ..servers import Server, run_tensorfarm, tensorfarm

BARE = replace(BATCHED, name="bare")
BARE_FIXED = replace(FIXED, name="bare_fixed")
PARTLY = replace(BATCHED, name="partly")
DIRECTORY = replace(PLAIN, name="directory")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose models say little about themselves."""
    root = tmp_path_factory.mktemp("bare")
    for model, config in ((BARE, ""), (BARE_FIXED, ""), (PARTLY, "max_batch_size: 16\n"), (SIMPLE, None)):
        write_model(root / "models", model, Flavour.ONNX, config)
    folder = write_model(root / "models", DIRECTORY, Flavour.ONNX)
    inner = folder / "1" / "moved"
    shutil.move(folder / "1" / "model.onnx", inner)
    (folder / "1" / "model.onnx").mkdir()
    shutil.move(inner, folder / "1" / "model.onnx" / "model.onnx")
    with tensorfarm(root / "models", "--log-verbose=1", folder=root / "run") as running:
        yield running


def _config(server: Server, model: str) -> Any:
    return server.ask("GET", f"/v2/models/{model}/config").json


def test_no_configuration_of_a_batching_model(server: Server) -> None:
    """4 by default, and dynamic batching; its tensors come from the graph, without the batch dimension."""
    config = _config(server, "bare")
    assert (config["platform"], config["backend"], config["max_batch_size"]) == ("onnxruntime_onnx", "onnxruntime", 4)
    assert "dynamic_batching" in config
    assert [(one["name"], one["data_type"], one["dims"]) for one in config["input"]] == [("INPUT0", "TYPE_FP32", [-1])]
    assert [(one["name"], one["data_type"], one["dims"]) for one in config["output"]] == [("OUTPUT0", "TYPE_FP32", [-1])]
    assert server.ask("GET", "/v2/models/bare").json["inputs"] == [{"name": "INPUT0", "datatype": "FP32", "shape": [-1, -1]}]
    assert "autofilled max_batch_size to 4 for model 'bare'" in server.log
    assert r"""configuration of 'bare' version 1: {\"name\":\"bare\",\"platform\":\"onnxruntime_onnx\",""" in server.log


def test_no_configuration_of_a_plain_model(server: Server) -> None:
    config = _config(server, "bare_fixed")
    assert config["max_batch_size"] == 0
    assert "dynamic_batching" not in config
    assert config["input"][0]["dims"] == [2, 3]


def test_partial_configuration(server: Server) -> None:
    """What is said is kept; only what is missing is filled in."""
    config = _config(server, "partly")
    assert config["max_batch_size"] == 16
    assert config["input"][0]["dims"] == [-1]
    assert "dynamic_batching" in config


@pytest.mark.parametrize("model", [BARE, BARE_FIXED, PARTLY, DIRECTORY, SIMPLE], ids=lambda model: model.name)
def test_answers_equal_onnxruntime(model: Any, server: Server) -> None:
    generator = np.random.default_rng(5)
    lead = [2] if model.max_batch_size else []
    arrays = {}
    for tensor in model.inputs:
        shape = lead + [3 if dim == -1 else dim for dim in tensor.dims]
        arrays[tensor.name] = (generator.standard_normal(shape) * 100).astype({"FP32": np.float32, "INT32": np.int32}[tensor.datatype])
    inputs = [
        {"name": tensor.name, "shape": list(arrays[tensor.name].shape), "datatype": tensor.datatype, "data": arrays[tensor.name].tolist()}
        for tensor in model.inputs
    ]
    reply = server.ask("POST", f"/v2/models/{model.name}/infer", {"inputs": inputs})
    assert reply.status == 200, reply.body
    session = onnxruntime.InferenceSession(onnx_model(model).SerializeToString(), providers=["CPUExecutionProvider"])
    expected = dict(zip((one.name for one in session.get_outputs()), session.run(None, arrays), strict=True))
    outputs = {one["name"]: one for one in reply.json["outputs"]}
    assert set(outputs) == set(expected)
    for name, array in expected.items():
        got = np.array(outputs[name]["data"], array.dtype).reshape(outputs[name]["shape"])
        np.testing.assert_array_equal(got, array)


def test_start_says_what_there_is(server: Server) -> None:
    """Tables and service lines on standard output, in the form of the log."""
    out = server.stdout
    for title in ("| Backend ", "| Model ", "| Option "):
        assert title in out
    assert re.search(r"\| bare +\| 1 +\| READY +\|", out)
    line = re.compile(r'^I\d{4} \d\d:\d\d:\d\d\.\d{6} (\d+) \S+:\d+\] "(.*)"$', re.M)
    said = dict((text, int(pid)) for pid, text in line.findall(out))
    assert said[f"Started HTTPService at 127.0.0.1:{server.http_port}"] == server.pid
    assert said[f"Started Metrics Service at 127.0.0.1:{server.metrics_port}"] == server.pid
    assert not re.search(r"^[EW]\d{4} ", out, re.M)
    assert not re.search(r"^I\d{4} ", server.stderr, re.M)


def test_auto_complete_can_be_disabled(tmp_path: Path) -> None:
    write_model(tmp_path / "models", BARE, Flavour.ONNX, "")
    flags = ["--disable-auto-complete-config", "--allow-grpc=false", "--allow-metrics=false", "--http-address=127.0.0.1"]
    finished = run_tensorfarm(f"--model-repository={tmp_path / 'models'}", *flags, folder=tmp_path / "run")
    assert finished.code == 1
    assert "failed to open text file for read" in finished.stderr
    assert "error: creating server: Internal - failed to load all models" in finished.stderr


def test_restricted_endpoints(tmp_path: Path) -> None:
    """Only with the header and its exact value; the check comes before all others."""
    write_model(tmp_path / "models", PLAIN, Flavour.ONNX)
    flag = "--http-restricted-api=inference,model-repository:admin-key=secret"
    with tensorfarm(tmp_path / "models", flag, folder=tmp_path / "run") as server:
        for method, path in (("POST", "/v2/models/plain/infer"), ("POST", "/v2/repository/index"), ("GET", "/v2/models/plain/infer")):
            for headers in ({}, {"admin_key": "Secret"}):
                reply = server.ask(method, path, b"", **headers)
                assert (reply.status, reply.error) == (403, "This API is restricted, expecting header 'admin-key'")
        assert server.ask("POST", "/v2/repository/index", b"", Admin_Key="secret").status == 200
        assert server.ask("GET", "/v2/models/plain").status == 200
        assert server.live()


def test_largest_input(tmp_path: Path) -> None:
    """--http-max-input-size bounds the JSON, not the binary tensors behind it."""
    (identity,) = (one for one in IDENTITIES if one.name == "identity_uint8")
    write_model(tmp_path / "models", identity, Flavour.ONNX)
    with tensorfarm(tmp_path / "models", "--http-max-input-size=4096", folder=tmp_path / "run") as server:
        path = "/v2/models/identity_uint8/infer"
        big = {"inputs": [{"name": "INPUT0", "shape": [4000], "datatype": "UINT8", "data": [1] * 4000}]}
        reply = server.ask("POST", path, big)
        assert reply.status == 400
        assert "exceeds the maximum allowed input size of 4096 bytes. Use --http-max-input-size to increase the limit." in reply.error
        head = b'{"inputs":[{"name":"INPUT0","shape":[10000],"datatype":"UINT8","parameters":{"binary_data_size":10000}}]}'
        reply = server.ask("POST", path, head + bytes(10000), Inference_Header_Content_Length=str(len(head)))
        assert reply.status == 200, reply.body


def test_new_version_on_disk_is_ignored(tmp_path: Path) -> None:
    """Control mode none: what is there at the start is what is served."""
    folder = write_model(tmp_path / "models", PLAIN, Flavour.ONNX)
    with tensorfarm(tmp_path / "models", folder=tmp_path / "run") as server:
        (folder / "2").mkdir()
        write_model_file(folder / "2", PLAIN, Flavour.ONNX)
        assert server.ask("GET", "/v2/models/plain").json["versions"] == ["1"]
        assert server.ask("GET", "/v2/models/plain/versions/2").status == 404
        shutil.rmtree(folder)
        assert server.model_ready("plain")


def test_flags_without_a_function_say_so(tmp_path: Path) -> None:
    write_model(tmp_path / "models", PLAIN, Flavour.ONNX)
    with tensorfarm(
        tmp_path / "models", "--trace-config=level=TIMESTAMPS", "--cuda-virtual-address-size=0:1", folder=tmp_path / "run"
    ) as server:
        for flag in ("--trace-config", "--cuda-virtual-address-size"):
            assert len([line for line in server.stderr.splitlines() if line.startswith("W") and flag in line]) == 1, server.log
