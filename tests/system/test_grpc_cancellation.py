"""Thousands of gRPC calls given up at any moment, in any way: each ends once for its client, and nothing of them stays with the server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from ..model_repository import PLAIN, Flavour, write_repository
from ..servers import wait_until
from .grpc_farm import PATIENCE_S, GrpcFarm, grpc_farm, tensor
from .test_cancellation import put_queued
from .test_python_models import put

CALLS = 10_000
ROUNDS = 4
WARM_UP = 2_500
AT_ONCE = 128
CONNECTIONS = 8
GROUP = 8
"""Calls of a channel that is closed under all of them."""

LONGEST_S = 0.03
"""Of a deadline, and ten times what is waited before a call is given up."""

REPEATED = 12
"""Responses of the decoupled model to each request."""

MEMORY = 12 << 20
"""By how much the server's own memory may differ between two times that it has nothing to do."""

SERVICE = "/inference.GRPCInferenceService/"
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)

WRITTEN_TO = "ended while it was written to"

ENDS = {
    "cancel": {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK},
    "deadline": {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK, WRITTEN_TO},
    "channel": {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK},
    "reset": {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK, WRITTEN_TO},
    "none": {grpc.StatusCode.OK},
}
"""How a call may end for its client, by what gives it up: it may have been answered before."""

ENDED = (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.CancelledError, asyncio.InvalidStateError)
"""By what a call tells whoever reads or writes that it has ended."""

POINTS = ("opened", "sent", "reading", "half-closed", "queued", "talking", "unary", "unary queued")

_numbers = itertools.count()


def _infer(model: str, name: str, *tensors: Any) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model, id=name)
    for one in tensors:
        request.inputs.append(one._get_tensor())
        request.raw_input_contents.append(one._get_content())
    return request


_SUM = [tensor(f"INPUT{at}", np.arange(16, dtype=np.int32), "INT32") for at in (0, 1)]
_LARGE = tensor("X", np.full(50_000, 1.5, np.float32), "FP32")
_SMALL = tensor("X", np.full(4, 1.5, np.float32), "FP32")
_TIMES = tensor("TIMES", np.array([REPEATED], np.int32), "INT32")
_TOGETHER = tensor("FINAL_APART", np.array([False]), "BOOL")
REQUESTS = {
    "plain": _infer("plain", "", *_SUM).SerializeToString(),
    "repeater": _infer("repeater", "", _TIMES, _TOGETHER).SerializeToString(),
    "queued": _infer("queued", "late", _SMALL).SerializeToString(),
    "queued large": _infer("queued", "late", _LARGE).SerializeToString(),
    "streamer": _infer("streamer", "talks", _SMALL).SerializeToString(),
}


@dataclass(frozen=True)
class Plan:
    """How far a call goes, and what gives it up then."""

    point: str
    by: str
    requests: tuple[str, ...]
    reads: int
    delay_s: float

    @property
    def unary(self) -> bool:
        return self.point.startswith("unary")

    @property
    def timeout_s(self) -> float:
        return max(self.delay_s, 0.001) if self.by == "deadline" else 2 * PATIENCE_S

    @property
    def most_responses(self) -> int:
        """How many it has if it is not given up."""
        return sum(REPEATED if name == "repeater" else 1 for name in self.requests)


def plan(chance: random.Random, by: str | None = None) -> Plan:
    """Any way for a call to go."""
    by = by or chance.choices(("cancel", "deadline", "none"), (6, 3, 1))[0]
    point = chance.choices(POINTS, (3, 4, 5, 4, 3, 0.2, 2, 2))[0]
    if point in ("queued", "unary queued"):
        # What waits behind the one that is held is not answered.
        by = "cancel" if by == "none" else by
        requests = tuple(chance.choice(("queued", "queued large")) for _ in range(1 if point == "unary queued" else chance.randint(1, 3)))
    elif point == "talking":
        by, requests = "cancel" if by == "none" else by, ("streamer",)
    elif point == "unary":
        requests = ("plain",)
    else:
        requests = tuple(chance.choice(("plain", "repeater")) for _ in range(chance.randint(1, 3)))
    if point == "opened":
        requests = ()
    longest = LONGEST_S if by == "deadline" else LONGEST_S / 10
    return Plan(point, by, requests, chance.randint(0, REPEATED - 1), chance.choice((0.0, chance.uniform(0.0, longest))))


