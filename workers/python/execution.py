"""Runs a Python model's batches, and sends what its response senders are given."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from math import prod
from typing import Any

import numpy as np

from ...shm.placement import Inline, Lease, Placement, Span
from ..contract.messages import Cancel, Done, Execute, Fault, Hold, RequestBody, Respond, Result, Tensor
from ..contract.signature import reshaped
from ..contract.status import StatusError, internal
from ..contract.strings import check_strings
from ..inbox import Inbox
from ..main_thread import MainThread
from ..memory import WorkerMemory
from ..output import INLINE_BYTE_SIZE, store
from ..thread import WorkerThread
from ..warmup import discard
from .calls import Calls
from .device_block import store_block
from .errors import TritonModelException
from .failure import failure_text, sayable
from .memory import INLINE, InlineInputs, ModelMemory, SharedInputs
from .module import PythonModel, Unimplemented
from .places import Places, stands_empty, without_shared
from .request import InferenceRequest
from .response import InferenceResponse
from .tensor import Tensor as ModelTensor

FINAL = 1
_RESCHEDULE = 2

_NO_RESPONSE = "Unable to send response. "
_ONE_RESPONSE = f"{_NO_RESPONSE}Non-decoupled model cannot send more than one response."


class OpenRequest:
    """A request that this process is executing: the ``Responder`` of its response sender.

    ``answered`` once its last response has been sent or is on its way with the batch; ``used`` once its sender has sent;
    ``held`` while its client takes no more responses.
    """

    __slots__ = ("_execution", "answered", "batch", "body", "cancelled", "held", "index", "inputs", "taken", "used")

    def __init__(self, execution: Execution, batch: int, index: int, body: RequestBody, inputs: SharedInputs | InlineInputs) -> None:
        self._execution = execution
        self.batch = batch
        self.index = index
        self.body = body
        self.inputs = inputs
        self.answered = False
        self.taken = False
        self.used = False
        self.cancelled = False
        self.held = False

    def send(self, response: InferenceResponse | None, flags: int) -> None:
        """As ``Responder`` says."""
        self._execution.respond(self, response, flags)

    def is_cancelled(self) -> bool:
        """Has the client gone?"""
        return self.cancelled

    def dropped(self) -> None:
        """As ``Responder`` says."""
        if not self.answered:
            self._execution.later(self)


class AnsweredRequest(OpenRequest):
    """A request that has its answer, and is executed for its sequence's sake: what the model says to it is for nobody."""

    __slots__ = ()

    def __init__(self, execution: Execution, batch: int, index: int, body: RequestBody) -> None:
        super().__init__(execution, batch, index, body, INLINE)
        self.answered = True

    def send(self, response: InferenceResponse | None, flags: int) -> None:
        """As ``Responder`` says: nobody hears it."""


