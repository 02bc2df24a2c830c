"""Inference that models ask for themselves (BLS): ordinary requests, whose outputs are lent to the worker that asked."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ..shm.placement import Lease
from ..workers.contract.messages import Answer, Call, CancelCall, Fault, Release, Result
from ..workers.contract.signature import Signature
from ..workers.contract.status import Code, StatusError, internal, invalid
from .dispatch.request import EndMark, Request, Response
from .repository.demand import Awaited, NotResident, OnReady


class Caller(Protocol):
    """The worker process that asks."""

    @property
    def name(self) -> str: ...

    def answer(self, instance: int, message: Answer) -> None:
        """Send the answer to a call, to an instance of it that waits, 0 for none; dropped where it has gone."""


class Target(Protocol):
    """A model version that can be asked."""

    @property
    def signature(self) -> Signature: ...


@dataclass(slots=True, eq=False)
class _Open:
    """A call without its final answer yet. ``cancel`` withdraws its request."""

    model: str
    cancel: Callable[[], None]


def _none_to_bring(absent: NotResident, on_ready: OnReady, caller: Any) -> Awaited:
    raise absent


class ModelCalls:
    """Every call of every worker.

    ``ask(model, version, request)`` finds a model (version -1: the newest), checks and queues the request, and returns what
    cancels it; it raises StatusError. ``find`` is its first half. ``share(arena, caller)`` lets a worker read another's arena.
    Where they raise NotResident, ``bring(absent, on_ready, caller)`` has the model loaded, and the call begins then.
    """

    def __init__(
        self,
        find: Callable[[str, int], Target],
        ask: Callable[[str, int, Request], Callable[[], None]],
        share: Callable[[int, Any], None],
        clock_ns: Callable[[], int] = time.monotonic_ns,
        bring: Callable[[NotResident, OnReady, Any], Awaited] = _none_to_bring,
    ) -> None:
        self._find = find
        self._ask = ask
        self._share = share
        self._bring = bring
        self._clock_ns = clock_ns
        self._loan_numbers = itertools.count(1)
        self._open: dict[Caller, dict[int, _Open]] = {}
        self._loans: dict[Caller, dict[int, Response]] = {}

    @property
    def count(self) -> int:
        """Calls without their final answer."""
        return sum(len(calls) for calls in self._open.values())

    def calling(self, model: str) -> set[str]:
        """The workers, by name, that have calls of a model without their final answer."""
        return {caller.name for caller, calls in self._open.items() if any(opened.model == model for opened in calls.values())}

    def call(self, message: Call, caller: Caller) -> None:
        """Begin a call; what is wrong with it is its answer."""
        calls = self._open.setdefault(caller, {})
        opened = calls[message.call] = _Open(message.model, _nothing)
        request = Request(
            message.body,
            self._clock_ns(),
            lambda response: self._answer(message, caller, response),
            priority=message.priority,
            caller=message.batch,
        )
        if message.body.context is not None:
            request.timeout_us = message.body.context.timeout_us
        names = [tensor.name for tensor in message.body.inputs]
        try:
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise invalid(f"{request.label}input '{twice}' already exists in request")
            if self._target(message).signature.decoupled and not message.decoupled:
                raise internal(
                    f"Model {message.model} is using the decoupled. The current BLS request call doesn't support models using the "
                    "decoupled transaction policy. Please use 'decoupled=True' argument to the 'exec' or 'async_exec' calls for "
                    "decoupled models.'"
                )
            opened.cancel = self._ask(message.model, message.version, request)
        except NotResident as absent:
            awaited = self._bring(absent, partial(self._brought, message, caller, opened), caller)
            opened.cancel = partial(self._give_up, message, caller, opened, awaited)
        except StatusError as error:
            self._refuse(message, caller, error)

    def _refuse(self, message: Call, caller: Caller, error: StatusError) -> None:
        del self._open[caller][message.call]
        code = error.code if error.code is Code.UNAVAILABLE else Code.INTERNAL
        fault = Fault(code, f"Model {message.model} - Error when running inference: {error.message}")
        caller.answer(message.instance, Answer(message.call, 0, Result([], {}, fault), True))

    def _brought(self, message: Call, caller: Caller, opened: _Open, error: StatusError | None) -> None:
        """The model that a call has waited for can be asked, or why it cannot."""
        if self._open.get(caller, {}).get(message.call) is not opened:
            return
        if error is None:
            self.call(message, caller)
        else:
            self._refuse(message, caller, error)

    def _give_up(self, message: Call, caller: Caller, opened: _Open, awaited: Awaited) -> None:
        """Nobody waits any more for a call that waits for its model."""
        awaited.cancel()
        calls = self._open.get(caller, {})
        if calls.get(message.call) is opened:
            del calls[message.call]
            caller.answer(message.instance, Answer(message.call, 0, Result([], {}, Fault(Code.CANCELLED, "")), True))

    def _target(self, message: Call) -> Target:
        try:
            if message.version < -1:
                raise internal("no such version")
            return self._find(message.model, message.version)
        except NotResident:
            raise
        except StatusError:
            raise internal(f"Failed for execute the inference request. Model '{message.model}' is not ready.") from None

    def _answer(self, message: Call, caller: Caller, response: Response) -> None:
        calls = self._open.get(caller)
        if calls is None:
            response.release()
            return
        if response.final:
            del calls[message.call]
        error = response.error
        result = None
        loan = 0
        if error is not None:
            result = Result([], {}, Fault(error.code, error.message))
        elif type(response) is not EndMark:
            result = Result(response.outputs, response.parameters)
            arenas = {tensor.place.arena for tensor in response.outputs if type(tensor.place) is Lease}
            if arenas:
                loan = next(self._loan_numbers)
                self._loans.setdefault(caller, {})[loan] = response
                for arena in arenas:
                    self._share(arena, caller)
        caller.answer(message.instance, Answer(message.call, loan, result, response.final))
        if not loan:
            response.release()

    def cancel(self, message: CancelCall, caller: Caller) -> None:
        """The caller does not wait for a call any more; its final answer still comes."""
        opened = self._open.get(caller, {}).get(message.call)
        if opened is not None:
            opened.cancel()

    def release(self, message: Release, caller: Caller) -> None:
        """The caller has finished with answers."""
        lent = self._loans.get(caller, {})
        for loan in message.loans:
            response = lent.pop(loan, None)
            if response is not None:
                response.release()

    def gone(self, caller: Caller) -> None:
        """A worker has ended: nobody waits for its calls, and what it was lent comes back."""
        for opened in self._open.pop(caller, {}).values():
            opened.cancel()
        for response in self._loans.pop(caller, {}).values():
            response.release()


def _nothing() -> None:
    pass
