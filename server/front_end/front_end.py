"""A front end: doors, and a link to the server process behind them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from socket import socket
from typing import TYPE_CHECKING

from ...shm.arena import Arena
from ...shm.placement import Lease
from ...workers.contract.messages import Fault, Greeting
from ...workers.contract.status import Code, StatusError
from .. import ahead
from ..admission import Admission, AdmissionLimits
from ..busy_poll import BusyPoll
from ..collector import relax_collector
from ..door.tls import tls_of
from ..log import leave_library_lines, take_library_lines
from .arenas import Arenas
from .carried_text import meant
from .doors import grpc_door, http_door
from .forwarded_log import ForwardedLog
from .link import Link
from .messages import Begin, Counted, End, Forget, Forgotten, FromFrontEnd, Gone, News, Opened, Order, Responded, Told, Used
from .remote_service import RemoteService

if TYPE_CHECKING:
    from ..grpc.listener import GrpcDoor
    from ..http.listener import HttpDoor

_logger = logging.getLogger(__name__)

_COUNT_S = 0.01
_USE_S = 0.2
_SIGN_TURNS = 5


class FrontEnd:
    """One front end. ``http`` and ``grpc`` are sockets bound to the ports that it serves, None for those that it does not.

    ``arena`` is its own, ``request_arena_fd`` a descriptor of the server process's.
    """

    def __init__(
        self, greeting: Greeting, lifeline: socket, arena: Arena, request_arena_fd: int, http: socket | None, grpc: socket | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._http_socket = http
        self._grpc_socket = grpc
        self._http: HttpDoor | None = None
        self._grpc: GrpcDoor | None = None
        self._service: RemoteService | None = None
        self._orders: asyncio.Queue[Order] = asyncio.Queue()
        self._heard: deque[News] = deque()
        self._counted: tuple[int, int] | None = None
        self._counting: asyncio.TimerHandle | None = None
        self._using: asyncio.TimerHandle | None = None
        self._arenas = Arenas(self._loop, lifeline, arena, request_arena_fd, self._go_on)
        self._link = Link(self._loop, greeting.endpoint, greeting.token, self._receive)
        self._log = ForwardedLog(self._tell_from_anywhere)

    async def run(self) -> None:
        """Serve until the server process says that it is enough."""
        lines = take_library_lines(self._log)
        try:
            while not isinstance(order := await self._orders.get(), End):
                if isinstance(order, Begin):
                    await self._begin(order)
                else:
                    await self._leave()
            await self._close()
        finally:
            leave_library_lines(lines)
            self._arenas.close()
            self._link.close()

    def _tell_from_anywhere(self, message: FromFrontEnd) -> None:
        if threading.get_ident() == self._thread:
            self._link.tell(message)
        else:
            self._loop.call_soon_threadsafe(self._link.tell, message)

    # what the server process tells

    def _receive(self, told: Told) -> None:
        for message in told.messages:
            if isinstance(message, Order):
                # These wait for nothing that is about requests.
                self._orders.put_nowait(message)
            else:
                self._heard.append(message)
        self._go_on()

    def _go_on(self) -> None:
        """Take what was told, in order, up to a response whose outputs cannot be reached yet."""
        heard = self._heard
        while heard:
            message = heard[0]
            if type(message) is Responded and not self._reachable(message):
                return
            heard.popleft()
            try:
                self._take(message)
            except Exception:
                # What it was about has been answered, or never will be; what comes behind it is about others.
                _logger.exception("a message of the server process could not be taken")

    def _reachable(self, message: Responded) -> bool:
        """Have the arenas come that its outputs lie in? Their descriptors may be overtaken."""
        return all([type(tensor.place) is not Lease or self._arenas.has(tensor.place.arena) for tensor in message.outputs])

    def _take(self, message: News) -> None:
        if isinstance(message, Gone):
            self._arenas.gone(message.arena)
        elif self._service is not None:
            self._service.receive(message)
        elif isinstance(message, Forget):
            self._link.tell(Forgotten(message.number))

    # orders

    async def _begin(self, order: Begin) -> None:
        options = meant(order.options)
        self._log.settings.log_verbose_level = options.log_verbose
        arena = self._arenas.own
        byte_size = options.max_inflight_byte_size
        whole = arena.capacity_byte_size if byte_size is None else byte_size
        bound = whole and max(1, whole // order.front_end_count)
        # How many requests there may be is counted where all of them are.
        admission = Admission(AdmissionLimits(byte_size=bound), memory=arena)
        service = self._service = RemoteService(options, arena, admission, self._arenas.view, self._link.tell)
        stay_awake: Callable[[], None] = BusyPoll(options.busy_poll_us or 0, self._loop.call_soon).stay_awake
        try:
            if self._http_socket is not None:
                self._http = http_door(service, stay_awake)
                await self._http.serve(self._http_socket, tls_of(options, self._log))
            if self._grpc_socket is not None:
                self._grpc = grpc_door(service)
                await self._grpc.serve(self._grpc_socket, tls_of(options, self._log, "gRPC"))
        except StatusError as error:
            self._link.tell(Opened(Fault(error.code, error.message.encode("utf-8", "replace").decode())))
            return
        except OSError as error:
            self._link.tell(Opened(Fault(Code.INTERNAL, f"cannot listen: {error.strerror}")))
            return
        relax_collector()
        self._link.tell(Opened())
        self._tell_use(admission, Used(0, 0))
        self._loop.run_in_executor(None, ahead.rest)

    def _tell_use(self, admission: Admission, before: Used, turn: int = 0) -> None:
        """Say what it uses, where that is not what was said last, and as a sign of life."""
        refused = [(model, reason, count) for (model, reason), count in admission.refused.items()]
        admission.refused.clear()
        used = Used(admission.memory.used_byte_size, admission.held_byte_size, refused)
        turn += 1
        if used != before or turn >= _SIGN_TURNS:
            turn = 0
            self._link.tell(used)
        before = Used(used.arena_byte_size, used.held_byte_size)
        self._using = self._loop.call_later(_USE_S, self._tell_use, admission, before, turn)

    async def _leave(self) -> None:
        if self._http is not None:
            await self._http.stop_accepting()
        if self._grpc is not None:
            self._grpc.stop_accepting()
        self._count()

    def _count(self) -> None:
        """Say how much is under way, where that is not what was said last."""
        counted = (
            self._http.connection_count if self._http is not None else 0,
            self._grpc.answering_count if self._grpc is not None else 0,
        )
        if counted != self._counted:
            self._counted = counted
            self._link.tell(Counted(*counted))
        self._counting = self._loop.call_later(_COUNT_S, self._count)

    async def _close(self) -> None:
        for timer in (self._counting, self._using):
            if timer is not None:
                timer.cancel()
        if self._http is not None:
            await self._http.close()
        if self._grpc is not None:
            await self._grpc.close()
        for one in (self._http_socket, self._grpc_socket):
            if one is not None:
                one.close()
