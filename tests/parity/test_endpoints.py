"""Everything that is neither inference nor shared memory: health, metadata, configuration, statistics, index, wrong paths and methods."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..model_repository import PARITY_MODELS
from ..wire import exchange
from .case import Case, Difference, check

MODELS = [model.name for model in PARITY_MODELS]


def _get(path: str, method: str = "GET", body: bytes = b"", rewrite: Any = None) -> Case:
    return Case(f"{method} {path}" + (f" {body[:40].decode('latin-1')}" if body else ""), method, path, body, {}, rewrite)


def without_server(content: Any) -> Any:
    """Server metadata without the version, and without the extensions, which a test of their own compares."""
    content = dict(content)
    content["version"] = type(content["version"]).__name__
    content["extensions"] = type(content["extensions"]).__name__
    return list(content.items())


def without_platform(content: Any) -> Any:
    """Model metadata: the platform, which names the backend."""
    content = dict(content)
    content["platform"] = bool(content["platform"])
    return list(content.items())


def without_backend(content: Any) -> Any:
    """A configuration: platform, backend and the model file's name."""
    content = dict(content)
    for name in ("platform", "backend", "default_model_filename"):
        content[name] = type(content[name]).__name__
    return [(name, json.dumps(value)) for name, value in content.items()]


def without_count(content: Any) -> Any:
    """A configuration without instance groups: as above, and the number of instances, which the backend chooses."""
    (group,) = content["instance_group"]
    return without_backend({**content, "instance_group": [{**group, "count": type(group["count"]).__name__}]})


HEALTH = [
    _get("/v2/health/live"),
    _get("/v2/health/ready"),
    _get("/v2/health/ready?x=1"),
    _get("/v2/models/simple/ready"),
    _get("/v2/models/simple/versions/1/ready"),
    _get("/v2/models/simple/versions/2/ready"),
    _get("/v2/models/versions_latest/versions/3/ready"),
    _get("/v2/models/versions_latest/versions/1/ready"),
    _get("/v2/models/nosuch/ready"),
    _get("/v2/models/nosuch/versions/1/ready"),
    _get("/v2/models/simple/versions/0/ready"),
    _get("/v2/models/simple/versions/01/ready"),
    _get("/v2/models/simple/versions/99999999999999999999/ready"),
    _get("/v2/models/simple/versions/9223372036854775807/ready"),
]

METADATA = [
    _get("/v2", rewrite=without_server),
    *(_get(f"/v2/models/{name}", rewrite=without_platform) for name in MODELS),
    _get("/v2/models/versions_latest/versions/3", rewrite=without_platform),
    _get("/v2/models/versions_latest/versions/10", rewrite=without_platform),
    _get("/v2/models/versions_latest/versions/2"),
    _get("/v2/models/versions_all/versions/7"),
    _get("/v2/models/nosuch"),
    _get("/v2/models/nosuch/versions/1"),
    _get("/v2/models/simple?verbose=1", rewrite=without_platform),
]

CONFIGURATION = [
    *(_get(f"/v2/models/{name}/config", rewrite=without_backend) for name in MODELS if name != "versions_default"),
    _get("/v2/models/versions_default/config", rewrite=without_count),
    _get("/v2/models/versions_specific/versions/3/config", rewrite=without_backend),
    _get("/v2/models/versions_specific/versions/2/config"),
    _get("/v2/models/nosuch/config"),
]

INDEX = [
    _get("/v2/repository/index", "POST"),
    _get("/v2/repository/index", "POST", b"{}"),
    _get("/v2/repository/index", "POST", b'{"ready":true}'),
    _get("/v2/repository/index", "POST", b'{"ready":false}'),
    _get("/v2/repository/index", "POST", b'{"ready":"true"}'),
    _get("/v2/repository/index", "POST", b'{"ready":1}'),
    _get("/v2/repository/index", "POST", b'{"ready":null}'),
    _get("/v2/repository/index", "POST", b'{"more":[1]}'),
    _get("/v2/repository/index", "POST", b"[]"),
    _get("/v2/repository/index", "POST", b"hello"),
    _get("/v2/repository/index", "POST", b"null"),
    _get("/v2/repository/somewhere/index", "POST", b"{}"),
    _get("/v2/repository/index", "GET"),
]

CONTROL = [
    _get("/v2/repository/models/simple/load", "POST"),
    _get("/v2/repository/models/simple/load", "POST", b"{}"),
    _get("/v2/repository/models/nosuch/load", "POST"),
    _get("/v2/repository/models/simple/load", "POST", b"hello"),
    _get("/v2/repository/models/simple/load", "POST", b'{"parameters":{"config":1}}'),
    _get("/v2/repository/models/simple/load", "POST", b'{"parameters":{"config":"{}"}}'),
    _get("/v2/repository/models/simple/load", "POST", b'{"parameters":[]}'),
    _get("/v2/repository/models/simple/load", "POST", b'{"parameters":{"file:1/model.onnx":"AAAA"}}'),
    _get("/v2/repository/models/simple/load", "POST", b'{"parameters":{"what":"x"}}'),
    _get("/v2/repository/somewhere/models/simple/load", "POST"),
    _get("/v2/repository/models/simple/unload", "POST"),
    _get("/v2/repository/models/nosuch/unload", "POST"),
    _get("/v2/repository/models/simple/unload", "POST", b'{"parameters":{"unload_dependents":true}}'),
    _get("/v2/repository/models/simple/unload", "POST", b'{"parameters":{"unload_dependents":1}}'),
    _get("/v2/repository/models/simple/unload", "POST", b"hello"),
    _get("/v2/repository/somewhere/models/simple/unload", "POST"),
    _get("/v2/repository/models/simple/load", "GET"),
    _get("/v2/repository/models/simple/unload", "GET"),
    _get("/v2/repository/models/simple/reload", "POST"),
]

