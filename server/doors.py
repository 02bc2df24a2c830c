"""The server's ports: in this process, or, but for the metrics page, in front ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from socket import socket
from typing import TYPE_CHECKING

from ..workers.contract.status import StatusError
from . import ahead
from .door.listening import listen_together, new_socket
from .door.tls import Tls, tls_of
from .log import Log
from .options import Options
from .service import Service

if TYPE_CHECKING:
    from .farm.processes import Processes
    from .front_end.front_ends import FrontEnds
    from .front_end.sessions import Sessions
    from .grpc.listener import GrpcDoor
    from .http.listener import HttpDoor

HTTP, GRPC = "HTTP", "GRPC"
_SERVICES = {HTTP: "HTTPService", GRPC: "GRPCInferenceService"}


class Doors:
    """All of them. ``metrics_page`` gives the page's text, ``stay_awake`` tells the loop that more is about to come."""

    def __init__(
        self,
        options: Options,
        log: Log,
        service: Service,
        processes: Processes,
        metrics_page: Callable[[], bytes],
        stay_awake: Callable[[], None],
    ) -> None:
        self._options = options
        self._log = log
        self._service = service
        self._processes = processes
        self._metrics_page = metrics_page
        self._stay_awake = stay_awake
        self._loop = asyncio.get_running_loop()
        self._tls: dict[str, Tls | None] = {}
        self._http: HttpDoor | None = None
        self._grpc: GrpcDoor | None = None
        self._metrics: HttpDoor | None = None
        self._front_ends: FrontEnds | None = None
        self._sessions: Sessions | None = None
        self._unbound: dict[str, list[socket]] = {}
        self._imported: asyncio.Future[object] | None = None
        self._changed = False
        self._forgetting: set[asyncio.Task[None]] = set()

    # start

    def check_certificates(self) -> None:
        """Raises StatusError where the files of a port's TLS are not what they should be."""
        if self._options.allow_http:
            self._tls[HTTP] = tls_of(self._options, self._log)
        if self._options.allow_grpc:
            self._tls[GRPC] = tls_of(self._options, self._log, "gRPC")

    async def prepare(self) -> None:
        """Import the doors' modules, or have front ends do that, while the models load."""
        if not self._options.front_ends:
            self._imported = self._loop.run_in_executor(None, ahead.own_doors, self._options.allow_grpc)
            return
        make_front_ends, make_sessions = await self._loop.run_in_executor(None, ahead.front_ends)
        options = self._options
        self._unbound = {
            HTTP: [new_socket(options.http_address) for _ in range(options.front_ends)] if options.allow_http else [],
            GRPC: [new_socket(options.grpc_address) for _ in range(options.front_ends)] if options.allow_grpc else [],
        }
        sessions = self._sessions = make_sessions(self._service)
        self._front_ends = make_front_ends(
            self._loop, self._processes, options, self._log, sessions.begin, self._service.admission.count_refused
        )
        self._front_ends.launch(self._unbound[HTTP], self._unbound[GRPC])
        self._service.on_change = self._front_ends.forget
        self._processes.on_end = self._front_ends.gone

    async def open(self) -> bool:
        """Open all doors; False, and logged, where one cannot be."""
        if self._front_ends is not None:
            # Whoever finds the server live may look at its metrics at once.
            return await self._open_metrics() and await self._open_front_ends(self._front_ends)
        assert self._imported is not None
        await self._imported
        return await self._open_http() and await self._open_metrics() and await self._open_grpc()

    async def _open_front_ends(self, front_ends: FrontEnds) -> bool:
        options = self._options
        places = {
            HTTP: (options.http_address, options.http_port, options.reuse_http_port),
            GRPC: (options.grpc_address, options.grpc_port, options.reuse_grpc_port),
        }
        ports = {}
        for protocol, sockets in self._unbound.items():
            try:
                if sockets:
                    ports[protocol] = listen_together(sockets, *places[protocol])
            except StatusError as error:
                return self._failed(protocol, error)
        try:
            await front_ends.open()
        except StatusError as error:
            self._log.error(f"failed to start the front ends: {error.code.text} - {error.message}")
            return False
        count = options.front_ends
        for protocol, port in ports.items():
            self._opened(protocol, port, f" by {count} front end{'s' if count > 1 else ''}")
        return True

    async def _open_http(self) -> bool:
        options = self._options
        if options.allow_http:
            from .http.front import own_front

            try:
                self._http = own_front(self._service, options.http_restricted_api).door(self._stay_awake)
                await self._http.start(options.http_address, options.http_port, options.reuse_http_port, self._tls[HTTP])
            except StatusError as error:
                return self._failed(HTTP, error)
            self._opened(HTTP, self._http.port)
        return True

    async def _open_grpc(self) -> bool:
        options = self._options
        if options.allow_grpc:
            from .grpc.listener import own_door

            try:
                self._grpc = own_door(self._service)
                await self._grpc.start(options.grpc_address, options.grpc_port, options.reuse_grpc_port, self._tls[GRPC])
            except StatusError as error:
                return self._failed(GRPC, error)
            self._opened(GRPC, self._grpc.port)
        return True

    async def _open_metrics(self) -> bool:
        options = self._options
        if options.allow_metrics:
            from .http.metrics_page import metrics_door

            try:
                self._metrics = metrics_door(self._metrics_page)
                await self._metrics.start(options.metrics_address, options.metrics_port, False)
            except StatusError as error:
                return self._failed("Metrics", error)
            self._log.info(f"Started Metrics Service at {options.metrics_address}:{self._metrics.port}")
        return True

    def _opened(self, protocol: str, port: int, by: str = "") -> None:
        address = self._options.http_address if protocol == HTTP else self._options.grpc_address
        over = " over TLS" if self._tls[protocol] is not None else ""
        self._log.info(f"Started {_SERVICES[protocol]}{over} at {address}:{port}{by}")

    def _failed(self, protocol: str, error: StatusError) -> bool:
        self._log.error(f"failed to start {protocol} service: {error.code.text} - {error.message}")
        return False

    # while it serves

    def models_changed(self) -> None:
        """What front ends know of models may be wrong now."""
        if self._front_ends is not None and not self._changed:
            self._changed = True
            self._loop.call_soon(self._tell_change, self._front_ends)

    def _tell_change(self, front_ends: FrontEnds) -> None:
        self._changed = False
        task = self._loop.create_task(front_ends.forget())
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)

    @property
    def arena_used_bytes(self) -> dict[str, int]:
        """Bytes in use of each front end's arena."""
        return {} if self._front_ends is None else self._front_ends.arena_used_bytes

    @property
    def held_byte_size(self) -> int:
        """Bytes that front ends hold for requests and replies."""
        return 0 if self._front_ends is None else self._front_ends.held_byte_size

    @property
    def restarts(self) -> dict[str, int]:
        """How often each front end was started again."""
        return {} if self._front_ends is None else self._front_ends.restarts

    @property
    def connection_count(self) -> int:
        """HTTP connections open now; of front ends, since they were told to leave."""
        if self._front_ends is not None:
            return self._front_ends.connection_count
        return self._http.connection_count if self._http is not None else 0

    @property
    def answering_count(self) -> int:
        """gRPC connections whose clients wait for an answer; of front ends, since they were told to leave."""
        if self._front_ends is not None:
            return self._front_ends.answering_count
        return self._grpc.answering_count if self._grpc is not None else 0

    # end

    async def stop_accepting(self) -> None:
        """Refuse new clients, and let what is under way be answered. The metrics page stays."""
        if self._front_ends is not None:
            await self._front_ends.leave()
        if self._http is not None:
            await self._http.stop_accepting()
        if self._grpc is not None:
            self._grpc.stop_accepting()

    async def close(self) -> None:
        """Close every connection but those to the metrics page, and have the front ends end."""
        if self._http is not None:
            await self._http.close()
        if self._grpc is not None:
            await self._grpc.close()
        if self._front_ends is not None:
            await self._front_ends.close()
        if self._sessions is not None:
            await self._sessions.close()
        for task in list(self._forgetting):
            task.cancel()

    async def close_metrics(self) -> None:
        """Close the metrics page, which is there until the workers have gone."""
        if self._metrics is not None:
            await self._metrics.close()

    def end_now(self) -> None:
        """Kill the front ends; the process exits right after."""
        if self._front_ends is not None:
            self._front_ends.end_now()
