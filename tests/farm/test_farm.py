"""Real worker processes with the real backend: loaded, asked, killed, started again, emptied."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle  # noqa: TID251  # what must be refused
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from tensorfarm.server.farm import farm as farm_module
from tensorfarm.server.farm.backoff import Backoff
from tensorfarm.server.farm.interpreter import OWN
from tensorfarm.shm.placement import Inline, Span
from tensorfarm.workers.contract.messages import Done, Hello, Inspect, InstanceReady, WantedOutput
from tensorfarm.workers.contract.status import Code, StatusError

from ..servers import stopped
from ..shm.shm_objects import shm_object
from .harness import CONFIG, PATIENCE_S, WIDTH, House, Served, run

ROW_BYTE_SIZE = 4 * WIDTH


def alive(pid: int) -> bool:
    """Whether a process runs: neither gone nor waiting to be waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def halt(house: House, pid: int) -> None:
    """Stop a process; the signal takes a moment to reach threads that run."""
    os.kill(pid, signal.SIGSTOP)
    await house.until(lambda: stopped(pid), "the worker to stop")


def arenas() -> int:
    """How many arenas this process has mapped."""
    return Path("/proc/self/maps").read_text().count("tensorfarm-arena")


@contextlib.contextmanager
def stranger(house: House, worker: str = "cpu") -> Iterator[zmq.Socket[bytes]]:
    """A socket of somebody who found the worker's address but has no token."""
    (path,) = house.processes._runtime.path.glob(f"process-{house.process(worker).arena.number}")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(f"ipc://{path}")
    try:
        yield socket
    finally:
        socket.close()
        context.term()


async def saturate(house: House, served: Served) -> list[asyncio.Future[object]]:
    """More requests than a stopped worker's instance takes: one batch runs, two are staged, the rest waits."""
    await halt(house, house.process().pid)
    asked = []
    for value in range(4):
        asked.append(house.ask(served, value))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(served.instances[0].batches) == 3 and len(served.scheduler.queue) == 1
    return asked  # type: ignore[return-value]


def test_load_execute_unload(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load(instances=2)
        assert sorted(house.ready) == [100, 101]
        pid = house.process().pid
        for value in range(3):
            await house.check(served, value)
        responses = await asyncio.gather(*[house.ask(served, value) for value in range(20)])
        for value, response in enumerate(responses):
            assert np.frombuffer(response.read(response.outputs[0]), np.int32)[0] == 2 * value
        assert len(house.done) < 23, "requests of one turn share batches"
        for response in responses:
            response.release()
        del response, responses
        await house.farm.unload("cpu", served.load.model)
        assert house.farm.seats == {}
        await house.until(lambda: not alive(pid), "the empty worker to end")
        assert [text for severity, text in house.log if severity != "I"] == []
        assert house.lost == []

    run(tmp_path, work)


def test_outputs_in_the_arena_are_given_back(tmp_path: Path) -> None:
    """Far more bytes are answered than the worker's arena holds."""

    async def work(house: House) -> None:
        served = await house.load()
        for _ in range(8):
            responses = await asyncio.gather(*[house.ask(served, 1, 500_000) for _ in range(6)])
            assert [response.error for response in responses] == [None] * 6
            for response in responses:
                response.release()
                response.release()
            del response, responses
        responses = await asyncio.gather(*[house.ask(served, 1, 1_000_000) for _ in range(12)])
        failed = [response.error for response in responses if response.error is not None]
        assert failed and all(error.code is Code.UNAVAILABLE for error in failed)
        assert "--pinned-memory-pool-byte-size" in failed[0].message
        for response in responses:
            response.release()
        del response, responses
        await house.check(served)

    run(tmp_path, work)


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        first = house.process()
        running, *waiting = await saturate(house, served)
        killed = time.monotonic()
        first.kill()
        response = await asyncio.wait_for(running, PATIENCE_S)
        assert time.monotonic() - killed < 1.0
        assert response.error.code is Code.UNAVAILABLE  # type: ignore[attr-defined]
        assert response.error.message == "worker 'cpu' was killed by signal 9 (SIGKILL) while it ran this request"  # type: ignore[attr-defined]
        assert [instance for instance, _ in house.lost] == [100]
        (event,) = [text for severity, text in house.log if severity == "E"]
        assert event == f"worker 'cpu' (pid {first.pid}) was killed by signal 9 (SIGKILL); it is started again at once"
        # what was only staged or queued is answered by the next worker
        for one in await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_S):
            assert one.error is None  # type: ignore[attr-defined]
            one.release()  # type: ignore[attr-defined]
        assert house.process().pid != first.pid
        assert house.ready == [100, 100] and house.lost_models == []
        assert house.farm.seats["cpu"].restarts == 1
        await house.check(served)

    run(tmp_path, work)


