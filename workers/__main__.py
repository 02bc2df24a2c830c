"""Entry of a worker process. Started by the server only; its arguments are descriptors it inherits."""

from __future__ import annotations

import argparse
import os
import socket

from ..shm.arena import Arena, ArenaView
from . import lifeline
from .channel import ControlChannel, InstanceChannel, new_context
from .contract.messages import Hello
from .memory import WorkerMemory
from .worker import Worker


def main() -> None:
    """Run a worker until the server says stop or goes away."""
    parser = argparse.ArgumentParser(prog="tensorfarm worker", description="A worker process of a tensorfarm server; not started by hand.")
    parser.add_argument("--lifeline", type=int, required=True, help="descriptor of the socket pair with the server")
    parser.add_argument("--request-arena", type=int, required=True, help="descriptor of the server's arena, read-only")
    parser.add_argument("--arena", type=int, required=True, help="descriptor of this worker's own arena")
    parser.add_argument("--arena-number", type=int, required=True)
    parser.add_argument("--resident-byte-size", type=int, required=True)
    arguments = parser.parse_args()

    lifeline.die_with_server()
    link = socket.socket(fileno=arguments.lifeline)
    greeting = lifeline.greeted(link)
    memory = WorkerMemory(ArenaView(0, arguments.request_arena), Arena(arguments.arena_number, arguments.arena, arguments.resident_byte_size))
    os.close(arguments.request_arena)
    context = new_context()
    control = ControlChannel(context, greeting.endpoint)
    worker = Worker(control, lambda: InstanceChannel(context, greeting.endpoint), memory, greeting.token)
    lifeline.watch(link, worker.handle_lifeline)
    control.send(Hello(greeting.token, os.getpid()))
    control.serve(worker.handle)
    os._exit(0)


if __name__ == "__main__":
    main()
