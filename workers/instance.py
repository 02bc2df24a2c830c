"""A model instance: one thread, one socket, one runner."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from .backends.backend import Runner
from .channel import InstanceChannel
from .contract.messages import Execute, InstanceReady, Warmed
from .contract.status import StatusError
from .inbox import Inbox
from .thread import WorkerThread
from .warmup import Sample, warm_up


class Instance:
    """Runs its warm-up samples, then batches, in a thread of its own, until it is told to close.

    ``make_channel`` is called in that thread, because its socket belongs to it. Nobody hears of an instance that is not opened.
    """

    def __init__(
        self,
        number: int,
        name: str,
        runner: Runner,
        make_channel: Callable[[], InstanceChannel],
        token: bytes,
    ) -> None:
        self.number = number
        self.name = name
        self._runner = runner
        self._make_channel = make_channel
        self._token = token
        self._samples: Sequence[Sample] = ()
        self._started = False
        self._warmed: Future[None] = Future()
        self._opened: Future[bool] = Future()
        self._ended = threading.Event()

    def start(self, samples: Sequence[Sample] = ()) -> None:
        """Begin to warm up with ``samples``."""
        self._started = True
        self._samples = samples
        if self._runner.main is None:
            WorkerThread(self._run, self.name).start()
        else:
            self._runner.main.start(self._run)

    def wait_warm(self) -> None:
        """Wait until it has been warmed up. Raises StatusError with what a sample was answered; the instance has ended then."""
        self._warmed.result()

    def open(self) -> None:
        """Say that it is ready, and take batches."""
        self._opened.set_result(True)

    def join(self, timeout_secs: float) -> bool:
        """Wait for the last batch to end; False where it has not."""
        return self._ended.wait(timeout_secs)

    def abandon(self) -> None:
        """Give up an instance that has not been opened, and free what it holds."""
        if self._started:
            self._opened.set_result(False)
            self._ended.wait()
        else:
            self._close_runner()

    def _run(self) -> None:
        # What goes wrong here ends the worker (__main__.py): the server counts on every instance that is ready.
        try:
            warmed = self._warm_up()
            if warmed is not None and self._opened.result():
                self._serve(warmed)
            self._close_runner()
        finally:
            self._ended.set()

    def _warm_up(self) -> list[Warmed] | None:
        """What the samples took; None where one failed."""
        try:
            warmed = warm_up(self._samples, self._runner, self.name)
        except StatusError as error:
            self._warmed.set_exception(StatusError(error.code, error.message))
            return None
        finally:
            self._samples = ()
        self._warmed.set_result(None)
        return warmed

    def _serve(self, warmed: list[Warmed]) -> None:
        channel = self._make_channel()
        inbox = Inbox(channel.receive)
        run = self._runner.run
        send = self._runner.voice or channel.send
        try:
            self._runner.begin(self.number, inbox)
            channel.send(InstanceReady(self._token, self.number, warmed))
            while isinstance(message := inbox.next(), Execute):
                send(run(message))
        finally:
            channel.close()

    def _close_runner(self) -> None:
        try:
            self._runner.close()
        except Exception:  # noqa: BLE001
            # It has run its last batch; the other models need this worker.
            traceback.print_exc()
