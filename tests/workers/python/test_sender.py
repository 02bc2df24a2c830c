from __future__ import annotations

import gc
from typing import Any

import pytest

from tensorfarm.workers.python.errors import TritonModelException
from tensorfarm.workers.python.response import InferenceResponse
from tensorfarm.workers.python.sender import InferenceResponseSender

from .fake_host import FakeResponder


def test_responses_and_their_end() -> None:
    responder = FakeResponder()
    sender = InferenceResponseSender(responder)
    response = InferenceResponse()
    sender.send(response)
    sender.send(response=response, flags=1)
    sender.send(flags=1)
    assert responder.sent == [(response, 0), (response, 1), (None, 1)]
    assert not sender.is_cancelled()
    responder.cancelled = True
    assert sender.is_cancelled()


def test_its_end_is_told() -> None:
    responder = FakeResponder()
    sender = InferenceResponseSender(responder)
    assert responder.drops == 0
    del sender
    gc.collect()
    assert responder.drops == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((None, 5), "Unable to send response. Unsupported flag provided."),
        ((InferenceResponse(), 2), "Unable to send response. Unsupported flag provided."),
        ((), "Inference Response object must be provided when the response flags is set to zero."),
    ],
)
def test_what_cannot_be_sent(arguments: tuple[Any, ...], text: str) -> None:
    responder = FakeResponder()
    with pytest.raises(TritonModelException) as raised:
        InferenceResponseSender(responder).send(*arguments)
    assert str(raised.value) == text and responder.sent == []


@pytest.mark.parametrize("arguments", [(5,), ("x", 1), (None, "1"), (None, -1)])
def test_other_types(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="incompatible"):
        InferenceResponseSender(FakeResponder()).send(*arguments)


def test_nobody_to_respond_to() -> None:
    sender = InferenceResponseSender(None)
    assert not sender.is_cancelled()
    with pytest.raises(TritonModelException, match="has no reference to the decoupled state of the model"):
        sender.send(flags=1)