def test_a_dead_workers_arena_lives_as_long_as_its_responses(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        before = arenas()
        response = await asyncio.wait_for(house.ask(served, 21), PATIENCE_S)
        house.process().kill()
        await house.until(lambda: house.ready == [100, 100], "the next worker")
        assert arenas() == before + 1
        assert np.frombuffer(response.read(response.outputs[0]), np.int32)[-1] == 42
        response.release()
        del response
        await house.until(lambda: arenas() == before, "the dead worker's arena to be unmapped")

    run(tmp_path, work)


@pytest.mark.parametrize(("signal_number", "text"), [
    (signal.SIGSEGV, "was killed by signal 11 (SIGSEGV)"),
    (signal.SIGABRT, "was killed by signal 6 (SIGABRT)"),
])  # fmt: skip
def test_other_deaths_are_named(tmp_path: Path, signal_number: int, text: str) -> None:
    async def work(house: House) -> None:
        await house.load()
        os.kill(house.process().pid, signal_number)
        await house.until(lambda: house.lost, "the loss to be told")
        assert text in house.lost[0][1].message
        await house.until(lambda: house.ready == [100, 100], "the next worker")

    run(tmp_path, work)


def test_signals_for_the_server_do_not_end_its_workers(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(house.process().pid, number)
        await house.check(served)
        assert house.lost == []

    run(tmp_path, work)


def test_a_worker_is_the_first_to_go_when_memory_runs_out(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        await house.load()
        score = int(Path(f"/proc/{house.process().pid}/oom_score_adj").read_text())
        assert score > int(Path("/proc/self/oom_score_adj").read_text())

    run(tmp_path, work)


def test_a_long_pause_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third death in a row is followed by two seconds; they are cut short here."""

    async def work(house: House) -> None:
        await house.load()
        seat = house.farm.seats["cpu"]
        seat.backoff.deaths = 2
        house.process().kill()
        await house.until(lambda: house.lost_models, "the model to be reported lost")
        ((model, error),) = house.lost_models
        assert model == 1 and error.code is Code.UNAVAILABLE
        assert error.message == "worker 'cpu' was killed by signal 9 (SIGKILL) and is started again in 2 s"
        assert seat.restart is not None and 1.0 < seat.restart.when() - house.loop.time() < 2.5
        seat.restart.cancel()
        house.farm._start(seat)
        await house.until(lambda: house.ready == [100, 100], "the next worker")

    run(tmp_path, work)


def test_workers_that_die_at_their_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait for one are told why it does not come, and nothing of the tries is left."""
    delays: list[float] = []
    real_delay_secs = Backoff.delay_secs

    def delay_secs(backoff: Backoff, lived_ns: int) -> float:
        delays.append(real_delay_secs(backoff, lived_ns))
        return 0.0

    monkeypatch.setattr(Backoff, "delay_secs", delay_secs)
    monkeypatch.setitem(vars(OWN), "program", "/bin/false")

    async def work(house: House) -> None:
        served = house.model()
        with pytest.raises(StatusError, match="^worker 'cpu' exited with code 1 at its start; the log has its last words$") as raised:
            await asyncio.wait_for(house.farm.load("cpu", served.load), PATIENCE_S)
        assert raised.value.code is Code.UNAVAILABLE
        assert delays[:4] == [0.0, 1.0, 2.0, 4.0]

    run(tmp_path, work)


def test_workers_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_delay_secs = Backoff.delay_secs
    monkeypatch.setattr(Backoff, "delay_secs", lambda backoff, lived_ns: real_delay_secs(backoff, lived_ns) / 1000)

    async def work(house: House) -> None:
        await house.load("other")
        served = house.model()
        before = len(os.listdir("/proc/self/fd"))
        monkeypatch.setitem(vars(OWN), "program", "/nothing/of/this/name")
        with pytest.raises(StatusError, match="^worker 'cpu' could not be started: No such file or directory$"):
            await asyncio.wait_for(house.farm.load("cpu", served.load), PATIENCE_S)
        await house.until(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors of the tries to be closed")
        monkeypatch.setitem(vars(OWN), "program", sys.executable)
        await asyncio.wait_for(house.farm.load("cpu", served.load), PATIENCE_S)
        await house.check(served)

    run(tmp_path, work)


def test_a_load_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farm_module, "LINGER_SECS", 0.0)

    async def work(house: House) -> None:
        good = await house.load()
        with pytest.raises(StatusError) as raised:
            await house.load("cpu", CONFIG.replace('"IN0"', '"OTHER"'))
        assert "OTHER" in raised.value.message
        with pytest.raises(StatusError):
            await house.load("alone", CONFIG.replace('"IN0"', '"OTHER"'))
        await house.until(lambda: list(house.farm.seats) == ["cpu"], "the worker that nobody needs to be closed")
        with pytest.raises(StatusError, match="unable to find backend library for backend 'none'"):
            await house.farm.inspect("alone", Inspect(0, "none", "/models", 1, good.load.config, {}, True))
        await house.until(lambda: list(house.farm.seats) == ["cpu"], "the worker that nobody needs to be closed")
        await house.check(good)

    run(tmp_path, work)


def test_a_worker_that_dies_while_it_loads(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        good = await house.load()
        served = house.model()
        await halt(house, house.process().pid)
        loading = asyncio.ensure_future(house.farm.load("cpu", served.load))
        await house.until(lambda: house.farm.seats["cpu"].tasks, "the load to be asked for")
        house.process().kill()
        with pytest.raises(StatusError, match=r"^worker 'cpu' was killed by signal 9 \(SIGKILL\) while it loaded this model"):
            await asyncio.wait_for(loading, PATIENCE_S)
        await house.until(lambda: house.ready == [100, 100], "the other model to be back")
        assert list(house.farm.seats["cpu"].holdings) == [good.load.model]
        await house.farm.load("cpu", served.load)
        await house.check(served)
        await house.check(good)

    run(tmp_path, work)


def test_a_worker_that_dies_while_it_unloads(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        process = house.process()
        await halt(house, process.pid)
        unloading = asyncio.ensure_future(house.farm.unload("cpu", served.load.model))
        await house.until(lambda: house.farm.seats["cpu"].tasks, "the unload to be asked for")
        process.kill()
        await asyncio.wait_for(unloading, PATIENCE_S)
        assert house.farm.seats == {}
        assert not alive(process.pid)

    run(tmp_path, work)


def test_a_load_that_is_given_up_is_dropped_by_the_worker_too(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        good = await house.load()
        served = house.model()
        await halt(house, house.process().pid)
        loading = asyncio.ensure_future(house.farm.load("cpu", served.load))
        await house.until(lambda: house.farm.seats["cpu"].tasks, "the load to be asked for")
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        os.kill(house.process().pid, signal.SIGCONT)
        await house.until(lambda: not house.farm.seats["cpu"].tasks, "the unload to be answered")
        assert house.ready == [100]
        assert [text for severity, text in house.log if severity != "I"] == []
        threads = [path.read_text().strip() for path in Path(f"/proc/{house.process().pid}/task").glob("*/comm")]
        assert threads
        await house.check(good)
        # only the good model's instance is left to answer
        assert list(house.process()._identities) == [100]

    run(tmp_path, work)


def test_two_models_that_leave_at_once(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        first, second = await asyncio.gather(house.load(), house.load())
        pid = house.process().pid
        await asyncio.gather(*[house.farm.unload("cpu", served.load.model) for served in (first, second)])
        assert house.farm.seats == {}
        await house.until(lambda: not alive(pid), "the worker to end")
        await house.farm.unload("cpu", first.load.model)
        third = await house.load()
        await house.check(third)

    run(tmp_path, work)


def test_a_closed_worker_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farm_module, "STOP_TIMEOUT_SECS", 0.05)

    async def work(house: House) -> None:
        await house.load()
        process = house.process()
        await halt(house, process.pid)
        house.farm._close(house.farm.seats["cpu"])
        await house.until(lambda: process.returncode is not None, "the worker to be killed")
        assert process.returncode == -signal.SIGKILL

    run(tmp_path, work)


def test_the_end_waits_for_nobody_for_long(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        await house.load()
        house.farm.start("other")
        process = house.process()
        await halt(house, process.pid)
        arriving = asyncio.ensure_future(house.load("third"))
        await house.until(lambda: house.farm.seats.get("third"), "the third to be started")
        await house.farm.close(0.05)
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(StatusError, match="^worker 'third' is being stopped$"):
            await arriving
        with pytest.raises(StatusError, match="Server is stopping"):
            await house.load("fourth")
        house.processes.close()
        assert not house.processes._runtime.path.exists()

    run(tmp_path, work)


def test_the_servers_death_ends_a_worker(tmp_path: Path) -> None:
    """The end of the lifeline is all that a worker needs to see."""

    async def work(house: House) -> None:
        await house.load()
        process = house.process()
        process._lifeline.shutdown(2)
        await house.until(lambda: process.returncode is not None, "the worker to end")
        assert process.returncode == 0

    run(tmp_path, work)


def test_strangers_and_rubbish_on_the_socket_are_dropped(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        encode = msgspec.msgpack.encode
        marker = tmp_path / "executed"

        class Evil:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return Path.touch, (str(marker),)

        with stranger(house) as socket:
            for message in (
                encode(Hello(bytes(32))),
                encode(InstanceReady(b"", 100)),
                encode(Done(1, [], 0, 0, 0, 0)),
            ):
                socket.send(message)
            await house.until(lambda: len(house.lines) == 3, "the strange messages to be noticed")
            assert {line for _, line in house.lines} == {"a message of a peer that does not have its token was dropped"}
            for rubbish in (pickle.dumps(Evil()), b"", b"\xc1", encode({"a": 1})):
                socket.send(rubbish)
            await house.until(lambda: len(house.lines) == 7, "the rubbish to be noticed")
            assert all(line.startswith("a malformed message was dropped: ") for _, line in house.lines[3:])
            for parts in ([b"", b""], [encode(Hello(b""))] * 5, [b"a"] * 100):
                socket.send_multipart(parts)
            await house.until(lambda: len(house.lines) == 10, "the messages in parts to be noticed")
            assert {line for _, line in house.lines[7:]} == {"a message in several parts was dropped"}
        assert not marker.exists()
        assert house.ready == [100] and house.done == []
        await house.check(served)

    run(tmp_path, work)


def test_regions_are_read_and_written_by_the_worker(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        with shm_object(3 * ROW_BYTE_SIZE + 8) as client:
            house.regions.register_system("in", client.key, 8, 2 * ROW_BYTE_SIZE)
            house.regions.register_system("out", client.key, 8 + 2 * ROW_BYTE_SIZE, ROW_BYTE_SIZE)
            for value in range(3):
                client.write(8, np.full(2 * WIDTH, value, np.int32).tobytes())
                places = [house.regions.span("in", at, ROW_BYTE_SIZE) for at in (0, ROW_BYTE_SIZE)]
                wanted = WantedOutput("SUM", house.regions.span("out", 0, ROW_BYTE_SIZE))
                response = await asyncio.wait_for(house.ask(served, 0, WIDTH, places, [wanted]), PATIENCE_S)
                assert response.error is None and isinstance(response.outputs[0].place, Span)
                assert client.read(8 + 2 * ROW_BYTE_SIZE, ROW_BYTE_SIZE) == np.full(WIDTH, 2 * value, np.int32).tobytes()
            maps = Path(f"/proc/{house.process().pid}/maps")
            assert maps.read_text().count(str(client.path)) == 2
            house.regions.unregister_system(None)
            await house.until(lambda: str(client.path) not in maps.read_text(), "the regions to be unmapped")
            assert str(client.path) not in Path("/proc/self/maps").read_text()

    run(tmp_path, work)


def test_a_new_worker_gets_the_regions_of_requests_that_waited(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        with shm_object(ROW_BYTE_SIZE) as client:
            client.write(0, np.full(WIDTH, 4, np.int32).tobytes())
            house.regions.register_system("r", client.key, 0, ROW_BYTE_SIZE)
            running, *others = await saturate(house, served)
            span = house.regions.span("r", 0, ROW_BYTE_SIZE)
            waiting = house.ask(served, 0, WIDTH, [span, span])
            house.regions.unregister_system("r")
            house.process().kill()
            response = await asyncio.wait_for(waiting, PATIENCE_S)
            assert response.error is None
            assert np.frombuffer(response.read(response.outputs[0]), np.int32)[0] == 8
            for one in [response, *await asyncio.gather(running, *others)]:
                one.release()  # type: ignore[attr-defined]
            assert house.regions.system_status(None) == []

    run(tmp_path, work)


def test_a_region_that_shrinks_costs_one_request(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        with shm_object(ROW_BYTE_SIZE) as client:
            house.regions.register_system("r", client.key, 0, ROW_BYTE_SIZE)
            client.truncate(0)
            span = house.regions.span("r", 0, ROW_BYTE_SIZE)
            row = Inline(memoryview(bytes(ROW_BYTE_SIZE)))
            # the first occupies the instance, so that the others share a batch
            asked = [house.ask(served), house.ask(served, 0, WIDTH, [row, span]), house.ask(served, 5)]
            first, bad, good = await asyncio.wait_for(asyncio.gather(*asked), PATIENCE_S)
            assert first.error is None and good.error is None
            assert bad.error is not None and bad.error.code is Code.INVALID_ARG and "smaller than it was" in bad.error.message
            assert np.frombuffer(good.read(good.outputs[0]), np.int32)[0] == 10
            for one in (first, bad, good):
                one.release()
            assert house.lost == []
            house.regions.unregister_system("r")

    run(tmp_path, work)


def test_a_lifeline_that_is_full_keeps_the_order(tmp_path: Path) -> None:
    """Hundreds of regions for a worker that does not read: what does not fit waits, and its descriptors with it."""

    async def work(house: House) -> None:
        served = await house.load()
        process = house.process()
        with shm_object(2 * ROW_BYTE_SIZE) as client:
            await halt(house, process.pid)
            before = len(os.listdir("/proc/self/fd"))
            spans = []
            for number in range(700):
                house.regions.register_system(f"r{number}", client.key, 0, ROW_BYTE_SIZE)
                spans.append(house.regions.span(f"r{number}", 0, ROW_BYTE_SIZE))
                house.processes.lend_region(spans[-1].region, process)
                if number % 2:
                    house.regions.unregister_system(f"r{number}")
            assert process._unsent, "the lifeline took everything"
            last = house.ask(served, 0, WIDTH, [spans[698], spans[698]])
            os.kill(process.pid, signal.SIGCONT)
            response = await asyncio.wait_for(last, PATIENCE_S)
            assert response.error is None
            response.release()
            maps = Path(f"/proc/{process.pid}/maps")
            assert maps.read_text().count(str(client.path)) == 350
            house.regions.unregister_system(None)
            await house.until(lambda: str(client.path) not in maps.read_text(), "all regions to be unmapped")
            assert not process._unsent and len(os.listdir("/proc/self/fd")) <= before + 1

    run(tmp_path, work)


def test_no_room_for_descriptors_costs_the_requests_that_need_one(tmp_path: Path) -> None:
    """The worker's table of open files is full: the kernel drops the descriptor on its way, the message comes alone."""
    import resource

    async def work(house: House) -> None:
        served = await house.load()
        process = house.process()
        limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        with shm_object(ROW_BYTE_SIZE) as client:
            house.regions.register_system("r", client.key, 0, ROW_BYTE_SIZE)
            span = house.regions.span("r", 0, ROW_BYTE_SIZE)
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
            response = await asyncio.wait_for(house.ask(served, 0, WIDTH, [span, span]), PATIENCE_S)
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
            assert response.error is not None and response.error.code is Code.UNAVAILABLE
            assert response.error.message == "a shared memory region could not be passed to the worker: too many open files"
            house.regions.unregister_system("r")
        await house.check(served)

    run(tmp_path, work)


def test_what_a_worker_prints_is_told_line_by_line(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        await house.load()
        process = house.process()
        writer = os.open(f"/proc/{process.pid}/fd/1", os.O_WRONLY)
        try:
            os.write(writer, b"one\n\n  two  \nhal")
            await house.until(lambda: len(house.lines) == 2, "two lines")
            os.write(writer, b"f\n" + b"\xff\n")
            await house.until(lambda: len(house.lines) == 4, "four lines")
            os.write(writer, b"last words")
        finally:
            os.close(writer)
        assert [line for _, line in house.lines] == ["one", "  two", "half", "\ufffd"]
        process.kill()
        await house.until(lambda: len(house.lines) == 5, "the last words")
        assert house.lines[4] == ("cpu", "last words")
        await house.until(lambda: len(house.ready) == 2, "the next worker")

    run(tmp_path, work)
