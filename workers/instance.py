"""A model instance: one thread, one socket, one runner."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable

from .backends.backend import Runner
from .channel import InstanceChannel
from .contract.messages import Execute, InstanceReady
from .inbox import Inbox
from .thread import WorkerThread


class Instance:
    """Runs batches in a thread until it is told to close.

    ``make_channel`` is called in that thread, because its socket belongs to it.
    """

    def __init__(self, number: int, name: str, runner: Runner, make_channel: Callable[[], InstanceChannel], token: bytes) -> None:
        self.number = number
        self.name = name
        self._runner = runner
        self._make_channel = make_channel
        self._token = token
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin to take batches."""
        if self._runner.main is None:
            WorkerThread(self._run, self.name).start()
        else:
            self._runner.main.start(self._run)

    def join(self, timeout_secs: float) -> bool:
        """Wait for the last batch to end; False where it has not."""
        return self._ended.wait(timeout_secs)

    def abandon(self) -> None:
        """Give up an instance that was never started."""
        self._runner.close()

    def _run(self) -> None:
        # What goes wrong here ends the worker (__main__.py): the server counts on every instance that is ready.
        try:
            self._serve()
        finally:
            self._ended.set()

    def _serve(self) -> None:
        channel = self._make_channel()
        inbox = Inbox(channel.receive)
        run = self._runner.run
        try:
            self._runner.begin(self.number, inbox)
            channel.send(InstanceReady(self._token, self.number))
            while isinstance(message := inbox.next(), Execute):
                channel.send(run(message))
        finally:
            channel.close()
        try:
            self._runner.close()
        except Exception:  # noqa: BLE001
            # It has run its last batch; the other models need this worker.
            traceback.print_exc()