@dataclass
class Tally:
    """What has become of the calls of a round."""

    ends: Counter[tuple[str, Any]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


async def unary(channel: Any, going: Plan) -> tuple[Any, str, int, int]:
    """One unary call; its status and the text of that, how many answers it had, and how many of these were the last of a request."""
    call = channel.unary_unary(f"{SERVICE}ModelInfer")(REQUESTS[going.requests[0]], timeout=going.timeout_s)
    if going.by == "cancel":
        await asyncio.sleep(going.delay_s)
        call.cancel()
    answered = 0
    with contextlib.suppress(*ENDED):
        await call
        answered = 1
    return await call.code(), await call.details(), answered, answered


async def stream(channel: Any, going: Plan) -> tuple[Any, str, int, int]:
    """As ``unary``, for a stream."""
    read = service_pb2.ModelStreamInferResponse.FromString
    call = channel.stream_stream(f"{SERVICE}ModelStreamInfer", response_deserializer=read)(timeout=going.timeout_s)
    responses = finals = 0
    with contextlib.suppress(*ENDED):
        for name in going.requests:
            await call.write(REQUESTS[name])
        if going.by == "none" or going.point == "half-closed":
            await call.done_writing()
        if going.by == "cancel":
            least = going.reads if going.point == "reading" and "repeater" in going.requests else going.point == "talking"
            while responses < least and (response := await call.read()) is not grpc.aio.EOF:
                responses += 1
                finals += final_of(response)
            await asyncio.sleep(going.delay_s)
            call.cancel()
        while (response := await call.read()) is not grpc.aio.EOF:
            responses += 1
            finals += final_of(response)
    code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.INTERNAL and details == "Internal error from Core":
        # What ``grpc.aio`` says in the status's place where it was just writing to a call that had ended.
        code = WRITTEN_TO
    return code, details, responses, finals


def final_of(response: Any) -> bool:
    """Whether a response is the last one of its request."""
    assert not response.error_message, response
    return bool(response.infer_response.parameters["triton_final_response"].bool_param)


async def go(channel: Any, going: Plan, tally: Tally) -> None:
    """Make one call and note how it ended."""
    try:
        code, details, responses, finals = await (unary if going.unary else stream)(channel, going)
    except AssertionError as error:
        tally.wrong.append(f"{going}: {error}")
        return
    tally.ends[going.by, code] += 1
    if code not in ENDS[going.by]:
        tally.wrong.append(f"{going}: {code} {details}")
    if finals > len(going.requests):
        tally.wrong.append(f"{going}: {finals} final responses")
    if code is grpc.StatusCode.OK and (finals, responses) != (len(going.requests), going.most_responses):
        tally.wrong.append(f"{going}: OK after {responses} responses, {finals} of them final")


def closed_under(address: str, plans: list[Plan], delay_s: float, tally: Tally) -> None:
    """Some calls on a channel of their own, which is closed while they are under way.

    By the synchronous client: what ``grpc.aio`` has not begun when its channel is closed never ends.
    """
    ended = threading.Event()

    def requests(going: Plan) -> Iterator[bytes]:
        yield from (REQUESTS[name] for name in going.requests)
        if going.point != "half-closed":
            ended.wait(PATIENCE_S)

    calls = []
    channel = grpc.insecure_channel(address, options=OWN_CONNECTION)
    for going in plans:
        if going.unary:
            calls.append(channel.unary_unary(f"{SERVICE}ModelInfer").future(REQUESTS[going.requests[0]]))
        else:
            calls.append(channel.stream_stream(f"{SERVICE}ModelStreamInfer")(requests(going)))
    time.sleep(delay_s)
    channel.close()
    ended.set()
    for going, call in zip(plans, calls, strict=True):
        code = call.code()
        tally.ends[going.by, code] += 1
        if code not in ENDS[going.by]:
            tally.wrong.append(f"{going}: {code} {call.details()}")


async def reset_under(port: int, plans: list[Plan], delay_s: float, tally: Tally) -> None:
    """Some calls on a connection of their own, which is reset while they are under way, as where a client dies."""
    writers: list[asyncio.StreamWriter] = []
    gone = False

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            there, to_there = await asyncio.open_connection("127.0.0.1", port)
            to_there.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writers.extend((writer, to_there))
            if gone:
                writer.transport.abort()
                to_there.transport.abort()
            await asyncio.gather(copy(reader, to_there), copy(there, writer))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while content := await reader.read(1 << 16):
                writer.write(content)
                await writer.drain()
        writer.transport.abort()

    listener = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.sockets[0].getsockname()[1]}", options=OWN_CONNECTION) as channel:
        tasks = [asyncio.ensure_future(go(channel, one, tally)) for one in plans]
        await asyncio.sleep(delay_s)
        gone = True
        listener.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*tasks)
    await listener.wait_closed()


