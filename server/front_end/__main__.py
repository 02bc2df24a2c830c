"""Entry of a front end. Started by the server process only; its arguments are descriptors it inherits."""

from __future__ import annotations

import argparse
import io
import os
import socket
import sys

from ...workers.lifeline import die_with_server, greeted
from .. import descriptors
from ..ahead import uncollected


def main() -> None:
    """Run a front end until the server process says that it is enough, or goes away."""
    parser = argparse.ArgumentParser(prog="tensorfarm front end", description="A front end of a tensorfarm server; not started by hand.")
    parser.add_argument("--lifeline", type=int, required=True, help="descriptor of the socket pair with the server process")
    parser.add_argument("--http", type=int, help="descriptor of a socket bound to the HTTP port")
    parser.add_argument("--grpc", type=int, help="descriptor of a socket bound to the gRPC port")
    arguments = parser.parse_args()

    # What it prints goes to the log line by line, not when a buffer is full.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    die_with_server()
    descriptors.raise_limit()
    # Meanwhile the models load.
    with uncollected():
        import uvloop

        from ...shm.arena import Arena
        from .front_end import FrontEnd

    link = socket.socket(fileno=arguments.lifeline)
    given = greeted(link)
    if given is None:
        sys.exit(0)
    greeting, request_arena_fd, arena_fd = given
    arena = Arena(greeting.arena, arena_fd, greeting.resident_byte_size)
    http, grpc = (None if fd is None else socket.socket(fileno=fd) for fd in (arguments.http, arguments.grpc))

    async def run() -> None:
        await FrontEnd(greeting, link, arena, request_arena_fd, http, grpc).run()

    uvloop.run(run())
    # A thread that packs a reply, or imports, is not waited for.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
