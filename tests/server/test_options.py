"""The flag table and the Options dataclass describe the same flags."""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from collections.abc import Mapping

import pytest

from tensorfarm.server.command_line import parse
from tensorfarm.server.option_table import FLAG_BY_NAME, FLAGS
from tensorfarm.server.options import Options, backend_settings, check_creation
from tensorfarm.workers.contract.status import Code, StatusError


def options_of(*argv: str) -> Options:
    return parse(argv, {})


def test_every_flag_has_its_attribute_and_every_attribute_its_flag() -> None:
    attributes = {field.name for field in dataclasses.fields(Options)} - {"given"}
    assert {flag.attribute for flag in FLAGS if flag.own_option} == attributes


def test_no_flag_is_declared_twice_and_targets_exist() -> None:
    assert [name for name, count in Counter(flag.name for flag in FLAGS).items() if count > 1] == []
    assert all(FLAG_BY_NAME[flag.target].own_option for flag in FLAGS if flag.name != "help")


def test_values_have_the_types_the_attributes_promise() -> None:
    hints = typing.get_type_hints(Options)
    for options in (options_of(), options_of("--sagemaker-safe-port-range=1-2", "--allow-client-shm=on")):
        for name, hint in hints.items():
            value = getattr(options, name)
            allowed = [typing.get_origin(part) or part for part in (typing.get_args(hint) if _is_union(hint) else (hint,))]
            assert type(value) in allowed or (Mapping in allowed and isinstance(value, Mapping)), name


def _is_union(hint: object) -> bool:
    return type(None) in typing.get_args(hint)


def test_every_flag_is_explained() -> None:
    for flag in FLAGS:
        assert flag.help.endswith((".", "?")) or flag.warning, flag.name
        assert "Default" not in flag.help or flag.default is None or isinstance(flag.default, Mapping | tuple), flag.name


OWN = {
    "busy-poll-us",
    "front-ends",
    "max-inflight-requests",
    "max-inflight-byte-size",
    "max-inflight-requests-per-model",
    "repository-settle-ms",
    "lazy-model-count",
    "lazy-memory-byte-size",
    "http-use-ssl",
    "http-use-ssl-mutual",
    "http-server-cert",
    "http-server-key",
    "http-root-cert",
}
"""What tritonserver has not."""


def test_flags_of_the_reference_are_all_there() -> None:
    names = """help id exit-timeout-secs log-verbose log-info log-warning log-error log-format log-file model-store model-repository
    exit-on-error disable-auto-complete-config strict-readiness model-control-mode repository-poll-secs load-model model-config-name
    model-load-thread-count model-load-retry-count model-namespacing enable-peer-access allow-http http-address http-port
    reuse-http-port http-header-forward-pattern http-thread-count http-max-input-size http-restricted-api allow-grpc grpc-address
    grpc-port reuse-grpc-port grpc-header-forward-pattern grpc-infer-thread-count grpc-infer-allocation-pool-size
    grpc-max-response-pool-size grpc-use-ssl grpc-use-ssl-mutual grpc-server-cert grpc-server-key grpc-root-cert
    grpc-infer-response-compression-level grpc-keepalive-time grpc-keepalive-timeout grpc-keepalive-permit-without-calls
    grpc-http2-max-pings-without-data grpc-http2-min-recv-ping-interval-without-data grpc-http2-max-ping-strikes
    grpc-max-connection-age grpc-max-connection-age-grace grpc-restricted-protocol allow-sagemaker sagemaker-port
    sagemaker-safe-port-range sagemaker-thread-count allow-vertex-ai vertex-ai-port vertex-ai-thread-count vertex-ai-default-model
    allow-metrics allow-gpu-metrics allow-cpu-metrics metrics-address metrics-port metrics-interval-ms metrics-config trace-config
    backend-directory backend-config repoagent-directory cache-config cache-directory rate-limit rate-limit-resource
    pinned-memory-pool-byte-size cuda-memory-pool-byte-size cuda-virtual-address-size min-supported-compute-capability
    buffer-manager-thread-count host-policy model-load-gpu-limit allow-client-shm strict-model-config response-cache-byte-size
    trace-file trace-level trace-rate trace-count trace-log-frequency"""
    assert {flag.name for flag in FLAGS} == {*names.split(), *OWN}


def test_backend_settings_merge_server_global_and_own_ones() -> None:
    options = options_of("--backend-config=g=1", "--backend-config=onnxruntime,k=1", "--backend-config=onnxruntime,k=2")
    assert backend_settings(options, "python") == {
        "auto-complete-config": "true",
        "backend-directory": "/opt/tritonserver/backends",
        "min-compute-capability": "6.000000",
        "default-max-batch-size": "4",
        "g": "1",
    }
    own = backend_settings(options, "onnxruntime")
    assert (own["k"], own["g"]) == ("2", "1")
    assert list(own) == sorted(own)


def test_default_max_batch_size_can_be_set_for_one_backend() -> None:
    options = options_of("--backend-config=default-max-batch-size=7", "--backend-config=b,default-max-batch-size=9")
    assert backend_settings(options, "a")["default-max-batch-size"] == "7"
    assert backend_settings(options, "b")["default-max-batch-size"] == "9"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--model-repository must be specified"),
        (["--model-repository=r", "--repoagent-directory="], "--repoagent-directory can not be empty"),
        (
            ["--model-repository=r", "--cache-config=a,x=1", "--cache-config=b,y=2"],
            "found multiple cache configurations, but only a single cache is currently supported",
        ),
        (
            ["--model-repository=r", "--model-control-mode=explicit", "--load-model=*", "--load-model=a"],
            "Wildcard model name '*' must be the ONLY startup model if specified at all.",
        ),
    ],
)
def test_what_is_refused_at_creation(argv: list[str], message: str) -> None:
    with pytest.raises(StatusError) as raised:
        check_creation(options_of(*argv))
    assert (raised.value.code, raised.value.message) == (Code.INVALID_ARG, message)


def test_a_sound_command_line_passes_creation() -> None:
    check_creation(options_of("--model-repository=r", "--cache-config=local,size=1", "--model-control-mode=explicit", "--load-model=*"))
