"""Ensembles: requests that are answered by running other models, one step feeding the next.

Sans-IO like the rest of dispatch: steps are ordinary requests that go out through one callable and come back as
responses. Tensors are handed on by placement, so their bytes stay where their producer put them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack

from ...shm.placement import Inline, Lease
from ...workers.contract.messages import RequestBody, RequestContext, Tensor, WantedOutput
from ...workers.contract.signature import reshaped
from ...workers.contract.status import Code, StatusError, internal, unavailable, unsupported
from ..statistics import ExecutionTimes, FailureReason, VersionStatistics
from .ensemble_plan import OUTSIDE, EnsemblePlan, Selection, Step, fitted
from .ensemble_wave import Belonging, ComputeTimes, Lent, Source, Value, Wave, belonging_of, belonging_parameters
from .request import EndMark, Request, Response

SubmitStep = Callable[[str, int, Request], Callable[[], None]]
"""Finds a model's version (-1: the newest), checks and queues a request for it; returns what cancels it. Raises StatusError."""


class _Call:
    """A step's request: about to be sent, held back, or on its way. It keeps what it is fed with until it has finished."""

    __slots__ = ("answered", "belonging", "cancel", "counted", "over", "run", "sent", "sources", "step", "wave")

    def __init__(self, run: _Run, wave: Wave, step: Step) -> None:
        self.run = run
        self.wave = wave
        self.step = step
        self.sources = [source for tensor in step.tensors if (source := wave.values[tensor].source) is not None]
        self.belonging: Belonging | None = None
        self.cancel: Callable[[], None] | None = None
        self.answered = self.counted = self.sent = self.over = False

    def finish(self) -> None:
        """Its request has ended, or never began: nothing is read through it any more."""
        sources, self.sources = self.sources, []
        for source in sources:
            source.drop()


class _Run:
    """One request of the ensemble. ``made`` are responses not yet handed over."""

    __slots__ = (
        *("answered", "belonging", "calls", "error", "failing", "made", "over", "queue_ns"),
        *("reason", "request", "selection", "times", "told", "waves"),
    )

    def __init__(self, request: Request, selection: Selection) -> None:
        context = request.body.context
        self.request = request
        self.selection = selection
        self.belonging: Belonging = (0, 0) if context is None else (context.correlation_id, context.flags)
        self.calls: dict[_Call, None] = {}
        self.waves: dict[Wave, None] = {}
        self.made: list[Response] = []
        self.times = ComputeTimes()
        self.error: StatusError | None = None
        self.reason = FailureReason.OTHER
        self.queue_ns = 0
        self.answered = self.failing = self.told = self.over = False


