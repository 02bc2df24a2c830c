"""Entry of the ``tensorfarm`` command."""

from __future__ import annotations

import sys

from . import descriptors
from .ahead import first_worker, uncollected
from .command_line import parse, unbuilt_warning
from .farm.launch import Launched
from .options import Options


def main() -> None:
    """Run the server with the command line's options, or ``check`` with the words behind it; exits with its code."""
    if sys.argv[1:2] == ["check"]:
        from .check.command import main as check

        sys.exit(check(sys.argv[2:]))
    options = parse(sys.argv[1:])
    descriptors.raise_limit()
    sys.exit(_serve(options, first_worker(options.model_repository)))


def _serve(options: Options, worker: Launched | None) -> int:
    # After the worker's start: server/ahead.py says why.
    with uncollected():
        import uvloop

        from .log import Log, leave_library_lines, settings_of, take_library_lines
        from .server import Server

    log = Log(settings_of(options))
    library_lines = take_library_lines(log)
    warning = unbuilt_warning(options)
    if warning:
        log.warning(warning)

    async def run() -> int:
        return await Server(options, log, worker).run()

    try:
        return uvloop.run(run())
    finally:
        leave_library_lines(library_lines)
        log.close()


if __name__ == "__main__":
    main()
