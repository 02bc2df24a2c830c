"""The other model servers written for Python: how each is installed and set up, and the form in which it is asked.

The first variant of each is the one that is measured beside tensorfarm; ``./scripts/bench variants`` measures
all, so that it can be seen whether that is the fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import workload
from .workload import Ask

_MODEL = ("numpy >= 1.26.4", "onnxruntime >= 1.27")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to set a server up; its program knows it by ``name``."""

    name: str
    says: str
    ask: Callable[[str], Ask]


@dataclass(frozen=True, slots=True)
class Framework:
    """One server. Its program is ``benchmark.servers.NAME_server``; it answers at ``path``."""

    name: str
    label: str
    requirements: tuple[str, ...]
    path: str
    variants: tuple[Variant, ...]
    busy_when_idle: bool = False
    """Spends CPU without requests, so that it may run only while it is measured."""


FRAMEWORKS = (
    Framework(
        "mlserver",
        "MLServer",
        ("mlserver >= 1.7.1", *_MODEL),
        "/v2/models/add_sub/infer",
        (
            Variant("single", "V2 JSON, no batching, model in the server process", workload.add_sub_v2_json),
            Variant("batching", "V2 JSON, adaptive batching of 8 within 1 ms", workload.add_sub_v2_json),
        ),
    ),
    Framework(
        "kserve",
        "KServe",
        ("kserve >= 0.21", *_MODEL),
        "/v2/models/add_sub/infer",
        (
            Variant("binary", "V2 binary tensors (its server has no batching)", workload.add_sub_v2_binary_asked_once),
            Variant("json", "V2 JSON", workload.add_sub_v2_json),
        ),
    ),
    Framework(
        "litserve",
        "LitServe",
        ("litserve >= 0.2.19", *_MODEL),
        "/predict",
        (
            Variant("batching-queue-fronts", "JSON, batching of 8 without waiting, fast queue, two HTTP processes", workload.add_sub_json),
            Variant("batching-queue", "the same with one HTTP process", workload.add_sub_json),
            Variant("batching-raw-queue", "the same, reply as raw bytes", workload.add_sub_json_to_raw),
            Variant("batching-wait-queue", "JSON, batching of 8 within 1 ms, fast queue", workload.add_sub_json),
            Variant("batching-wait", "JSON, batching of 8 within 1 ms", workload.add_sub_json),
            Variant("queue", "JSON, no batching, fast queue", workload.add_sub_json),
        ),
        busy_when_idle=True,
    ),
    Framework(
        "ray",
        "Ray Serve",
        ("ray[serve] >= 2.60", *_MODEL),
        "/add_sub",
        (
            Variant("single-throughput-haproxy", "raw bytes, HAProxy, throughput mode, no batching", workload.add_sub_raw),
            Variant("batching-throughput-haproxy", "the same, batching of 8 without waiting", workload.add_sub_raw),
            Variant("batching-wait-throughput-haproxy", "the same, batching of 8 within 1 ms", workload.add_sub_raw),
            Variant("batching-wait-throughput", "the same, its own proxy instead of HAProxy", workload.add_sub_raw),
            Variant("batching-wait", "the same without throughput mode", workload.add_sub_raw),
        ),
        busy_when_idle=True,
    ),
    Framework(
        "mosec",
        "mosec",
        ("mosec >= 0.9.8", "msgpack >= 1.1", *_MODEL),
        "/inference",
        (
            Variant("raw-8-1", "raw bytes, batching of 8 within 1 ms (the least it takes)", workload.add_sub_raw),
            Variant("raw-8-10", "raw bytes, batching of 8 within 10 ms (its default)", workload.add_sub_raw),
            Variant("raw-1-1", "raw bytes, no batching", workload.add_sub_raw),
            Variant("msgpack-8-1", "msgpack, batching of 8 within 1 ms", workload.add_sub_msgpack),
        ),
    ),
)

BY_NAME = {framework.name: framework for framework in FRAMEWORKS}
TENSORFARM, TRITONSERVER = "tensorfarm", "tritonserver"
LABELS = {TENSORFARM: "tensorfarm", TRITONSERVER: "tritonserver", **{framework.name: framework.label for framework in FRAMEWORKS}}
