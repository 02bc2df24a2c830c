"""The front ends of a server: started, started again when they die, told to leave, ended."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from socket import socket
from typing import Any

import msgspec

from ...workers.contract.messages import Hello
from ...workers.contract.status import Code, StatusError, unavailable
from ..door.listening import bind_at
from ..farm.backoff import Backoff, when_text
from ..farm.channel import encode
from ..farm.child_process import ChildProcess
from ..farm.farm import KILL_TIMEOUT_SECS, OUTAGE_SECS, PATIENT_DEATHS
from ..farm.launch import Launched, launch
from ..farm.processes import Processes
from ..log import Log
from ..options import Options
from .carried_text import carried
from .messages import (
    Begin,
    Counted,
    End,
    Forget,
    Forgotten,
    FromFrontEnd,
    FrontEndFrame,
    Gone,
    Leave,
    Logged,
    Opened,
    Said,
    ToFrontEnd,
    ToldRaw,
    Used,
)
from .session import Session

END_TIMEOUT_SECS = 2.0
"""How long front ends may take to tell their clients that there is no more, before they are killed."""

FORGET_TIMEOUT_SECS = 2.0
"""How long whoever has changed a model waits for a front end that does not answer."""

LOOK_SECS, SILENT_LOOKS = 1.0, 10
"""How often front ends are looked at, and how often in a row they may be found to have said nothing."""

LEAVE_TIMEOUT_SECS = 1.0
"""How long is waited for one to say how much it has under way."""

_decode = msgspec.msgpack.Decoder(FrontEndFrame).decode

MakeSession = Callable[[Callable[[ToFrontEnd], None], Callable[[int], None], int], Session]
"""Makes what serves a front end: of what speaks to it, what lets it read an arena, and the number of its own arena."""


@dataclass(slots=True, eq=False)
class _Place:
    """A front end's place; it outlives the processes that fill it.

    ``sockets`` are those of its ports, by protocol: this process keeps them too, so that clients who come while there is no front end
    wait for the next. ``bound`` is what they are bound to. ``told`` waits for the end of this turn of the loop. ``waits`` are those who
    wait for a word of it: that its doors are open, that it has forgotten, how much it has under way. ``listens``: clients may wait in
    the queues of its sockets. ``silence``: for how many looks at it in a row nothing was heard of it.
    """

    name: str
    sockets: dict[str, socket]
    bound: dict[str, Any] = field(default_factory=dict)
    process: ChildProcess | None = None
    session: Session | None = None
    up: bool = False
    backoff: Backoff = field(default_factory=Backoff)
    restarts: int = 0
    restart: asyncio.TimerHandle | None = None
    told: list[msgspec.Raw] = field(default_factory=list)
    counted: tuple[int, int] = (0, 0)
    used: Used = Used(0, 0)
    listens: bool = True
    silence: int = 0
    waits: dict[str, asyncio.Future[None]] = field(default_factory=dict)


class FrontEnds:
    """All of them. ``make_session`` makes what serves one, ``refused`` counts what they refuse: of a model, for a reason, how often."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        processes: Processes,
        options: Options,
        log: Log,
        make_session: MakeSession,
        refused: Callable[[str, str, int], None],
    ) -> None:
        self._loop = loop
        self._processes = processes
        self._options = options
        self._log = log
        self._make_session = make_session
        self._refused = refused
        self._places: list[_Place] = []
        self._numbers = itertools.count(1)
        self._opening = False
        self._watch: asyncio.TimerHandle | None = None
        self._leaving = False
        self._closing = False

    # start

    def launch(self, http: Sequence[socket], grpc: Sequence[socket]) -> None:
        """Start front ends, as many as there are sockets of a port, which are taken over; [] for a port that is not served.

        They import their modules meanwhile. The sockets are to be bound before ``open``.
        """
        for number in range(max(len(http), len(grpc))):
            sockets = {protocol: of[number] for protocol, of in (("http", http), ("grpc", grpc)) if of}
            place = _Place(f"front-end-{number}", sockets)
            self._places.append(place)
            self._start(place)

    async def open(self) -> None:
        """Have all doors opened; returns when they are. Raises StatusError where one cannot be."""
        self._opening = True
        opened = [self._wait(place, "open") for place in self._places]
        for place in self._places:
            place.bound = {protocol: one.getsockname() for protocol, one in place.sockets.items()}
            if place.up:
                self._begin(place)
        self._look()
        await asyncio.gather(*opened)

    def _look(self) -> None:
        """Kill those of which nothing was heard for long: they say something every second, and can only hang.

        Looks are counted, not seconds, because this process may have been stopped itself.
        """
        self._watch = self._loop.call_later(LOOK_SECS, self._look)
        for place in self._places:
            process = place.process
            if process is None or not place.up:
                continue
            place.silence += 1
            if place.silence > SILENT_LOOKS:
                place.silence = 0
                self._log.error(f"front end '{place.name}' (pid {process.pid}) has said nothing for {LOOK_SECS * SILENT_LOOKS:g} s")
                process.kill()

    def gone(self, arena: int) -> None:
        """A child process has ended, which has an arena that front ends may read."""
        for place in self._places:
            if place.up:
                self._tell(place, place.process, Gone(arena))

    def _start(self, place: _Place) -> None:
        place.restart = None
        try:
            place.process = self._processes.start(
                place.name,
                partial(self._heard, place),
                partial(self._says, place),
                partial(self._ended, place),
                partial(_launch, place.sockets),
                _decode,
            )
        except OSError as error:
            delay_secs = place.backoff.delay_secs(0)
            self._log.error(f"front end '{place.name}' could not be started: {error.strerror}; it is tried again {when_text(delay_secs)}")
            self._start_later(place, delay_secs, unavailable(f"front end '{place.name}' could not be started: {error.strerror}"))

    def _start_later(self, place: _Place, delay_secs: float, error: StatusError) -> None:
        """Start one again; whoever waits for its doors hears ``error`` where it has failed too often."""
        place.restart = self._loop.call_later(delay_secs, self._start, place)
        if place.backoff.deaths > PATIENT_DEATHS:
            self._answered(place, "open", error)

    def _begin(self, place: _Place) -> None:
        self._tell(place, place.process, Begin(carried(self._options), len(self._places)))

    def _renew_sockets(self, place: _Place) -> None:
        """Put sockets that do not listen yet in the place of those that do, so that no client waits.

        Nobody else gets the ports meanwhile: it is only done while another front end listens on them.
        """
        if not any([other.listens and other.up for other in self._places if other is not place]):
            return
        place.listens = False
        for protocol, bound in place.bound.items():
            old = place.sockets[protocol]
            renewed = socket(old.family, old.type)
            try:
                bind_at(renewed, bound, True)
            except OSError as error:
                renewed.close()
                self._log.warning(f"clients of front end '{place.name}' wait until it is back: {error.strerror}")
                continue
            place.sockets[protocol] = renewed
            old.close()

    # what they say

    def _heard(self, place: _Place, process: ChildProcess, frame: Hello | Said) -> None:
        place.silence = 0
        if isinstance(frame, Hello):
            place.up = True
            share = partial(self._processes.share, process=process)
            place.session = self._make_session(partial(self._tell, place, process), share, process.arena_number)
            if self._opening and not self._leaving:
                self._begin(place)
            return
        for message in frame.messages:
            try:
                self._take(place, process, message)
            except Exception as error:  # noqa: BLE001
                # What it was about has been answered; what comes behind it is about others.
                self._loop.call_exception_handler({"message": "a message of a front end could not be taken", "exception": error})

    def _take(self, place: _Place, process: ChildProcess, message: FromFrontEnd) -> None:
        if isinstance(message, Opened):
            self._opened(place, process, message)
        elif isinstance(message, Forgotten):
            self._answered(place, f"forget {message.number}")
        elif isinstance(message, Counted):
            place.counted = (message.connections, message.calls)
            self._answered(place, "leave")
        elif isinstance(message, Used):
            place.used = message
            for model, reason, count in message.refused:
                self._refused(model, reason, count)
        elif isinstance(message, Logged):
            if self._log.takes(message.severity):
                self._log.record(message.severity, message.message, message.place, process.pid)
        elif place.session is not None:
            place.session.receive(message)

    def _opened(self, place: _Place, process: ChildProcess, message: Opened) -> None:
        fault = message.fault
        if fault is None:
            place.listens = True
            self._answered(place, "open")
        elif not self._answered(place, "open", StatusError(Code(fault.code), fault.message)):
            self._log.error(f"front end '{place.name}' could not open its doors: {fault.message}")
            process.kill()

    def _says(self, place: _Place, line: str) -> None:
        self._log.info(f"front end '{place.name}': {line}")

    def _ended(self, place: _Place, process: ChildProcess) -> None:
        if place.session is not None:
            place.session.end()
        place.process, place.session, place.up = None, None, False
        place.told.clear()
        place.counted, place.used = (0, 0), Used(0, 0)
        for what in [what for what in place.waits if what != "open"]:
            self._answered(place, what)
        if self._leaving or self._closing:
            return
        place.restarts += 1
        delay_secs = place.backoff.delay_secs(time.monotonic_ns() - process.started_ns)
        self._log.error(f"front end '{place.name}' (pid {process.pid}) {process.exit_text}; it is started again {when_text(delay_secs)}")
        if delay_secs > OUTAGE_SECS:
            # Its clients are better off with the others.
            self._renew_sockets(place)
        failure = f"front end '{place.name}' {process.exit_text} at its start; the log has its last words"
        self._start_later(place, delay_secs, unavailable(failure))

    # what they are told

    def _tell(self, place: _Place, process: ChildProcess | None, message: ToFrontEnd) -> None:
        if process is None or process is not place.process or process.returncode is not None:
            return
        content = msgspec.Raw(encode(message))
        if not place.told:
            self._loop.call_soon(self._flush, place, process)
        place.told.append(content)

    def _flush(self, place: _Place, process: ChildProcess) -> None:
        if process is place.process and place.told and process.returncode is None:
            told, place.told = place.told, []
            process.send(ToldRaw(told))

    def _wait(self, place: _Place, what: str) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        place.waits[what] = future
        return future

    def _answered(self, place: _Place, what: str, error: StatusError | None = None) -> bool:
        """End a wait; False where nobody waits for that."""
        future = place.waits.pop(what, None)
        if future is None:
            return False
        if not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
        return True

    async def forget(self) -> None:
        """What they know of models may be wrong; returns when none of them that answers goes by it any more."""
        number = next(self._numbers)
        waits = []
        for place in self._places:
            if place.up and self._opening:
                waits.append(self._wait(place, f"forget {number}"))
                self._tell(place, place.process, Forget(number))
        if waits:
            _, late = await asyncio.wait(waits, timeout=FORGET_TIMEOUT_SECS)
            # Those answer nobody at the moment; what they still submit is checked again.
            for place in self._places if late else ():
                place.waits.pop(f"forget {number}", None)

    @property
    def connection_count(self) -> int:
        """HTTP connections that are open, since they were told to leave."""
        return sum([place.counted[0] for place in self._places])

    @property
    def answering_count(self) -> int:
        """gRPC connections whose clients wait for an answer, since they were told to leave."""
        return sum([place.counted[1] for place in self._places])

    @property
    def arena_used_bytes(self) -> dict[str, int]:
        """Bytes in use of each one's arena."""
        return {place.name: place.used.arena_byte_size for place in self._places}

    @property
    def held_byte_size(self) -> int:
        """Bytes that they hold for requests and their replies, in arenas and elsewhere."""
        return sum([place.used.arena_byte_size + place.used.held_byte_size for place in self._places])

    @property
    def restarts(self) -> dict[str, int]:
        """How often each was started again."""
        return {place.name: place.restarts for place in self._places}

    # end

    async def leave(self) -> None:
        """Accept nobody any more; what is under way may end. Returns when all have said how much that is."""
        self._leaving = True
        waits = []
        for place in self._places:
            _close(place.sockets.values())
            if place.restart is not None:
                place.restart.cancel()
            if place.up:
                # Until it says how much it has under way, that is something.
                place.counted = (1, 0)
                waits.append(self._wait(place, "leave"))
                self._tell(place, place.process, Leave())
            elif place.process is not None:
                place.process.kill()
        if waits:
            await asyncio.wait(waits, timeout=LEAVE_TIMEOUT_SECS)
        for place in self._places:
            if place.process is not None and "leave" in place.waits and (place.session is None or not place.session.in_flight):
                # It hangs, and whoever waits for it waits for nothing.
                place.process.kill()

    async def close(self) -> None:
        """End all of them: asked first, killed where they do not go."""
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
        for place in self._places:
            _close(place.sockets.values())
            if place.restart is not None:
                place.restart.cancel()
            if place.process is not None and place.up and self._opening:
                self._tell(place, place.process, End())
            elif place.process is not None:
                place.process.kill()
        await self._gone(END_TIMEOUT_SECS)
        self.end_now()
        await self._gone(KILL_TIMEOUT_SECS)

    async def _gone(self, timeout_secs: float) -> None:
        deadline = self._loop.time() + timeout_secs
        while any([place.process is not None for place in self._places]) and self._loop.time() < deadline:
            await asyncio.sleep(0.005)

    def end_now(self) -> None:
        """Kill all of them."""
        for place in self._places:
            if place.process is not None:
                place.process.kill()


def _launch(sockets: dict[str, socket]) -> Launched:
    program = __package__ or ""
    words = [sys.executable, "-P", "-m", program]
    for protocol, one in sockets.items():
        words += [f"--{protocol}", str(one.fileno())]
    return launch(words, descriptors=[one.fileno() for one in sockets.values()])


def _close(sockets: Iterable[socket]) -> None:
    for one in sockets:
        one.close()
