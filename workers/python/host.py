"""What the objects that a model sees ask of the process they live in.

The objects (tensor, request, response, sender, metrics, log) know no sockets and no arenas; the process
(``execution.py``, ``calls.py``) implements these protocols and sets ``current`` before a model is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...shm.placement import Placement
from ..contract.messages import Question

if TYPE_CHECKING:
    from ..device_memory import DeviceMemory
    from .device_block import DeviceBlock
    from .request import InferenceRequest
    from .response import InferenceResponse

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class InputMemory(Protocol):
    """Where the tensors that a model gets lie."""

    def bytes_of(self, place: Placement) -> Bytes:
        """A placement's bytes as a flat, writable array of uint8 that is the model's alone: what is written to it nobody else sees.

        Small ones are a copy, large ones shared pages that are copied when written to.
        Raises StatusError where a client's region is not what it was.
        """
        ...

    def device_block(self, place: Placement) -> DeviceBlock | None:
        """A placement in a GPU's memory, where the model is to have it there: what it writes to it others see. None for all others.

        Raises StatusError as ``bytes_of`` does.
        """
        ...


class Responder(Protocol):
    """Answers one request that this process is executing, from any thread."""

    taken: bool
    """Has the model asked for its response sender?"""

    def send(self, response: InferenceResponse | None, flags: int) -> None:
        """Send a response, the end of responses (flag 1), or both. Raises TritonModelException where the order is broken."""
        ...

    def dropped(self) -> None:
        """The sender is gone: nobody can answer the request any more. Called wherever Python may run a finalizer."""
        ...

    def is_cancelled(self) -> bool:
        """Has the client gone?"""
        ...


class Host(Protocol):
    """The process around a model."""

    model_directory: str
    """The folder that holds the model file."""

    instance_name: str
    """The name of the model's instance, as errors give it."""

    verbose: bool
    """Does the server's log take verbose lines?"""

    def call(self, request: InferenceRequest, decoupled: bool) -> InferenceResponse | Iterator[InferenceResponse]:
        """Run an inference request with another model, and wait for its response; ``decoupled``: an iterator over its responses.

        Failures of the inference are responses with an error. Raises TritonModelException where a model may not call others.
        """
        ...

    def ask(self, question: Question) -> bool | int | float | None:
        """Ask the server something and wait for its reply; ``question.question`` is filled in. Raises StatusError."""
        ...

    def tell(self, message: Any) -> None:
        """Send the server a Measure, Forget or Say; nothing comes back."""
        ...

    def device(self, ordinal: int) -> DeviceMemory:
        """The GPU that a model has handed over a tensor on, opened. Raises TritonModelException where it cannot be used."""
        ...


current: Host | None = None
"""The host of this process: None where the module is imported outside a server."""


def required() -> Host:
    """The host. Raises RuntimeError outside a worker."""
    if current is None:
        raise RuntimeError("triton_python_backend_utils works inside a model that a server runs")
    return current
