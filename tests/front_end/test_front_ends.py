"""Real front ends: opened, told, started again when they die, told to leave, ended."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest
import zmq

from tensorfarm.server.door.listening import listen_together, new_socket
from tensorfarm.server.farm.backoff import Backoff
from tensorfarm.server.farm.channel import Channel, new_context
from tensorfarm.server.front_end import front_ends
from tensorfarm.server.front_end.messages import AskHttp, Begin, Told
from tensorfarm.server.options import Options
from tensorfarm.workers.contract.status import Code, StatusError

from .house import HERE, House, ask, options, run


def test_both_serve_and_end() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        assert len(house.sessions) == 2
        for _ in range(40):
            assert await house.get() == b"/v2/health/live"
        asked = [[message.path for message in session.heard if isinstance(message, AskHttp)] for session in house.sessions]
        assert sum(map(len, asked)) == 40 and all(asked)
        assert [process.arena_number for process in house.children()] == sorted(session.arena for session in house.sessions)
        processes = house.children()
        await house.front_ends.close()
        assert [process.exit_text for process in processes] == ["exited with code 0"] * 2
        assert all(session.ended for session in house.sessions)
        assert house.front_ends.restarts == {"front-end-0": 0, "front-end-1": 0}
        assert house.log.lines == []

    run(script)


def test_they_are_opened_when_they_are_told_to() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.until(lambda: len(house.sessions) == 2, "them to be up")
        await house.open()
        assert await house.get() == b"/v2/health/live"

    run(script)


def test_they_end_before_they_were_opened() -> None:
    async def script(house: House) -> None:
        house.launch()

    run(script)


def test_their_end_leaves_no_connection() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        reader, writer = await asyncio.open_connection(HERE, house.port)
        await ask(reader, writer)
        await house.front_ends.close()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await ask(reader, writer)
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await house.get()

    run(script)


def test_only_grpc() -> None:
    async def script(house: House) -> None:
        one = new_socket(HERE)
        one.bind((HERE, 0))
        port = one.getsockname()[1]
        house.front_ends.launch([], [one])
        await house.front_ends.open()
        reader, writer = await asyncio.open_connection(HERE, port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        # a SETTINGS frame
        assert (await reader.readexactly(9))[3] == 4
        writer.close()

    run(script, options("--allow-http=0", count=1))


# death


def test_one_that_dies_is_started_again_and_nobody_who_comes_is_refused() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        process = await house.kill()
        assert house.sessions[0].ended or house.sessions[1].ended
        line = f"front end 'front-end-0' (pid {process.pid}) was killed by signal 9 (SIGKILL); it is started again at once"
        assert house.log.texts("E") == [line]
        for _ in range(20):
            assert await house.get() == b"/v2/health/live"
        await house.until(lambda: len(house.sessions) == 3, "it to be back")
        assert house.front_ends.restarts == {"front-end-0": 1, "front-end-1": 0}

    run(script)


def test_the_only_one_that_dies() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        await house.kill()
        assert await house.get() == b"/v2/health/live"

    run(script, options(count=1))


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses before restarts, and what counts as an outage, an eighth as long."""
    delay_secs = Backoff.delay_secs
    monkeypatch.setattr(Backoff, "delay_secs", lambda account, lived_ns: delay_secs(account, lived_ns) / 8)
    monkeypatch.setattr(front_ends, "OUTAGE_SECS", front_ends.OUTAGE_SECS / 8)


def test_clients_are_the_others_while_one_takes_long(hurry: None) -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        survivor = house.children()[1]
        for deaths in (1, 2, 3):
            victim = next(process for process in house.children() if process is not survivor)
            victim.kill()
            await house.until(lambda victim=victim: victim.returncode is not None, "it to be dead")  # type: ignore[misc]
            if deaths < 3:
                await house.until(lambda: len(house.children()) == 2, "it to be back")
        assert house.log.texts("E")[-1].endswith("; it is started again in 0.25 s")
        for _ in range(20):
            assert await house.get() == b"/v2/health/live"
        assert house.children() == [survivor]
        # It is back behind the same port.
        sessions = len(house.sessions)
        await house.until(lambda: len(house.sessions) > sessions, "it to be back")
        await house.until(lambda: len(house.children()) == 2, "it to be back")

        async def reached() -> bool:
            await house.get()
            return bool(house.sessions[-1].heard)

        while not await reached():
            pass

    run(script)


