"""What stands in front of a model version whose answers are kept: requests that were answered before do not reach its scheduler.

Sans-IO: the store answers by callbacks, long work is handed to ``beside``, which calls back on the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ...shm.arrays import np
from ...shm.placement import Inline, Lease
from ...workers.contract.messages import Tensor
from ...workers.contract.status import Code, StatusError
from ..statistics import ExecutionTimes, FailureReason, VersionStatistics
from .forwarding import Counting, Flow, Forwarding
from .request import EndMark, Request, Response
from .response_cache import Entry, Store, cacheable, contents, digest, entry_byte_size
from .scheduler import stopping_error

SHORT_BYTE_SIZE = 256 * 1024
"""More than this is not read in one turn of the loop."""


class Beside(Protocol):
    """Does ``work`` in a thread and then calls ``done`` with its result on the loop, unless the server has ended by then."""

    def __call__(self, work: Callable[[], Any], done: Callable[[Any], None]) -> object: ...


@dataclass(frozen=True, slots=True)
class Caching:
    """What all cached versions share.

    ``view`` gives the bytes of a lease, and raises StatusError where they are gone. ``flow`` is told of the requests that are here,
    and not, or no more, with what lies behind.
    """

    store: Store
    view: Callable[[Lease], memoryview]
    beside: Beside
    flow: Counting = field(default_factory=Flow)


class _Visit:
    """A request on its way. ``waiting``: it has not reached what lies behind, and ``over``: it never will.

    ``deliver`` and ``tell`` are what its sender gave as ``on_response`` and ``on_execution``. ``executed``: a model has run it.
    ``entry`` is its answer, to be kept; ``spoilt``: there is none that could be. ``behind`` are what came behind a response while that
    is being copied, None where none is.
    """

    __slots__ = (
        *("behind", "deliver", "entry", "executed", "found", "insert_start_ns", "key", "lookup_ns", "lookup_start_ns"),
        *("over", "request", "spoilt", "tell", "waiting"),
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.deliver = request.on_response
        self.tell = request.on_execution
        self.key = b""
        self.lookup_start_ns = self.lookup_ns = self.insert_start_ns = 0
        self.entry: Entry | None = None
        self.behind: list[Response] | None = None
        self.executed = self.spoilt = self.found = self.waiting = self.over = False


class Cached(Forwarding[_Visit]):
    """One model version, or ensemble, with a cache in front.

    ``identity`` stands for this load of it in keys. ``enter`` and ``withdraw`` are those of what lies behind, which has
    ``output_count`` outputs. ``ordered``: responses keep the order of the requests, also where some come from the cache.
    """

    def __init__(
        self,
        identity: bytes,
        caching: Caching,
        enter: Callable[[Request], None],
        withdraw: Callable[[Request], None],
        statistics: VersionStatistics,
        *,
        output_count: int,
        ordered: bool = False,
        ensemble: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(statistics, caching.flow, ordered=ordered)
        self._digest = partial(digest, identity, output_count)
        self._store = caching.store
        self._view = caching.view
        self._beside = caching.beside
        self._enter = enter
        self._withdraw = withdraw
        self._ensemble = ensemble
        self._clock_ns = clock_ns
        self._copying = 0

    # requests

    def submit(self, request: Request) -> None:
        """Answer a validated request, or pass it on. Its response may come before this returns.

        Raises StatusError, and then nothing is called back.
        """
        if self.stopping:
            raise stopping_error(request.label)
        inputs = self._inputs(request)
        if inputs is None:
            self._enter_uncached(request)
            return
        visit = _Visit(request)
        request.queued_ns = self._clock_ns()
        if sum([len(content) for content in inputs]) > SHORT_BYTE_SIZE:
            self._wait(visit)
            self._beside(partial(self._digest, request.body, inputs), partial(self._digested, visit))
            return
        visit.key = self._digest(request.body, inputs)
        self._look_up(visit)
        if not visit.found:
            self._wait(visit)

    def _inputs(self, request: Request) -> list[memoryview] | None:
        """What a request's name is made of; None where its answer cannot be kept, or its inputs are gone with their worker."""
        if not cacheable(request.body):
            return None
        try:
            return contents(request.body, self._view)
        except (StatusError, ValueError):
            return None

    def _enter_uncached(self, request: Request) -> None:
        if self._order is None:
            self._enter(request)
            return
        visit = _Visit(request)
        visit.spoilt = True
        request.on_response = partial(self._pass_back, visit)
        try:
            self._enter(request)
        except StatusError:
            request.on_response = visit.deliver
            raise
        self._arrive(visit)

    def _pass_back(self, visit: _Visit, response: Response) -> None:
        if response.final:
            visit.request.on_response = visit.deliver
        self._hand_on(visit, response)

    def _wait(self, visit: _Visit) -> None:
        """Until it is known what a request is called, or whether it has been answered."""
        self._arrive(visit)
        self._begin_waiting(visit)

    def _go_on(self, visit: _Visit) -> None:
        self._end_waiting(visit)
        if self._order is None:
            del self._open[visit.request]

    def _digested(self, visit: _Visit, key: bytes) -> None:
        if not visit.over:
            visit.key = key
            self._look_up(visit)

    def _look_up(self, visit: _Visit) -> None:
        visit.lookup_start_ns = self._clock_ns()
        self._store.look_up(visit.key, partial(self._found, visit))

    def _found(self, visit: _Visit, entry: Entry | None) -> None:
        if visit.over:
            return
        visit.found = True
        now_ns = self._clock_ns()
        visit.lookup_ns = now_ns - visit.lookup_start_ns
        waited = visit.waiting
        if waited:
            self._go_on(visit)
        try:
            if entry is not None:
                if not waited:
                    self._arrive(visit)
                self._statistics.cache_hit(visit.request.start_ns, visit.request.queued_ns, visit.lookup_start_ns, now_ns)
                self._answer(visit, Response(visit.request, list(entry.outputs)))
            elif not waited:
                self._pass_on(visit)
                self._arrive(visit)
            else:
                try:
                    self._pass_on(visit)
                except StatusError as error:
                    self._refuse(visit, error, FailureReason.REJECTED)
        finally:
            if waited:
                self._rest()

    def _pass_on(self, visit: _Visit) -> None:
        """What was not found is answered by what lies behind. Raises StatusError, and then the request is as it was."""
        request = visit.request
        request.on_response = partial(self._answered, visit)
        if not self._ensemble:
            request.on_execution = partial(_executed, visit)
        try:
            self._enter(request)
        except StatusError:
            request.on_response, request.on_execution = visit.deliver, visit.tell
            raise

    def cancel(self, request: Request) -> None:
        """Nobody waits for this request any more."""
        visit = self._open.get(request)
        if visit is None or not visit.waiting:
            self._withdraw(request)
            return
        request.cancelled = True
        self._go_on(visit)
        self._refuse(visit, StatusError(Code.CANCELLED, ""), FailureReason.CANCELED)
        self._rest()

    def _refuse(self, visit: _Visit, error: StatusError, reason: FailureReason) -> None:
        """Answer a request that has waited, and goes no further."""
        visit.over = True
        self._statistics.request_failed(reason, visit.request.start_ns, self._clock_ns())
        self._answer(visit, Response(visit.request, [], error=error))

    # answers

    def _answer(self, visit: _Visit, response: Response) -> None:
        """Hand over the only response to a request that goes no further."""
        request = visit.request
        on_finish, request.on_finish = request.on_finish, None
        try:
            if on_finish is not None:
                on_finish()
        finally:
            self._hand_on(visit, response)

    def _answered(self, visit: _Visit, response: Response) -> None:
        """What lies behind has answered. No request may be part of a circle of objects once it is over: the collector runs rarely."""
        if response.final:
            visit.request.on_response, visit.request.on_execution = visit.deliver, visit.tell
        if visit.behind is not None:
            visit.behind.append(response)
        elif type(response) is EndMark:
            self._settle(visit, response)
        elif response.error is not None or visit.spoilt or visit.entry is not None or self.stopping:
            # Also a second response: what is given out by the cache is one.
            visit.spoilt = True
            self._settle(visit, response)
        else:
            self._take(visit, response)

    def _take(self, visit: _Visit, response: Response) -> None:
        """Make an entry of a response, before its memory goes back."""
        visit.insert_start_ns = self._clock_ns()
        outputs = response.outputs
        try:
            views = [response.read(tensor) for tensor in outputs]
        except StatusError:  # its worker has gone meanwhile
            views = []
        sizes = [len(view) for view in views]
        byte_size = entry_byte_size(zip(outputs, sizes, strict=False))
        visit.spoilt = len(views) < len(outputs) or byte_size > self._store.largest_byte_size
        if visit.spoilt:
            self._settle(visit, response)
        elif sum(sizes) > SHORT_BYTE_SIZE:
            self._copying += 1
            self._flow.in_flight += 1
            visit.behind = []
            self._beside(partial(_copies, views), partial(self._copied, visit, response, byte_size))
        else:
            visit.entry = _entry(outputs, [memoryview(bytes(view)) for view in views], byte_size)
            self._settle(visit, response)

    def _copied(self, visit: _Visit, response: Response, byte_size: int, copies: list[memoryview] | None) -> None:
        self._copying -= 1
        self._flow.in_flight -= 1
        if copies is None:
            visit.spoilt = True
        else:
            visit.entry = _entry(response.outputs, copies, byte_size)
        behind, visit.behind = visit.behind or [], None
        with ExitStack() as stack:  # calls all of them, whichever fails
            stack.callback(self._rest)
            for later in reversed(behind):
                stack.callback(self._answered, visit, later)
            stack.callback(self._settle, visit, response)

    def _settle(self, visit: _Visit, response: Response) -> None:
        """Keep and count what is over; hand a response on."""
        try:
            if response.final:
                self._keep(visit, response)
        finally:
            self._hand_on(visit, response)

    def _keep(self, visit: _Visit, response: Response) -> None:
        entry, visit.entry = visit.entry, None
        if entry is not None and not visit.spoilt:
            self._store.insert(visit.key, entry, partial(self._inserted, visit.lookup_ns, visit.insert_start_ns))
        elif response.error is None or visit.executed:
            self._statistics.cache_missed(visit.lookup_ns, self._clock_ns())

    def _inserted(self, lookup_ns: int, insert_start_ns: int, known: bool) -> None:
        """An answer has been kept. Where another request brought the same one first, that one's miss counts for both."""
        if not known:
            now_ns = self._clock_ns()
            self._statistics.cache_missed(lookup_ns + now_ns - insert_start_ns, now_ns)

    # the end

    @property
    def in_flight(self) -> int:
        """Requests that are neither answered nor known to what lies behind."""
        return self._waiting + self._copying

    @property
    def idle(self) -> bool:
        """As ``Forwarding`` says: none waits, and no answer is being copied."""
        return not self.in_flight

    def abandon(self, error: StatusError) -> None:
        """Answer what waits with ``error``: the server ends."""
        for visit in [visit for visit in self._open.values() if visit.waiting]:
            self._go_on(visit)
            self._refuse(visit, error, FailureReason.OTHER)
        self._rest()


def _executed(visit: _Visit, times: ExecutionTimes) -> None:
    visit.executed = True
    if visit.tell is not None:
        visit.tell(times)


def _entry(outputs: list[Tensor], copies: list[memoryview], byte_size: int) -> Entry:
    pairs = zip(outputs, copies, strict=True)
    return Entry(tuple([Tensor(tensor.name, tensor.datatype, tensor.shape, Inline(copy)) for tensor, copy in pairs]), byte_size)


def _copies(views: list[memoryview]) -> list[memoryview] | None:
    """Copies made without the interpreter's lock, which ``bytes`` would hold; None where there is no memory for them."""
    try:
        copies = [bytearray(len(view)) for view in views]
    except MemoryError:
        return None
    for copy, view in zip(copies, views, strict=True):
        if len(view):
            np.frombuffer(copy, np.uint8)[:] = np.frombuffer(view, np.uint8)
    return [memoryview(copy).toreadonly() for copy in copies]
