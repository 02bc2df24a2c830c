"""Calls over a real connection: messages however they are cut and packed, and nothing held once they are over."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tensorfarm.server.admission import Admission, AdmissionLimits
from tensorfarm.server.door.body import Body
from tensorfarm.server.grpc import rpc as rpc_module
from tensorfarm.server.grpc.frames import ErrorCode
from tensorfarm.server.grpc.limits import Limits
from tensorfarm.server.grpc.rpc import Rpc
from tensorfarm.workers.contract.status import invalid
from tests.http.doors import an_arena, run, until

from .doors import Methods, Silent, a_grpc_client, a_grpc_door, message, messages_in

RANDOM = random.Random(8).randbytes(3_000_000)
GZIP, DEFLATE = ("grpc-encoding", "gzip"), ("grpc-encoding", "deflate")
CODE = {"OK": 0, "INVALID": 3, "DEADLINE": 4, "EXHAUSTED": 8, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14}


class Keeper(Silent):
    """Keeps the bodies that it gets, until it is gone."""

    def __init__(self, rpc: Rpc) -> None:
        super().__init__(rpc)
        self.bodies: list[Body] = []

    def message(self, body: Body) -> None:
        self.bodies.append(body)

    def gone(self) -> None:
        super().gone()
        while self.bodies:
            self.bodies.pop().release()


def one_echo(reply: Any) -> bytes:
    """The one message of a reply that went well."""
    assert reply.status == (0, ""), reply
    ((flag, content),) = messages_in(reply.content)
    assert flag == 0
    return bytes(content)


# messages


def test_a_message_may_be_cut_anywhere() -> None:
    """Into frames of data, also with empty ones between."""
    content = message(b"abc") + message(b"") + message(b"defghijk")

    async def scenario() -> None:
        methods = Methods()
        async with a_grpc_door(methods) as door, a_grpc_client(door) as client:
            for at in range(len(content) + 1):
                number = client.open("/echo")
                await client.send(number, content[:at], end=False)
                client.state.send_data(number, b"")
                await client.send(number, content[at:])
                assert one_echo(await client.reply(number)) == b"abcdefghijk"
                assert methods.begun[-1].messages == [b"abc", b"", b"defghijk"]
            number = client.open("/echo")
            for at in range(len(content)):
                client.state.send_data(number, content[at : at + 1], end_stream=at == len(content) - 1)
            await client.flush()
            assert one_echo(await client.reply(number)) == b"abcdefghijk"

    run(scenario)


def test_messages_go_where_their_size_belongs() -> None:
    sizes = [0, 1, 4096, 4097, 65_536, 65_537, 300_000, 2_000_000]

    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods()
            async with a_grpc_door(methods, arena) as door, a_grpc_client(door, initial_window_size=2**24) as client:
                reply = await client.call("/echo", b"".join([message(RANDOM[:size]) for size in sizes]))
                assert one_echo(reply) == b"".join([RANDOM[:size] for size in sizes])
                (echo,) = methods.begun
                assert echo.messages == [RANDOM[:size] for size in sizes]
                assert echo.places == ["InlineBody"] * 3 + ["HeldBody"] * 2 + ["ArenaBody"] * 3

    run(scenario)


def test_a_message_that_does_not_end() -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods(keeper=Keeper)
            async with a_grpc_door(methods, arena) as door, a_grpc_client(door) as client:
                for cut_off in (message(b"abc")[:-1], b"\0\0", message(b"abc") + b"\0", message(bytes(100_000))[:70_000]):
                    reply = await client.call("/keeper", cut_off)
                    assert reply.status == (CODE["INTERNAL"], "a message ends before its length")
                    assert methods.begun[-1].has_gone and not methods.begun[-1].has_ended
                assert arena.used_byte_size == 0

    run(scenario)


def test_no_message_and_an_end_without_data() -> None:
    async def scenario() -> None:
        async with a_grpc_door(Methods()) as door, a_grpc_client(door) as client:
            number = client.open("/echo", end=True)
            await client.flush()
            assert one_echo(await client.reply(number)) == b""

    run(scenario)


# compressed messages


@pytest.mark.parametrize(("encoding", "pack"), [(GZIP, gzip.compress), (DEFLATE, zlib.compress)], ids=["gzip", "deflate"])
def test_compressed_messages_keep_their_order(encoding: tuple[str, str], pack: Callable[[bytes], bytes]) -> None:
    """Short ones, long ones, and such as are sent as they are."""
    parts = [RANDOM[:20], RANDOM[:200_000], b"", bytes(5000), RANDOM[:3000], bytes(300_000), b"end"]

    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods()
            async with a_grpc_door(methods, arena) as door, a_grpc_client(door, initial_window_size=2**24) as client:
                for plain in (3, 2):
                    content = b"".join(
                        [message(part) if index % plain == 0 else message(pack(part), True) for index, part in enumerate(parts)]
                    )
                    assert one_echo(await client.call("/echo", content, encoding)) == b"".join(parts)
                    assert methods.begun[-1].messages == parts

    run(scenario)


@pytest.mark.parametrize(
    ("more", "content", "status"),
    [
        ((), message(b"x", True), (CODE["INTERNAL"], "a compressed message in a call that names no compression")),
        (
            (("grpc-encoding", "identity"),),
            message(b"x", True),
            (CODE["INTERNAL"], "a compressed message in a call that names no compression"),
        ),
        ((GZIP,), b"\2" + message(b"x")[1:], (CODE["INTERNAL"], "a compressed message in a call that names no compression")),
        ((("grpc-encoding", "snappy"),), message(b"x", True), (CODE["UNIMPLEMENTED"], "Compression algorithm 'snappy' is not understood")),
        ((GZIP,), message(b"xyz", True), (CODE["INVALID"], "unable to decompress the request body")),
        ((GZIP,), message(b"x" * 5000, True), (CODE["INVALID"], "unable to decompress the request body")),
        ((GZIP,), message(b"", True), (CODE["INVALID"], "nothing to be decompressed")),
        (
            (DEFLATE,),
            message(zlib.compress(bytes(40_000_000)), True),
            (CODE["INVALID"], "Decompressed data size exceeds the maximum allowed value of 16777216 bytes."),
        ),
    ],
)
def test_compressed_messages_that_are_refused(more: tuple[tuple[str, str], ...], content: bytes, status: tuple[int, str]) -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods(keeper=Keeper)
            async with a_grpc_door(methods, arena) as door, a_grpc_client(door) as client:
                reply = await client.call("/keeper", message(b"first") + content + message(b"last"), *more)
                assert reply.status == status
                assert methods.begun[0].has_gone

    run(scenario)


def test_a_plain_message_needs_no_known_encoding() -> None:
    async def scenario() -> None:
        async with a_grpc_door(Methods()) as door, a_grpc_client(door) as client:
            assert one_echo(await client.call("/echo", message(b"abc"), ("grpc-encoding", "snappy"))) == b"abc"

    run(scenario)


def test_what_is_unpacked_counts_and_has_a_limit() -> None:
    """Bytes that wait for the end of their calls are as many as the server takes on, however small they were packed."""
    admission = Admission(AdmissionLimits(byte_size=5_000_000))
    bombs = [zlib.compress(bytes(size), 9) for size in (1_000_000, 900_000)]

    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods(keeper=Keeper)
            async with a_grpc_door(methods, arena, admission=admission) as door, a_grpc_client(door) as client:
                numbers = []
                for index in range(20):
                    numbers.append(client.open("/keeper", DEFLATE))
                    await client.send(numbers[-1], message(bombs[index % 2], True), end=False)
                await client.until(lambda: sum(client.replies[number].over for number in numbers) >= 15)
                assert admission.byte_size <= 5_000_000
                refused = [client.replies[number] for number in numbers if client.replies[number].over]
                assert {reply.status[0] for reply in refused} <= {CODE["UNAVAILABLE"], CODE["INVALID"]}
                for number in numbers:
                    if not client.replies[number].over:
                        client.state.reset_stream(number)
                await client.flush()
                await until(lambda: admission.held_byte_size == 0)

    run(scenario)


def test_only_so_many_messages_wait_behind_a_compressed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_module, "_MOST_WAITING", 50)
    slow = zlib.compress(bytes(16_000_000))

    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods(keeper=Keeper)
            async with a_grpc_door(methods, arena) as door, a_grpc_client(door) as client:
                reply = await client.call("/keeper", message(slow, True) + message(b"") * 10_000, DEFLATE)
                assert reply.status == (CODE["EXHAUSTED"], "too many messages behind a compressed one")
                await until(lambda: methods.begun[0].has_gone and door.admission.held_byte_size == 0)

    run(scenario)


def test_a_reset_while_a_message_is_unpacked() -> None:
    """The thread reads a block of the arena: it is given back when that has ended."""
    slow = zlib.compress(RANDOM)

    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods()
            async with a_grpc_door(methods, arena) as door, a_grpc_client(door) as client:
                for _ in range(5):
                    number = client.open("/silent", DEFLATE)
                    await client.send(number, message(slow, True) + message(RANDOM[:100_000]), end=False)
                    client.state.reset_stream(number)
                    await client.flush()
                await until(lambda: len(methods.begun) == 5 and all(begun.has_gone for begun in methods.begun))
                await until(lambda: arena.used_byte_size == 0)

    run(scenario)


# room


def test_a_message_that_is_too_large_for_the_arena() -> None:
    async def scenario() -> None:
        with an_arena(1 << 20) as arena:
            methods = Methods()
            async with a_grpc_door(methods, arena) as door, a_grpc_client(door) as client:
                number = client.open("/echo")
                await client.send(number, message(b"first") + message(bytes(2_000_000))[:1000], end=False)
                assert (await client.reply(number)).status == (CODE["EXHAUSTED"], "request body is too large")
                assert methods.begun[0].has_gone
            async with a_grpc_door(methods, None) as door, a_grpc_client(door) as client:
                assert (await client.call("/echo", message(bytes(70_000)))).status[0] == CODE["EXHAUSTED"]

    run(scenario)


def test_an_arena_without_room_now() -> None:
    """The client is told when to come again; what did fit is given back."""

    async def scenario() -> None:
        with an_arena(1 << 20) as arena:
            async with a_grpc_door(Methods(), arena) as door, a_grpc_client(door) as client:
                blocks = [arena.reserve(200_000) for _ in range(4)]
                reply = await client.call("/echo", message(RANDOM[:500_000]))
                assert reply.status[0] == CODE["UNAVAILABLE"]
                assert "grpc-retry-pushback-ms" in dict(reply.headers) | dict(reply.trailers)
                for block in blocks:
                    block.release()
                assert arena.used_byte_size == 0

    run(scenario)


def test_a_server_that_holds_too_much_refuses_large_messages() -> None:
    admission = Admission(AdmissionLimits(byte_size=500_000))

    async def scenario() -> None:
        with an_arena() as arena:
            async with a_grpc_door(Methods(), arena, admission=admission) as door, a_grpc_client(door) as client:
                admission.hold(450_000)
                reply = await client.call("/echo", message(RANDOM[:100_000]))
                assert reply.status[0] == CODE["UNAVAILABLE"] and "too many bytes" in reply.status[1]
                admission.let_go(450_000)

    run(scenario)


# ends


def test_a_reset_in_the_middle_of_a_message() -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods(keeper=Keeper)
            async with a_grpc_door(methods, arena) as door, a_grpc_client(door) as client:
                for content in (
                    message(RANDOM[:1_000_000])[:60_000],
                    message(b"x") + b"\0\0",
                    message(bytes(5000)) * 3 + message(bytes(5000))[:4000],
                ):
                    number = client.open("/keeper")
                    await client.send(number, content, end=False)
                    client.state.reset_stream(number)
                    await client.flush()
                await until(lambda: len(methods.begun) == 3 and all(begun.has_gone for begun in methods.begun))
                assert (arena.used_byte_size, door.admission.held_byte_size) == (0, 0)

    run(scenario)


def fail(rpc: Rpc) -> None:
    rpc.fail(invalid("wrong"))


def finish(rpc: Rpc) -> None:
    rpc.finish()


def reply(rpc: Rpc) -> None:
    rpc.reply((b"done",), lambda: None)


@pytest.mark.parametrize("end", [fail, finish, reply])
@pytest.mark.parametrize("packed", [False, True])
def test_a_call_that_ends_while_messages_come(end: Callable[[Rpc], None], packed: bool) -> None:
    """What has come of them, and waits behind a compressed one, is given back."""

    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods()
            async with a_grpc_door(methods, arena) as door, a_grpc_client(door) as client:
                number = client.open("/silent", DEFLATE)
                slow = zlib.compress(RANDOM[:1_000_000])
                content = message(slow, True) + message(RANDOM[:70_000]) * 2 if packed else b""
                await client.send(number, content + message(RANDOM[:200_000])[:100_000], end=False)
                await until(lambda: len(methods.begun) > 0 and arena.used_byte_size > 70_000)
                end(methods.begun[0].rpc)
                assert (await client.reply(number)).over
                await until(lambda: arena.used_byte_size == 0 and door.admission.held_byte_size == 0)

    run(scenario)


@pytest.mark.parametrize("content", [b"", message(b"x"), message(RANDOM[:1_000_000])[:50_000], b"\0\0"])
def test_a_deadline(content: bytes) -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods(keeper=Keeper)
            async with a_grpc_door(methods, arena) as door, a_grpc_client(door) as client:
                number = client.open("/keeper", ("grpc-timeout", "30m"))
                await client.send(number, content, end=False)
                assert (await client.reply(number)).status == (CODE["DEADLINE"], "Deadline Exceeded")
                assert methods.begun[0].has_gone
                assert client.replies[number].reset == ErrorCode.NO_ERROR or client.replies[number].ended

    run(scenario)


def test_a_deadline_that_is_kept() -> None:
    async def scenario() -> None:
        async with a_grpc_door(Methods()) as door, a_grpc_client(door) as client:
            for timeout in ("99999999H", "20m", "1S"):
                assert one_echo(await client.call("/echo", message(b"x"), ("grpc-timeout", timeout))) == b"x"
            await asyncio.sleep(0.03)
            assert one_echo(await client.call("/echo", message(b"x"))) == b"x"
            assert (await client.call("/echo", message(b"x"), ("grpc-timeout", "soon"))).status == (CODE["INTERNAL"], "Bad grpc-timeout")

    run(scenario)


def test_a_message_that_comes_too_slowly() -> None:
    brisk = Limits(sweep_s=0.02, body_idle_s=0.1)

    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods(keeper=Keeper)
            async with a_grpc_door(methods, arena, brisk) as door, a_grpc_client(door) as client:
                number, quiet = client.open("/keeper"), client.open("/silent")
                await client.send(number, message(RANDOM[:1_000_000])[:1000], end=False)
                await client.send(quiet, message(b"x"), end=False)
                assert (await client.reply(number)).status == (CODE["DEADLINE"], "a message did not arrive in time")
                assert arena.used_byte_size == 0 and not client.replies[quiet].over

    run(scenario)


# replies


class Large(Silent):
    """Answers with many bytes that are not to be given back before they have left."""

    size = 1_000_000

    def ended(self) -> None:
        super().ended()
        self.rpc.reply((RANDOM[:7], memoryview(RANDOM)[7 : self.size]), self._release)


async def take_all(client: Any, number: int, large: Large) -> None:
    """The client takes what it has got, and all the rest."""
    client.taking = True
    client.state.acknowledge_received_data(len(client.replies[number].content), number)
    await client.flush()
    assert one_echo(await client.reply(number)) == RANDOM[: large.size]


async def cancel(client: Any, number: int, large: Large) -> None:
    """The client has heard enough."""
    client.state.reset_stream(number)
    await client.flush()


async def go(client: Any, number: int, large: Large) -> None:
    """The client goes."""
    client.writer.transport.abort()


@pytest.mark.parametrize("then", [take_all, cancel, go])
@pytest.mark.parametrize("size", [60_000, 70_000, 1_000_000])
def test_a_client_that_does_not_take_its_reply(
    then: Callable[[Any, int, Large], Awaitable[None]], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is counted, and neither counted nor kept once it is over."""
    monkeypatch.setattr(Large, "size", size)

    async def scenario() -> None:
        methods = Methods(large=Large)
        async with a_grpc_door(methods) as door, a_grpc_client(door, initial_window_size=20_000) as client:
            client.taking = False
            number = client.open("/large")
            await client.send(number, message(b""))
            await client.until(lambda: len(client.replies[number].content) == 20_000)
            assert door.admission.held_byte_size == size + 5 - 20_000
            await then(client, number, methods.begun[0])
            await until(lambda: door.admission.held_byte_size == 0 and methods.begun[0].released == 1)

    run(scenario)