def test_one_that_dies_again_and_again_before_the_doors_are_opened(hurry: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its port is not even bound by then."""
    broken = tmp_path / "uvloop.py"
    broken.write_text("raise SystemExit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def script(house: House) -> None:
        house.launch()
        await house.until(lambda: any("again in 0.25 s" in line for line in house.log.texts("E")), "three deaths")
        broken.unlink()
        await house.until(lambda: len(house.sessions) == 1, "it to be up after all")
        await house.open()
        assert await house.get() == b"/v2/health/live"

    run(script, options(count=1))


def test_a_death_is_the_end_of_its_session_only() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        victim = house.children()[0]
        await house.kill()
        assert [session.ended for session in house.sessions] == [session.arena == victim.arena_number for session in house.sessions]

    run(script)


# what they say


def test_a_fault_at_the_opening(tmp_path: Path) -> None:
    async def script(house: House) -> None:
        house.launch()
        with pytest.raises(StatusError) as raised:
            await house.open()
        assert raised.value.code is Code.INVALID_ARG and "--http-server-cert: cannot read" in raised.value.message

    absent = tmp_path / "absent.pem"
    run(script, options("--http-use-ssl=1", f"--http-server-cert={absent}", f"--http-server-key={absent}"))


def test_its_lines_are_in_our_log() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        text = "HTTP is served without TLS: --http-use-ssl is not set, so --http-root-cert has no effect"
        assert house.log.lines == [("W", text, house.children()[0].pid)]

    run(script, options("--http-root-cert=absent.pem", count=1))


def test_the_switches_of_our_log_hold() -> None:
    async def script(house: House) -> None:
        house.log.settings.log_warning = False
        house.launch()
        await house.open()
        assert house.log.lines == []

    run(script, options("--http-root-cert=absent.pem", count=1))


def test_what_it_prints_is_in_our_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('a word', flush=True)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def script(house: House) -> None:
        house.launch()
        await house.open()
        assert "front end 'front-end-0': a word" in house.log.texts("I")

    run(script, options(count=1))


def test_the_folder_of_the_start_is_no_place_to_import_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)

    async def script(house: House) -> None:
        house.launch()
        await house.open()
        assert await house.get() == b"/v2/health/live"

    run(script, options(count=1))


# forgetting


def test_all_forget() -> None:
    async def script(house: House) -> None:
        house.launch()
        await asyncio.wait_for(house.front_ends.forget(), 1)
        await house.open()
        for _ in range(3):
            await asyncio.wait_for(asyncio.gather(house.front_ends.forget(), house.front_ends.forget()), 5)

    run(script)


def test_one_that_dies_forgets_too() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        os.kill(house.children()[0].pid, signal.SIGSTOP)
        forgetting = asyncio.ensure_future(house.front_ends.forget())
        await house.until(lambda: True, "a turn")
        house.children()[0].kill()
        await asyncio.wait_for(forgetting, 5)

    run(script)


def test_one_that_is_being_opened_forgets_too() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.until(lambda: len(house.sessions) == 2, "them to be up")
        opening = asyncio.ensure_future(house.open())
        await asyncio.sleep(0)
        await asyncio.wait_for(house.front_ends.forget(), 1.5)
        await opening

    run(script)


# the end


def test_whoever_leaves_lets_its_clients_end() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        house.holding = True
        connections = [await asyncio.open_connection(HERE, house.port) for _ in range(2)]
        asking = [asyncio.ensure_future(ask(*connection)) for connection in connections]
        await house.until(lambda: sum(len(session.held) for session in house.sessions) == 2, "both to be asked")
        assert house.front_ends.connection_count == 0
        await house.front_ends.leave()
        assert house.front_ends.connection_count == 2 and house.front_ends.answering_count == 0
        with pytest.raises(ConnectionRefusedError):
            await house.get()
        for session in house.sessions:
            session.answer()
        assert await asyncio.gather(*asking) == [b"/v2/health/live"] * 2
        await house.until(lambda: not house.front_ends.connection_count, "the connections to be closed")
        for _, writer in connections:
            writer.close()

    run(script)


def test_one_that_dies_while_all_leave_stays_away() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        house.holding = True
        connection = await asyncio.open_connection(HERE, house.port)
        asking = asyncio.ensure_future(ask(*connection))
        await house.until(lambda: any(session.held for session in house.sessions), "it to be asked")
        await house.front_ends.leave()
        for process in house.children():
            process.kill()
        await house.until(lambda: not house.children(), "them to be dead")
        assert house.front_ends.connection_count == 0
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asking
        connection[1].close()
        await asyncio.sleep(0.05)
        assert house.children() == []

    run(script)


def test_one_that_comes_back_while_all_leave_serves_nobody() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        await house.kill()
        await house.until(lambda: len(house.children()) == 2, "it to be started again")
        await house.front_ends.leave()

        async def refused() -> bool:
            try:
                await asyncio.wait_for(house.get(), 2)
            except (ConnectionError, asyncio.IncompleteReadError):
                return True
            return False

        await house.until(lambda: len(house.children()) == 1, "the one that was on its way to be gone")
        assert await refused()

    run(script)


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_ends, "END_TIMEOUT_SECS", 0.2)

    async def script(house: House) -> None:
        house.launch()
        await house.open()
        processes = house.children()
        os.kill(processes[0].pid, signal.SIGSTOP)
        await house.front_ends.close()
        assert [process.returncode for process in processes] == [-9, 0]

    run(script)


def test_one_that_hangs_is_killed_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_ends, "LOOK_SECS", 0.2)

    async def script(house: House) -> None:
        house.launch()
        await house.open()
        hangs, other = house.children()
        os.kill(hangs.pid, signal.SIGSTOP)
        await house.until(lambda: hangs.returncode is not None, "it to be killed")
        assert "has said nothing for 2 s" in house.log.texts("E")[0]
        await house.until(lambda: len(house.children()) == 2, "it to be started again")
        assert other.returncode is None

    run(script)


def test_one_that_hangs_holds_up_nobody_who_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_ends, "LEAVE_TIMEOUT_SECS", 0.1)

    async def script(house: House) -> None:
        house.launch()
        await house.open()
        hangs, other = house.children()
        os.kill(hangs.pid, signal.SIGSTOP)
        await house.front_ends.leave()
        await house.until(lambda: hangs.returncode is not None, "it to be killed")
        assert house.front_ends.connection_count == 0 and other.returncode is None

    run(script)


def test_the_last_one_that_listens_keeps_its_port(hurry: None) -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        for _ in range(3):
            (victim,) = house.children()
            victim.kill()
            await house.until(lambda victim=victim: victim.returncode is not None, "it to be dead")  # type: ignore[misc]
            with new_socket(HERE) as thief, pytest.raises(StatusError):
                listen_together([thief], HERE, house.port, False)
            await house.until(lambda: len(house.children()) == 1, "it to be back")
        assert await house.get() == b"/v2/health/live"

    run(script, options(count=1))


def test_they_leave_their_signals_to_the_server() -> None:
    async def script(house: House) -> None:
        house.launch()
        await house.open()
        for process in house.children():
            os.kill(process.pid, signal.SIGINT)
            os.kill(process.pid, signal.SIGTERM)
        assert await house.get() == b"/v2/health/live"
        assert len(house.children()) == 2 and house.log.lines == []

    run(script)


# a session


def test_a_message_that_fails_does_not_take_the_others_with_it() -> None:
    """The session of these tests cannot answer a Find."""

    async def script(house: House) -> None:
        failures: list[object] = []
        house.loop.set_exception_handler(lambda loop, context: failures.append(context.get("exception")))
        house.launch()
        await house.open()
        body = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 13\r\n\r\n" + b'{"inputs":[]}'
        _, one = await asyncio.open_connection(HERE, house.port)
        one.write(body)
        await house.until(lambda: failures, "the failure to be known")
        assert [type(failure) for failure in failures] == [LookupError]
        assert await house.get() == b"/v2/health/live"
        one.close()

    run(script, options(count=1))


# what they are told


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--http-restricted-api=health,metadata:key=value", "--grpc-restricted-protocol=health:k=v"],
        ["--trace-config=triton,file=trace", "--trace-config=level=TIMESTAMPS", "--trace-config=rate=7"],
        ["--rate-limit=execution_count", "--rate-limit-resource=R:3", "--rate-limit-resource=Q:4:1"],
        ["--cuda-memory-pool-byte-size=0:64", "--model-load-gpu-limit=0:0.5", "--host-policy=a,numa-node=1"],
        ["--backend-config=onnxruntime,a=b", "--backend-config=c=d", "--cache-config=local,size=1048576"],
        ["--max-inflight-requests-per-model=m:5", "--busy-poll-us=7", "--allow-client-shm=1", "--sagemaker-safe-port-range=1-2"],
    ],
    ids=["defaults", "restricted", "trace", "rate-limits", "devices", "backends", "limits"],
)
def test_options_arrive_as_they_are(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = options(*words)
    assert sent(wanted, tmp_path, monkeypatch) == wanted


def sent(wanted: Options, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """What comes of options on their way over a real channel."""
    monkeypatch.chdir(folder)
    received: list[Options] = []

    async def main() -> None:
        context = new_context()
        peers: list[bytes] = []
        loop = asyncio.get_running_loop()
        channel = Channel(context, "ipc://options", loop, lambda identity, _: peers.append(identity), print, bytes)
        peer = context.socket(zmq.DEALER)
        peer.connect("ipc://options")
        peer.send(b"here")
        while not peers:
            await asyncio.sleep(0.001)
        channel.send(peers[0], Told([Begin(wanted, 3)]))
        (begin,) = msgspec.msgpack.decode(peer.recv(), type=Told).messages
        assert isinstance(begin, Begin) and begin.front_end_count == 3
        received.append(begin.options)
        channel.close()
        peer.close(0)
        context.destroy(0)

    asyncio.run(main())
    return received[0]


def test_an_option_that_is_no_text() -> None:
    """File names can be any bytes."""

    async def script(house: House) -> None:
        house.launch()
        await house.open()
        assert await house.get() == b"/v2/health/live"

    run(script, options("--model-repository=caf\udce9", count=1))
