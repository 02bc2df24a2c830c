"""Models that load at their first request, asked over gRPC."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from ..model_repository import PLAIN, SIMPLE, Flavour, write_repository
from .grpc_farm import Answers, GrpcFarm, grpc_farm, tensor

NAMES = (PLAIN.name, SIMPLE.name)
PLACE = "--lazy-model-count=1"
"""There is room for one of them, so each request for the other one loads it."""


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcFarm]:
    """A server with two models and room for one."""
    root = tmp_path_factory.mktemp("grpc-lazy")
    repository = write_repository(root / "models", (PLAIN, SIMPLE), Flavour.ONNX)
    with grpc_farm(repository, "--model-control-mode=lazy", PLACE, folder=root / "server") as running:
        yield running


def _inputs(name: str, value: int) -> list[object]:
    values = np.full((1, 16) if name == SIMPLE.name else (16,), value, np.int32)
    return [tensor(f"INPUT{at}", values, "INT32") for at in (0, 1)]


def test_unary_calls_wait_for_their_models(farm: GrpcFarm) -> None:
    with farm.client() as client:
        for value, name in enumerate(NAMES * 3):
            assert set(client.infer(name, _inputs(name, value)).as_numpy("OUTPUT0").flat) == {2 * value}
            assert client.get_model_metadata(name).name == name
        with pytest.raises(InferenceServerException, match="Request for unknown model: 'nope' is not found"):
            client.infer("nope", _inputs(PLAIN.name, 1))
    assert not farm.under_way()


def test_requests_of_a_stream_wait_for_their_models_in_order(farm: GrpcFarm) -> None:
    answers = Answers()
    with farm.client() as client:
        client.start_stream(answers)
        for value, name in zip(range(20), itertools.cycle(NAMES)):
            client.async_stream_infer(name, _inputs(name, value), request_id=f"r{value}")
        for value in range(20):
            result = answers.result()
            assert result.get_response().id == f"r{value}"
            assert set(result.as_numpy("OUTPUT0").flat) == {2 * value}
        client.stop_stream()
    assert not farm.under_way()
