"""``tensorfarm check``: validates model repositories without a server."""

from __future__ import annotations

import io
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import uvloop

from ..command_line import CommandLineError, read_options
from ..flag import Flag
from ..option_table import FLAG_BY_NAME
from ..options import Options
from ..repository.cloud_address import is_cloud
from .progress import CheckProgress
from .report import failed, json_report, text_report
from .run import check_repositories

SERVER_FLAGS = ("model-config-name", "disable-auto-complete-config", "backend-directory", "backend-config", "model-namespacing")
"""Flags of the server that change what is right."""

FORMATS = ("text", "json")
GOOD, BAD, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


class WrongUsage(Exception):
    """A command line that cannot be used; ``str()`` says why."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the command line asks for. ``options`` are a server's, with these repositories."""

    directories: tuple[str, ...]
    options: Options
    strict: bool
    format: str
    help: bool


def main(argv: Sequence[str]) -> int:
    """Run the command with the words behind ``check``; returns the exit code."""
    try:
        arguments = read_arguments(argv)
    except WrongUsage as error:
        print(f"tensorfarm check: {error}\nTry 'tensorfarm check --help'.", file=sys.stderr)
        return WRONG_USAGE
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may have letters that a terminal has not
    try:
        if arguments.help:
            print(usage(), end="")
            return GOOD
        start_secs = time.monotonic()
        with CheckProgress() as progress:
            reports = uvloop.run(check_repositories(arguments.directories, arguments.options, progress))
        if arguments.format == "json":
            print(json_report(reports), end="", flush=True)
        else:
            colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
            elapsed_secs = time.monotonic() - start_secs
            print(text_report(reports, elapsed_secs, strict=arguments.strict, colour=colour), end="", flush=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever reads has read enough. What is still in the buffer is not to fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD
    return BAD if failed(reports, strict=arguments.strict) else GOOD


def read_arguments(argv: Sequence[str]) -> Arguments:
    """Read the words behind ``check``. Raises WrongUsage."""
    directories: list[str] = []
    strict, wants_help, report_format = False, False, "text"
    for_server: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        if word == "--":
            directories += words
        elif word in ("--help", "-h"):
            wants_help = True
        elif word == "--strict":
            strict = True
        elif name == "format":
            report_format = value if equals else _following(words, word)
            if report_format not in FORMATS:
                raise WrongUsage(f"--format is one of {', '.join(FORMATS)}, not '{report_format}'")
        elif name in SERVER_FLAGS:
            takes_value = FLAG_BY_NAME[name].takes_value
            for_server.append(word if equals or not takes_value else f"{word}={_following(words, word)}")
        elif word.startswith("-") and word != "-":
            raise WrongUsage(f"unknown option '{word}'")
        else:
            directories.append(word)
    if not directories and not wants_help:
        raise WrongUsage("which model repository? At least one DIR is needed")
    if "" in directories:
        raise WrongUsage("the name of a model repository is empty")
    for directory in filter(is_cloud, directories):
        raise WrongUsage(f"only folders of this machine can be checked: copy {directory} to one")
    try:
        options = read_options(for_server, {}, lambda line: None)
    except CommandLineError as error:
        raise WrongUsage(" ".join(f"{error.before} {error}".split())) from None
    return Arguments(tuple(dict.fromkeys(directories)), options, strict, report_format, wants_help)


def _following(words: Iterator[str], flag: str) -> str:
    value = next(words, None)
    if value is None:
        raise WrongUsage(f"{flag} needs a value")
    return value


_OWN_FLAGS = (
    ("--strict", "Warnings count as errors."),
    ("--format text|json", "Lines that people read and editors jump to, or one JSON array of findings. Default: text."),
    ("--help", "Print this text."),
)


def usage() -> str:
    """The text of --help."""
    server_flags = [(_head(FLAG_BY_NAME[name]), FLAG_BY_NAME[name].help) for name in SERVER_FLAGS]
    entries = "\n".join(_entry(head, text) for head, text in (*_OWN_FLAGS, *server_flags))
    return (
        "Usage: tensorfarm check DIR [DIR...] [options]\n\n"
        "Checks the model repositories DIR without a server: folders and versions, configurations, label and warm-up files,\n"
        "ONNX models against their configurations (each is opened, in a worker process), Python models without running\n"
        "them, ensembles with their members.\n\n"
        f"{entries}\n\n"
        "Exit code: 0 where all is well, 1 where there are errors, 2 where this command line is wrong, 130 after Ctrl-C.\n"
    )


def _head(flag: Flag) -> str:
    return f"--{flag.name} {flag.metavar}".rstrip()


def _entry(head: str, text: str) -> str:
    lines = textwrap.wrap(text, 72, break_on_hyphens=False, break_long_words=False)
    return "\n".join([f"  {head}", *(f"        {line}" for line in lines)])