class Execution:
    """The ``Runner`` of a Python model's one instance."""

    def __init__(
        self,
        model: PythonModel,
        memory: WorkerMemory,
        model_memory: ModelMemory,
        calls: Calls,
        speak: Callable[[Respond | Done], object],
        main: MainThread,
    ) -> None:
        self.main: MainThread | None = main
        self._model = model
        self._places = model.places
        # What senders have sent must be there before the end of their round, of which the server forgets the number.
        self.voice: Callable[[Done], object] | None = speak if model.decoupled and model.iterative else None
        self._memory = memory
        self._model_memory = model_memory
        self._calls = calls
        self._speak: Callable[[Respond], object] = speak
        self._batches: dict[int, list[OpenRequest]] = {}
        # A finalizer of a model may answer a request in the middle of this.
        self._lock = threading.RLock()
        self._room = threading.Condition()
        self._begun = 0
        self._early_cancels: set[tuple[int, int]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._background: set[Any] = set()

    # batches

    def begin(self, instance: int, inbox: Inbox) -> None:
        """The model's thread may take the answers to its calls itself."""
        inbox.answered = self._calls.answered
        self._calls.answer_to(instance, inbox)

    def rehearse(self, message: Execute) -> tuple[Done, list[str]]:
        """As ``Runner`` says. What the model's senders are given meanwhile is not sent."""
        said: queue.SimpleQueue[Respond] = queue.SimpleQueue()
        speak, self._speak = self._speak, said.put
        results: list[Result | None] = []
        try:
            done = first = self.run(message)
            unanswered = 0
            while True:
                results += done.results
                unanswered += done.results.count(None) - len(done.again)
                if not done.again:
                    break
                message = Execute(message.batch, [message.requests[index] for index in done.again])
                done = self.run(message)
            while unanswered:
                respond = said.get()
                results.append(respond.result)
                unanswered -= respond.final
        finally:
            self._speak = speak
        while not said.empty():
            results.append(said.get().result)
        return first, discard(results, self._memory)

    def run(self, message: Execute) -> Done:
        """Have the model execute a batch; never raises, what goes wrong is in the results."""
        start_ns = time.monotonic_ns()
        number = message.batch
        results: list[Result | None] = [None] * len(message.requests)
        failed: list[int] = []
        again: list[int] = []
        names = self._model.output_names
        places = self._places
        requests: list[InferenceRequest] = []
        opened: list[OpenRequest] = []
        for index, body in enumerate(message.requests):
            inputs: SharedInputs | InlineInputs = INLINE
            for tensor in body.inputs:
                if type(tensor.place) is not Inline:
                    inputs = SharedInputs(self._model_memory)
                    break
            if inputs is not INLINE and places is not None and stands_empty(body):
                # What it shares with another request may go as soon as that one has its answer.
                body, inputs = without_shared(body), INLINE
            open_request = OpenRequest(self, number, index, body, inputs)
            if inputs is not INLINE:
                try:
                    body = self._looked_at(body)
                except StatusError as error:
                    results[index] = _failed(error)
                    failed.append(index)
                    if places is None or not places.needs(body):
                        continue
                    body, inputs = without_shared(body), INLINE
                    open_request = AnsweredRequest(self, number, index, body)
            opened.append(open_request)
            requests.append(InferenceRequest.received(body, inputs, open_request, names))
            if type(inputs) is SharedInputs:
                inputs.watch(requests[-1].inputs())
        if places is not None:
            places.enter(message.requests, requests, opened)
        self._open(number, opened)
        input_end_ns = time.monotonic_ns()
        fault: StatusError | None = None
        responses: list[InferenceResponse | None] | None = None
        beside = False
        if requests:
            self._calls.batch = number
            try:
                responses, beside = self._execute(requests, opened)
            except StatusError as error:
                # Without the frames in which it came about, which hold what the model held.
                fault = StatusError(error.code, error.message)
            finally:
                self._calls.batch = 0
        output_start_ns = time.monotonic_ns()
        for position, open_request in enumerate(opened):
            result = None
            if type(open_request) is AnsweredRequest:
                continue
            if fault is not None:
                failed.append(open_request.index)
                result = _failed(fault)
            elif responses is not None and (response := responses[position]) is not None:
                result = self._result(open_request.body, response, open_request.inputs)
                if places is not None:
                    result = self._kept(places, open_request, response, result)
            elif not beside and (not open_request.taken or requests[position].release_flags):
                result = self._unreturned(open_request, requests[position].release_flags, again)
            if result is not None:
                with self._lock:
                    answered, open_request.answered = open_request.answered, True
                if answered:
                    self._free(result)
                    result = None
                elif open_request.used:
                    # Behind what its sender has sent, which goes over another socket than the batch's end.
                    self._answered(open_request)
                    self._speak(Respond(number, open_request.index, result, True))
                    result = None
            results[open_request.index] = result
        if self._memory.device is not None and (fault is not None or any([one is not None and one.fault is not None for one in results])):
            # Whatever the model says of it: the next batch would fail as well.
            self._memory.device.check()
        # The model's arrays must have gone before it is asked which of them have not.
        response = None
        del requests, responses, response
        self._finish(number, opened)
        if places is not None:
            places.leave([body for index, body in enumerate(message.requests) if index not in again])
        # An error that the model itself answers with is a success to the original's statistics.
        return Done(number, results, start_ns, input_end_ns, output_start_ns, time.monotonic_ns(), failed, again)

    def _open(self, number: int, opened: list[OpenRequest]) -> None:
        """A batch begins; of its requests some may have been cancelled while it waited here."""
        with self._lock:
            self._batches[number] = opened
            self._begun = number
            if self._early_cancels:
                for open_request in opened:
                    open_request.cancelled = (number, open_request.index) in self._early_cancels
                self._early_cancels = {early for early in self._early_cancels if early[0] > number}

    def _looked_at(self, body: RequestBody) -> RequestBody:
        """A request's inputs in shared memory, which nobody has looked at yet. Raises StatusError for what cannot be used."""
        inputs = []
        for tensor in body.inputs:
            place: Placement = tensor.place
            if type(place) is not Inline:
                if tensor.datatype != "BYTES" and self._memory.device_address(place) is not None:
                    # To look at it any further is to copy it.
                    inputs.append(tensor)
                    continue
                view = self._memory.view(place)
                if type(place) is Span and tensor.datatype == "BYTES":
                    # The client may still change it, and its lengths are to be believed from here on.
                    place = Inline(memoryview(bytes(view)))
                    check_strings(tensor.name, self._model.name, place.content, prod(tensor.shape), body.id)
                    tensor = Tensor(tensor.name, tensor.datatype, tensor.shape, place)
            inputs.append(tensor)
        return RequestBody(body.id, body.batch_size, inputs, body.outputs, body.parameters, body.context)

    def _execute(self, requests: list[InferenceRequest], opened: list[OpenRequest]) -> tuple[list[InferenceResponse | None] | None, bool]:
        """The model's responses, checked, None where it answers by senders; and whether it runs on beside. Raises StatusError."""
        model = self._model
        try:
            # The list is the model's: it may change it, or keep it.
            returned = model.execute(requests.copy())
            if inspect.iscoroutine(returned):
                if model.decoupled and not model.iterative:
                    # The next batch does not wait for what this one calls.
                    self._calls.batch = 0
                    self._run_beside(returned, opened)
                    return None, True
                returned, raised = asyncio.run_coroutine_threadsafe(_outcome(returned), self._event_loop()).result()
                if raised is not None:
                    raise raised
        except Unimplemented as error:
            raise _misused(model.instance, str(error)) from error
        except BaseException as error:  # noqa: BLE001
            # Whatever a model raises is its answer: its process goes on.
            text = f"Failed to process the request(s) for model '{model.instance}', message: {failure_text(error)}"
            model.log_error(text)
            raise internal(text) from error
        if model.decoupled:
            if returned is not None:
                raise _misused(
                    model.instance,
                    f"Python model '{model.instance}' is using the decoupled mode and the execute function must return None.",
                )
            return None, False
        checked = _checked(returned, requests, model.instance)
        for open_request, response in zip(opened, checked or (), strict=False):
            if open_request.used and response is not None:
                raise _misused(model.instance, _ONE_RESPONSE)
        return checked, False

    def _result(self, body: RequestBody, response: InferenceResponse, inputs: SharedInputs | InlineInputs | None = None) -> Result:
        """What a response is in a message, its outputs stored. With ``inputs``, outputs that are inputs may stay where they lie."""
        error = response.error()
        if error is not None:
            return Result([], {}, Fault(error.code(), sayable(error.message())))
        spans = {output.name: output.span for output in body.outputs}
        wanted = spans or self._model.output_names
        lent = inputs if isinstance(inputs, SharedInputs) and body.context is not None and body.context.lends else None
        stored: list[Tensor] = []
        for tensor in response.tensors:
            name = tensor.name()
            if name not in wanted:
                continue
            span = spans.get(name)
            try:
                place = self._stored(tensor, span, lent)
            except StatusError as failure:
                self._free(Result(stored))
                return _failed(failure)
            except Exception as failure:  # noqa: BLE001
                # Elements may be objects of the model's own classes.
                self._free(Result(stored))
                return _failed(_misused(self._model.instance, failure_text(failure)))
            stored.append(Tensor(name, tensor.datatype, self._shape(name, tensor.dims()), place))
        return Result(stored, response.parameters_dict or {})

    def _stored(self, tensor: ModelTensor, span: Span | None, lent: SharedInputs | None) -> Placement:
        """Where an output's bytes are now, all of them: copied once, or left where they lie in ``lent``. Raises StatusError."""
        name = tensor.name()
        block = tensor.device_block()
        if block is not None:
            return store_block(self._memory, name, block, span)
        content = tensor.content()
        if isinstance(content, bytes):
            return store(self._memory, name, content, span)
        if span is None:
            if content.nbytes <= INLINE_BYTE_SIZE:
                return Inline(memoryview(content.tobytes()))
            passed = None if lent is None else lent.place_of(content)
            # One in the worker's own arena the server would take for a new output, which is given back to this worker.
            if passed is not None and passed.arena != self._memory.arena_number:
                return passed
        return store(self._memory, name, _flat(content), span)

    def _kept(self, places: Places, request: OpenRequest, response: InferenceResponse, result: Result) -> Result:
        """A result, once its response's state has been kept; what cannot be kept is an error of the request, whose state stays."""
        if result.fault is not None:
            return result
        try:
            places.keep(request, response)
        except StatusError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001
            # Elements may be objects of the model's own classes.
            error = _misused(self._model.instance, failure_text(failure))
        else:
            return result
        self._free(result)
        return _failed(error)

    def _unreturned(self, request: OpenRequest, release_flags: int, again: list[int]) -> Result | None:
        """What becomes of a request for which ``execute`` has returned nothing.

        None where it is for its sender to answer it, or where it comes again, which is put down in ``again``: its sender is closed.
        """
        model = self._model
        if release_flags == _RESCHEDULE and model.iterative:
            with self._lock:
                if request.answered:
                    return None
                if model.decoupled or not request.used:
                    request.answered = True
                    again.append(request.index)
                    return None
            return _failed(_misused(model.instance, _ONE_RESPONSE))
        if request.taken and release_flags != _RESCHEDULE:
            return None
        return _failed(_unanswered(release_flags, model.instance))

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that clients get of an output."""
        model = self._model
        if name not in model.reshapes:
            return shape
        made, dims = model.reshapes[name]
        items = shape[1:] if model.batching else shape
        fits = len(items) == len(made) and all(dim in (-1, size) for size, dim in zip(items, made, strict=True))
        return reshaped(shape, made, dims, model.batching) if fits else shape

    def _free(self, result: Result) -> None:
        for tensor in result.outputs:
            if type(tensor.place) is Lease and tensor.place.arena == self._memory.arena_number:
                self._memory.free(tensor.place)

    def _finish(self, number: int, opened: list[OpenRequest]) -> None:
        """A batch has run: what of it is answered needs its inputs no more."""
        for open_request in opened:
            if open_request.answered:
                self._end_inputs(open_request)
        with self._lock:
            left = [open_request for open_request in opened if not open_request.answered]
            if left:
                self._batches[number] = left
            else:
                self._batches.pop(number, None)

    # response senders

    def respond(self, request: OpenRequest, response: InferenceResponse | None, flags: int) -> None:
        """Send a response of a sender, from any thread. Raises TritonModelException where the order is broken."""
        final = flags == FINAL
        if request.held:
            self._await_room(request)
        with self._lock:
            if not self._model.decoupled:
                if response is None and not request.used:
                    raise TritonModelException(f"{_NO_RESPONSE}Non-decoupled model cannot send complete final before sending a response.")
                if response is not None and request.used:
                    raise TritonModelException(_ONE_RESPONSE)
            if request.answered:
                raise TritonModelException(f"{_NO_RESPONSE}Response sender has been closed.")
            request.answered = final
            request.used = True
        result = None
        if response is not None:
            result = self._result(request.body, response)
            if self._places is not None:
                result = self._kept(self._places, request, response, result)
        if final:
            self._answered(request)
        self._speak(Respond(request.batch, request.index, result, final))

    def later(self, request: OpenRequest) -> None:
        """Fail a request whose sender is gone, in another thread: this may be anywhere, with any lock held."""
        text = f"model '{self._model.instance}' has dropped a request's response sender without sending its final response"
        self._calls.aside(lambda: self._fail(request, internal(text)))

    def _fail(self, request: OpenRequest, error: StatusError) -> None:
        """End a request with an error, if it has not ended."""
        with self._lock:
            if request.answered:
                return
            request.answered = True
        self._answered(request)
        self._speak(Respond(request.batch, request.index, _failed(error), True))

    def _answered(self, request: OpenRequest) -> None:
        """The last response of a request is about to go: from then on its client may change its regions."""
        self._end_inputs(request)
        with self._lock:
            opened = self._batches.get(request.batch)
            if opened is not None and all(other.answered for other in opened):
                del self._batches[request.batch]

    def _end_inputs(self, request: OpenRequest) -> None:
        """Nobody reads a request's inputs any more, neither the model nor those it has passed them on to."""
        inputs = request.inputs
        if type(inputs) is SharedInputs:
            inputs.finish()
            self._calls.settle(inputs)

    def cancel(self, message: Cancel) -> None:
        """Nobody waits for a request any more; whether to go on is for the model to say."""
        with self._lock:
            for request in self._batches.get(message.batch, ()):
                if request.index == message.index:
                    request.cancelled = True
            if message.batch > self._begun:
                self._early_cancels.add((message.batch, message.index))
        with self._room:
            self._room.notify_all()

    def hold(self, message: Hold) -> None:
        """The client of a request has more responses than it takes, or takes more again."""
        with self._lock:
            held = [request for request in self._batches.get(message.batch, ()) if request.index == message.index]
        with self._room:
            for request in held:
                request.held = message.held
            self._room.notify_all()

    def _await_room(self, request: OpenRequest) -> None:
        """Wait until a client takes responses again, or has gone; but not where everything else would wait, too."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            with self._room:
                while request.held and not request.cancelled:
                    self._room.wait()

    # async models

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            WorkerThread(self._loop.run_forever, "event-loop").start()
        return self._loop

    def _run_beside(self, work: Coroutine[Any, Any, Any], opened: list[OpenRequest]) -> None:
        """Let a decoupled model's batch run on while the next one begins."""
        instance = self._model.instance
        future = asyncio.run_coroutine_threadsafe(_outcome(work), self._event_loop())
        self._background.add(future)

        def ended(_: object) -> None:
            self._background.discard(future)
            _, error = future.result()
            if error is not None:
                text = f"Failed to process the request(s) for model '{instance}', message: {failure_text(error)}"
                self._model.log_error(text)
                for open_request in opened:
                    self._fail(open_request, internal(text))
                return
            for open_request in opened:
                if not open_request.taken:
                    self._fail(open_request, _unanswered(0, instance))

        future.add_done_callback(ended)

    def close(self) -> None:
        """The instance has run its last batch, and nobody listens for answers any more."""
        self._calls.open = False
        self._model.finalize()
        # The process may end right after this.
        self._calls.flush()


async def _outcome(work: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """What a model's coroutine returns or raises. Raised out of it, ``SystemExit`` would end the loop."""
    try:
        return await work, None
    except BaseException as error:  # noqa: BLE001
        # It is told to those who wait for the coroutine.
        return None, error


def _failed(error: StatusError) -> Result:
    return Result([], {}, Fault(error.code, error.message))


def _flat(array: np.ndarray[Any, np.dtype[Any]]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _misused(instance: str, text: str) -> StatusError:
    return internal(f"Failed to process the request(s) for model '{instance}', message: {text}")


def _unanswered(release_flags: int, instance: str) -> StatusError:
    """Why a request without a response has none."""
    if release_flags == _RESCHEDULE:
        return internal(
            "Failed to release request: Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not "
            "configured to handle such a flag."
        )
    return internal(f"model '{instance}' returned no response to a request and has not taken its response sender")


def _checked(returned: Any, requests: list[InferenceRequest], instance: str) -> list[InferenceResponse | None] | None:
    """What ``execute`` returned, if it is what it should be. Raises StatusError."""
    if returned is None:
        return None
    if not isinstance(returned, list):
        raise _misused(instance, f"Expected a list in the execute return, found type '{type(returned)}'.")
    if len(returned) != len(requests):
        raise _misused(
            instance,
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            f"InferenceRequest(s) size is:{len(requests)}, and InferenceResponse(s) size is:{len(returned)}\n",
        )
    for request, response in zip(requests, returned, strict=True):
        if response is None or response.__class__ is InferenceResponse and not request.release_flags:
            continue
        if request.release_flags == _RESCHEDULE:
            text = f"Expected a None object in the execute function return list for reschduled request, found type '{type(response)}'."
            raise _misused(instance, text)
        if not isinstance(response, InferenceResponse):
            text = f"Expected an 'InferenceResponse' object in the execute function return list, found type '{type(response)}'."
            raise _misused(instance, text)
    return returned
