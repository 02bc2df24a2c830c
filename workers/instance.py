"""A model instance: one thread, one socket, one executor."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable

from .backends.backend import Executor
from .batch import Batch, InputFault
from .channel import InstanceChannel
from .contract.messages import Done, Execute, Fault, InstanceReady, RequestBody, Result
from .contract.status import StatusError, internal
from .memory import WorkerMemory


class Instance:
    """Runs batches in a thread until it is told to close.

    ``make_channel`` is called in that thread, because its socket belongs to it.
    """

    def __init__(
        self,
        number: int,
        name: str,
        model: str,
        executor: Executor,
        memory: WorkerMemory,
        make_channel: Callable[[], InstanceChannel],
        token: bytes,
    ) -> None:
        self.number = number
        self.name = name
        self._model = model
        self._executor = executor
        self._memory = memory
        self._make_channel = make_channel
        self._token = token
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to take batches."""
        self._thread.start()

    def join(self, timeout_secs: float) -> bool:
        """Wait for the thread to end; False where it has not."""
        self._thread.join(timeout_secs)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Give up an instance that was never started."""
        self._executor.close()

    def _run(self) -> None:
        # What goes wrong here ends the worker (__main__.py): the server counts on every instance that is ready.
        channel = self._make_channel()
        try:
            channel.send(InstanceReady(self._token, self.number))
            while isinstance(message := channel.receive(), Execute):
                channel.send(self._execute(message))
        finally:
            channel.close()
        try:
            self._executor.close()
        except Exception:  # noqa: BLE001
            # It has run its last batch; the other models need this worker.
            traceback.print_exc()

    def _execute(self, message: Execute) -> Done:
        requests = message.requests
        refused: list[InputFault] = []
        while True:
            batch = Batch(requests, self._memory, self._model)
            fault = self._attempt(batch)
            if fault is None:
                break
            # One client's bad input is not to cost the others their answers.
            batch.finish()
            refused.append(fault)
            requests = _without(requests, fault.index)
        results = batch.finish()
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


def _without(requests: list[RequestBody], index: int) -> list[RequestBody]:
    return requests[:index] + requests[index + 1 :]
