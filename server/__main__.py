"""Entry of the ``tensorfarm`` command."""

from __future__ import annotations

import sys

import uvloop

from . import descriptors
from .command_line import parse, unbuilt_warning
from .log import Log, leave_library_lines, settings_of, take_library_lines
from .options import Options
from .server import Server


def main() -> None:
    """Run the server with the command line's options; exits with its code."""
    options = parse(sys.argv[1:])
    descriptors.raise_limit()
    log = Log(settings_of(options))
    library_lines = take_library_lines(log)
    warning = unbuilt_warning(options)
    if warning:
        log.warning(warning)
    try:
        code = uvloop.run(_run(options, log))
    finally:
        leave_library_lines(library_lines)
        log.close()
    sys.exit(code)


async def _run(options: Options, log: Log) -> int:
    return await Server(options, log).run()


if __name__ == "__main__":
    main()
