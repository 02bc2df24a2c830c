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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..workers.contract.backends import ONNXRUNTIME
from .farm.launch import Launched, launch

if TYPE_CHECKING:
    from .grpc.listener import GrpcDoor
    from .http.front import Front
    from .http.listener import HttpDoor

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def first_worker(repositories: Sequence[str]) -> Launched | None:
    """Start a worker that is not seated yet; None where it cannot be started, which the farm finds and tells by itself.

    It imports its backend ahead where the repositories hold a model for it, as far as a glance tells. Holds the stop signals,
    for whoever handles them to let them in again.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        wanted = any(any(Path(path).glob("*/*/model.onnx")) for path in repositories if "\0" not in path)
        return launch(ahead=ONNXRUNTIME if wanted else "")
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


def doors() -> tuple[type[Front], Callable[[Callable[[], bytes]], HttpDoor]]:
    """Import what the doors need; returns what makes the main one, and what makes the metrics door."""
    from .http.front import Front
    from .http.metrics_page import metrics_door

    return Front, metrics_door


def grpc_door() -> type[GrpcDoor]:
    """Import what the gRPC door needs."""
    from .grpc.listener import GrpcDoor

    return GrpcDoor


def rest() -> None:
    """Import what only some clients need."""
    from ..shm.datatypes import DATATYPES
    from .http import http2_connection  # noqa: F401

    # numpy, and every datatype with its own of it.
    DATATYPES["INT32"].dtype  # noqa: B018
    # As all that was imported before it: nothing of it is ever a cycle to be found.
    gc.freeze()
