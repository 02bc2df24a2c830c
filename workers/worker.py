"""The worker process: a bag of model instances under the server's orders."""

from __future__ import annotations

import importlib
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import heap
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
    Extend,
    Failed,
    Fault,
    ForDevice,
    FromWorker,
    Hold,
    Inspect,
    Inspected,
    InstanceSpec,
    LifelineMessage,
    Load,
    Loaded,
    Note,
    Reply,
    Return,
    Shrink,
    Stop,
    ToWorker,
    Unload,
    Unloaded,
)
from .contract.status import StatusError, internal, invalid, unavailable
from .device_tasks import DeviceTasks
from .instance import Instance
from .main_thread import MainThread
from .memory import WorkerMemory
from .thread import WorkerThread
from .warmup import samples_of

BACKENDS = {"onnxruntime": ".backends.onnxruntime", "python": ".backends.python"}
"""The module of each backend; each has a ``backend(surroundings)`` that makes its ``Backend``."""

CLOSE_TIMEOUT_SECS = 30.0

_NOTHING = ModelSource("", 0, b"{}", {})


@dataclass(slots=True, eq=False)
class _Model:
    """A model from the moment its Load arrives; ``source`` is as its last Load or Extend had it.

    What is to be done with it is done one after the other: ``last`` is set once what came last has been done, well or not.
    """

    source: ModelSource
    loaded: LoadedModel | None = None
    instances: list[Instance] = field(default_factory=list)
    last: threading.Event | None = None


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
        self._device_tasks = DeviceTasks(memory, voice.send)

    def handle(self, message: ToWorker) -> bool:
        """Carry out a control message; False when the worker is to end."""
        if isinstance(message, Return):
            for offset in message.offsets:
                self._memory.free_offset(offset)
        elif isinstance(message, Answer | Reply | Cancel | Hold):
            self._surroundings.hear(message)
        elif isinstance(message, Inspect):
            self._start(message.task, self._inspect, message)
        elif isinstance(message, Load):
            # Known from here on, so that what overtakes the loading waits for it.
            model = self._models[message.model] = _Model(_source(message))
            self._start_in_turn(model, self._load, message)
        elif isinstance(message, Extend | Shrink | Unload):
            self._start_in_turn(self._models.get(message.model) or _Model(_NOTHING), self._changed, message)
        elif isinstance(message, Check):
            self._start(message.task, self._check, message)
        elif isinstance(message, ForDevice):
            self._device_tasks.take(message)
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
            answer: FromWorker
            try:
                answer = work(message)
            except StatusError as error:
                answer = Failed(task, Fault(error.code, error.message))
            except Exception as error:  # noqa: BLE001
                # A model file can make a backend raise anything; it must not cost the other models their worker.
                # Its words are for the log only: they may name paths.
                traceback.print_exc()
                answer = Failed(task, Fault(internal("").code, f"the backend failed with {type(error).__name__}"))
            if isinstance(answer, Failed) and isinstance(message, Load):
                # Here, where no frame holds anything of the model any more.
                with heap.returning():
                    pass
            self._voice.send(answer)

        WorkerThread(run, f"task-{task}").start()

    def _start_in_turn(self, model: _Model, work: Callable[[_Model, Any], FromWorker], message: Load | Extend | Shrink | Unload) -> None:
        """Start what is to be done with a model behind what came before it."""
        before, model.last = model.last, threading.Event()
        done = model.last

        def in_turn(message: Any) -> FromWorker:
            if before is not None:
                before.wait()
            try:
                return work(model, message)
            finally:
                done.set()

        self._start(message.task, in_turn, message)

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
        else:
            backend.compare(source)
            samples_of(source)
        return Inspected(message.task, source.completed(), notes, source.spent)

    def _load(self, model: _Model, message: Load) -> FromWorker:
        try:
            loaded = self._backend(message.backend).load(model.source)
            try:
                self._add_instances(model, loaded, message.instances)
            except BaseException:
                loaded.close()
                raise
        except BaseException:
            self._models.pop(message.model, None)
            raise
        model.loaded = loaded
        return Loaded(message.task, loaded.checks)

    def _changed(self, model: _Model, message: Extend | Shrink | Unload) -> FromWorker:
        if isinstance(message, Extend):
            return self._extend(model, message)
        return self._shrink(model, message) if isinstance(message, Shrink) else self._unload(model, message)

    def _extend(self, model: _Model, message: Extend) -> FromWorker:
        if model.loaded is None:
            raise unavailable("the model is not loaded in this worker")
        model.source = model.source.with_document(message.config)
        self._add_instances(model, model.loaded, message.instances)
        return Loaded(message.task, model.loaded.checks)

    def _add_instances(self, model: _Model, loaded: LoadedModel, specs: Sequence[InstanceSpec]) -> None:
        """Create instances and warm them up: all of them, or none."""
        made: list[Instance] = []
        try:
            for spec in specs:
                runner = loaded.runner(spec, self._memory)
                made.append(Instance(spec.number, spec.name, runner, self._make_instance_channel, self._token))
            del runner
            samples = samples_of(model.source)
            for instance in made:
                instance.start(samples)
            for instance in made:
                instance.wait_warm()
        except BaseException:
            for instance in made:
                instance.abandon()
            raise
        for instance in made:
            instance.open()
        model.instances += made

    def _check(self, message: Check) -> FromWorker:
        model = self._models.get(message.model)
        loaded = None if model is None else model.loaded
        return Checked(message.task, loaded is not None and loaded.ready())

    def _shrink(self, model: _Model, message: Shrink) -> FromWorker:
        with heap.returning():
            self._end_instances(model, [instance for instance in model.instances if instance.number in message.instances])
        return Unloaded(message.task)

    def _unload(self, model: _Model, message: Unload) -> FromWorker:
        self._models.pop(message.model, None)
        with heap.returning():
            self._end_instances(model, model.instances)
            if model.loaded is not None:
                model.loaded.close()
                model.loaded = None
        self._memory.give_back()
        return Unloaded(message.task)

    def _end_instances(self, model: _Model, leaving: Sequence[Instance]) -> None:
        """Wait for instances that have been told to close."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_SECS
        stuck = [instance.name for instance in leaving if not instance.join(max(0.0, deadline - time.monotonic()))]
        if stuck:
            raise internal(f"{', '.join(stuck)} did not end within {CLOSE_TIMEOUT_SECS:g} s; the model's memory is not given back")
        model.instances = [instance for instance in model.instances if instance not in leaving]


def _source(message: Inspect | Load) -> ModelSource:
    return ModelSource(message.directory, message.version, message.config, message.settings, message.backend_file)
