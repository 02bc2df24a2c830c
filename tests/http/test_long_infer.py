"""Inference with long JSON: read and written in turns with everybody else's requests."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from tensorfarm.server.http import infer as infer_module
from tensorfarm.server.http import turns
from tensorfarm.server.http.errors import NO_MEMORY
from tensorfarm.shm.arena import Arena
from tensorfarm.shm.placement import Inline, Lease
from tensorfarm.workers.contract.messages import RequestBody, Result, Tensor

from .doors import a_client, a_door, an_arena, run, until
from .echo_service import EchoService, echo, echo_signature, spec
from .test_infer_packing import post, served

COUNT = 300_000
NUMBERS = (np.arange(COUNT) % 1000).tolist()
CONTENT = json.dumps({"inputs": [{"name": "IN", "datatype": "INT32", "shape": [COUNT], "data": NUMBERS}]}).encode()
PROBE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
STEPS = 2 * len(CONTENT) // (64 * 1024)


@pytest.fixture(autouse=True)
def one_piece_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.0)


def echo_service(arena: Arena, datatype: str = "INT32", dims: tuple[int, ...] = (-1,)) -> EchoService:
    """An echo of tensors that lie in the arena."""

    def run(body: RequestBody) -> Result:
        outputs = []
        for tensor in echo(body).outputs:
            assert type(tensor.place) is Lease
            outputs.append(Tensor(tensor.name, tensor.datatype, tensor.shape, Inline(memoryview(bytes(arena.view(tensor.place))))))
        return Result(outputs)

    return EchoService({"m": echo_signature("m", [spec("IN", datatype, *dims)])}, arena=arena, run=run)


def test_others_are_served_while_a_request_is_read_and_its_reply_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    turns_taken: list[str] = []
    real = turns._Turns._turn

    def counted(self: Any, loop: asyncio.AbstractEventLoop) -> None:
        turns_taken.append("turn")
        real(self, loop)

    monkeypatch.setattr(turns._Turns, "_turn", counted)

    async def scenario() -> None:
        with an_arena() as arena:
            service = echo_service(arena)
            async with a_door(served(service), arena) as door, a_client(door) as first, a_client(door) as second:
                await first.send(post(CONTENT))
                await until(lambda: bool(turns_taken))
                for _ in range(5):
                    await second.send(PROBE)
                    assert (await second.reply())[0] == 200
                assert not service.submitted
                status, _, content = await first.reply()
                assert status == 200
                assert json.loads(content)["outputs"][0]["data"] == NUMBERS
                assert len(turns_taken) > STEPS + COUNT // 4096
                assert service.released == 1

    run(scenario)


@pytest.mark.parametrize("phase", ["read", "written"])
def test_a_client_that_goes_meanwhile(phase: str) -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            service = echo_service(arena)
            async with a_door(served(service), arena) as door, a_client(door) as client:
                await client.send(post(CONTENT))
                await until(lambda: arena.used_byte_size > len(CONTENT) if phase == "read" else bool(service.submitted))
                assert service.released == 0
                # by a reset: an orderly end may still wait for its reply
                client.reset()
                await until(lambda: not door.connection_count)
                await until(lambda: arena.used_byte_size == 0 and service.released == (phase == "written"))
                assert bool(service.submitted) == (phase == "written")

    run(scenario)


def test_several_at_once_and_faults_among_them() -> None:
    faulty = CONTENT.replace(b"999, ", b"999, x", 1)
    misfit = CONTENT.replace(b'"shape": [300000]', b'"shape": [300001]')

    async def scenario() -> None:
        with an_arena() as arena:
            service = echo_service(arena)
            async with a_door(served(service), arena) as door:

                async def ask(content: bytes) -> tuple[int, bytes]:
                    async with a_client(door) as client:
                        await client.send(post(content))
                        status, _, body = await client.reply()
                        await client.send(PROBE)
                        assert (await client.reply())[0] == 200
                        return status, body

                replies = await asyncio.gather(*map(ask, (CONTENT, faulty, misfit, CONTENT)))
            assert [status for status, _ in replies] == [200, 500, 500, 200]
            assert b"Invalid value. at %d" % faulty.index(b"x") in replies[1][1]
            assert b"Shape does not match true shape of 'data' field" in replies[2][1]

    run(scenario)


def test_no_memory_for_the_tensor() -> None:
    async def scenario() -> None:
        with an_arena(3 << 19) as arena:
            service = echo_service(arena)
            async with a_door(served(service), arena) as door, a_client(door) as client:
                content = CONTENT.replace(b" ", b"")
                await client.send(post(content))
                status, _, body = await client.reply()
                assert (status, json.loads(body)["error"]) == (503, NO_MEMORY)

    run(scenario)


def test_unforeseen_failures_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        yield
        raise ZeroDivisionError

    monkeypatch.setattr(infer_module, "read_long_request", fail)
    heard: list[type] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(type(context["exception"])))
        with an_arena() as arena:
            service = echo_service(arena)
            async with a_door(served(service), arena) as door, a_client(door) as client:
                await client.send(post(CONTENT))
                status, _, body = await client.reply()
                assert (status, json.loads(body)) == (500, {"error": "internal error"})

    run(scenario)
    assert heard == [ZeroDivisionError]


def test_the_models_echo_is_what_was_sent() -> None:
    """Strings and nested arrays, through the door and back."""
    elements = [[f"é {index}", 'a"b\\'] for index in range(20_000)]
    text = json.dumps({"inputs": [{"name": "IN", "datatype": "BYTES", "shape": [20_000, 2], "data": elements}]})

    async def scenario() -> None:
        with an_arena() as arena:
            service = echo_service(arena, "BYTES", (-1, -1))
            async with a_door(served(service), arena) as door, a_client(door) as client:
                await client.send(post(text.encode()))
                status, _, content = await client.reply()
                assert status == 200
                assert json.loads(content)["outputs"][0]["data"] == [text for pair in elements for text in pair]

    run(scenario)
