"""Threads that a worker cannot do without, as distinct from those that a model starts."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable


class WorkerThread(threading.Thread):
    """A thread of ours, a daemon: an exception that it does not catch ends the worker (``end_with_ours``)."""

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)


def end_with_ours(failure: threading.ExceptHookArgs) -> None:
    """A thread of ours that ends by itself, ``sys.exit`` in a model included, leaves work that nobody does: the server starts anew.

    What a model's own thread raises is printed, as anywhere. To be set as ``threading.excepthook``.
    """
    if not isinstance(failure.thread, WorkerThread):
        threading.__excepthook__(failure)
        return
    print(f"thread '{failure.thread.name}' has ended:", file=sys.stderr)
    traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    sys.stderr.flush()
    os._exit(1)