ROUTES = [
    _get("/"),
    _get("/v2/"),
    _get("/v1"),
    _get("/v2/health"),
    _get("/v2/health/live/"),
    _get("/v2/health/Live"),
    _get("//v2/health/live"),
    _get("/v2/%68ealth/live"),
    _get("/v2/models"),
    _get("/v2/models/"),
    _get("/v2/models/simple/"),
    _get("/v2/models/simple/nosuch"),
    _get("/v2/models/simple/versions"),
    _get("/v2/models/simple/versions/"),
    _get("/v2/models/simple/versions/x/ready"),
    _get("/v2/models/simple/versions/-1/ready"),
    _get("/v2/models/simple/versions/1.0/ready"),
    _get("/v2/models/simple/versions/1/trace/setting"),
    _get("/v2/models/sim%70le"),
    _get("/v2/models/a/b/ready"),
    _get("/v2/models//ready"),
    _get("/v2/models/simple/infer/"),
    _get("/metrics"),
    _get("/favicon.ico"),
    _get("/v2/repository"),
    _get("/v2/repository/models/simple"),
    _get("/v2/models/nosuch/versions/x/infer", "POST", b"{}"),
    *(_get(f"/v2/health/{name}", method) for name in ("live", "ready") for method in ("POST", "PUT", "DELETE", "OPTIONS")),
    *(_get("/v2", method) for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS")),
    *(_get("/v2/models/simple", method) for method in ("POST", "DELETE")),
    *(_get(f"/v2/models/simple/{name}", "POST") for name in ("ready", "config", "stats")),
    *(_get(f"/v2/models/simple/{name}", "GET") for name in ("infer", "generate", "generate_stream")),
    _get("/v2/models/nosuch/infer", "GET"),
    _get("/v2/models/nosuch/ready", "POST"),
    _get("/v2/models/stats", "POST"),
    _get("/v2/models/simple/infer", "PUT", b"{}"),
    _get("/nosuch", "POST", b"{}"),
    _get("/nosuch", "DELETE"),
]

LOGGING = [
    _get("/v2/logging"),
    _get("/v2/logging", "POST", b"{}"),
    _get("/v2/logging", "POST", b'{"log_verbose_level":1}'),
    _get("/v2/logging", "POST", b'{"log_verbose_level":0,"log_format":"ISO8601"}'),
    _get("/v2/logging", "POST", b'{"log_format":"default","log_info":false,"what":[]}'),
    _get("/v2/logging", "POST", b'{"log_info":true,"log_warning":null}'),
    _get("/v2/logging", "POST", b'{"log_info":1}'),
    _get("/v2/logging", "POST", b'{"log_verbose_level":"1"}'),
    _get("/v2/logging", "POST", b'{"log_verbose_level":-1}'),
    _get("/v2/logging", "POST", b'{"log_format":"xml"}'),
    _get("/v2/logging", "POST", b'{"log_format":1}'),
    _get("/v2/logging", "POST", b'{"log_file":"/dev/null"}'),
    _get("/v2/logging", "POST", b'{"log_file":null}'),
    _get("/v2/logging", "POST", b'{"log_error":false,"log_format":"xml"}'),
    _get("/v2/logging", "POST", b'{"log_error":true}'),
    _get("/v2/logging", "POST", b"hello"),
    _get("/v2/logging", "POST", b"[]"),
    _get("/v2/logging", "POST"),
    _get("/v2/logging", "DELETE"),
]
"""In this order: each leaves the settings as the next one finds them."""

LOOKUP = [
    _get(f"/v2/models/{path}/infer", "POST", b"{}")
    for path in (
        "nosuch",
        "nosuch/versions/1",
        "simple/versions/2",
        "simple/versions/0",
        "versions_latest/versions/1",
        "simple/versions/99999999999999999999",
        "simple/versions/9223372036854775808",
        "simple/versions/00000000000000000001",
    )
] + [
    _get(f"/v2/models/{path}/stats")
    for path in ("nosuch", "nosuch/versions/1", "simple/versions/2", "simple/versions/99999999999999999999")
]

NOT_BUILT = ("cuda_shared_memory", "trace")
"""Extensions of release 24.10 that tensorfarm does not have yet, and does not claim to have."""

DIFFERENCES: dict[str, Difference] = {}


def _ids(case: Case) -> str:
    return case.id


@pytest.mark.parametrize("case", HEALTH, ids=_ids)
def test_health(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@pytest.mark.parametrize("case", METADATA, ids=_ids)
def test_metadata(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@pytest.mark.parametrize("case", CONFIGURATION, ids=_ids)
def test_configuration(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@pytest.mark.parametrize("case", INDEX, ids=_ids)
def test_index(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@pytest.mark.parametrize("case", CONTROL, ids=_ids)
def test_control(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@pytest.mark.parametrize("case", ROUTES, ids=_ids)
def test_routes(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@pytest.mark.parametrize("case", LOOKUP, ids=_ids)
def test_lookup(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@pytest.mark.parametrize("case", LOGGING, ids=_ids)
def test_logging(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


def test_extensions(oracle: int, farm: int) -> None:
    theirs, ours = (exchange(port, "GET", "/v2").json["extensions"] for port in (oracle, farm))
    assert ours == [name for name in theirs if name not in NOT_BUILT]
    assert set(NOT_BUILT) <= set(theirs)


def test_default_instances(farm: int) -> None:
    """ONNX models without instance groups get two instances on a CPU, as with tritonserver's own ONNX backend."""
    (group,) = exchange(farm, "GET", "/v2/models/versions_default/config").json["instance_group"]
    assert (group["name"], group["kind"], group["count"]) == ("versions_default", "KIND_CPU", 2)
