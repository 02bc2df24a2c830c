"""What a backend is: small protocols that a file in this folder fulfils."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from ..batch import Batch, Memory
from ..contract.messages import Answer, Cancel, Done, Execute, FromWorker, Hold, InstanceSpec, Note, Reply

if TYPE_CHECKING:
    from ..inbox import Inbox
    from ..main_thread import MainThread
    from ..memory import WorkerMemory


class ModelSource:
    """Where a model version lies and how it is configured.

    ``directory`` is the model's directory (the version's is ``directory/version``), ``document`` its
    configuration as JSON, ``settings`` are the backend's command line settings. ``backend_file`` is the path of a
    backend that is itself written in Python. ``spent`` is set once a model's own code has run in this process.
    """

    def __init__(self, directory: str, version: int, document: bytes, settings: dict[str, str], backend_file: str = "") -> None:
        self.directory = directory
        self.version = version
        self.document = document
        self.settings = settings
        self.backend_file = backend_file
        self.spent = False

    def with_document(self, document: bytes) -> ModelSource:
        """The same with another configuration."""
        return ModelSource(self.directory, self.version, document, self.settings, self.backend_file)

    @cached_property
    def config(self) -> Any:
        """The configuration as a ``ModelConfig`` message, of which the interpreters that models bring may know nothing."""
        from ..contract.configuration import parse_document

        return parse_document(self.document)

    def completed(self) -> bytes:
        """The configuration as a document again, with what was changed in the message."""
        if "config" not in self.__dict__:
            return self.document
        from ..contract.configuration import document

        return document(self.config)


class Executor(Protocol):
    """One native model instance; used by one thread."""

    def execute(self, batch: Batch) -> None:
        """Run a batch: read its inputs, mark its times, set its outputs or faults.

        A StatusError raised here fails every request of the batch with it.
        """

    def close(self) -> None:
        """Give the instance's memory back."""


class Runner(Protocol):
    """What an instance's thread runs its batches with: ``BatchRunner`` around an executor, or a backend's own."""

    main: MainThread | None
    """The thread to run in, where that is not to be a new one."""

    voice: Callable[[Done], object] | None
    """What tells the server that a batch has run, where that must come behind all else that is said; None: the instance's socket."""

    def rehearse(self, message: Execute) -> tuple[Done, list[str]]:
        """Execute a batch that the server knows nothing of, to the last response of each of its requests.

        Called in the instance's thread, before ``begin``. The responses are thrown away, their errors returned.
        """

    def begin(self, instance: int, inbox: Inbox) -> None:
        """Called once, in the instance's thread, before its first batch of the server's; ``instance`` is its number."""

    def run(self, message: Execute) -> Done:
        """Execute a batch; never raises, what goes wrong is in the results."""

    def close(self) -> None:
        """Give the instance's memory back."""


class LoadedModel(Protocol):
    """A model version in this process."""

    def runner(self, instance: InstanceSpec, memory: Memory) -> Runner:
        """Create one instance."""

    @property
    def checks(self) -> bool:
        """Has the model a readiness check of its own? Known once its instances are made."""

    def ready(self) -> bool:
        """Does the model say itself that it can be asked? Raises StatusError where its check fails."""

    def close(self) -> None:
        """Give the model's memory back, after its runners are closed."""


@dataclass(slots=True)
class Surroundings:
    """The worker process as a backend may use it.

    ``speak`` sends a message to the server from any thread. The backend sets ``hear``, which gets, in the control
    thread, what the server has to say to a model. ``main`` runs things in the process's main thread.
    """

    memory: WorkerMemory
    main: MainThread
    speak: Callable[[FromWorker], None]
    hear: Callable[[Cancel | Hold | Answer | Reply], None] = lambda message: None


class Backend(Protocol):
    """A kind of model file. All methods raise StatusError with a text fit for a client's eyes."""

    def complete(self, source: ModelSource) -> list[Note]:
        """Fill in what the source's configuration leaves out, in ``source``; return notes for the log."""

    def compare(self, source: ModelSource) -> None:
        """Check a final configuration against the model as ``load`` does, and keep nothing of it; does not run a model's own code."""

    def load(self, source: ModelSource) -> LoadedModel:
        """Open a model version whose configuration is final, and check it against the model."""
