"""The worker process: a bag of model instances under the server's orders."""

from __future__ import annotations

import importlib
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .backends.backend import Backend, LoadedModel, ModelSource, Surroundings
from .channel import InstanceChannel, VoiceChannel
from .contract.messages import (
    Adopt,
    Answer,
    Attach,
    Cancel,
    Check,
    Checked,
    Detach,
    Disown,
    Failed,
    Fault,
    FromWorker,
    Inspect,
    Inspected,
    LifelineMessage,
    Load,
    Loaded,
    Note,
    Reply,
    Return,
    Stop,
    ToWorker,
    Unload,
    Unloaded,
)
from .contract.status import StatusError, internal, invalid
from .instance import Instance
from .main_thread import MainThread
from .memory import WorkerMemory
from .thread import WorkerThread

BACKENDS = {"onnxruntime": ".backends.onnxruntime", "python": ".backends.python"}
"""The module of each backend; each has a ``backend(surroundings)`` that makes its ``Backend``."""

CLOSE_TIMEOUT_SECS = 30.0


@dataclass(slots=True, eq=False)
class _Model:
    """A model from the moment its Load arrives; ``settled`` once its loading has ended, well or not."""

    loaded: LoadedModel | None = None
    instances: list[Instance] = field(default_factory=list)
    settled: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Handles control messages; loading runs in a thread per task, so that a slow model delays nobody."""

    def __init__(
        self,
        voice: VoiceChannel,
        make_instance_channel: Callable[[], InstanceChannel],
        memory: WorkerMemory,
        main: MainThread,
        token: bytes,
    ) -> None:
        self._voice = voice
        self._make_instance_channel = make_instance_channel
        self._memory = memory
        self._token = token
        self._backends: dict[str, Backend] = {}
        self._backends_lock = threading.Lock()
        self._models: dict[int, _Model] = {}
        self._surroundings = Surroundings(memory, main, voice.send)

    def handle(self, message: ToWorker) -> bool:
        """Carry out a control message; False when the worker is to end."""
        if isinstance(message, Return):
            for offset in message.offsets:
                self._memory.free_offset(offset)
        elif isinstance(message, Answer | Reply | Cancel):
            self._surroundings.hear(message)
        elif isinstance(message, Inspect):
            self._start(message.task, self._inspect, message)
        elif isinstance(message, Load):
            # Known from here on, so that an Unload which overtakes the loading waits for it.
            self._models[message.model] = _Model()
            self._start(message.task, self._load, message)
        elif isinstance(message, Unload):
            self._start(message.task, self._unload, message)
        elif isinstance(message, Check):
            self._start(message.task, self._check, message)
        elif isinstance(message, Stop):
            return False
        return True

    def handle_lifeline(self, message: LifelineMessage, fd: int | None) -> None:
        """Carry out a message that came over the lifeline (in the lifeline's thread)."""
        if isinstance(message, Attach):
            self._memory.attach(message.region, fd, message.offset, message.byte_size)
        elif isinstance(message, Detach):
            self._memory.detach(message.region)
        elif isinstance(message, Adopt):
            self._memory.adopt(message.arena, fd)
        elif isinstance(message, Disown):
            self._memory.disown(message.arena)

    def _start(self, task: int, work: Callable[[Any], FromWorker], message: ToWorker) -> None:
        def run() -> None:
            try:
                answer = work(message)
            except StatusError as error:
                answer = Failed(task, Fault(error.code, error.message))
            except Exception as error:  # noqa: BLE001
                # A model file can make a backend raise anything; it must not cost the other models their worker.
                # Its words are for the log only: they may name paths.
                traceback.print_exc()
                answer = Failed(task, Fault(internal("").code, f"the backend failed with {type(error).__name__}"))
            self._voice.send(answer)

        WorkerThread(run, f"task-{task}").start()

    def _backend(self, name: str) -> Backend:
        with self._backends_lock:
            backend = self._backends.get(name)
            if backend is None:
                module = BACKENDS.get(name)
                if module is None:
                    raise invalid(
                        f"unable to find backend library for backend '{name}', try specifying runtime on the model configuration."
                    )
                backend = self._backends[name] = importlib.import_module(module, __package__).backend(self._surroundings)
            return backend

    def _inspect(self, message: Inspect) -> FromWorker:
        source = _source(message)
        notes: list[Note] = []
        backend = self._backend(message.backend)
        if message.complete:
            notes = backend.complete(source)
        return Inspected(message.task, source.completed(), notes, source.spent)

    def _load(self, message: Load) -> FromWorker:
        model = self._models[message.model]
        try:
            source = _source(message)
            model.loaded = self._backend(message.backend).load(source)
            self._make_instances(model, model.loaded, message)
            for instance in model.instances:
                instance.start()
        except BaseException:
            self._models.pop(message.model, None)
            raise
        finally:
            model.settled.set()
        return Loaded(message.task, model.loaded.checks)

    def _make_instances(self, model: _Model, loaded: LoadedModel, message: Load) -> None:
        try:
            for spec in message.instances:
                runner = loaded.runner(spec, self._memory)
                model.instances.append(Instance(spec.number, spec.name, runner, self._make_instance_channel, self._token))
        except BaseException:
            for instance in model.instances:
                instance.abandon()
            loaded.close()
            raise

    def _check(self, message: Check) -> FromWorker:
        model = self._models.get(message.model)
        loaded = None if model is None else model.loaded
        return Checked(message.task, loaded is not None and loaded.ready())

    def _unload(self, message: Unload) -> FromWorker:
        model = self._models.pop(message.model, None)
        if model is not None:
            model.settled.wait()
            deadline = time.monotonic() + CLOSE_TIMEOUT_SECS
            stuck = [instance.name for instance in model.instances if not instance.join(max(0.0, deadline - time.monotonic()))]
            if stuck:
                raise internal(f"{', '.join(stuck)} did not end within {CLOSE_TIMEOUT_SECS:g} s; the model's memory is not given back")
            if model.loaded is not None:
                model.loaded.close()
        return Unloaded(message.task)


def _source(message: Inspect | Load) -> ModelSource:
    return ModelSource(message.directory, message.version, message.config, message.settings, message.backend_file)