def test_a_reply_that_nobody_takes_is_given_up() -> None:
    """The window stays shut though the connection is alive."""

    async def scenario() -> None:
        methods = Methods(large=Large)
        limits = Limits(sweep_s=0.02, stalled_reply_s=0.1)
        async with a_grpc_door(methods, limits=limits) as door, a_grpc_client(door, initial_window_size=20_000) as client:
            client.taking = False
            number = client.open("/large")
            await client.send(number, message(b""))
            assert (await client.reply(number)).reset == ErrorCode.CANCEL
            assert door.admission.held_byte_size == 0
            await until(lambda: methods.begun[0].released == 1)
            client.taking = True
            assert one_echo(await client.call("/echo", message(b"x"))) == b"x"

    run(scenario)


class Talker(Silent):
    """Sends messages as a test wants them; says when there is room again."""

    def __init__(self, rpc: Rpc) -> None:
        super().__init__(rpc)
        self.room = 0
        rpc.on_room = self._note

    def _note(self) -> None:
        self.room += 1


def test_messages_of_a_stream_wait_for_their_client() -> None:
    async def scenario() -> None:
        methods = Methods(talker=Talker)
        async with a_grpc_door(methods) as door, a_grpc_client(door, initial_window_size=1000) as client:
            client.taking = False
            number = client.open("/talker")
            await client.flush()
            await until(lambda: len(methods.begun) == 1)
            rpc: Rpc = methods.begun[0].rpc
            for index in range(10):
                rpc.write(RANDOM[index * 300 :][:300])
            assert rpc.unsent_byte_size == door.admission.held_byte_size == 10 * 305 - 1000
            assert rpc.unsent_count == 7
            rpc.finish()
            assert not rpc.open and door.admission.held_byte_size == 10 * 305 - 1000
            await client.until(lambda: len(client.replies[number].content) == 1000)
            client.taking = True
            client.state.acknowledge_received_data(1000, number)
            await client.flush()
            found = await client.reply(number)
            assert [content for _, content in messages_in(found.content)] == [RANDOM[index * 300 :][:300] for index in range(10)]
            assert found.status == (0, "")

    run(scenario)


