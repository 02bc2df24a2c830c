"""The worker process: a bag of model instances under the server's orders."""

from __future__ import annotations

import importlib
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .backends.backend import Backend, LoadedModel, ModelSource
from .channel import ControlChannel, InstanceChannel
from .contract.configuration import parse_bytes
from .contract.messages import (
    Attach,
    Detach,
    Failed,
    Fault,
    FromWorker,
    Inspect,
    Inspected,
    LifelineMessage,
    Load,
    Loaded,
    Return,
    Stop,
    ToWorker,
    Unload,
    Unloaded,
)
from .contract.status import StatusError, internal, invalid
from .instance import Instance
from .memory import WorkerMemory

BACKENDS = {"onnxruntime": ".backends.onnxruntime"}
"""The module of each native backend; each has a ``backend()`` that makes its ``Backend``."""

CLOSE_TIMEOUT_SECS = 30.0


@dataclass(slots=True)
class _Model:
    loaded: LoadedModel
    instances: list[Instance] = field(default_factory=list)


class Worker:
    """Handles control messages; loading runs in a thread per task, so that a slow model delays nobody."""

    def __init__(
        self, control: ControlChannel, make_instance_channel: Callable[[], InstanceChannel], memory: WorkerMemory, token: bytes
    ) -> None:
        self._control = control
        self._make_instance_channel = make_instance_channel
        self._memory = memory
        self._token = token
        self._backends: dict[str, Backend] = {}
        self._backends_lock = threading.Lock()
        self._models: dict[int, _Model] = {}

    def handle(self, message: ToWorker) -> bool:
        """Carry out a control message; False when the worker is to end."""
        if isinstance(message, Return):
            for offset in message.offsets:
                self._memory.free_offset(offset)
        elif isinstance(message, Inspect):
            self._start(message.task, self._inspect, message)
        elif isinstance(message, Load):
            self._start(message.task, self._load, message)
        elif isinstance(message, Unload):
            self._start(message.task, self._unload, message)
        elif isinstance(message, Stop):
            return False
        return True

    def handle_lifeline(self, message: LifelineMessage, fd: int | None) -> None:
        """Carry out a message that came over the lifeline (in the lifeline's thread)."""
        if isinstance(message, Attach) and fd is not None:
            self._memory.attach(message.region, fd, message.offset, message.byte_size)
        elif isinstance(message, Detach):
            self._memory.detach(message.region)

    def _start(self, task: int, work: Callable[[Any], FromWorker], message: ToWorker) -> None:
        def run() -> None:
            try:
                answer = work(message)
            except StatusError as error:
                answer = Failed(task, Fault(error.code, error.message))
            except Exception as error:  # noqa: BLE001
                # A model file can make a backend raise anything; it must not cost the other models their worker.
                traceback.print_exc()
                answer = Failed(task, Fault(internal("").code, f"the backend failed with {type(error).__name__}: {error}"))
            self._control.send(answer)

        threading.Thread(target=run, name=f"task-{task}", daemon=True).start()

    def _backend(self, name: str) -> Backend:
        with self._backends_lock:
            backend = self._backends.get(name)
            if backend is None:
                module = BACKENDS.get(name)
                if module is None:
                    raise invalid(
                        f"unable to find backend library for backend '{name}', try specifying runtime on the model configuration."
                    )
                backend = self._backends[name] = importlib.import_module(module, __package__).backend()
            return backend

    def _inspect(self, message: Inspect) -> FromWorker:
        config = parse_bytes(message.config)
        notes: list[str] = []
        backend = self._backend(message.backend)
        if message.complete:
            notes = backend.complete(ModelSource(message.directory, message.version, config, message.settings))
        return Inspected(message.task, config.SerializeToString(), notes)

    def _load(self, message: Load) -> FromWorker:
        source = ModelSource(message.directory, message.version, parse_bytes(message.config), message.settings)
        model = _Model(self._backend(message.backend).load(source))
        try:
            for spec in message.instances:
                executor = model.loaded.executor(spec)
                model.instances.append(Instance(spec.number, spec.name, executor, self._memory, self._make_instance_channel, self._token))
        except BaseException:
            model.loaded.close()
            raise
        self._models[message.model] = model
        for instance in model.instances:
            instance.start()
        return Loaded(message.task)

    def _unload(self, message: Unload) -> FromWorker:
        model = self._models.pop(message.model, None)
        if model is not None:
            for instance in model.instances:
                instance.join(CLOSE_TIMEOUT_SECS)
            model.loaded.close()
        return Unloaded(message.task)
