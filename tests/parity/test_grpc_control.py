"""Every unary method but inference: health, metadata, configurations, statistics, model control, settings, and bytes that are no message."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from .grpc_case import HEALTH, SERVICE, Call, Differs, Pair, Script, check
from .grpc_servers import LOADED

NO_MESSAGE = (b"\xff", b"\x0a\x05abc", b"\x0a", b"\x08", b"hello")
NOT_UTF8 = b"\x0a\x02\xff\xfe"
UNKNOWN_FIELD = b"\xfa\x3f\x03abc"
"""Field 1023, which no message has."""

VERSIONS = ("", "1", "2", "5", "3", "01", "1x", " 1", "+1", "0", "-1", "x", "", "1.5", "99999999999999999999", "9223372036854775807")


def _health(service: str = "") -> Call:
    return Call(f"/{HEALTH}/Check", b"\x0a" + bytes([len(service)]) + service.encode() if service else b"")


def _named(method: str, kind: Any, name: str, version: str = "", **more: Any) -> Call:
    return Call(method, kind(name=name, version=version), **more)


def _ready(name: str, version: str = "") -> Call:
    return _named("ModelReady", pb.ModelReadyRequest, name, version)


def _metadata(name: str, version: str = "") -> Call:
    return _named("ModelMetadata", pb.ModelMetadataRequest, name, version)


def _without_folder(response: Any) -> None:
    response.config.parameters.pop("FOLDER", None)


def _config(name: str, version: str = "") -> Call:
    return _named("ModelConfig", pb.ModelConfigRequest, name, version, rewrite=_without_folder)


def _without_times(response: Any) -> None:
    """Times are some or none; of counts nothing is taken."""
    for entry in response.model_stats:
        entry.last_inference = min(1, entry.last_inference)
        for stats in (entry.inference_stats, *entry.batch_stats, *entry.response_stats.values()):
            for _, duration in stats.ListFields():
                if hasattr(duration, "ns"):
                    duration.ns = min(1, duration.ns)


def _statistics(name: str, version: str = "") -> Call:
    return _named("ModelStatistics", pb.ModelStatisticsRequest, name, version, rewrite=_without_times)


def _nameless(response: Any) -> None:
    """Name and version are each server's own; and tensorfarm says that it has only what it has."""
    response.name = response.version = "own"
    del response.extensions[:]


SETTLING = re.compile(r'"(LOADING|UNLOADING)"|reason: "unloading"')


def _index(**fields: Any) -> Call:
    return Call("RepositoryIndex", pb.RepositoryIndexRequest(**fields), settled=lambda text: not SETTLING.search(text))


def _parameters(message: Any, parameters: dict[str, Any]) -> Any:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", bytes: "bytes_param"}
    for name, value in parameters.items():
        if value is None:
            message.parameters[name].SetInParent()
        else:
            setattr(message.parameters[name], kinds[type(value)], value)
    return message


def _load(model: str, parameters: dict[str, Any] | None = None, **fields: Any) -> Call:
    return Call("RepositoryModelLoad", _parameters(pb.RepositoryModelLoadRequest(model_name=model, **fields), parameters or {}))


def _unload(model: str, parameters: dict[str, Any] | None = None, **fields: Any) -> Call:
    return Call("RepositoryModelUnload", _parameters(pb.RepositoryModelUnloadRequest(model_name=model, **fields), parameters or {}))


def _log(**settings: Any) -> Call:
    message = pb.LogSettingsRequest()
    kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
    for name, value in settings.items():
        if value is None:
            message.settings[name].SetInParent()
        else:
            setattr(message.settings[name], kinds[type(value)], value)
    return Call("LogSettings", message)


def _trace(model: str = "", **settings: Sequence[str]) -> Call:
    message = pb.TraceSettingRequest(model_name=model)
    for name, values in settings.items():
        message.settings[name].SetInParent()
        message.settings[name].value.extend(values)
    return Call("TraceSetting", message)


ASKED_FOR = ("answers", "nope", "", "off", "never", "versions_all", "over_plain", "over_streams", "streams")
NOTHING = ("/inference.GRPCInferenceService/Nope", "/no.such.Service/Nope", f"/{HEALTH}/Watch", f"/{SERVICE}/serverlive", f"/{SERVICE}/")
METHODS = sorted(
    method.name
    for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    if not method.client_streaming and method.name != "TraceSetting"
)

