"""One run of a child process, a worker or a front end: started, greeted, watched, ended."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import secrets
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ...shm.arena import ArenaView, create_memory, read_only
from ...shm.placement import Lease
from ...workers.contract.messages import (
    LIFELINE_BYTE_SIZE,
    Adopt,
    Answer,
    Attach,
    Close,
    Detach,
    DeviceGrant,
    Disown,
    Execute,
    Greeting,
    Hello,
    InstanceReady,
    LastWords,
    LifelineMessage,
    OpenRegion,
    Return,
    Voice,
)
from .channel import Channel
from .launch import Launched

_READ_BYTE_SIZE = 65536
_LAST_READS = 32
"""How often a dead process's output is read: its pipe held no more than one read; a child of it may go on writing."""

_encoder = msgspec.msgpack.Encoder()
_lifeline_decoder = msgspec.msgpack.Decoder(LifelineMessage)


class ChildProcess:
    """A child process and the server's ends of its link, lifeline and output.

    ``receive(process, message)`` gets what it says, ``say(line)`` what it prints, and ``ended(process)`` is called
    once, when it is gone. Its own arena is made here and mapped read-only. ``launch`` starts it, or hands over one that
    has been started, and ``device`` is the GPU that it may use. Raises OSError where it cannot be started, and then nothing is left of it.
    """

    def __init__(
        self,
        name: str,
        arena_number: int,
        arena_byte_sizes: tuple[int, int],
        request_arena_fd: int,
        make_channel: Callable[[Callable[[bytes, Any], None]], tuple[Channel, str]],
        loop: asyncio.AbstractEventLoop,
        receive: Callable[[ChildProcess, Any], None],
        say: Callable[[str], None],
        ended: Callable[[ChildProcess], None],
        launch: Callable[[], Launched],
        device: DeviceGrant | None = None,
    ) -> None:
        self.name = name
        self.device = device
        self.returncode: int | None = None
        self._loop = loop
        self._receive = receive
        self._say = say
        self._ended = ended
        self._token = secrets.token_bytes(32)
        self._control_identity: bytes | None = None
        self._identities: dict[int, bytes] = {}
        self._trusted: set[bytes] = set()
        self._returned: list[int] = []
        self._attached: set[int] = set()
        self._adopted: set[int] = set()
        self._unsent: deque[tuple[bytes, Sequence[int]]] = deque()
        self._partial = b""
        self._last_words = ""
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as passed:
            capacity_byte_size, resident_byte_size = arena_byte_sizes
            arena_fd = create_memory(capacity_byte_size)
            passed.callback(os.close, arena_fd)
            self.arena = ArenaView(arena_number, arena_fd)
            self.arena_fd = read_only(arena_fd)
            undo.callback(os.close, self.arena_fd)
            self._channel, endpoint = make_channel(self._arrived)
            undo.callback(self._channel.close)
            request_fd = read_only(request_arena_fd)
            passed.callback(os.close, request_fd)
            launched = launch()
            undo.callback(launched.end)
            self.started_ns = launched.started_ns
            self._lifeline = launched.lifeline
            self._process = launched.process
            self.pid = self._process.pid
            assert self._process.stdout is not None
            self._output = self._process.stdout.fileno()
            self._pidfd = os.pidfd_open(self.pid)
            undo.callback(os.close, self._pidfd)
            # The lifeline is empty, so this does not wait.
            self._tell(Greeting(endpoint, self._token, arena_number, resident_byte_size, device), request_fd, arena_fd)
            undo.pop_all()
        loop.add_reader(self._pidfd, self._exited)
        loop.add_reader(self._output, self._read_output)

    # messages

    def _arrived(self, identity: bytes, message: object) -> None:
        if identity not in self._trusted:
            if not isinstance(message, Hello | InstanceReady | Voice) or not secrets.compare_digest(message.token, self._token):
                return self._say("a message of a peer that does not have its token was dropped")
            self._trusted.add(identity)
        if isinstance(message, Hello):
            self._control_identity = identity
        elif isinstance(message, InstanceReady):
            self._identities[message.instance] = identity
        self._receive(self, message)

    def send(self, message: msgspec.Struct) -> None:
        """Send a message to a worker's control socket, or a front end; it has said Hello."""
        assert self._control_identity is not None
        self._channel.send(self._control_identity, message)

    def execute(self, instance: int, message: Execute) -> None:
        """Send a batch to an instance that has said it is ready."""
        self._channel.send(self._identities[instance], message)

    def answer(self, instance: int, message: Answer) -> None:
        """Send the answer to a call to the instance that waits for it, or to the control socket where none does."""
        identity = self._identities.get(instance, self._control_identity)
        if identity is not None:
            self._channel.send(identity, message)

    def close_instance(self, instance: int) -> None:
        """Tell an instance that has said it is ready to end; what it says from now on is dropped."""
        identity = self._identities.pop(instance)
        self._trusted.discard(identity)
        self._channel.send(identity, Close())

    @property
    def arena_number(self) -> int:
        """What leases of its arena call it by."""
        return self.arena.number

    def view(self, lease: Lease) -> memoryview:
        """The bytes of a lease of its arena, read-only."""
        return self.arena.view(lease)

    def give_back(self, leases: list[Lease]) -> None:
        """Tell a worker that outputs in its arena are no longer needed, once per turn of the loop."""
        if not leases or self.returncode is not None:
            return
        if not self._returned:
            self._loop.call_soon(self._send_returned)
        self._returned.extend([lease.offset for lease in leases])

    def _send_returned(self) -> None:
        returned, self._returned = self._returned, []
        if self.returncode is None:
            self.send(Return(returned))

    # lifeline

    def attach(self, region: int, fd: int, offset: int, byte_size: int) -> None:
        """Let it map a client's region; once is enough."""
        if region not in self._attached:
            self._attached.add(region)
            self._tell(Attach(region, offset, byte_size), fd)

    def open_region(self, region: int, handle: bytes, byte_size: int) -> None:
        """Let it map a client's CUDA region; those who use that are told if it cannot."""
        self.know_region(region)
        self.send(OpenRegion(0, region, handle, byte_size))

    def know_region(self, region: int) -> None:
        """It has been given this region."""
        self._attached.add(region)

    def forget_region(self, region: int) -> bool:
        """It is about to let go of a CUDA region; was it given that?"""
        there = region in self._attached
        self._attached.discard(region)
        return there

    def attached(self, region: int) -> bool:
        """Has it been given this region?"""
        return region in self._attached

    def detach(self, region: int) -> None:
        """Let it unmap a region, if it has that."""
        if region in self._attached:
            self._attached.remove(region)
            self._tell(Detach(region))

    def adopt(self, arena: int, fd: int | None) -> None:
        """Let it read another process's arena; once is enough. ``fd`` is None where that process has gone."""
        if arena not in self._adopted and arena != self.arena.number:
            self._adopted.add(arena)
            self._tell(Adopt(arena), *(() if fd is None else (fd,)))

    def disown(self, arena: int) -> None:
        """Let it unmap the arena of a process that has gone, if it has that."""
        if arena in self._adopted:
            self._adopted.remove(arena)
            self._tell(Disown(arena))

    def _tell(self, message: LifelineMessage, *fds: int) -> None:
        content = _encoder.encode(message)
        if self._unsent or not self._sent(content, fds):
            # The caller may close its descriptors while the message waits. Where there is no room for others,
            # the message goes alone, and the process tells those who use the region.
            waiting: list[int] = []
            with contextlib.suppress(OSError):
                for fd in fds:
                    waiting.append(os.dup(fd))
            if not self._unsent:
                self._loop.add_writer(self._lifeline, self._send_lifeline)
            self._unsent.append((content, waiting))

    def _sent(self, content: bytes, fds: Sequence[int]) -> bool:
        """Send a message over the lifeline; False where its buffer is full."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._lifeline.sendmsg([content], rights)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True  # the process has gone; its pidfd tells
        except OSError as error:
            if error.errno not in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                raise
            return False  # too much is under way to child processes; they read without being asked
        return True

    def _send_lifeline(self) -> None:
        while self._unsent and self._sent(*self._unsent[0]):
            _close(self._unsent.popleft()[1])
        if not self._unsent:
            self._loop.remove_writer(self._lifeline)

    # output

    def _read_output(self) -> bool:
        try:
            content = os.read(self._output, _READ_BYTE_SIZE)
        except BlockingIOError:
            return False
        if not content:
            self._loop.remove_reader(self._output)
        *lines, self._partial = (self._partial + content).split(b"\n")
        if len(self._partial) > _READ_BYTE_SIZE or not content:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            if line.strip():
                text = line.decode(errors="replace").rstrip()
                self._say(text)
        return bool(content)

    # end

    def _hear_last_words(self) -> None:
        # All that a worker ever says over it; there is nothing where it was killed.
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            message = _lifeline_decoder.decode(self._lifeline.recv(LIFELINE_BYTE_SIZE))
            if isinstance(message, LastWords):
                self._last_words = message.reason

    def kill(self) -> None:
        """End it at once."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    @property
    def exit_text(self) -> str:
        """How it ended, for logs and clients: ``was killed by signal 9 (SIGKILL)``, ``exited with code 1``, or what it said itself."""
        if self._last_words:
            return self._last_words
        code = self.returncode
        if code is None:
            return "is running"
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = "unknown"
            return f"was killed by signal {-code} ({name})"
        return f"exited with code {code}"

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        # Its session's id is free for others once it has been waited for: what it started goes before that.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.returncode = self._process.wait()
        # Answers that it sent before it died still count.
        self._channel.drain()
        for _ in range(_LAST_READS):
            if not self._read_output():
                break
        self._loop.remove_reader(self._output)
        self._loop.remove_writer(self._lifeline)
        self._channel.close()
        self._hear_last_words()
        self._lifeline.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        os.close(self._pidfd)
        os.close(self.arena_fd)
        for _, fds in self._unsent:
            _close(fds)
        self._unsent.clear()
        self._ended(self)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
