"""A model instance: one thread, one socket, one executor."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable

from .backends.backend import Executor
from .batch import Batch
from .channel import InstanceChannel
from .contract.messages import Done, Execute, InstanceReady
from .contract.status import StatusError, internal
from .memory import WorkerMemory


class Instance:
    """Runs batches in a thread until it is told to close.

    ``make_channel`` is called in that thread, because its socket belongs to it.
    """

    def __init__(
        self, number: int, name: str, executor: Executor, memory: WorkerMemory, make_channel: Callable[[], InstanceChannel], token: bytes
    ) -> None:
        self.number = number
        self._executor = executor
        self._memory = memory
        self._make_channel = make_channel
        self._token = token
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to take batches."""
        self._thread.start()

    def join(self, timeout_secs: float) -> None:
        """Wait for the thread to end."""
        self._thread.join(timeout_secs)

    def _run(self) -> None:
        channel = self._make_channel()
        channel.send(InstanceReady(self._token, self.number))
        try:
            while isinstance(message := channel.receive(), Execute):
                channel.send(self._execute(message))
        finally:
            channel.close()
            self._executor.close()

    def _execute(self, message: Execute) -> Done:
        batch = Batch(message.requests, self._memory)
        try:
            self._executor.execute(batch)
        except StatusError as error:
            batch.fail_all(error)
        except Exception as error:  # noqa: BLE001
            # The instance must outlive whatever a model does; the batch's clients are told, the log has the rest.
            traceback.print_exc()
            batch.fail_all(internal(f"the backend failed with {type(error).__name__}"))
        results = batch.finish()
        return Done(message.batch, results, batch.compute_start_ns, batch.input_end_ns, batch.output_start_ns, batch.compute_end_ns)
