"""The Python backend: models that are a ``model.py`` with a class ``TritonPythonModel``, one instance in a process."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..batch import Memory
from ..contract.messages import Answer, Cancel, Hold, InstanceSpec, Note, Reply
from ..contract.status import internal
from ..python import host
from ..python.calls import Calls
from ..python.execution import Execution
from ..python.memory import ModelMemory
from ..python.module import PythonModel, completed, cpu_only
from ..title import set_title
from .backend import ModelSource, Surroundings


class PythonBackend:
    """Loads one model with one instance: what it does to its process is nobody else's concern."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings

    def complete(self, source: ModelSource) -> list[Note]:
        """Have the model's ``auto_complete_config`` fill in its configuration. Raises StatusError."""
        surroundings = self._surroundings
        name = os.path.basename(source.directory)
        calls = Calls(surroundings.speak, surroundings.memory, ModelMemory(surroundings.memory), name, _directory(source))
        host.current = calls
        surroundings.hear = _hearing(calls, None)
        source.document = surroundings.main.call(lambda: completed(source))
        return []

    def compare(self, source: ModelSource) -> None:
        """Only a model's own code knows what it takes and gives."""

    def load(self, source: ModelSource) -> LoadedPythonModel:
        """Note what to load: the model's own code runs when its instance is made."""
        return LoadedPythonModel(source, self._surroundings)


class LoadedPythonModel:
    """A model version in this process."""

    def __init__(self, source: ModelSource, surroundings: Surroundings) -> None:
        self._source = source
        self._surroundings = surroundings
        self._model: PythonModel | None = None

    def runner(self, instance: InstanceSpec, memory: Memory) -> Execution:
        """Import the model and initialise it. Raises StatusError INTERNAL with what it raises."""
        if self._model is not None:
            raise internal("a process holds one instance of a Python model")
        surroundings = self._surroundings
        model_memory = ModelMemory(surroundings.memory, cpu_only=cpu_only(self._source.document))
        calls = Calls(surroundings.speak, surroundings.memory, model_memory, instance.name, _directory(self._source))
        host.current = calls

        surroundings.hear = _hearing(calls, None)
        model = self._model = surroundings.main.call(lambda: _titled(self._source, instance))
        execution = Execution(model, surroundings.memory, model_memory, calls, surroundings.speak, surroundings.main)
        surroundings.hear = _hearing(calls, execution)
        calls.open = True
        return execution

    @property
    def checks(self) -> bool:
        """Does the model define ``is_ready``?"""
        return self._model is not None and self._model.checks

    def ready(self) -> bool:
        """What the model's own check says. Raises StatusError."""
        return self._model is not None and self._model.ready()

    def close(self) -> None:
        """Its process ends, and its memory with it."""


def _titled(source: ModelSource, instance: InstanceSpec) -> PythonModel:
    set_title(os.path.basename(source.directory))
    return PythonModel(source, instance)


def _hearing(calls: Calls, execution: Execution | None) -> Callable[[Cancel | Hold | Answer | Reply], None]:
    """What gets the server's words to a model; ``execution`` is there once batches may come."""

    def hear(message: Cancel | Hold | Answer | Reply) -> None:
        if isinstance(message, Answer):
            calls.answered(message)
        elif isinstance(message, Reply):
            calls.replied(message)
        elif execution is None:
            return
        elif isinstance(message, Hold):
            execution.hold(message)
        else:
            execution.cancel(message)

    return hear


def _directory(source: ModelSource) -> str:
    return os.path.join(source.directory, str(source.version))


def backend(surroundings: Surroundings) -> PythonBackend:
    """Make the backend."""
    return PythonBackend(surroundings)