HEALTHY: dict[str, Script] = {
    "live and ready": (Call("ServerLive"), Call("ServerReady")),
    "standard": (_health(), _health(SERVICE), _health("nope")),
    "server metadata": (Call("ServerMetadata", rewrite=_nameless),),
}
MODELS: dict[str, Script] = {
    **{f"ready {name!r}": tuple(_ready(name, version) for version in VERSIONS) for name in ASKED_FOR},
    **{f"metadata {name!r}": tuple(_metadata(name, version) for version in VERSIONS) for name in ASKED_FOR},
    **{f"config {name!r}": tuple(_config(name, version) for version in VERSIONS) for name in ASKED_FOR},
    **{f"statistics {name!r}": tuple(_statistics(name, version) for version in VERSIONS) for name in ASKED_FOR if name},
    "statistics of all": tuple(_statistics("", version) for version in ("", "1", "5", "7", "x", "-1")),
    "metadata of all": tuple(_metadata(name) for name in LOADED),
    "config of all": tuple(_config(name) for name in LOADED),
    "index": (_index(), _index(ready=True), _index(repository_name="r"), _index(repository_name="r", ready=True)),
}
FOREIGN: dict[str, Script] = {
    **{
        f"no message to {method}": tuple(
            Call(method, content, rewrite=_nameless if method == "ServerMetadata" else None) for content in (*NO_MESSAGE, NOT_UTF8)
        )
        for method in METHODS
    },
    "no message to health": tuple(Call(f"/{HEALTH}/Check", content) for content in (*NO_MESSAGE, NOT_UTF8)),
    "unknown fields": (
        Call("ServerLive", UNKNOWN_FIELD),
        Call("ServerReady", b"\x0a\x01x"),
        Call("ModelReady", UNKNOWN_FIELD + pb.ModelReadyRequest(name="answers").SerializeToString()),
        Call(
            "ModelReady", pb.ModelReadyRequest(name="nope").SerializeToString() + pb.ModelReadyRequest(name="answers").SerializeToString()
        ),
        Call(f"/{HEALTH}/Check", UNKNOWN_FIELD),
    ),
    **{f"unknown {path}": (Call(path), Call(path, b"\xff")) for path in NOTHING},
}

