"""The door as a whole: TLS, an end that lets calls finish, and how many may come."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tensorfarm.server.admission import Admission
from tensorfarm.server.grpc.keep_alive import KeepAliveSettings
from tensorfarm.server.grpc.limits import Limits
from tensorfarm.server.grpc.listener import keep_alive_settings
from tensorfarm.workers.contract.status import StatusError
from tests.certificates import Authority, Pair
from tests.http.doors import an_arena, run, until
from tests.http.tls_doors import tls_of_pair

from .doors import Methods, a_grpc_client, a_grpc_door, message, messages_in, options


def test_over_tls(authority: Authority, server_pair: Pair) -> None:
    content = bytes(range(256)) * 8000

    async def scenario() -> None:
        with an_arena() as arena:
            async with a_grpc_door(Methods(), arena, tls=tls_of_pair(server_pair)) as door:
                async with a_grpc_client(door, authority.client(alpn=("h2",))) as client:
                    reply = await client.call("/echo", message(content) + message(b"x"))
                    assert reply.status == (0, "") and messages_in(reply.content) == [(0, content + b"x")]
                    assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() in ("h2", None)

    run(scenario)


def test_over_tls_a_client_that_goes_in_the_middle(authority: Authority, server_pair: Pair) -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods()
            async with a_grpc_door(methods, arena, tls=tls_of_pair(server_pair)) as door:
                async with a_grpc_client(door, authority.client()) as client:
                    number = client.open("/silent")
                    await client.send(number, message(bytes(1_000_000))[:200_000], end=False)
                    await until(lambda: arena.used_byte_size > 0)
                await until(lambda: arena.used_byte_size == 0 and methods.begun[0].has_gone)

    run(scenario)


def test_over_tls_for_clients_with_certificates(authority: Authority, server_pair: Pair, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "stranger").pair("stranger")

    async def scenario() -> None:
        async with a_grpc_door(Methods(), tls=tls_of_pair(server_pair, authority.root)) as door:
            async with a_grpc_client(door, authority.client(authority.pair("client"))) as client:
                assert (await client.call("/echo", message(b"x"))).status == (0, "")
            for own in (None, stranger):
                with pytest.raises((ConnectionError, OSError)):
                    async with a_grpc_client(door, authority.client(own)) as refused:
                        await refused.call("/echo", message(b"x"))

    run(scenario)


def test_calls_under_way_are_answered_before_the_end() -> None:
    async def scenario() -> None:
        methods = Methods()
        async with a_grpc_door(methods) as door, a_grpc_client(door) as busy, a_grpc_client(door) as idle:
            number = busy.open("/silent")
            await busy.send(number, message(b"x"))
            assert (await idle.call("/echo", message(b"x"))).status == (0, "")
            await until(lambda: bool(methods.begun) and methods.begun[0].has_ended)
            assert door.answering_count == 1
            port = door.port
            door.stop_accepting()
            await idle.end_of_server()
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port)
            await busy.until(lambda: busy.terminated is not None)
            methods.begun[0].rpc.reply((b"done",), lambda: None)
            assert messages_in((await busy.reply(number)).content) == [(0, b"done")]
            await busy.end_of_server()
            assert door.answering_count == 0

    run(scenario)


def test_at_the_end_every_call_is_told() -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods()
            async with a_grpc_door(methods, arena) as door, a_grpc_client(door) as client:
                numbers = [client.open("/silent") for _ in range(3)]
                await client.send(numbers[0], message(b"x"))
                await client.send(numbers[1], message(bytes(100_000))[:1000], end=False)
                await until(lambda: len(methods.begun) == 3)
                closing = asyncio.ensure_future(door.close())
                for number in numbers:
                    assert (await client.reply(number)).status == (14, "Server exiting")
                await closing
                assert all(begun.has_gone for begun in methods.begun)

    run(scenario)


def test_there_are_only_so_many_connections() -> None:
    async def scenario() -> None:
        async with a_grpc_door(Methods(), limits=Limits(connections=2)) as door:
            async with a_grpc_client(door) as first, a_grpc_client(door) as second:
                for client in (first, second):
                    assert (await client.call("/echo", message(b"x"))).status == (0, "")
                async with a_grpc_client(door) as third:
                    with pytest.raises(OSError):
                        await third.call("/echo", message(b"x"))
                assert (await first.call("/echo", message(b"x"))).status == (0, "")

    run(scenario)


def test_a_port_that_is_taken() -> None:
    async def scenario() -> None:
        async with a_grpc_door(Methods()) as door:
            other = type(door)(door_service(), None, None)
            with pytest.raises(StatusError):
                await other.start("127.0.0.1", door.port, False)

    run(scenario)


def door_service() -> Any:
    """What a door asks of the service before there are calls."""
    return SimpleNamespace(options=options(), arena=None, admission=Admission())


def test_flags_are_in_milliseconds() -> None:
    given = options(
        grpc_keepalive_time=7,
        grpc_keepalive_timeout=8,
        grpc_max_connection_age=9,
        grpc_max_connection_age_grace=10,
        grpc_http2_max_ping_strikes=3,
    )
    assert keep_alive_settings(given) == KeepAliveSettings(0.007, 0.008, False, 2, 300, 3, 0.009, 0.01)
