"""The stand-in for pyzmq against a ROUTER of ZeroMQ itself, and against servers that break the protocol."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq as real

from tensorfarm.workers.contract import messages as real_messages
from tensorfarm.workers.portable import zmq, zmtp

from .tree import module

PATIENCE_S = 15.0
encode = msgspec.msgpack.encode
SIZES = (0, 1, 255, 256, 65_535, 65_536, 8 << 20)
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16 + 32)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER"


@pytest.fixture(autouse=True)
def short_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket has little room


class Router:
    """A ROUTER socket of ZeroMQ that a test reads and writes."""

    def __init__(self, context: Any, **options: int) -> None:
        self.socket = context.socket(real.ROUTER)
        for option, value in ({"SNDHWM": 0, "RCVHWM": 0, "LINGER": 0, "RCVTIMEO": int(PATIENCE_S * 1000)} | options).items():
            self.socket.setsockopt(getattr(real, option), value)
        self.socket.bind("ipc://router")

    def receive(self) -> tuple[bytes, bytes]:
        identity, content = self.socket.recv_multipart()
        return identity, content

    def send(self, identity: bytes, *parts: bytes) -> None:
        self.socket.send_multipart([identity, *parts])


@contextlib.contextmanager
def routing(**options: int) -> Iterator[Router]:
    context = real.Context(1)
    try:
        yield Router(context, **options)
    finally:
        context.destroy(0)


@pytest.fixture
def router() -> Iterator[Router]:
    with routing() as made:
        yield made


def dealer() -> zmq.Socket:
    made = zmq.Context(1).socket(zmq.DEALER)
    for option in (zmq.SNDHWM, zmq.RCVHWM):
        made.setsockopt(option, 0)
    made.setsockopt(zmq.LINGER, 1000)
    made.connect("ipc://router")
    return made


def within(work: Callable[[], Any]) -> Any:
    """The outcome of something that may wait for ever."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except zmq.ZMQError as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert outcome, "it did not end"
    return outcome[0]


def test_the_constants_are_the_originals() -> None:
    for name in ("DEALER", "LINGER", "SNDHWM", "RCVHWM"):
        assert getattr(zmq, name) == getattr(real, name)


def test_messages_of_all_sizes_go_both_ways(router: Router) -> None:
    peer = dealer()
    for size in SIZES:
        content = os.urandom(size)
        peer.send(content)
        identity, received = router.receive()
        assert received == content
        router.send(identity, content)
        assert within(peer.recv) == content
        router.send(identity, content)
        frame = within(lambda: peer.recv(copy=False))
        assert frame.buffer == content == frame.bytes and not frame.more
    peer.close()


def test_many_messages_keep_their_order(router: Router) -> None:
    peer = dealer()
    contents = [b"%d" % number * (number % 50) for number in range(3000)]
    for content in contents:
        peer.send(content)
    identity = b""
    for content in contents:
        identity, received = router.receive()
        assert received == content
    for content in contents:
        router.send(identity, content)
    assert within(lambda: [peer.recv() for _ in contents]) == contents
    peer.close()


def test_parts_of_a_message_come_one_by_one(router: Router) -> None:
    peer = dealer()
    peer.send(b"hello")
    identity, _ = router.receive()
    router.send(identity, b"one", b"two")
    frames = within(lambda: [peer.recv(copy=False) for _ in range(2)])
    assert [(frame.bytes, frame.more) for frame in frames] == [(b"one", True), (b"two", False)]
    peer.close()


def test_sends_do_not_wait_for_a_server_that_does_not_read() -> None:
    """A server that has greeted and then reads nothing: sends return, order is kept, close still delivers all."""
    with greeted() as (server, peer):
        contents = [bytes([number]) * (1 << 20) for number in range(40)]
        within(lambda: [peer.send(content) for content in contents])
        within(peer.close)
        stream = server.makefile("rb")
        for content in contents:
            assert stream.read(9) == b"\x02" + len(content).to_bytes(8, "big")
            assert stream.read(len(content)) == content
        assert stream.read() == b""


