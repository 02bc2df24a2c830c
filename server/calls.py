"""Inference that models ask for themselves (BLS): ordinary requests, whose outputs are lent to the worker that asked."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ..shm.placement import Lease
from ..workers.contract.messages import Answer, Call, CancelCall, Fault, Release, Result
from ..workers.contract.signature import Signature
from ..workers.contract.status import Code, StatusError, internal, invalid
from .dispatch.request import EndMark, Request, Response


class Caller(Protocol):
    """The worker process that asks."""

    def answer(self, instance: int, message: Answer) -> None:
        """Send the answer to a call, to an instance of it that waits, 0 for none; dropped where it has gone."""


class Target(Protocol):
    """A model version that can be asked."""

    @property
    def signature(self) -> Signature: ...


@dataclass(slots=True, eq=False)
class _Open:
    """A call without its final answer yet. ``cancel`` withdraws its request."""

    cancel: Callable[[], None]


class ModelCalls:
    """Every call of every worker.

    ``ask(model, version, request)`` finds a model (version -1: the newest), checks and queues the request, and returns what
    cancels it; it raises StatusError. ``find`` is its first half. ``share(arena, caller)`` lets a worker read another's arena.
    """

    def __init__(
        self,
        find: Callable[[str, int], Target],
        ask: Callable[[str, int, Request], Callable[[], None]],
        share: Callable[[int, Any], None],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._find = find
        self._ask = ask
        self._share = share
        self._clock_ns = clock_ns
        self._loan_numbers = itertools.count(1)
        self._open: dict[Caller, dict[int, _Open]] = {}
        self._loans: dict[Caller, dict[int, Response]] = {}

    @property
    def count(self) -> int:
        """Calls without their final answer."""
        return sum(len(calls) for calls in self._open.values())

    def call(self, message: Call, caller: Caller) -> None:
        """Begin a call; what is wrong with it is its answer."""
        calls = self._open.setdefault(caller, {})
        opened = calls[message.call] = _Open(_nothing)
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
        except StatusError as error:
            del calls[message.call]
            code = error.code if error.code is Code.UNAVAILABLE else Code.INTERNAL
            fault = Fault(code, f"Model {message.model} - Error when running inference: {error.message}")
            caller.answer(message.instance, Answer(message.call, 0, Result([], {}, fault), True))

    def _target(self, message: Call) -> Target:
        try:
            if message.version < -1:
                raise internal("no such version")
            return self._find(message.model, message.version)
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
