"""What the server sends to an instance, in order; answers to the instance's own calls are taken out of turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .contract.messages import Answer, Close, Execute, ToInstance


class Inbox:
    """``receive`` waits for the next message. ``answered`` gets the answers. Belongs to the instance's thread."""

    def __init__(self, receive: Callable[[], ToInstance]) -> None:
        self.answered: Callable[[Answer], None] = _nobody
        self.waiting = False
        self._receive = receive
        self._later: deque[Execute | Close] = deque()

    def next(self) -> Execute | Close:
        """The next batch, or the end."""
        if self._later:
            return self._later.popleft()
        while isinstance(message := self._receive(), Answer):
            self.answered(message)
        return message

    def wait(self, condition: Callable[[], bool]) -> None:
        """Receive answers until ``condition`` holds; batches that come meanwhile wait for ``next``.

        In the midst of a batch: the thread that waits is woken by the answer itself, not by another thread that got it.
        """
        self.waiting = True
        try:
            while not condition():
                message = self._receive()
                if isinstance(message, Answer):
                    self.answered(message)
                else:
                    self._later.append(message)
        finally:
            self.waiting = False


def _nobody(answer: Answer) -> None:
    """A native instance makes no calls."""
