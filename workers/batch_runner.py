"""Runs the batches of one native instance: tensors are gathered and scattered here, the backend only computes."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from .backends.backend import Executor
from .batch import Batch, InputFault, Memory
from .contract.messages import Done, Execute, Fault, RequestBody, Result
from .contract.status import StatusError, internal
from .inbox import Inbox
from .warmup import discard


class BatchRunner:
    """A ``Runner`` around a backend's executor. ``model`` is the model's name, for error texts."""

    main = None
    voice: Callable[[Done], object] | None = None

    def __init__(self, executor: Executor, memory: Memory, model: str) -> None:
        self._executor = executor
        self._memory = memory
        self._model = model
        self._make_batch: Callable[[list[RequestBody], Memory, str], Batch] = Batch

    def rehearse(self, message: Execute) -> tuple[Done, list[str]]:
        """As ``Runner`` says."""
        done = self.run(message)
        return done, discard(done.results, self._memory)

    def begin(self, instance: int, inbox: Inbox) -> None:
        """Nothing to prepare."""

    def run(self, message: Execute) -> Done:
        """Execute a batch; never raises, what goes wrong is in the results."""
        requests = message.requests
        refused: list[InputFault] = []
        while True:
            batch = self._make_batch(requests, self._memory, self._model)
            fault = self._attempt(batch)
            if fault is None:
                break
            # One client's bad input is not to cost the others their answers.
            batch.finish()
            refused.append(fault)
            requests = _without(requests, fault.index)
        results: list[Result | None] = [*batch.finish()]
        for fault in reversed(refused):
            results.insert(fault.index, Result([], {}, Fault(fault.code, fault.message)))
        return Done(message.batch, results, batch.compute_start_ns, batch.input_end_ns, batch.output_start_ns, batch.compute_end_ns)

    def _attempt(self, batch: Batch) -> InputFault | None:
        """Execute a batch; returns the fault where it is one request's, and there are others."""
        try:
            self._executor.execute(batch)
        except StatusError as error:
            batch.fail_all(error)
            if isinstance(error, InputFault) and len(batch.requests) > 1:
                return error
        except Exception as error:  # noqa: BLE001
            # The instance must outlive whatever a model does; the batch's clients are told, the log has the rest.
            traceback.print_exc()
            batch.fail_all(internal(f"the backend failed with {type(error).__name__}"))
        return None

    def close(self) -> None:
        """Give the instance's memory back."""
        self._executor.close()


def _without(requests: list[RequestBody], index: int) -> list[RequestBody]:
    return requests[:index] + requests[index + 1 :]