async def storm(port: int, count: int, seed: int) -> Tally:
    """So many calls, a bounded number at once."""
    chance = random.Random(seed)
    tally = Tally()
    gate = asyncio.Semaphore(AT_ONCE)
    address = f"127.0.0.1:{port}"
    channels = [grpc.aio.insecure_channel(address, options=OWN_CONNECTION) for _ in range(CONNECTIONS)]

    async def gated(job: Coroutine[Any, Any, None]) -> None:
        async with gate:
            await job

    def jobs() -> Iterator[Coroutine[Any, Any, None]]:
        left = count
        while left:
            if left >= GROUP and chance.random() < 0.2 / GROUP:
                by = chance.choice(("channel", "reset"))
                left -= GROUP
                plans, delay_s = [plan(chance, by) for _ in range(GROUP)], chance.uniform(0.0, LONGEST_S)
                yield (
                    asyncio.to_thread(closed_under, address, plans, delay_s, tally)
                    if by == "channel"
                    else reset_under(port, plans, delay_s, tally)
                )
            else:
                left -= 1
                yield go(chance.choice(channels), plan(chance), tally)

    tasks = [asyncio.ensure_future(gated(job)) for job in jobs()]
    _, hanging = await asyncio.wait(tasks, timeout=PATIENCE_S)
    tally.wrong += [f"{len(hanging)} calls have not ended"] * bool(hanging)
    for channel in channels:
        await channel.close()
    await asyncio.gather(*hanging)
    return tally


@dataclass
class Held:
    """A farm, and the folder in which its models write down what they do."""

    farm: GrpcFarm
    folder: Path

    def notes(self, model: str) -> list[str]:
        """What a model says of its requests."""
        path = self.folder / f"{model}.notes"
        return path.read_text().splitlines() if path.exists() else []

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Keep the only instance of ``queued`` busy; what did so is answered in the end."""
        name = f"deaf-{next(_numbers)}"
        with grpc.insecure_channel(self.farm.address) as channel:
            call = channel.unary_unary(f"{SERVICE}ModelInfer").future(
                _infer("queued", name, _SMALL).SerializeToString(), timeout=2 * PATIENCE_S
            )
            try:
                wait_until(lambda: f"{name} begun" in self.notes("queued"), "the model to run")
                yield
            finally:
                (self.folder / name).touch()
            assert service_pb2.ModelInferResponse.FromString(call.result()).id == name

    def still_answers(self) -> None:
        """Every model, unary or on a stream."""
        with grpc.insecure_channel(self.farm.address) as channel:
            for name in ("plain", "queued"):
                channel.unary_unary(f"{SERVICE}ModelInfer")(REQUESTS[name], timeout=PATIENCE_S)
            requests = [REQUESTS["repeater"], _infer("streamer", "short", _SMALL).SerializeToString()]
            got = list(channel.stream_stream(f"{SERVICE}ModelStreamInfer")(iter(requests), timeout=PATIENCE_S))
            assert len(got) == REPEATED + 1

    def quiet(self) -> None:
        """Wait until nothing is under way any more."""
        wait_until(lambda: not self.farm.under_way(), "nothing to be under way", PATIENCE_S, 0.05)
        wait_until(lambda: all(line.endswith(" 0") for line in self.farm.arenas()), "all tensors to be given back")


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    root = tmp_path_factory.mktemp("grpc-cancellation")
    repository = write_repository(root / "models", (PLAIN,), Flavour.ONNX)
    put(repository, "repeater", "repeater")
    put_queued(repository, root)
    config = put(repository, "streamer", "system_gate", FOLDER=str(root)) / "config.pbtxt"
    config.write_text(config.read_text() + "model_transaction_policy { decoupled: true }\n")
    with grpc_farm(repository, folder=root / "run") as farm:
        yield Held(farm, root)


def test_ten_thousand_calls_are_given_up(held: Held) -> None:
    """Before they send anything, behind their requests, amid responses, in the queue; by a cancel, a deadline, the end of their channel or connection."""
    farm = held.farm

    def one_round(count: int, seed: int) -> tuple[int, int, Tally]:
        with held.busy():
            tally = asyncio.run(storm(farm.port, count, seed))
            wait_until(lambda: farm.metric("nv_inference_pending_request_count", model="queued") == 0, "the queue to be empty", PATIENCE_S)
        held.still_answers()
        held.quiet()
        assert not tally.wrong, tally.wrong[:10]
        assert tally.ends.total() == count
        return farm.descriptors(), farm.own_memory(), tally

    before = farm.descriptors()
    descriptors, memory, _ = one_round(WARM_UP, 0)
    ends: Counter[tuple[str, Any]] = Counter()
    memories = [memory]
    for number in range(ROUNDS):
        _, memory, tally = one_round(CALLS // ROUNDS, number + 1)
        memories.append(memory)
        ends += tally.ends
    assert ends.total() == CALLS
    given_up = sum(count for (_, code), count in ends.items() if code is not grpc.StatusCode.OK)
    assert given_up > CALLS // 2, ends
    wait_until(lambda: farm.descriptors() <= max(before, descriptors), "all connections to end")
    assert min(memories[-2:]) - memories[0] < MEMORY, [round(one / 2**20, 1) for one in memories]
    assert not [line for line in held.notes("queued") if line.startswith("late begun")][ROUNDS + 1 :], "one that was given up has run"
    assert "Traceback" not in farm.server.log, farm.server.log
    assert "Task exception was never retrieved" not in farm.server.log
    assert not [
        line for line in farm.metrics().splitlines() if line.startswith("tensorfarm_worker_restarts_total") and not line.endswith(" 0")
    ]