def test_a_stream_hears_when_there_is_room() -> None:
    async def scenario() -> None:
        methods = Methods(talker=Talker)
        async with a_grpc_door(methods) as door, a_grpc_client(door, initial_window_size=1000) as client:
            number = client.open("/talker")
            await client.flush()
            await until(lambda: len(methods.begun) == 1)
            talker = methods.begun[0]
            for _ in range(5):
                talker.rpc.write(bytes(400))
            assert talker.room == 0 and talker.rpc.unsent_count == 3
            await client.until(lambda: len(client.replies[number].content) == 5 * 405)
            assert talker.room == 1
            assert (talker.rpc.unsent_byte_size, talker.rpc.unsent_count, door.admission.held_byte_size) == (0, 0, 0)
            talker.rpc.fail(invalid("é\n" * 3))
            found = await client.reply(number)
            assert found.status == (CODE["INVALID"], "%C3%A9%0A" * 3) and len(found.content) == 5 * 405

    run(scenario)


def test_a_held_call_is_sent_no_more_than_its_window() -> None:
    async def scenario() -> None:
        methods = Methods()
        async with a_grpc_door(methods) as door, a_grpc_client(door) as client:
            number = client.open("/silent")
            await client.flush()
            await until(lambda: len(methods.begun) == 1)
            rpc: Rpc = methods.begun[0].rpc
            rpc.hold(True)
            await client.until(lambda: client.state.local_flow_control_window(number) == 4 << 20)
            piece = message(bytes(4000))
            for _ in range(1000):
                await client.send(number, piece, end=False)
            await until(lambda: len(methods.begun[0].messages) == 1000)
            client.state.ping(b"12345678")
            await client.flush()
            await client.receive()
            assert client.state.local_flow_control_window(number) == (4 << 20) - 1000 * len(piece)
            rpc.hold(False)
            await client.until(lambda: client.state.local_flow_control_window(number) == 4 << 20)

    run(scenario)


