"""Inputs that a model answers with: they stay where they lie, if their owner keeps them and the model has not touched them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensorfarm.shm.placement import Inline, Lease
from tensorfarm.workers.contract.messages import Done, RequestBody, RequestContext, Tensor
from tensorfarm.workers.python import triton_python_backend_utils as pb
from tensorfarm.workers.python.request import InferenceRequest

from .test_execution import Stage, stage

__all__ = ["stage"]

CONTENT = np.arange(64 * 1024, dtype=np.int32)


def body(place: Lease, lends: bool = True) -> RequestBody:
    return RequestBody("", 1, [Tensor("IN", "INT32", (len(CONTENT),), place)], [], {}, RequestContext(lends=lends))


def answer(stage: Stage, change: Any, lends: bool = True) -> tuple[Lease, Tensor]:
    """The input's place, and the output of a model that answers with what ``change`` makes of its input."""

    def work(requests: list[InferenceRequest]) -> list[pb.InferenceResponse]:
        return [pb.InferenceResponse([pb.Tensor("OUT", change(request.inputs()[0].as_numpy()))]) for request in requests]

    stage.show(work)
    place = stage.world.leased(CONTENT.tobytes())
    done: Done = stage.run(body(place, lends))
    result = done.results[0]
    assert result is not None and result.fault is None
    return place, result.outputs[0]


def read(stage: Stage, tensor: Tensor) -> np.ndarray[Any, np.dtype[np.int32]]:
    assert not isinstance(tensor.place, Inline)
    return np.frombuffer(bytes(stage.world.content(tensor.place)), np.int32)


@pytest.mark.parametrize(("part", "expected"), [(slice(None), (0, 65536)), (slice(20_000, 60_000), (80_000, 40_000))])
def test_what_is_untouched_stays(stage: Stage, part: slice, expected: tuple[int, int]) -> None:
    place, output = answer(stage, lambda array: array[part])
    offset, count = expected
    assert output.place == Lease(place.arena, place.offset + offset, 4 * count)
    assert output.shape == (count,)
    assert (read(stage, output) == CONTENT[part]).all()
    assert stage.world.outputs.used_byte_size == 0


def test_what_is_small_rides_in_the_message(stage: Stage) -> None:
    _, output = answer(stage, lambda array: array[:100])
    assert isinstance(output.place, Inline)


def written(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array[-1] = 7
    return array


@pytest.mark.parametrize("change", [written, lambda array: array + 0, lambda array: array[::2], lambda array: array.reshape(2, -1).T])
def test_what_is_not_the_input_is_copied(stage: Stage, change: Any) -> None:
    place, output = answer(stage, change)
    assert isinstance(output.place, Lease) and output.place.arena == stage.world.outputs.number
    assert (read(stage, output).reshape(output.shape) == change(CONTENT.copy())).all()
    assert (np.frombuffer(bytes(stage.world.content(place)), np.int32) == CONTENT).all()


def test_what_nobody_keeps_is_copied(stage: Stage) -> None:
    place, output = answer(stage, lambda array: array, lends=False)
    assert isinstance(output.place, Lease) and output.place.arena != place.arena


def test_what_lies_in_the_workers_own_arena_is_copied(stage: Stage) -> None:
    """As an output it would be given back to the worker, and by its owner as well."""
    stage.show(lambda requests: [pb.InferenceResponse([pb.Tensor("OUT", request.inputs()[0].as_numpy())]) for request in requests])
    place = stage.world.memory.reserve(CONTENT.nbytes)
    stage.world.memory.view(place)[:] = CONTENT.tobytes()
    result = stage.run(body(place)).results[0]
    assert result is not None and isinstance(result.outputs[0].place, Lease)
    assert result.outputs[0].place.arena == place.arena and result.outputs[0].place.offset != place.offset
    stage.world.memory.free(place)