LIST_SERVICES = b"\x3a\x00"
REFLECTION: dict[str, Script] = {
    f"reflection {version}": (Call(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo", LIST_SERVICES),)
    for version in ("v1alpha", "v1")
}

CONFIG = '{"backend": "python", "input": [{"name": "FIRST", "data_type": "TYPE_INT32", "dims": [2]}], "output": []}'
SHORT = {
    "config": '{"name": "made", "backend": "python", "max_batch_size": 0,'
    ' "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [1]}], "output": [{"name": "Y", "data_type": "TYPE_INT32", "dims": [1]}],'
    ' "instance_group": [{"kind": "KIND_CPU", "count": 1}]}'
}
MODEL = b"""import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", request.inputs()[0].as_numpy())]) for request in requests]
"""
OFF = (_ready("off"), _metadata("off"), _metadata("off", "1"), _config("off", "1"), _statistics("off"), _statistics("off", "1"))

CONTROL: dict[str, Script] = {
    "load what is not there": (_load("nope"), _load(""), _load("nope", repository_name="r"), _load("a/b"), _load("..")),
    "unload what is not there": (_unload("nope"), _unload(""), _unload("nope", repository_name="r"), _unload("never")),
    "unload and load": (_unload("off"), _index(), *OFF, _unload("off"), _load("off"), _index(), *OFF, _load("off")),
    "unload dependents": (
        _unload("off", {"unload_dependents": True}),
        _unload("off", {"unload_dependents": False}),
        *(_unload(name, {"unload_dependents": value}) for name in ("off", "nope") for value in ("true", 1, b"x", None)),
        _unload("nope", {"x": 1, "": True, "config": "{}"}),
        _index(),
        _load("off"),
    ),
    "config of a wrong kind": tuple(_load("off", {"config": value}) for value in (True, 5, b"{}", None)),
    "config that is none": tuple(_load("off", {"config": text}) for text in ("{", "", "[]", '{"input": 5}', '{"nosuch": 1}')),
    "config": (_load("off", {"config": CONFIG}), _metadata("off"), _config("off"), _load("off"), _metadata("off")),
    "empty config": (_load("off", {"config": "{}"}), _load("off")),
    "file of a wrong kind": tuple(_load("off", {"config": CONFIG, "file:1/model.py": value}) for value in ("x", 5, True, None)),
    "file without config": (_load("off", {"file:1/model.py": MODEL}), _load("off", {"file:": b""}), _load("off")),
    "unknown parameters": (
        *(_load("off", {name: "x"}) for name in ("x", "file", "", "unload_dependents", "Config")),
        _load("nope", {"x": "x"}),
        _load("off", {"x": "x"}, repository_name="r"),
        _load("off"),
    ),
    "a new model": (
        _load("made", {**SHORT, "file:1/model.py": MODEL}),
        _index(),
        _config("made"),
        _ready("made"),
        _unload("made"),
        _index(),
    ),
    "a model that fails": (_load("broken"), _ready("broken"), _metadata("broken"), _config("broken", "1"), _statistics("broken"), _index()),
    "health after that": (Call("ServerLive"), Call("ServerReady"), _health(), _health("nope"), _unload("broken"), _health(), _index()),
}

LOG: dict[str, Script] = {
    "read": (_log(),),
    "wrong kinds": (
        *(_log(**{name: value}) for name in ("log_info", "log_warning", "log_error") for value in (1, "true", None)),
        *(_log(log_verbose_level=value) for value in (True, "1", None)),
        *(_log(log_format=value) for value in (True, 1, None)),
    ),
    "formats": (*(_log(log_format=value) for value in ("x", "", "ISO8601", "iso8601", "default", "Default")), _log(log_format="default")),
    "file": tuple(_log(log_file=value) for value in ("x", "", 1, None)),
    "unknown": (_log(foo=True, log_nothing="x"),),
    "changed": (
        _log(log_info=False, log_warning=False, log_error=False),
        _log(),
        _log(log_info=True, log_warning=True, log_error=True),
        *(_log(log_verbose_level=value) for value in (1, 0, 5, 0)),
    ),
    "one of them wrong": (
        _log(log_info=False, log_format="x"),
        _log(),
        _log(log_warning=False, log_file="x"),
        _log(),
        _log(log_info=True, log_warning=True),
    ),
}

NO_TRACING = Differs("tensorfarm does not trace yet", "UNAVAILABLE", "the server does not support tracing")
TRACE: dict[str, Script] = {
    "read trace settings": (_trace(), _trace("answers"), _trace("nope")),
    "write trace settings": (_trace("nope", trace_rate=["1"]), _trace(trace_file=["x"]), _trace(trace_rate=["x"])),
}


def _not_polled(name: str, why: str) -> Differs:
    text = f"failed to load '{name}', failed to poll from model repository: {why}"
    return Differs("the answer says what the original keeps to its log", "INTERNAL", text)


ABSENT = "model not found in any model repository"
NEWER = "newer releases look at the name"
TRAVERSAL = "model name must not contain path traversal characters"
ENDED = "an unload ends a failure"
DIFFERENCES: dict[str, Sequence[Differs]] = {
    **{id: [NO_TRACING] * len(script) for id, script in TRACE.items()},
    **{id: [Differs("24.10 has no reflection yet", "OK")] for id in REFLECTION},
    "load what is not there": [
        _not_polled("nope", ABSENT),
        Differs(NEWER, "INVALID_ARGUMENT", "Model name cannot be empty. Please enter a valid name to deploy."),
        Differs(NEWER, "INVALID_ARGUMENT", f"invalid model name 'a/b', {TRAVERSAL}"),
        Differs(NEWER, "INVALID_ARGUMENT", f"invalid model name '..', {TRAVERSAL}"),
    ],
    "config that is none": [Differs("the answer says what the original keeps to its log", "INTERNAL", None)] * 5,
    "file without config": [
        _not_polled("off", "Load parameter 'config' must be specified for model file override"),
        _not_polled("off", "Invalid file parameter 'file:' with normalized path '.' must stay within model directory."),
    ],
    "health after that": [Differs(ENDED, "OK", message="b'\\x08\\x01'")],
}

CASES = {**HEALTHY, **MODELS, **FOREIGN, **REFLECTION, **LOG, **TRACE, **CONTROL}


@pytest.mark.parametrize("id", CASES)
def test_control(id: str, grpc_ends: Pair) -> None:
    check(grpc_ends, id, CASES[id], DIFFERENCES)
