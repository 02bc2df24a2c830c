"""A model's Python file: found, imported, and its hooks called."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import os
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from ..backends.backend import ModelSource
from ..contract.backends import CPU_ONLY, keeps_to_cpu
from ..contract.messages import InstanceSpec
from ..contract.status import StatusError, internal, invalid, unavailable
from ..states import states_of
from . import triton_python_backend_utils
from .failure import failure_text
from .fresh_source import FreshSource, import_anew
from .model_config import ModelConfig
from .places import Places
from .request import InferenceRequest

READY_CHECK_TIMEOUT_SECS = 5.0

_API_NAMES = ("triton_python_backend_utils", "c_python_backend_utils")
_KINDS = {"KIND_CPU": "CPU", "KIND_GPU": "GPU", "KIND_MODEL": "MODEL"}


def model_file(source: ModelSource, config: dict[str, Any]) -> str:
    """The path of the Python file that a model runs. Raises StatusError where there is none."""
    if source.backend_file:
        return source.backend_file
    folder = os.path.join(source.directory, str(source.version))
    name = config.get("default_model_filename") or "model.py"
    if not name.endswith(".py"):
        raise internal(f"Model name must end with '.py'. Model name is \"{name}\".")
    path = os.path.join(folder, name)
    if not os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep):
        raise invalid(f"model file '{name}' leaves the folder of version {source.version} of model '{config.get('name', '')}'")
    if not os.path.isfile(path):
        raise internal(f"Python model file not found in '{path}'.")
    return path


def model_class(source: ModelSource, config: dict[str, Any]) -> Any:
    """Import a model's file and return its ``TritonPythonModel``. Raises StatusError INTERNAL with what Python says."""
    path = model_file(source, config)
    for name in _API_NAMES:
        sys.modules[name] = triton_python_backend_utils
    import_anew(source.directory)
    if source.backend_file:
        import_anew(os.path.dirname(path))
        sys.path.append(os.path.dirname(path))
    else:
        sys.path += [os.path.join(source.directory, str(source.version)), source.directory]
    stem = os.path.splitext(os.path.basename(path))[0]
    name = stem
    if not source.backend_file:
        # The module sits in a package called like the version, so that `from . import x` finds its neighbours.
        package = types.ModuleType(str(source.version))
        package.__path__ = [os.path.dirname(path)]
        sys.modules[package.__name__] = package
        name = f"{source.version}.{stem}"

    def imported() -> Any:
        spec = importlib.util.spec_from_file_location(name, path, loader=FreshSource(name, path))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    module = attempted(imported)
    if source.backend_file and callable(getattr(module, "initialize", None)):
        attempted(lambda: module.initialize({"backend_name": config["backend"], "backend_config": json.dumps(source.settings)}))
    return attempted(lambda: module.TritonPythonModel)


def attempted(work: Callable[[], Any]) -> Any:
    """What a hook returns. Raises StatusError INTERNAL with the words of whatever it raises."""
    try:
        return work()
    except StatusError:
        raise
    except BaseException as error:
        raise internal(failure_text(error)) from error


def completed(source: ModelSource) -> bytes:
    """The configuration as the model's ``auto_complete_config`` leaves it. Raises StatusError."""
    config = json.loads(source.document)
    complete = getattr(model_class(source, config), "auto_complete_config", None)
    if complete is None:
        return source.document
    source.spent = True
    returned = attempted(lambda: complete(ModelConfig(source.document.decode())))
    if not isinstance(returned, ModelConfig):
        raise internal(f"auto_complete_config function in model '{config['name']}' must return a valid pb.ModelConfig object.")
    return json.dumps(returned.as_dict()).encode()


def cpu_only(document: bytes) -> bool:
    """Does a model take its inputs in ordinary memory, wherever they lie? All do that do not say otherwise."""
    parameter = json.loads(document).get("parameters", {}).get(CPU_ONLY, {})
    return keeps_to_cpu(parameter.get("string_value"))


def _reshapes(config: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of outputs with a ``reshape``: the shape that the model gives, and the dims that clients get."""
    return {
        output["name"]: (tuple(output["reshape"]["shape"]), tuple(output["dims"]))
        for output in config.get("output", ())
        if "reshape" in output
    }


class Unimplemented(Exception):
    """A model lacks a hook that it must have."""


class PythonModel:
    """A model in this process, initialised. Raises StatusError where it cannot be."""

    def __init__(self, source: ModelSource, instance: InstanceSpec) -> None:
        config = json.loads(source.document)
        self.name = str(config["name"])
        self.instance = instance.name
        self.decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        self.output_names = frozenset(output["name"] for output in config.get("output", ()))
        self.reshapes = _reshapes(config)
        self.batching = config.get("max_batch_size", 0) > 0
        sequences = config.get("sequence_batching")
        self.iterative = bool(sequences and sequences.get("iterative_sequence"))
        rows = self.batching and sequences is not None and "oldest" not in sequences
        self.places = None if sequences is None else Places(states_of(config, source.directory), self.batching, rows)
        self._file = model_file(source, config)
        made = model_class(source, config)
        self._model = attempted(lambda: made())
        self._check_lock = threading.Lock()
        self._checking: threading.Thread | None = None
        self._initialized = False
        arguments = {
            "model_config": source.document.decode(),
            "model_instance_kind": _KINDS.get(instance.kind, instance.kind),
            "model_instance_name": instance.name,
            "model_instance_device_id": str(instance.device),
            "model_repository": source.directory,
            "model_version": str(source.version),
            "model_name": self.name,
        }
        if hasattr(self._model, "initialize"):
            attempted(lambda: self._model.initialize(arguments))
        self._initialized = True
        self.checks = hasattr(self._model, "is_ready")
        self._execute = getattr(self._model, "execute", None)

    def execute(self, requests: list[InferenceRequest]) -> Any:
        """What the model's ``execute`` returns. Raises what it raises."""
        if self._execute is not None:
            return self._execute(requests)
        raise Unimplemented(f"Python model {self._file} does not implement `execute` method.")

    def ready(self) -> bool:
        """What the model's ``is_ready`` says. Raises StatusError where it fails or takes too long."""
        check = getattr(self._model, "is_ready", None)
        if check is None:
            return True
        outcome: list[Any] = []

        def run() -> None:
            try:
                said = check()
                outcome.append(asyncio.run(said) if inspect.iscoroutine(said) else said)
            except BaseException as error:  # noqa: BLE001
                # A model's own code; whoever asked is told.
                outcome.append(internal(failure_text(error)))

        with self._check_lock:
            # One that hangs is not asked again beside itself.
            if self._checking is None or not self._checking.is_alive():
                self._checking = threading.Thread(target=run, name="is_ready", daemon=True)
                self._checking.start()
            self._checking.join(READY_CHECK_TIMEOUT_SECS)
        if not outcome:
            raise unavailable(f"the readiness check of '{self.instance}' took longer than {READY_CHECK_TIMEOUT_SECS:g} s")
        if isinstance(outcome[0], StatusError):
            raise outcome[0]
        if not isinstance(outcome[0], bool):
            raise internal("is_ready() must return a boolean value")
        return outcome[0]

    def finalize(self) -> None:
        """Let the model clean up. What it raises is logged."""
        if not self._initialized or not hasattr(self._model, "finalize"):
            return
        try:
            self._model.finalize()
        except BaseException as error:  # noqa: BLE001
            # A model's own code, and the last of it.
            triton_python_backend_utils.Logger.log_info(failure_text(error))

    def log_error(self, text: str) -> None:
        """A line for the server's log."""
        triton_python_backend_utils.Logger.log_error(text)
