"""What a model asks of the server from inside: inference with other models (BLS), and questions."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from ...shm.copy_on_write import Taken
from ...shm.placement import Inline, Lease, Placement, within
from ..contract import messages
from ..contract.messages import (
    Answer,
    Call,
    CancelCall,
    FromWorker,
    Question,
    Release,
    Reply,
    RequestBody,
    RequestContext,
    Result,
    WantedOutput,
)
from ..contract.status import Code, StatusError, internal, invalid
from ..inbox import Inbox
from ..memory import WorkerMemory
from ..output import INLINE_BYTE_SIZE, store
from ..thread import WorkerThread
from .device_block import store_block
from .devices import Devices
from .errors import TritonError, TritonModelException
from .host import InputMemory
from .memory import INLINE, LentInputs, ModelMemory, SharedInputs
from .request import InferenceRequest
from .response import InferenceResponse
from .tensor import Tensor

if TYPE_CHECKING:
    from ..device_memory import DeviceMemory

FLUSH_SECS = 2.0

MAX_CORRELATION_ID = 128
"""Bytes of a correlation id that is a text."""


@dataclass(slots=True, eq=False)
class _Pending:
    """A call that has not had its final answer.

    ``request`` keeps alive what its tensors were lent with; ``leases`` are copies in this worker's own arena. ``borrowed`` are
    requests that this process is executing, of whose memory it reads. ``abandoned``: nobody takes its answers any more.
    ``direct``: they come to the instance's own inbox.
    """

    request: InferenceRequest | None
    leases: list[Lease]
    borrowed: list[InputMemory]
    abandoned: bool = False
    direct: bool = False
    answers: queue.SimpleQueue[Answer] = field(default_factory=queue.SimpleQueue)


class Calls:
    """Implements ``Host``. Any thread may call; what the server says comes in the control thread.

    ``batch`` is the number of the batch that runs, and that waits for the calls which are made meanwhile; 0 where none does.
    """

    def __init__(
        self,
        speak: Callable[[FromWorker], None],
        memory: WorkerMemory,
        model_memory: ModelMemory,
        instance_name: str,
        model_directory: str,
    ) -> None:
        self.instance_name = instance_name
        self.model_directory = model_directory
        self.verbose = True
        self.open = False
        self._speak = speak
        self._memory = memory
        self._model_memory = model_memory
        self._devices = Devices(memory)
        self.batch = 0
        self._instance = 0
        self._inbox: Inbox | None = None
        self._thread = 0
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._kept: dict[int, list[Lease]] = {}
        self._questions: dict[int, Future[bool | int | float | None]] = {}
        self._settled = threading.Condition()
        self._asides: queue.SimpleQueue[FromWorker | tuple[int, list[Taken]] | Callable[[], None]] = queue.SimpleQueue()
        WorkerThread(self._do_asides, "asides").start()

    # inference

    def call(self, request: InferenceRequest, decoupled: bool) -> InferenceResponse | Iterator[InferenceResponse]:
        """As ``Host`` says."""
        if not self.open:
            raise TritonModelException("BLS is only supported during the 'execute' function.")
        number = next(self._numbers)
        pending = self._pending[number] = _Pending(request, [], [])
        inbox = None if decoupled else self._own_inbox()
        pending.direct = inbox is not None
        try:
            body = self._body(request, decoupled, pending)
            name, version, instance = request.model_name, request.model_version, 0 if inbox is None else self._instance
            self._speak(Call(number, self.batch, name, version, body, request.priority, decoupled, instance))
        except BaseException as error:
            self._end(number)
            if not isinstance(error, StatusError):
                raise
            failed = _error(error.code, error.message)
            return iter((failed,)) if decoupled else failed
        if decoupled:
            return ResponseIterator(
                pending.answers.get,
                self._response,
                lambda: self._speak(CancelCall(number)),
                lambda: self._asides.put(lambda: self._abandon(pending)),
            )
        response = None
        try:
            while True:
                if inbox is not None:
                    inbox.wait(lambda: not pending.answers.empty())
                answer = pending.answers.get()
                if answer.result is not None:
                    response = self._response(answer)
                if answer.final:
                    return _error(Code.INTERNAL, "the model gave no response") if response is None else response
        except BaseException:
            # A signal handler of the model has raised: nobody takes the answer.
            self._abandon(pending)
            raise

    def answer_to(self, instance: int, inbox: Inbox) -> None:
        """Calls that the running thread makes may be answered to its own inbox."""
        self._instance = instance
        self._inbox = inbox
        self._thread = threading.get_ident()

    def _own_inbox(self) -> Inbox | None:
        """The inbox of the running thread, if it is the instance's and is not being waited at."""
        inbox = self._inbox
        return inbox if inbox is not None and self._thread == threading.get_ident() and not inbox.waiting else None

    def _body(self, request: InferenceRequest, decoupled: bool, pending: _Pending) -> RequestBody:
        """What a call asks. Raises StatusError where there is no room for its inputs, and for a correlation id that is too long."""
        correlation_id, flags, timeout_us = request.correlation_id(), request.flags(), request.timeout()
        if isinstance(correlation_id, str) and len(correlation_id.encode()) > MAX_CORRELATION_ID:
            refused = f"string correlation ID cannot be longer than {MAX_CORRELATION_ID} characters"
            raise internal(f"Model {request.model_name} - Error when running inference: {refused}")
        inputs = self._inputs(request, decoupled, pending)
        # Those in this worker's own arena are kept as long as anybody has them.
        lends = bool(pending.leases) and all(type(tensor.place) is Inline or tensor.place in pending.leases for tensor in inputs)
        return RequestBody(
            request.request_id(),
            1,
            inputs,
            [WantedOutput(name) for name in request.requested_output_names()],
            request.parameters_dict or {},
            RequestContext(correlation_id, flags, timeout_us, "", lends) if correlation_id or flags or timeout_us or lends else None,
        )

    def _inputs(self, request: InferenceRequest, decoupled: bool, pending: _Pending) -> list[messages.Tensor]:
        """A call's inputs: passed on where they lie, as far as the model has not touched them, else copied to the arena once.

        Those of a request that is being executed are copied as well where the responses may come long after its end.
        """
        inputs = []
        for tensor in request.inputs():
            place: Placement | None = tensor.place
            if place is not None and type(place) is not Inline and type(tensor.memory) is SharedInputs:
                if decoupled:
                    place = None
                else:
                    # Before the place is read again, so that the request cannot end in between.
                    pending.borrowed.append(tensor.memory)
                    place = tensor.place
            if place is None:
                # A copy, because the model may change its array while the call is on its way.
                place = self._copied(tensor)
                if type(place) is Lease:
                    pending.leases.append(place)
            inputs.append(messages.Tensor(tensor.name(), tensor.datatype, tuple(tensor.shape()), place))
        return inputs

    def _copied(self, tensor: Tensor) -> Placement:
        """A tensor's bytes in a message or in this worker's own arena. Raises StatusError."""
        block = tensor.device_block()
        if block is not None:
            return store_block(self._memory, tensor.name(), block, None)
        content = tensor.content()
        view = content if isinstance(content, bytes) else content.reshape(-1).view("uint8").data
        return store(self._memory, tensor.name(), bytes(view) if len(view) <= INLINE_BYTE_SIZE else view, None)

    def _response(self, answer: Answer) -> InferenceResponse:
        """The response that an answer brings."""
        result = answer.result
        if result is None:
            return InferenceResponse()
        if result.fault is not None:
            return _error(Code(result.fault.code), result.fault.message)
        return self._lent(result, answer.loan)

    def _lent(self, result: Result, loan: int) -> InferenceResponse:
        memory: Any = INLINE
        if loan:
            memory = LentInputs(self._model_memory, lambda taken: self._asides.put((loan, taken)))
        return InferenceResponse.received([Tensor.received(output, memory) for output in result.outputs], None, result.parameters)

    def settle(self, inputs: InputMemory) -> None:
        """Wait for calls that read memory of a request which is about to end: nobody else holds it."""

        def settled() -> bool:
            return not any(inputs in pending.borrowed for pending in list(self._pending.values()))

        if settled():
            return
        inbox = self._own_inbox()
        if inbox is not None:
            # A call that was broken off is still answered here.
            inbox.wait(lambda: not any(pending.direct and inputs in pending.borrowed for pending in list(self._pending.values())))
        with self._settled:
            self._settled.wait_for(settled)

    def _end(self, number: int) -> None:
        """A call has had its final answer, or was never made."""
        pending = self._pending.pop(number)
        pending.request = None
        self._free(pending.leases)
        if pending.borrowed:
            with self._settled:
                self._settled.notify_all()

    def _keep_passed_on(self, answer: Answer, pending: _Pending) -> None:
        """Inputs that come back as outputs, where they lie, are kept for as long as the answer is."""
        for tensor in () if answer.result is None else answer.result.outputs:
            place = tensor.place
            for lease in pending.leases:
                if isinstance(place, Lease) and within(place, lease):
                    pending.leases.remove(lease)
                    self._kept.setdefault(answer.loan, []).append(lease)
                    break

    def _give_back(self, loan: int) -> None:
        """Nobody has an answer's tensors any more."""
        self._free(self._kept.pop(loan, []))
        self._speak(Release([loan]))

    def _abandon(self, pending: _Pending) -> None:
        """Nobody takes a call's answers any more; it goes on, for what else it does."""
        pending.abandoned = True
        self._release(pending)

    def _release(self, pending: _Pending) -> None:
        """Give back what the answers bring that nobody takes."""
        with contextlib.suppress(queue.Empty):
            while True:
                answer = pending.answers.get_nowait()
                if answer.loan:
                    self._give_back(answer.loan)

    def _free(self, leases: list[Lease]) -> None:
        for lease in leases:
            self._memory.free(lease)

    # questions and asides

    def ask(self, question: Question) -> bool | int | float | None:
        """As ``Host`` says."""
        number = next(self._numbers)
        future: Future[bool | int | float | None] = Future()
        self._questions[number] = future
        # Behind what the model has told before.
        self._asides.put(msgspec.structs.replace(question, question=number))
        return future.result()

    def tell(self, message: Any) -> None:
        """As ``Host`` says. Safe wherever Python may run a finalizer."""
        self._asides.put(message)

    def device(self, ordinal: int) -> DeviceMemory:
        """As ``Host`` says."""
        return self._devices.opened(ordinal)

    def aside(self, work: Callable[[], None]) -> None:
        """Have something done soon, in another thread. Safe wherever Python may run a finalizer."""
        self._asides.put(work)

    def flush(self) -> None:
        """Wait until all that was told has been said, for a moment at most."""
        said = threading.Event()
        self._asides.put(said.set)
        said.wait(FLUSH_SECS)

    def _do_asides(self) -> None:
        while True:
            message = self._asides.get()
            if callable(message):
                message()
                continue
            if isinstance(message, tuple):
                loan, taken = message
                while taken:
                    self._model_memory.give_back(taken.pop())
                self._give_back(loan)
                continue
            try:
                self._speak(message)
            except UnicodeEncodeError:
                # A model's text with surrogates; of what is only told, there is nobody who waits.
                future = self._questions.pop(getattr(message, "question", 0), None)
                if future is not None:
                    future.set_exception(invalid("a text that is not valid UTF-8"))

    # what the server says

    def answered(self, answer: Answer) -> None:
        """An answer to a call."""
        pending = self._pending.get(answer.call)
        if pending is None:
            return
        if answer.final:
            self._keep_passed_on(answer, pending)
            self._end(answer.call)
        pending.answers.put(answer)
        if pending.abandoned:
            self._release(pending)

    def replied(self, reply: Reply) -> None:
        """The reply to a question."""
        future = self._questions.pop(reply.question)
        if reply.fault is None:
            future.set_result(reply.value)
        else:
            future.set_exception(StatusError(Code(reply.fault.code), reply.fault.message))


class ResponseIterator:
    """The responses of a decoupled call, as they come; iterated again, those that have come once more, and the rest."""

    def __init__(
        self,
        take: Callable[[], Answer],
        response: Callable[[Answer], InferenceResponse],
        cancel: Callable[[], None],
        abandon: Callable[[], None] = lambda: None,
    ) -> None:
        self._take = take
        self._response = response
        self._cancel = cancel
        self._abandon = abandon
        self._came: list[InferenceResponse] = []
        self._at = 0
        self._ended = False

    def __iter__(self) -> ResponseIterator:
        self._at = 0
        return self

    def __next__(self) -> InferenceResponse:
        if self._at == len(self._came):
            if self._ended:
                raise StopIteration
            answer = self._take()
            self._ended = answer.final
            self._came.append(self._response(answer))
        self._at += 1
        return self._came[self._at - 1]

    def __del__(self) -> None:
        if not self._ended:
            self._abandon()

    def cancel(self) -> None:
        """Tell the model that nobody waits for the rest."""
        if not self._ended:
            self._cancel()


def _error(code: Code, message: str) -> InferenceResponse:
    return InferenceResponse(error=TritonError(message, code))
