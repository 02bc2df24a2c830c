"""Which method is answered by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..door.restriction import restrictions
from . import health, metadata, model_repository, settings, shared_memory, statistics_method
from .infer import Infer
from .method import UnaryMethod
from .protocol import SERVICE
from .reflection import REFLECTION_SERVICES, Reflection
from .rpc import Receiver, Rpc
from .standard_files import HEALTH
from .stream import StreamInfer

if TYPE_CHECKING:
    from ..service import Service

RESTRICTION_PREFIX = "triton-grpc-protocol-"

_METHODS = {
    f"/{SERVICE}/{name}": method
    for methods in (
        health.METHODS,
        metadata.METHODS,
        statistics_method.METHODS,
        model_repository.METHODS,
        shared_memory.METHODS,
        settings.METHODS,
    )
    for name, method in methods.items()
} | {f"/{HEALTH}.Health/{name}": method for name, method in health.STANDARD.items()}

Begin = Callable[[Rpc], Receiver]
"""Begins a call: gives what takes its messages, or raises StatusError."""


def handlers(service: Service, rules: Mapping[str, tuple[str, str]]) -> dict[str, Begin]:
    """What begins the calls of each method, by path. ``rules``: category → (key, value), as ``--grpc-restricted-protocol`` gives them."""
    found = restrictions(rules, RESTRICTION_PREFIX)
    begins: dict[str, Begin] = {path: UnaryMethod(service, method, found.get(method.category)).begin for path, method in _METHODS.items()}
    begins |= {f"/{name}/ServerReflectionInfo": Reflection for name in REFLECTION_SERVICES}
    begins[f"/{SERVICE}/ModelInfer"] = Infer(service, found.get("inference")).begin
    begins[f"/{SERVICE}/ModelStreamInfer"] = StreamInfer(service, found.get("inference")).begin
    return begins
