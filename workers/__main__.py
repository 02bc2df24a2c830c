"""Entry of a worker process. Started by the server only; its arguments are descriptors it inherits."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import socket
import sys
import threading
import traceback

from ..shm.arena import Arena
from . import last_words, lifeline
from .channel import ControlChannel, InstanceChannel, VoiceChannel, new_context
from .main_thread import MainThread
from .memory import WorkerMemory
from .thread import WorkerThread, end_with_ours
from .worker import BACKENDS, Worker


def main() -> None:
    """Run a worker until the server says stop or goes away."""
    parser = argparse.ArgumentParser(prog="tensorfarm worker", description="A worker process of a tensorfarm server; not started by hand.")
    parser.add_argument("--lifeline", type=int, required=True, help="descriptor of the socket pair with the server")
    parser.add_argument("--ahead", choices=BACKENDS, help="a backend to import before the server asks for it")
    arguments = parser.parse_args()

    # ONNX Runtime's wheels report to their maker from the moment of their import unless told otherwise.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    lifeline.die_with_server()
    threading.excepthook = end_with_ours
    link = socket.socket(fileno=arguments.lifeline)
    if arguments.ahead:
        _import_ahead(arguments.ahead)
    # What has been imported stays: the cycle collector need not look at it ever again.
    gc.freeze()
    gc.enable()
    greeted = lifeline.greeted(link)
    if greeted is None:
        sys.exit(0)
    greeting, request_arena_fd, arena_fd = greeted
    last_words.speak_over(link)
    memory = WorkerMemory(request_arena_fd, Arena(greeting.arena, arena_fd, greeting.resident_byte_size), greeting.device)
    context = new_context()
    control = ControlChannel(context, greeting.endpoint)
    voice = VoiceChannel(context, greeting.endpoint, greeting.token)
    main_thread = MainThread()
    worker = Worker(voice, lambda: InstanceChannel(context, greeting.endpoint), memory, main_thread, greeting.token)
    lifeline.watch(link, worker.handle_lifeline)
    WorkerThread(lambda: _serve(control, greeting.token, worker), "control").start()
    try:
        main_thread.serve()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        # It never ends by itself: a model has ended it, and its instance with it.
        sys.stderr.flush()
        os._exit(1)


def _import_ahead(backend: str) -> None:
    """Import what the first model of a backend needs, while the server is still on its way to asking for it."""
    # Where it is not installed, that is told to whoever asks for it.
    with contextlib.suppress(ImportError):
        for module in (BACKENDS[backend], ".contract.configuration"):
            importlib.import_module(module, __package__)


def _serve(control: ControlChannel, token: bytes, worker: Worker) -> None:
    code = 1
    try:
        control.serve(token, worker.handle)
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        # Exit handlers could hang on instances that still run.
        os._exit(code)


if __name__ == "__main__":
    main()
