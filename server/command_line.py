"""From command-line arguments to `Options`, by the rules of GNU ``getopt_long`` and with tritonserver's error texts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, NoReturn

from .flag import Flag
from .option_table import FLAG_BY_NAME, FLAGS
from .option_values import BadValue, Setting, to_integer, trace_level, trace_mode
from .options import Options
from .usage import PROGRAM, usage_text

_HOST_POLICY_SETTINGS = ("numa-node", "cpu-cores")
_TRACE_CHECKS: Mapping[tuple[str, str], Callable[[str], object]] = {
    ("", "level"): trace_level,
    ("", "rate"): to_integer,
    ("", "count"): to_integer,
    ("", "mode"): trace_mode,
    ("triton", "log-frequency"): to_integer,
}


class CommandLineError(Exception):
    """A command line that cannot be used. ``str()`` is what stderr shows of it, after the usage text if ``usage`` is set.

    ``before`` is a line that stderr shows ahead of the usage text.
    """

    def __init__(self, message: str, *, before: str = "", usage: bool = True) -> None:
        super().__init__(message)
        self.before = before
        self.usage = usage


def parse(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Options:
    """The options that the arguments (without the program's name) ask for.

    Warnings about deprecated flags go to stderr. --help and anything wrong print the usage text there too, with the
    reason under it, and raise `SystemExit` with code 1, as tritonserver does.
    """
    try:
        return read_options(argv, os.environ if environ is None else environ, _to_stderr)
    except CommandLineError as error:
        _to_stderr(error.before)
        _to_stderr(f"{usage_text()}\n{error}" if error.usage else str(error))
        raise SystemExit(1) from None


def _to_stderr(text: str) -> None:
    if text and sys.stderr is not None:
        try:
            print(text, file=sys.stderr, flush=True)
        except OSError:
            return  # nobody reads it: the exit code still tells


def read_options(argv: Sequence[str], environ: Mapping[str, str], warn: Callable[[str], None]) -> Options:
    """As `parse`, without printing or leaving: warnings go to ``warn``, failures are raised as `CommandLineError`."""
    values: dict[str, Any] = {flag.attribute: flag.default for flag in FLAGS if flag.own_option}
    given: dict[str, None] = {}
    old_traces: tuple[Setting, ...] = ()
    for flag, text in _arguments(argv):
        if flag.name == "help":
            raise CommandLineError("")
        given[flag.name] = None
        if flag.warning and "{}" not in flag.warning:
            warn(flag.warning)
        old_trace = flag.attribute == "trace_config" and not flag.own_option
        current = old_traces if old_trace else values[flag.attribute]
        try:
            value = flag.read(text, current)
        except BadValue as error:
            _refuse(flag.name, error)
        if old_trace:
            old_traces = value
        else:
            values[flag.attribute] = value
        if "{}" in flag.warning:
            warn(flag.warning.format(value["local"]["size"]))
    values["given"] = tuple(given)
    _fill_in(values, environ)
    options = Options(**values)
    _check_models(options)
    options = replace(options, trace_config=_settled_traces(old_traces, options.trace_config, warn))
    _check_ports(options)
    _check_devices(options)
    return options


def _refuse(name: str, error: BadValue) -> NoReturn:
    raise CommandLineError(f'Bad option: "--{name}".\n{error}\n') from None


def _arguments(argv: Sequence[str]) -> Iterator[tuple[Flag, str]]:
    """The flags on the command line, each with its value ("" for one that takes none), in order.

    Raises `CommandLineError` where getopt_long would complain, and at the end if there was a word that is no flag.
    """
    words = iter(argv)
    stray: list[str] = []
    for word in words:
        if word == "--":
            stray.extend(words)
        elif word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            flag = _named(name, word)
            if equals and not flag.takes_value:
                _complain(f"option '--{flag.name}' doesn't allow an argument")
            if flag.takes_value and not equals:
                following = next(words, None)
                if following is None:
                    _complain(f"option '--{flag.name}' requires an argument")
                text = following
            yield flag, text
        elif word.startswith("-") and word != "-":
            _complain(f"invalid option -- '{word[1]}'")
        else:
            stray.append(word)
    if stray:
        raise CommandLineError(f"Unexpected argument: {stray[0]}")


def _named(name: str, word: str) -> Flag:
    """The flag called ``name`` or, if none is, the only one whose name begins so."""
    exact = FLAG_BY_NAME.get(name)
    if exact is not None:
        return exact
    candidates = [flag for flag in FLAGS if flag.name.startswith(name)]
    if not candidates:
        _complain(f"unrecognized option '{word}'")
    first, *others = candidates
    # Two names of one flag do not make a prefix ambiguous; a deprecated flag is one of its own.
    others = [flag for flag in others if flag.warning or first.warning or flag.target != first.target]
    if others:
        possibilities = " ".join(f"'--{flag.name}'" for flag in (first, *others))
        _complain(f"option '{word}' is ambiguous; possibilities: {possibilities}")
    return first


def _complain(text: str) -> NoReturn:
    raise CommandLineError("", before=f"{PROGRAM}: {text}")


def _fill_in(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Defaults that depend on other flags or the environment, and flags that imply others."""
    if not values["model_repository"] and environ.get("AIP_STORAGE_URI"):
        values["model_repository"] = (environ["AIP_STORAGE_URI"],)
    if values["allow_vertex_ai"] is None:
        values["allow_vertex_ai"] = environ.get("AIP_MODE") == "PREDICTION"
    if values["vertex_ai_port"] is None:
        try:
            values["vertex_ai_port"] = to_integer(environ.get("AIP_HTTP_PORT", "8080"))
        except BadValue as error:
            _refuse("vertex-ai-port", error)
    if values["metrics_address"] is None:
        values["metrics_address"] = values["http_address"]
    for part in ("allow_gpu_metrics", "allow_cpu_metrics"):
        values[part] = values[part] and values["allow_metrics"]
    values["http_use_ssl"] = values["http_use_ssl"] or values["http_use_ssl_mutual"]
    values["grpc_use_ssl"] = values["grpc_use_ssl"] or values["grpc_use_ssl_mutual"]
    if values["model_control_mode"] != "poll":
        values["repository_poll_secs"] = 0


def _check_models(options: Options) -> None:
    if options.load_model and options.model_control_mode != "explicit":
        raise CommandLineError("Error: Use of '--load-model' requires setting '--model-control-mode=explicit' as well.")
    if options.model_control_mode != "lazy":
        for name in ("lazy-model-count", "lazy-memory-byte-size"):
            if name in options.given:
                raise CommandLineError(f"Error: Use of '--{name}' requires setting '--model-control-mode=lazy' as well.")
    elif options.model_namespacing:
        raise CommandLineError("Error: '--model-namespacing' cannot be used with '--model-control-mode=lazy'.")
    if "cache-config" in options.given and "response-cache-byte-size" in options.given:
        raise CommandLineError(
            "Error: Incompatible flags --response-cache-byte-size and --cache-config both provided. Please provide one or the other."
        )


def _settled_traces(old: tuple[Setting, ...], new: tuple[Setting, ...], warn: Callable[[str], None]) -> tuple[Setting, ...]:
    """The trace settings of deprecated flags that --trace-config does not override, and then its own, their values checked."""
    overridden = set()
    for setting in sorted(new, key=lambda setting: setting.scope != ""):
        key = (setting.scope, setting.name)
        if any(key == (before.scope, before.name) for before in old):
            overridden.add(key)
            noun = "rate value" if setting.name == "rate" else setting.name
            warn(f"Warning: Overriding deprecated '--trace-{setting.name}' in favor of provided {noun} in --trace-config!")
        check = _TRACE_CHECKS.get(key)
        if check is not None:
            try:
                check(setting.value)
            except BadValue as error:
                _refuse(f"trace-config {setting.scope}{',' if setting.scope else ''}{setting.name}", error)
    return tuple(before for before in old if (before.scope, before.name) not in overridden) + new


def _check_ports(options: Options) -> None:
    """No two services at the same address and port. SageMaker's and Vertex AI's addresses cannot be chosen."""
    everywhere = "0.0.0.0"
    services = (
        ("HTTP", options.allow_http, options.http_address, options.http_port),
        ("GRPC", options.allow_grpc, options.grpc_address, options.grpc_port),
        ("metrics", options.allow_metrics, options.metrics_address, options.metrics_port),
        ("SageMaker", options.allow_sagemaker, everywhere, options.sagemaker_port),
        ("Vertex AI", options.allow_vertex_ai, everywhere, options.vertex_ai_port),
    )
    for (one, one_runs, *one_place), (other, other_runs, *other_place) in combinations(services, 2):
        if one_runs and other_runs and one_place == other_place:
            address, port = one_place
            raise CommandLineError(
                f"The server cannot listen to {one} requests and {other} requests at the same address and port {address}:{port}\n"
            )


def _check_devices(options: Options) -> None:
    failed = "Failed to build Triton option:\nerror: setting"
    for device, fraction in sorted(options.model_load_gpu_limit.items()):
        if device < 0:
            complaint = f"{failed} model load GPU limit: Invalid argument - expects device ID >= 0, got {device}"
            raise CommandLineError(complaint, usage=False)
        if fraction < 0 or fraction > 1:
            complaint = (
                f"{failed} model load GPU limit: Invalid argument - expects limit fraction to be in range [0.0, 1.0], got {fraction:.6f}"
            )
            raise CommandLineError(complaint, usage=False)
    for settings in options.host_policy.values():
        for name in settings:
            if name not in _HOST_POLICY_SETTINGS:
                complaint = (
                    f"{failed} host policy: Unsupported - Unsupported host policy setting '{name}' is specified, "
                    "supported settings are 'numa-node', 'cpu-cores'"
                )
                raise CommandLineError(complaint, usage=False)


def unbuilt_flags(options: Options) -> list[str]:
    """The flags on the command line that have no effect in this release, with their dashes, in order of first use.

    A flag whose value asks for what the server does anyway (``--allow-grpc=false``) is not among them.
    """
    found = []
    for name in options.given:
        flag = FLAG_BY_NAME[name]
        if not flag.built and getattr(options, flag.attribute) not in flag.quiet:
            found.append(f"--{name}")
    return found


def unbuilt_warning(options: Options) -> str:
    """The one line that says which flags have no effect, or "" where all of them have."""
    flags = unbuilt_flags(options)
    if not flags:
        return ""
    return f"not built yet, so without effect in this release: {', '.join(flags)}"
