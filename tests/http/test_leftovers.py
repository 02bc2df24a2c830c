"""What has ended is gone at once, body and all: nothing is left for the collector, which comes by once in thousands of requests."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.workers.contract.status import Code, StatusError, unavailable

from .doors import Client, a_client, a_door, an_arena, run, until
from .echo_service import EchoService, echo_signature, spec
from .test_infer_packing import post, served

SMALL = json.dumps({"inputs": [{"name": "IN", "datatype": "INT32", "shape": [4], "data": [1, 2, 3, 4]}]}).encode()
CUT_OFF = SMALL[:-40] + b"1," * 100_000
"""Long, so that it is read in turns, and no JSON."""


class QuietService(EchoService):
    """Keeps its requests, and answers those that are cancelled as the queue does."""

    def submit(self, version: Any, request: Request) -> None:
        self.submitted.append(request)

    def cancel(self, version: Any, request: Request) -> None:
        self.cancelled += 1
        self.submitted.remove(request)
        answer(request, StatusError(Code.CANCELLED, ""))


def answer(request: Request, error: StatusError) -> None:
    assert request.on_finish is not None
    request.on_finish()
    request.on_response(Response(request, [], error=error))


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left() -> list[object]:
    """The requests, responses, and outcomes of reading that anything still knows."""
    kinds = ("Request", "Response", "_Exchange", "_LongReading", "StatusError", "_Job", "Call")
    return [one for one in gc.get_objects() if type(one).__name__ in kinds and type(one).__module__.startswith("tensorfarm.")]


async def reset(client: Client, service: EchoService) -> None:
    await client.send(post(SMALL))
    await until(lambda: len(service.submitted) == 1)
    client.reset()
    await until(lambda: service.cancelled == 1)


async def refused_by_the_model(client: Client, service: EchoService) -> None:
    await client.send(post(SMALL))
    await until(lambda: len(service.submitted) == 1)
    answer(service.submitted.pop(), unavailable("no"))
    assert (await client.reply())[0] == 503


async def refused_after_a_while(client: Client, service: EchoService) -> None:
    await client.send(post(CUT_OFF))
    assert (await client.reply())[0] >= 400


@pytest.mark.parametrize("happening", [reset, refused_by_the_model, refused_after_a_while])
def test_nothing_is_left_of(happening: Any) -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            service = QuietService({"m": echo_signature("m", [spec("IN", "INT32", -1)])}, arena=arena)
            async with a_door(served(service), arena) as door, a_client(door) as client:
                before = len(left())
                await happening(client, service)
                await until(lambda: len(left()) == before)

    run(scenario)
