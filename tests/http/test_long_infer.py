"""Inference with long JSON: read and written in turns with everybody else's requests."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from tensorfarm.server.dispatch.request import Request
from tensorfarm.server.door.body import ArenaBody
from tensorfarm.server.door.scratch import NO_MEMORY
from tensorfarm.server.http import infer as infer_module
from tensorfarm.server.http import turns
from tensorfarm.server.http.exchange import Head, HttpRequest, Reply
from tensorfarm.server.http.inference import infer_guarded
from tensorfarm.server.http.long_reply import LongReply
from tensorfarm.server.http.turns import Steps
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
    served_others: list[bool] = []
    real = turns._Turns._turn

    def counted(self: Any, loop: asyncio.AbstractEventLoop) -> None:
        if turns_taken and not served_others:
            # However long the others' bytes take on their way.
            loop.call_soon(counted, self, loop)
            return
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
                served_others.append(True)
                status, _, content = await first.reply()
                assert status == 200
                assert json.loads(content)["outputs"][0]["data"] == NUMBERS
                assert len(turns_taken) > STEPS + COUNT // 4096
                assert service.released == 1

    run(scenario)


@pytest.mark.parametrize("phase", ["read", "written"])
def test_a_client_that_goes_meanwhile(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[bool] = []
    real = LongReply.steps

    def waiting(self: LongReply) -> Steps[Reply]:
        while not gone:
            yield
        return (yield from real(self))

    monkeypatch.setattr(LongReply, "steps", waiting)

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
                gone.append(True)
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


# what the short way sees to, and this one must too


def with_members(**members: Any) -> bytes:
    return json.dumps({**members, "inputs": [{"name": "IN", "datatype": "INT32", "shape": [COUNT], "data": NUMBERS}]}).encode()


def ask_once(service: EchoService, content: bytes, *headers: bytes) -> tuple[int, bytes]:
    replies: list[tuple[int, bytes]] = []

    async def scenario() -> None:
        async with a_door(served(service), service.arena) as door, a_client(door) as client:
            await client.send(post(content, *headers))
            status, _, body = await client.reply()
            replies.append((status, body))

    run(scenario)
    return replies[0]


def test_priority_and_timeout_count() -> None:
    with an_arena() as arena:
        service = echo_service(arena)
        assert ask_once(service, with_members(parameters={"priority": 3, "timeout": 7000}))[0] == 200
    assert [(request.priority, request.timeout_us) for request in service.submitted] == [(3, 7000)]


def test_forwarded_headers_become_parameters() -> None:
    with an_arena() as arena:
        service = echo_service(arena)
        service.forward_pattern = "x-.*"
        assert ask_once(service, with_members(), b"X-Who: me")[0] == 200
    assert service.submitted[0].body.parameters == {"X-Who": "me"}


def test_regions_are_not_for_everybody() -> None:
    """Who may not share memory with the server does not reach a region this way either."""
    output = {"name": "OUT", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 4 * COUNT}}
    content = with_members(outputs=[output])
    with an_arena() as arena:
        service = echo_service(arena)
        service.regions_by_name = {"r": 7}
        service.remote_shm = False
        replies: list[Reply] = []
        block = arena.reserve(len(content))
        block.view[: len(content)] = content

        async def scenario() -> None:
            infer_guarded(service, "m", "", HttpRequest(Head("POST", "/"), ArenaBody(block, len(content)), 0, False), replies.append)  # type: ignore[arg-type]
            await until(lambda: bool(replies))

        run(scenario)
    assert replies[0].status == 404 and b"Unable to find shared memory region" in bytes(replies[0].body[0])
    assert not service.submitted


def test_a_client_that_goes_while_its_request_waits_cancels_it() -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            service = echo_service(arena)
            waiting: list[Request] = []
            service.submit = lambda version, request: waiting.append(request)  # type: ignore[method-assign]
            async with a_door(served(service), arena) as door, a_client(door) as client:
                await client.send(post(CONTENT))
                await until(lambda: bool(waiting))
                client.reset()
                await until(lambda: service.cancelled == 1)
                assert waiting[0].on_finish is not None
                waiting[0].on_finish()

    run(scenario)


def test_a_long_reply_that_cannot_be_written_gives_its_outputs_back() -> None:
    with an_arena() as arena:
        service = echo_service(arena)
        inner = service.run

        def wrong(body: RequestBody) -> Result:
            made = inner(body).outputs[0]
            return Result([Tensor(made.name, made.datatype, (COUNT + 1,), made.place)])

        service.run = wrong
        status, body = ask_once(service, CONTENT)
    assert (status, service.released) == (500, 1)
    assert b"output tensor shape does not match size of output" in body


def test_what_fails_at_the_end_is_answered_and_given_back() -> None:
    """Whatever happens between the last piece and the queue."""
    reported: list[object] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context.get("exception")))
        with an_arena() as arena:
            service = echo_service(arena)
            service.refuse = KeyError("a defect")
            async with a_door(served(service), arena) as door, a_client(door) as client:
                await client.send(post(CONTENT))
                status, _, body = await client.reply()
                assert (status, body) == (500, b'{"error":"internal error"}')
                await until(lambda: arena.used_byte_size == 0)

    run(scenario)
    assert [type(one) for one in reported] == [KeyError]


@pytest.mark.parametrize(
    "content",
    [
        with_members(parameters={str(number): 1 for number in range(200_000)}),
        with_members(unknown=[{}] * 600_000),
        json.dumps({"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1] * 600_000, "data": [1]}]}).encode(),
    ],
    ids=["parameters", "unknown member", "dims"],
)
def test_what_cannot_be_read_in_pieces_is_bounded(content: bytes) -> None:
    with an_arena() as arena:
        status, body = ask_once(echo_service(arena), content)
    assert status == 400
    assert body == b'{"error":"request JSON apart from the data of its tensors exceeds the maximum allowed size of 1048576 bytes"}'
