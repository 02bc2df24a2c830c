"""Which method is answered by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from ..door.restriction import restrictions
from . import health, metadata, model_repository, settings, shared_memory, statistics_method
from .infer import Infer
from .method import UnaryMethod, UnaryReply, reply
from .protocol import SERVICE
from .reflection import REFLECTION_SERVICES, Reflection
from .rpc import Receiver, Rpc
from .standard_files import HEALTH
from .stream import StreamInfer

if TYPE_CHECKING:
    from ..inference_service import InferenceService
    from ..service import Service

RESTRICTION_PREFIX = "triton-grpc-protocol-"

METHODS = {
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
"""The unary methods that are no inference, by path."""

Begin = Callable[[Rpc], Receiver]
"""Begins a call: gives what takes its messages, or raises StatusError."""


def unary_replies(service: Service) -> dict[str, UnaryReply]:
    """What answers each unary method that is no inference, by path: the service itself."""
    return {path: partial(reply, service, method) for path, method in METHODS.items()}


def handlers(service: InferenceService, rules: Mapping[str, tuple[str, str]], replies: Mapping[str, UnaryReply]) -> dict[str, Begin]:
    """What begins the calls of each method, by path.

    ``rules``: category → (key, value), as ``--grpc-restricted-protocol`` gives them. ``replies``: as ``unary_replies`` gives them.
    """
    found = restrictions(rules, RESTRICTION_PREFIX)
    begins: dict[str, Begin] = {path: UnaryMethod(replies[path], found.get(method.category)).begin for path, method in METHODS.items()}
    begins |= {f"/{name}/ServerReflectionInfo": Reflection for name in REFLECTION_SERVICES}
    begins[f"/{SERVICE}/ModelInfer"] = Infer(service, found.get("inference")).begin
    begins[f"/{SERVICE}/ModelStreamInfer"] = StreamInfer(service, found.get("inference")).begin
    return begins
