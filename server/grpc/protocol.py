"""The messages of the protocol's gRPC service.

Source: Triton's ``grpc_service.proto``, as generated code in the tritonclient package.
"""

from __future__ import annotations

import builtins
import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

from ...workers.contract.configuration import generated_spec, model_config
from ...workers.contract.status import Code, StatusError

_GENERATED = "tritonclient.grpc.service_pb2"
_PACKAGE = "tritonclient.grpc"


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """What the generated module imports by: its package, all of the client and grpcio, is not to be run for one module in it."""
    if name == _PACKAGE and tuple(fromlist or ()) == ("model_config_pb2",):
        return SimpleNamespace(model_config_pb2=model_config)
    return builtins.__import__(name, globals, locals, fromlist, level)


def _generated_module() -> Any:
    """As that of ``configuration``: the generated file by itself, kept out of ``sys.modules``."""
    if _GENERATED in sys.modules:
        return sys.modules[_GENERATED]
    spec = generated_spec(_GENERATED)
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


messages: Any = _generated_module()
"""The generated module: every message class of the service."""

SERVICE = "inference.GRPCInferenceService"


class Unparsable(StatusError):
    """Bytes that are not the message that a method takes."""

    def __init__(self) -> None:
        super().__init__(Code.INTERNAL, "Unable to parse request")
