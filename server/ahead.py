"""What a start does before its turn comes. Nearly all of a start is importing, in two processes, so the order of imports is its length.

1. The worker of native models is started before anything else is imported; it imports its backend without being asked to.
2. The server's own modules follow, while the worker imports, with the cycle collector off.
3. The doors' modules are imported in a thread, while the models load.
4. numpy, which tensors in JSON need, and what only HTTP/2 needs are imported in a thread once the server is ready: a request that
   comes sooner than that waits for them, a few hundredths of a second.

From the first worker on, signals that ask for the end wait until the loop runs, which then ends in order.

This file is imported first of all, and so imports little itself.
"""

from __future__ import annotations

import contextlib
import gc
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..workers.contract.backends import ONNXRUNTIME
from .farm.launch import Launched, launch, worker_words

if TYPE_CHECKING:
    from .front_end.front_ends import FrontEnds
    from .front_end.sessions import Sessions

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def first_worker(repositories: Sequence[str]) -> Launched | None:
    """Start a worker that is not seated yet; None where it cannot be started, which the farm finds and tells by itself.

    It imports its backend ahead where the repositories hold a model for it, as far as a glance tells. Holds the stop signals,
    for whoever handles them to let them in again.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        wanted = any(any(Path(path).glob("*/*/model.onnx")) for path in repositories if "\0" not in path)
        return launch(worker_words(ahead=ONNXRUNTIME if wanted else ""))
    except OSError:
        return None


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For the time of an import: looking for cycles would take a fifth of it. What was imported stays, and is never looked at again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def own_doors(grpc: bool) -> None:
    """Import what the doors need."""
    from .http import front, metrics_page  # noqa: F401

    if grpc:
        from .grpc import listener  # noqa: F401


def front_ends() -> tuple[type[FrontEnds], type[Sessions]]:
    """Import what the server process needs for its front ends; returns what starts them, and what makes their sessions."""
    from .front_end.front_ends import FrontEnds
    from .front_end.sessions import Sessions

    return FrontEnds, Sessions


def rest() -> None:
    """Import what only some clients need."""
    from ..shm.datatypes import DATATYPES
    from .http import http2_connection  # noqa: F401

    # numpy, and every datatype with its own of it.
    DATATYPES["INT32"].dtype  # noqa: B018
    # As all that was imported before it: nothing of it is ever a cycle to be found.
    gc.freeze()
