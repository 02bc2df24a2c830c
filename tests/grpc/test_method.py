"""Unary methods: one message in, one out, whatever the handler does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from tritonclient.grpc import service_pb2

from tensorfarm.server.door.restriction import Restriction, restrictions
from tensorfarm.server.grpc.method import Method, UnaryMethod, reply
from tensorfarm.workers.contract.status import not_found
from tests.http.doors import run, until

from .doors import Methods, Reply, a_grpc_client, a_grpc_door, message, messages_in

Handler = Callable[[Any, Any, bool], Any]


def answer(handler: Handler, *contents: bytes, rule: Restriction | None = None, more: tuple[tuple[str, str], ...] = ()) -> Reply:
    """What a client of a method hears."""
    found: list[Reply] = []

    async def scenario() -> None:
        method = UnaryMethod(partial(reply, cast(Any, None), Method("health", service_pb2.ModelReadyRequest, handler)), rule)
        async with a_grpc_door(Methods(m=method.begin)) as door, a_grpc_client(door) as client:
            found.append(await client.call("/m", b"".join(map(message, contents)), *more))

    run(scenario)
    return found[0]


def named(service: Any, request: Any, local: bool) -> Any:
    return service_pb2.ServerMetadataResponse(name=request.name)


async def _later(request: Any) -> Any:
    await asyncio.sleep(0)
    return service_pb2.ServerMetadataResponse(name=request.name)


REQUEST = service_pb2.ModelReadyRequest(name="é").SerializeToString()


def test_one_message_is_answered_by_one() -> None:
    for handler in (named, lambda service, request, local: _later(request)):
        heard = answer(handler, REQUEST)
        ((_, content),) = messages_in(heard.content)
        assert heard.status == (0, "") and service_pb2.ServerMetadataResponse.FromString(content).name == "é"


def test_other_counts_of_messages() -> None:
    assert answer(named).status == (13, "no message in a unary call")
    for count in (2, 3, 10):
        assert answer(named, *[REQUEST] * count).status == (13, "more than one message in a unary call")


def test_bytes_that_are_no_message() -> None:
    assert answer(named, b"\x0a\x05a").status == (13, "Unable to parse request")
    assert answer(named, b"\x0a\x01\xff").status == (13, "Unable to parse request")


def test_errors_of_a_handler() -> None:
    def refuse(service: Any, request: Any, local: bool) -> Any:
        raise not_found("no 100% é\n")

    assert answer(refuse, REQUEST).status == (5, "no 100%25 %C3%A9%0A")
    assert answer(lambda service, request, local: 1 // 0, REQUEST).status == (13, "internal error")


def test_a_restricted_method() -> None:
    (rule,) = restrictions({"health": ("key", "value")}, "triton-grpc-protocol-").values()
    text = "This protocol is restricted, expecting header 'triton-grpc-protocol-key'"
    key = "triton-grpc-protocol-key"
    assert answer(named, REQUEST, rule=rule, more=((key, "value"),)).status == (0, "")
    for more in ((), ((key, ""),), ((key, "bad"),), ((key, "bad"), (key, "value")), (("key", "value"),)):
        assert answer(named, REQUEST, rule=rule, more=more).status == (14, text)


def test_a_handler_whose_client_goes_is_cancelled() -> None:
    cancelled: list[bool] = []

    async def forever(request: Any) -> Any:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def scenario() -> None:
        begun: list[bool] = []

        def handler(service: Any, request: Any, local: bool) -> Any:
            begun.append(True)
            return forever(request)

        method = UnaryMethod(partial(reply, cast(Any, None), Method("health", service_pb2.ModelReadyRequest, handler)), None)
        async with a_grpc_door(Methods(m=method.begin)) as door, a_grpc_client(door) as client:
            number = client.open("/m")
            await client.send(number, message(REQUEST))
            await until(lambda: bool(begun))
            await asyncio.sleep(0)
            client.state.reset_stream(number)
            await client.flush()
            await until(lambda: bool(cancelled))

    run(scenario)
