"""Warm-up in real worker processes: before an instance is ready, after each restart, of Python models in all their forms."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tensorfarm.workers.contract.messages import Answer, Call, Fault, Result
from tensorfarm.workers.contract.status import Code, StatusError

from .harness import CONFIG, PATIENCE_S, House, run
from .test_python_workers import LATE, SEAT, load, python_model

SAMPLE = """
model_warmup { name: "s" batch_size: 2 count: %d
  inputs { key: "IN0" value { data_type: TYPE_INT32 dims: 20000 random_data: true } }
  inputs { key: "IN1" value { data_type: TYPE_INT32 dims: 3 zero_data: true } } }
"""
WARM = SAMPLE % 2
DECOUPLED = "model_transaction_policy { decoupled: true }" + LATE + SAMPLE % 1

MODEL = """
import threading
import numpy as np
import triton_python_backend_utils as pb_utils

def answer(wide=40000):
    return pb_utils.InferenceResponse([pb_utils.Tensor("SUM", np.zeros((1, wide), np.int32))])

def failure(text):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))

class TritonPythonModel:
    def execute(self, requests):
        print("ran", len(requests), sorted(tensor.name() for tensor in requests[0].inputs()), requests[0].request_id(), flush=True)
        {body}
"""


def model(body: str) -> str:
    return MODEL.replace("{body}", body)


def ran(house: House) -> int:
    return sum(line.startswith("ran 2 ['IN0', 'IN1']") for _, line in house.lines)


def test_native_instances(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load(config=CONFIG + SAMPLE.replace("20000", "3") % 2, instances=2)
        assert sorted(number for number, _ in house.warmed) == [100, 101] == sorted(house.ready)
        for _, (warmed,) in house.warmed:
            assert (warmed.batch_size, warmed.execution_count) == (2, 2) and warmed.infer_ns > 0
        await house.check(served)
        house.process().kill()
        await house.until(lambda: len(house.ready) == 4, "the instances to be back")
        assert len(house.warmed) == 4
        await house.check(served)

    run(tmp_path, work)


def test_a_sample_that_fails(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        # The two inputs differ in width, which the model cannot add.
        with pytest.raises(
            StatusError, match="^failed to run warmup sample 's': onnx runtime error .*; onnx runtime error .*; $"
        ) as raised:
            await house.load(config=CONFIG + WARM, instances=2)
        assert raised.value.code is Code.INVALID_ARG
        assert house.ready == house.warmed == [] and house.farm.seats["cpu"].holdings == {}
        # The worker that saw it fail goes on.
        await house.check(await house.load())

    run(tmp_path, work)


@pytest.mark.parametrize(
    ("config", "body"),
    [
        (LATE + WARM, "return [answer() for _ in requests]"),
        (LATE + WARM, "[request.get_response_sender().send(answer(), 1) for request in requests]"),
        (DECOUPLED, "[request.get_response_sender().send(answer(), flags) for request in requests for flags in (0, 0, 1)]"),
        (DECOUPLED, "return self.beside(requests)\n    async def beside(self, requests):\n        [request.get_response_sender().send(None, 1) for request in requests]"),
        (
            DECOUPLED,
            "senders = [request.get_response_sender() for request in requests]\n"
            "        threading.Timer(0.2, lambda: [sender.send(None if flags else answer(), flags) for sender in senders for flags in (0, 1)]).start()",
        ),
    ],
    ids=["returned", "sent", "streamed", "beside", "late"],
)  # fmt: skip
def test_python_models(tmp_path: Path, config: str, body: str) -> None:
    async def work(house: House) -> None:
        served = python_model(house, model(body), config)
        times = 1 if config is DECOUPLED else 2
        await load(house, served)
        ((_, (warmed,)),) = house.warmed
        assert (warmed.batch_size, warmed.execution_count) == (2, times)
        await house.until(lambda: ran(house) == times, "the model's words")
        assert house.responses == [], "what it answered is thrown away"
        house.process(SEAT).kill()
        await house.until(lambda: len(house.ready) == 2, "the instance to be back")
        assert len(house.warmed) == 2 and house.responses == []

    run(tmp_path, work)


@pytest.mark.parametrize(
    ("config", "body", "errors"),
    [
        (LATE + WARM, "return [failure('bad'), answer()]", "bad; "),
        (LATE + WARM, "raise ValueError('boom')", "Failed to process the request(s) for model 'm_0', message: ValueError: boom"),
        (DECOUPLED, "[request.get_response_sender().send(failure(text), flags) for request in requests for text, flags in (('a', 0), ('b', 1))]", "a; b; a; b; "),
        (DECOUPLED, "[request.get_response_sender() for request in requests]", "has dropped a request's response sender"),
        (LATE + WARM, "return [None for _ in requests]", "returned no response to a request"),
    ],
    ids=["error", "raises", "streamed", "dropped", "none"],
)  # fmt: skip
def test_python_models_that_fail(tmp_path: Path, config: str, body: str, errors: str) -> None:
    async def work(house: House) -> None:
        with pytest.raises(StatusError) as raised:
            await load(house, python_model(house, model(body), config))
        assert raised.value.code is Code.INVALID_ARG
        assert raised.value.message.startswith("failed to run warmup sample 's': ") and errors in raised.value.message
        assert house.ready == [] and house.responses == []
        await house.until(lambda: ran(house) == 1, "the model's words: the first that fails ends it")

    run(tmp_path, work)


def test_a_model_that_calls_others_while_it_is_warmed_up(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        body = """
        inputs = [pb_utils.Tensor("X", np.zeros(3, np.int32))]
        said = pb_utils.InferenceRequest(model_name="other", requested_output_names=["Y"], inputs=inputs).exec()
        return [failure(said.error().message()) for _ in requests]
        """
        loading = asyncio.ensure_future(load(house, python_model(house, model(body.strip()), LATE + SAMPLE % 1)))
        await house.until(lambda: any(isinstance(one, Call) for one in house.said), "the model's call")
        (call,) = [one for one in house.said if isinstance(one, Call)]
        assert (call.model, call.batch, call.instance) == ("other", 0, 0), "nothing of the server's waits for it"
        house.process(SEAT).answer(call.instance, Answer(call.call, 0, Result([], {}, Fault(Code.INTERNAL, "not now")), True))
        with pytest.raises(StatusError, match="^failed to run warmup sample 's': not now; not now; $"):
            await asyncio.wait_for(loading, PATIENCE_S)

    run(tmp_path, work)
