"""Who may use a GPU from this process while a CUDA graph is captured: nobody else."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Quiet:
    """Work of many threads at once, or of one alone. A thread that works may begin to work again, or come to want to be alone.

    ONNX Runtime captures in CUDA's global mode, in which what other threads allocate, free or wait for fails, and spoils the capture too.
    Source: CUDA Runtime API, ``cudaStreamBeginCapture`` and ``cudaThreadExchangeStreamCaptureMode``.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._alone = False
        self._own = threading.local()

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Work beside others, once nobody is alone."""
        depth: int = getattr(self._own, "depth", 0)
        if not depth:
            self._enter()
        self._own.depth = depth + 1
        try:
            yield
        finally:
            self._own.depth = depth
            if not depth:
                self._leave()

    @contextlib.contextmanager
    def alone(self, patience_secs: float) -> Iterator[bool]:
        """Work while nobody else does; what this thread does already, it does not do meanwhile.

        False, and it works beside the others, where they did not come to an end in time. They are not held up by the waiting: one of them
        may itself wait for what another has to do first.
        """
        depth: int = getattr(self._own, "depth", 0)
        if depth:
            self._leave()
        with self._changed:
            alone = self._changed.wait_for(lambda: not self._working and not self._alone, patience_secs)
            if alone:
                self._alone = True
        if not alone:
            if depth:
                self._enter()
            with self.work():
                yield False
            return
        self._own.depth = depth + 1
        try:
            yield True
        finally:
            self._own.depth = depth
            with self._changed:
                self._alone = False
                self._changed.notify_all()
            if depth:
                self._enter()

    def _enter(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._working += 1

    def _leave(self) -> None:
        with self._changed:
            self._working -= 1
            if not self._working:
                self._changed.notify_all()