def test_threads_send_whole_messages() -> None:
    count, senders = 300, 8
    with routing() as router:
        peer = dealer()

        def send(number: int) -> None:
            for index in range(count):
                peer.send(bytes([number]) * (index * 97 % 40_000))

        threads = [threading.Thread(target=send, args=(number,)) for number in range(senders)]
        for thread in threads:
            thread.start()
        sizes: dict[int, list[int]] = {number: [] for number in range(senders)}
        empty = 0
        for _ in range(count * senders):
            _, content = router.receive()
            if content:
                assert content == content[:1] * len(content)
                sizes[content[0]].append(len(content))
            else:
                empty += 1
        for thread in threads:
            thread.join(PATIENCE_S)
        assert all(got == [size for index in range(count) if (size := index * 97 % 40_000)] for got in sizes.values())
        assert empty == senders
        peer.close()


def test_heartbeats_are_answered() -> None:
    """The server's side drops a peer that is silent for 400 ms after a PING; this one is idle for much longer."""
    with routing(HEARTBEAT_IVL=50, HEARTBEAT_TIMEOUT=400) as router:
        peer = dealer()
        peer.send(b"hello")
        identity, _ = router.receive()
        received: list[bytes] = []
        thread = threading.Thread(target=lambda: received.append(peer.recv()), daemon=True)
        thread.start()
        assert not router.socket.poll(1000)
        router.send(identity, b"still there")
        thread.join(PATIENCE_S)
        assert received == [b"still there"]
        peer.close()


def test_receiving_ends_when_the_server_goes() -> None:
    with routing() as router:
        peer = dealer()
        peer.send(b"hello")
        router.receive()
        received: list[Any] = []

        def receive() -> None:
            try:
                peer.recv()
            except zmq.ZMQError as error:
                received.append(error)

        thread = threading.Thread(target=receive, daemon=True)
        thread.start()
    thread.join(PATIENCE_S)
    assert [str(error) for error in received] == ["the server's socket has gone"]
    peer.send(b"to nobody")
    peer.send(bytes(1 << 20))
    peer.close()
    peer.close()


def test_what_is_not_possible_is_refused() -> None:
    context = zmq.Context()
    for refused in (
        lambda: context.socket(real.ROUTER),
        lambda: context.socket(zmq.DEALER).setsockopt(zmq.SNDHWM, 10),
        lambda: context.socket(zmq.DEALER).setsockopt(real.RCVTIMEO, 0),
        lambda: context.socket(zmq.DEALER).connect("tcp://127.0.0.1:1"),
        lambda: context.socket(zmq.DEALER).connect("ipc://nothing-of-this-name"),
        lambda: context.socket(zmq.DEALER).send(b""),
        lambda: context.socket(zmq.DEALER).recv(),
    ):
        with pytest.raises(zmq.ZMQError):
            refused()


# a server written by hand


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("router")
        listener.listen()
        listener.settimeout(PATIENCE_S)
        yield listener


def accepted(listener: socket.socket, answer: bytes) -> socket.socket:
    server, _ = listener.accept()
    server.settimeout(PATIENCE_S)
    server.sendall(answer)
    return server