def test_a_long_status_reaches_its_client() -> None:
    class Failing(Silent):
        def ended(self) -> None:
            self.rpc.fail(invalid("é" * 100_000))

    async def scenario() -> None:
        async with a_grpc_door(Methods(failing=Failing)) as door, a_grpc_client(door) as client:
            number, text = (await client.call("/failing", message(b""))).status
            assert number == CODE["INVALID"] and text.startswith("%C3%A9" * 100)
            assert one_echo(await client.call("/echo", message(b"x"))) == b"x"

    run(scenario)


# compressed replies


@pytest.mark.parametrize("accepted", ["gzip", "deflate", "identity", "identity,deflate,gzip"])
@pytest.mark.parametrize("size", [10, 10_000, 400_000])
def test_replies_are_compressed_where_that_is_wanted(accepted: str, size: int) -> None:
    encoding = "gzip" if "gzip" in accepted else accepted

    async def scenario() -> None:
        with an_arena() as arena:
            async with a_grpc_door(Methods(), arena, grpc_infer_response_compression_level="low") as door:
                async with a_grpc_client(door, initial_window_size=2**24) as client:
                    found = await client.call("/echo", message(bytes(size)), ("grpc-accept-encoding", accepted))
                    assert found.status == (0, "")
                    ((flag, content),) = messages_in(found.content)
                    assert dict(found.headers).get("grpc-encoding", "identity") == encoding
                    assert flag == (encoding != "identity")
                    unpack: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress, "identity": bytes}
                    assert unpack[encoding](content) == bytes(size)

    run(scenario)


def test_messages_of_a_stream_are_compressed_one_by_one() -> None:
    async def scenario() -> None:
        methods = Methods(talker=Talker)
        async with a_grpc_door(methods, grpc_infer_response_compression_level="high") as door, a_grpc_client(door) as client:
            number = client.open("/talker", ("grpc-accept-encoding", "gzip"))
            await client.flush()
            await until(lambda: len(methods.begun) == 1)
            rpc: Rpc = methods.begun[0].rpc
            for size in (0, 100, 30_000):
                rpc.write(bytes(size))
            rpc.finish()
            found = messages_in((await client.reply(number)).content)
            assert [len(gzip.decompress(content) if flag else content) for flag, content in found] == [0, 100, 30_000]

    run(scenario)
