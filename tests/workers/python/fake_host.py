"""Doubles for the process around a model: memory of its own, a host and a responder that note what they are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from tensorfarm.shm.placement import Inline, Placement
from tensorfarm.workers.contract import messages
from tensorfarm.workers.contract.status import StatusError
from tensorfarm.workers.device_memory import DeviceMemory
from tensorfarm.workers.python.host import Bytes
from tensorfarm.workers.python.request import InferenceRequest
from tensorfarm.workers.python.response import InferenceResponse
from tensorfarm.workers.python.tensor import Tensor


@dataclass
class FakeMemory:
    """Gives a copy of what rides in the message, and counts how often."""

    asked: int = 0

    def bytes_of(self, place: Placement) -> Bytes:
        self.asked += 1
        assert isinstance(place, Inline)
        return np.frombuffer(bytearray(place.content), np.uint8)

    def device_block(self, place: Placement) -> None:
        return None


@dataclass
class FakeResponder:
    sent: list[tuple[InferenceResponse | None, int]] = field(default_factory=list)
    cancelled: bool = False
    drops: int = 0
    taken: bool = False

    def dropped(self) -> None:
        self.drops += 1

    def send(self, response: InferenceResponse | None, flags: int) -> None:
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        return self.cancelled


def no_device(ordinal: int) -> DeviceMemory:
    raise AssertionError(f"a test opens GPU {ordinal}")


@dataclass
class FakeHost:
    """Replies with what ``replies`` holds by the type of a question; a fault is raised."""

    model_directory: str = "/models/m/1"
    instance_name: str = "m_0_0"
    verbose: bool = False
    replies: dict[type, bool | int | float | StatusError | None] = field(default_factory=dict)
    asked: list[messages.Question] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)
    called: list[tuple[InferenceRequest, bool]] = field(default_factory=list)
    response: InferenceResponse = field(default_factory=InferenceResponse)
    device: Callable[[int], DeviceMemory] = no_device

    def call(self, request: InferenceRequest, decoupled: bool) -> InferenceResponse | Iterator[InferenceResponse]:
        self.called.append((request, decoupled))
        return iter([self.response]) if decoupled else self.response

    def ask(self, question: messages.Question) -> bool | int | float | None:
        self.asked.append(question)
        reply = self.replies.get(type(question), len(self.asked))
        if isinstance(reply, StatusError):
            raise reply
        return reply

    def tell(self, message: Any) -> None:
        # whatever is told must be fit to travel
        msgspec.msgpack.encode(message)
        self.told.append(message)


def wire(name: str, datatype: str, shape: tuple[int, ...], content: bytes) -> messages.Tensor:
    return messages.Tensor(name, datatype, shape, Inline(memoryview(content)))


def received(name: str, datatype: str, shape: tuple[int, ...], content: bytes) -> tuple[Tensor, FakeMemory]:
    """A tensor as it comes in a message, and the memory it lies in."""
    memory = FakeMemory()
    return Tensor.received(wire(name, datatype, shape, content), memory), memory