@contextlib.contextmanager
def greeted(*more: bytes) -> Iterator[tuple[socket.socket, zmq.Socket]]:
    """A peer and the server's end of its connection, the greeting over."""
    with listening() as listener:
        servers: list[socket.socket] = []
        thread = threading.Thread(target=lambda: servers.append(accepted(listener, GREETING + READY + b"".join(more))))
        thread.start()
        peer = within(lambda: dealer())
        thread.join(PATIENCE_S)
        with servers[0] as server:
            greeting = server.makefile("rb", 0)
            assert greeting.read(64)[:32] == b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16)
            flags, size = greeting.read(2)
            assert flags == 4 and greeting.read(size).startswith(b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER")
            yield server, peer
            peer.close()


def test_frames_may_come_in_pieces_of_any_size() -> None:
    with greeted() as (server, peer):
        stream = b"\x00\x03abc" + b"\x02" + (300).to_bytes(8, "big") + b"x" * 300 + b"\x04\x07\x04PING\x00\x01"
        # one byte a time fills the system's buffer, until they are read
        thread = threading.Thread(target=lambda: [server.sendall(stream[at : at + 1]) for at in range(len(stream))])
        thread.start()
        assert within(lambda: [peer.recv(), peer.recv()]) == [b"abc", b"x" * 300]
        thread.join(PATIENCE_S)
        server.sendall(b"\x04\x0a\x04PING\x00\x01abc" + b"\x04\x06\x05OTHER" + b"\x00\x00")
        assert within(peer.recv) == b""
        assert server.recv(7) == b"\x04\x05\x04PONG"
        assert server.recv(10) == b"\x04\x08\x04PONGabc"


@pytest.mark.parametrize("answer", [
    b"", GREETING[:40], b"HTTP/1.1 400 Bad Request\r\n" + bytes(64), GREETING.replace(b"NULL", b"CURV"), GREETING.replace(b"\x7f\x03", b"\x7f\x01"),
    GREETING + b"\x00\x01x", GREETING + b"\x04\x08\x05ERROR\x01x", GREETING + READY[:10],
], ids=range(8))  # fmt: skip
def test_a_server_that_greets_otherwise_is_refused(answer: bytes) -> None:
    with listening() as listener:
        thread = threading.Thread(target=lambda: accepted(listener, answer).close())
        thread.start()
        assert isinstance(within(dealer), zmq.ZMQError)
        thread.join(PATIENCE_S)


def test_a_server_that_does_not_greet_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmtp, "HANDSHAKE_TIMEOUT_SECS", 0.05)
    with listening():
        assert isinstance(within(dealer), zmq.ZMQError)


@pytest.mark.parametrize(
    "frames", [b"\xff\x01x", b"\x04\x06\x05ERROR", b"\x06" + (1 << 40).to_bytes(8, "big"), b"\x00\x05abc"], ids=range(4)
)
def test_a_server_that_breaks_the_protocol_is_left(frames: bytes) -> None:
    with greeted() as (server, peer):
        server.sendall(frames)
        server.shutdown(socket.SHUT_WR)
        assert isinstance(within(peer.recv), zmq.ZMQError)


def test_the_channels_work_over_it(router: Router) -> None:
    channel, messages = module("workers.channel"), module("workers.contract.messages")
    context = channel.new_context()
    voice = channel.VoiceChannel(context, "ipc://router", b"token")
    voice.send(messages.Loaded(1))
    assert [router.receive()[1] for _ in range(2)] == [encode(real_messages.Voice(b"token")), encode(real_messages.Loaded(1))]
    control = channel.ControlChannel(context, "ipc://router")
    heard: list[Any] = []
    thread = threading.Thread(
        target=control.serve, args=(b"token", lambda message: heard.append(message) or type(message).__name__ != "Stop")
    )
    thread.start()
    identity, hello = router.receive()
    assert hello == encode(real_messages.Hello(b"token"))
    router.send(identity, encode(real_messages.Return([5])))
    router.send(identity, encode(real_messages.Stop()))
    thread.join(PATIENCE_S)
    assert heard == [messages.Return([5]), messages.Stop()]
    instance = channel.InstanceChannel(context, "ipc://router")
    instance.send(messages.InstanceReady(b"token", 7))
    identity, ready = router.receive()
    assert ready == encode(real_messages.InstanceReady(b"token", 7))
    router.send(identity, encode(real_messages.Close()))
    assert within(instance.receive) == messages.Close()
    instance.close()
    voice._socket.close()
    control._socket.close()