class Ensemble:
    """One version of an ensemble: takes requests, runs their steps, answers.

    ``view`` gives the bytes of a lease that came with a request, ``warn`` takes a line for the log, ``call_soon`` runs something in
    the loop's next turn. ``device_workers`` gives the workers of GPUs that a member runs in, if they leave tensors there; None where
    there are no GPUs. An ensemble's final response comes once all its steps have finished, so that nothing of its request
    is in use any more; where it is decoupled, an error is told at once, and the end mark follows.
    """

    def __init__(
        self,
        plan: EnsemblePlan,
        statistics: VersionStatistics,
        submit_step: SubmitStep,
        *,
        view: Callable[[Lease], memoryview],
        warn: Callable[[str], None],
        call_soon: Callable[[Callable[[], None]], object],
        clock_ns: Callable[[], int] = time.monotonic_ns,
        device_workers: Callable[[str, int], frozenset[str]] | None = None,
    ) -> None:
        self.plan = plan
        self.statistics = statistics
        self.stopping = False
        self._submit_step = submit_step
        self._view = view
        self._warn = warn
        self._call_soon = call_soon
        self._clock_ns = clock_ns
        self._device_workers = device_workers
        self._runs: dict[Request, _Run] = {}
        self._ready: deque[_Call] = deque()
        self._pumping = False
        self._busy: dict[int, int] = {}
        self._held: dict[int, deque[_Call]] = {}
        self._idle_watchers: list[Callable[[], None]] = []

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""
        return len(self._runs)

    @property
    def idle(self) -> bool:
        """No request is in flight."""
        return not self._runs

    def when_idle(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` once, when no request is in flight any more; at once where none is."""
        if self._runs:
            self._idle_watchers.append(watcher)
        else:
            watcher()

    def submit(self, request: Request) -> None:
        """Run a validated request. Its responses may come before this returns.

        Raises StatusError UNAVAILABLE where the ensemble is stopping, and then nothing is called back.
        """
        if self.stopping:
            raise unavailable(f"{request.label}Server is stopping, scheduler for model has stopped accepting new inference requests")
        now_ns = request.queued_ns = self._clock_ns()
        run = self._runs[request] = _Run(request, self.plan.select([output.name for output in request.body.outputs]))
        wave = self._wave(run, OUTSIDE)
        tensors = {tensor.name: tensor for tensor in request.body.inputs}
        ready = [step for name in self.plan.inputs for step in wave.put(name, Value(tensors.get(name), self.plan.batching))]
        run.queue_ns = self._clock_ns() - now_ns
        self._moved(run, wave, ready)

    def cancel(self, request: Request) -> None:
        """Nobody waits for this request any more: what has not begun of it will not begin."""
        request.cancelled = True
        run = self._runs.get(request)
        if run is not None:
            self._fail(run, StatusError(Code.CANCELLED, ""), FailureReason.CANCELED)
            self._go_on(run)

    # steps

    def _wave(self, run: _Run, origin: int) -> Wave:
        wave = Wave(run.selection, origin, len(run.selection.outputs) if origin == self.plan.origin else -1)
        run.waves[wave] = None
        return wave

    def _moved(self, run: _Run, wave: Wave, ready: list[Step]) -> None:
        """A wave has new tensors: run what waited for them, and make the response if it is complete."""
        for step in ready:
            call = _Call(run, wave, step)
            run.calls[call] = None
            self._admit(call)
        if wave.outputs_missing == 0:
            try:
                run.made.append(self._respond(run, wave))
            except StatusError as error:
                self._fail(run, error)
        if wave.over:
            run.waves.pop(wave, None)
        self._go_on(run)

    def _admit(self, call: _Call) -> None:
        """Send a step's request, or hold it back where its producer is ahead of it."""
        step = call.step
        # A batch that waits for the ensemble may be what a step that runs waits for: nothing of it is held back.
        if self.plan.max_inflight and step.origin != OUTSIDE and not call.run.request.caller:
            busy = self._busy.get(step.number, 0)
            if busy >= self.plan.max_inflight:
                self._held.setdefault(step.number, deque()).append(call)
                return
            self._busy[step.number] = busy + 1
            call.counted = True
        self._ready.append(call)

    def _go_on(self, run: _Run) -> None:
        """Send what is ready; then hand over what has been made."""
        try:
            self._pump()
        finally:
            self._settle(run)

    def _pump(self) -> None:
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._ready:
                call = self._ready.popleft()
                if not call.over:
                    self._send(call)
        except BaseException:
            # A receiver that fails is not to cost other requests their steps.
            self._call_soon(self._pump)
            raise
        finally:
            self._pumping = False

    def _send(self, call: _Call) -> None:
        run = call.run
        whole = run.request
        request = Request(
            self._step_body(call),
            self._clock_ns(),
            lambda response: self._answered(call, response),
            call.finish,
            whole.priority,
            whole.timeout_us,
            on_execution=lambda times: self._executed(run, times),
            caller=whole.caller,
        )
        call.sent = True
        try:
            cancel = self._submit_step(call.step.model, call.step.version, request)
        except StatusError as error:
            call.finish()
            self._ended(call)
            self._fail(run, error)
            self._settle(run)
            return
        if call.over:
            return
        call.cancel = cancel
        if run.error is not None:
            cancel()

    def _step_body(self, call: _Call) -> RequestBody:
        run, step = call.run, call.step
        whole = run.request.body
        inputs = []
        for link in step.inputs:
            value = call.wave.values[link.tensor]
            self._belong(call, value)
            tensor = value.tensor
            if tensor is not None:
                shape = fitted(tensor.shape, value.batched, link.dims, step.batching)
                inputs.append(Tensor(link.name, tensor.datatype, shape, tensor.place))
        spans = {output.name: output.span for output in whole.outputs}
        outputs = [
            WantedOutput(link.name, spans.get(link.tensor), self._stays(run, step, link.tensor))
            for link in step.outputs
            if link.tensor in run.selection.uses
        ]
        context = whole.context
        if context is not None or call.belonging is not None:
            given = context or RequestContext()
            # Nothing is lent: what came with the whole request goes with it, before the response that would show it.
            context = RequestContext(*(call.belonging or (given.correlation_id, given.flags)), given.timeout_us, given.trace)
        return RequestBody(whole.id, 1, inputs, outputs, whole.parameters, context)

    def _belong(self, call: _Call, value: Value) -> None:
        if value.belonging is None:
            return
        if call.belonging is None:
            call.belonging = value.belonging
        elif call.belonging != value.belonging:
            self._warn(
                f"in ensemble '{self.plan.name}', the inputs of the step of model '{call.step.model}' belong to different sequences; "
                "the first one counts"
            )

    def _stays(self, run: _Run, step: Step, tensor: str) -> bool:
        """May a tensor be left in a GPU's memory, because nobody but steps that may run in the same worker take it?"""
        workers_of, selection = self._device_workers, run.selection
        if workers_of is None or tensor in selection.outputs:
            return False
        workers = workers_of(step.model, step.version)
        consumers = selection.consumers.get(tensor, ())
        return bool(workers) and all([workers_of(other.model, other.version) >= workers for other in consumers])

    # answers of steps

    def _answered(self, call: _Call, response: Response) -> None:
        run = call.run
        if response.final:
            self._ended(call)
        if run.error is not None or type(response) is EndMark:
            response.release()
        elif response.error is not None:
            response.release()
            self._fail(run, response.error)
        elif call.answered and not call.step.decoupled:
            response.release()
            self._fail(run, internal(f"model '{call.step.model}' gave several responses although it is not decoupled"))
        else:
            call.answered = True
            return self._flow(call, response)
        self._go_on(run)

    def _flow(self, call: _Call, response: Response) -> None:
        """Put the outputs of a step where they are waited for."""
        run, step = call.run, call.step
        try:
            belonging = belonging_of(response.parameters, call.belonging or run.belonging) or call.belonging
        except StatusError as error:
            response.release()
            self._fail(run, error)
            return self._go_on(run)
        uses = run.selection.uses
        made = {tensor.name: tensor for tensor in response.outputs}
        links = [link for link in step.outputs if link.tensor in uses]
        source = Source(response, sum(uses[link.tensor] for link in links if link.name in made))
        source.drop(0)
        wave = self._wave(run, step.number) if step.decoupled else call.wave
        ready = []
        for link in links:
            tensor = made.get(link.name)
            ready += wave.put(link.tensor, Value(tensor, step.batching, None if tensor is None else source, belonging))
        self._moved(run, wave, ready)

    def _ended(self, call: _Call) -> None:
        """A step's request is over, or will not be sent."""
        call.over = True
        call.cancel = None  # which knows the request, which knows the call
        call.run.calls.pop(call, None)
        if call.counted:
            number = call.step.number
            self._busy[number] -= 1
            held = self._held.get(number, ())
            while held:
                following = held.popleft()
                if not following.over:
                    self._admit(following)
                    break

    # the ensemble's own answer

    def _respond(self, run: _Run, wave: Wave) -> Response:
        """The response that a wave's outputs make. Raises StatusError, and then the outputs are still the wave's."""
        plan = self.plan
        outputs: list[Tensor] = []
        sources: list[Source] = []
        owners: dict[Lease, Source] = {}
        belonging = None
        for name in run.selection.outputs:
            value = wave.values[name]
            tensor = value.tensor
            if tensor is None:
                continue
            belonging = belonging or value.belonging
            place = tensor.place
            if value.source is None:
                place = self._kept(run, name, tensor)
            else:
                sources.append(value.source)
                if type(place) is Lease:
                    owners[place] = value.source
            spec = plan.outputs[name]
            shape = fitted(tensor.shape, value.batched, spec.dims if spec.reshape is None else spec.reshape, plan.batching)
            if spec.reshape is not None:
                shape = reshaped(shape, spec.reshape, spec.dims, plan.batching)
            outputs.append(Tensor(name, tensor.datatype, shape, place))
        wave.outputs_missing = -1
        lent = Lent(sources, owners)
        parameters = belonging_parameters(belonging or run.belonging) if outputs else {}
        return Response(run.request, outputs, parameters, None, False, lent.view, lent.release)

    def _kept(self, run: _Run, name: str, tensor: Tensor) -> Inline:
        """An input that is an output as well: its memory goes with the request, so the response gets bytes of its own."""
        place = tensor.place
        wanted = any(output.name == name and output.span is not None for output in run.request.body.outputs)
        if type(place) is Inline and not wanted:
            return place
        if type(place) is Lease and not wanted:
            return Inline(memoryview(bytes(self._view(place))))
        raise unsupported(f"'{name}' is an input and an output; as such it cannot be in shared memory")

    def _fail(self, run: _Run, error: StatusError, reason: FailureReason = FailureReason.OTHER) -> None:
        """The first error decides: drop everything of a run that is not on its way, and cancel what is."""
        if run.error is not None or run.over:
            return
        run.reason = reason
        run.error = (
            error if reason is FailureReason.CANCELED else StatusError(error.code, f"in ensemble '{self.plan.name}', {error.message}")
        )
        run.failing = True
        made, run.made = run.made, []
        for response in made:
            response.release()
        for wave in run.waves:
            wave.drop()
        run.waves.clear()
        for call in list(run.calls):
            if call.over:
                continue
            if call.cancel is not None:
                call.cancel()
            elif not call.sent:
                call.finish()
                self._ended(call)
        run.failing = False

    def _settle(self, run: _Run) -> None:
        """Hand over what may be handed over; the last of it once no step is left."""
        if run.over or run.failing:
            return
        responses: list[Response] = []
        if not run.calls:
            responses = self._end(run)
        elif self.plan.decoupled and run.error is not None and not run.told:
            run.told = True
            responses = [Response(run.request, [], error=run.error, final=False)]
        elif self.plan.decoupled:
            responses, run.made = run.made, []
        if responses and not run.answered and responses[0].error is None and responses[0].outputs:
            run.answered = True
            self.statistics.first_response_sent(run.request.start_ns, self._clock_ns())
        if len(responses) == 1:
            run.request.on_response(responses[0])
        elif responses:
            with ExitStack() as stack:  # calls all of them, whichever fails
                for response in reversed(responses):
                    stack.callback(run.request.on_response, response)

    def _end(self, run: _Run) -> list[Response]:
        """Close a run that has no step left; returns its last responses."""
        request = run.request
        run.over = True
        del self._runs[request]
        responses, run.made = run.made, []
        if run.error is None and not responses and not self.plan.decoupled:
            deadlock = f"{request.label}unexpected deadlock, at least one output is not set while no more ensemble steps can be made"
            run.error = StatusError(Code.INVALID_ARG, f"in ensemble '{self.plan.name}', {deadlock}")
        self._count(run)
        if request.on_execution is not None:
            request.on_execution(run.times)
        if request.on_finish is not None:
            on_finish, request.on_finish = request.on_finish, None
            on_finish()
        if not responses:
            ended = run.error is None or run.told
            responses = [EndMark(request, []) if ended else Response(request, [], error=run.error)]
        responses[-1].final = True
        watchers = self._idle_watchers
        if watchers and not self._runs:
            self._idle_watchers = []
            for watcher in watchers:
                watcher()
        return responses

    def _executed(self, run: _Run, times: ExecutionTimes) -> None:
        """A step has run. One that answers by itself may say so after its last answer, when the whole is over."""
        if not run.over:
            run.times.add(times)
            return
        if run.error is None:
            self.statistics.execution_prolonged(run.request.body.batch_size, times)
        if run.request.on_execution is not None:
            run.request.on_execution(times)

    def _count(self, run: _Run) -> None:
        statistics = self.statistics
        request = run.request
        end_ns = self._clock_ns()
        if run.error is not None:
            statistics.request_failed(run.reason, request.start_ns, end_ns)
            return
        size, times = request.body.batch_size, run.times
        statistics.execution_done(size, times.input_ns, times.infer_ns, times.output_ns, time.time_ns() // 1_000_000)
        statistics.request_succeeded(request.start_ns, end_ns, size, run.queue_ns, times.input_ns, times.infer_ns, times.output_ns)
