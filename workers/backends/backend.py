"""What a backend is: three small protocols that a file in this folder fulfils."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

from ..batch import Batch
from ..contract.messages import InstanceSpec, Note


class ModelSource:
    """Where a model version lies and how it is configured.

    ``directory`` is the model's directory (the version's is ``directory/version``), ``document`` its
    configuration as JSON, ``settings`` are the backend's command line settings.
    """

    def __init__(self, directory: str, version: int, document: bytes, settings: dict[str, str]) -> None:
        self.directory = directory
        self.version = version
        self.document = document
        self.settings = settings

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
    """One model instance; used by one thread."""

    def execute(self, batch: Batch) -> None:
        """Run a batch: read its inputs, mark its times, set its outputs or faults.

        A StatusError raised here fails every request of the batch with it.
        """

    def close(self) -> None:
        """Give the instance's memory back."""


class LoadedModel(Protocol):
    """A model version in this process."""

    def executor(self, instance: InstanceSpec) -> Executor:
        """Create one instance."""

    def close(self) -> None:
        """Give the model's memory back, after its executors are closed."""


class Backend(Protocol):
    """A kind of model file. Both methods raise StatusError with a text fit for a client's eyes."""

    def complete(self, source: ModelSource) -> list[Note]:
        """Fill in what ``source.config`` leaves out, in place; return notes for the log."""

    def load(self, source: ModelSource) -> LoadedModel:
        """Open a model version whose configuration is final, and check it against the model."""
