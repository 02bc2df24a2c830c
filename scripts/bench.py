"""Measures tensorfarm beside other model servers: same model, same load generator, in turns, in one run.

Only the ratios of one run mean anything: the client shares the machine with the servers. BENCHMARKS.md says what was found.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape

from benchmark import runs
from benchmark.document import DocumentError, draw, fill
from benchmark.facts import gather
from benchmark.frameworks import BY_NAME, FRAMEWORKS, LABELS, TRITONSERVER
from benchmark.installing import InstallError, folder_of, install, installed, version_of
from benchmark.plot import draw_http, draw_python, draw_sizes
from benchmark.python_runs import run_python
from benchmark.results import Length, Results, read, save
from benchmark.starts import run_start
from benchmark.tables import Grid, facts_grid, http_grid, python_grid, sizes_grid, start_grid, targets_grid, variants_grid

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "BENCHMARKS.md"
PICTURES = "scripts/benchmark/figures"
KEPT = ROOT / PICTURES / "results.json"
PARTS = ("targets", "http", "variants", "sizes", "python", "start")
MIN_COLUMNS = 130
BUSY_SHARE = 0.05
NO_ORACLE = 77


def chosen(names: str, console: Console, *, with_install: bool) -> list[str]:
    """Who is measured beside tensorfarm: those of ``--against`` that are installed, or can be. Raises ValueError for unknown names."""
    everybody = [TRITONSERVER, *BY_NAME]
    wanted = everybody if names in ("all", "installed") else [name.strip() for name in names.split(",") if name.strip() != "none"]
    if unknown := [name for name in wanted if name not in everybody]:
        raise ValueError(f"--against: {', '.join(unknown)}: not one of {', '.join(everybody)}")
    there = []
    for name in wanted:
        if name == TRITONSERVER:
            if reason := _oracle_missing():
                console.print(f"[yellow]without tritonserver:[/] {escape(reason)}")
                continue
        elif not installed(BY_NAME[name]) and not (with_install and _install([name], console)):
            if not with_install:
                console.print(f"[yellow]without {LABELS[name]}:[/] it is not installed; [bold]./scripts/bench install {name}[/] does that")
            continue
        there.append(name)
    return there


def _oracle_missing() -> str:
    """Why there is no tritonserver; empty where there is one. The first call downloads it."""
    done = subprocess.run([str(ROOT / "scripts" / "oracle"), "--install-only"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if not done.returncode:
        return ""
    said = (done.stderr.strip().splitlines() or ["it could not be installed"])[-1]
    return said.removeprefix("no tritonserver here: ") if done.returncode == NO_ORACLE else said


def _install(names: Sequence[str], console: Console) -> bool:
    """Install frameworks one after the other, saying what happens; whether all are there."""
    complete = True
    for name in names:
        framework = BY_NAME[name]
        if not installed(framework) and not console.is_terminal:
            console.print(f"installing {framework.label} into {folder_of(framework)}")
        with console.status(framework.label) as status:
            try:
                install(framework, lambda step, label=framework.label: status.update(f"installing {label}: {escape(step)}"))  # type: ignore[misc]
            except (InstallError, OSError) as error:
                console.print(f"[yellow]{framework.label} could not be installed:[/] {escape(str(error))}")
                complete = False
                continue
        console.print(f"{framework.label} {version_of(framework)} is installed: {folder_of(framework)}")
    return complete


def _report(console: Console, grids: Sequence[Grid], failures: Sequence[str], remarks: Sequence[str] = ()) -> int:
    for grid in grids:
        console.print(grid.rich())
    for remark in remarks:
        console.print(remark)
    for failure in failures:
        console.print(f"[red]failed:[/] {escape(failure)}", highlight=False)
    return 1 if failures else 0


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Do what the command line says; returns the exit status."""
    if arguments.what == "install":
        return 0 if _install([*arguments.names] or [framework.name for framework in FRAMEWORKS], console) else 1
    if arguments.what == "publish" and arguments.redraw:
        return _publish(read(KEPT), console)
    parts = arguments.parts.split(",") if arguments.what == "publish" else [arguments.what]
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"--parts: {', '.join(sorted(unknown))}: not one of {', '.join(PARTS)}")
    against = chosen(arguments.against, console, with_install=arguments.install)
    length = Length(arguments.rounds, arguments.seconds)
    levels = [int(level) for level in getattr(arguments, "concurrency", "1").split(",")]
    # a part that is not measured now stays as it was
    kept = KEPT.exists() and arguments.what == "publish" and len(parts) < len(PARTS)
    results = msgspec.structs.replace(read(KEPT), facts=gather()) if kept else Results(gather())
    if (busy := results.facts.busy_share) > BUSY_SHARE:
        console.print(f"[yellow]the machine is busy:[/] other work takes {busy:.0%} of its CPU, so the figures will be off")
    failures: list[str] = []
    remarks: list[str] = []
    publishing = arguments.what == "publish"
    if "targets" in parts:
        with _scratch() as folder:
            results.targets, failed = runs.run_targets(against, length, folder, console)
        failures += failed
        remarks += results.targets.left_out
    if "http" in parts:
        with _scratch() as folder:
            results.http, failed = runs.run_http(against, runs.LEVELS if publishing else levels, length, folder, console)
        failures += failed
    if "variants" in parts:
        with _scratch() as folder:
            results.variants, failed = runs.run_variants(against, (1, 32) if publishing else levels, length, folder, console)
        failures += failed
    if "sizes" in parts:
        sizes = [size for size in runs.SIZES if publishing or size <= arguments.largest << 20]
        with _scratch() as folder:
            results.sizes, failed = runs.run_sizes(against, sizes, length, folder, console)
        failures += failed
        remarks += results.sizes.left_out
    if "python" in parts or arguments.what == "targets":
        with _scratch() as folder:
            results.python, failed = run_python(against, length, folder, console, only_targets=arguments.what == "targets")
        failures += failed
        remarks += results.python.targets.left_out
    if "start" in parts:
        with _scratch() as folder:
            results.start, failed = run_start(arguments.rounds, folder, console)
        failures += failed
    _report(console, _grids(results), failures, remarks)
    if arguments.json:
        save(results, Path(arguments.json))
    if getattr(arguments, "plot", None):
        if results.http:
            draw_http(results.http, Path(arguments.plot))
        elif results.sizes:
            draw_sizes(results.sizes, Path(arguments.plot))
        elif results.python:
            draw_python(results.python, Path(arguments.plot))
    if publishing:
        save(results, KEPT)
        _publish(results, console)
    return 1 if failures else 0


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for the servers of one run; its path is short, because sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="tfbench.", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _grids(results: Results) -> list[Grid]:
    grids = [facts_grid(results.facts)]
    if results.http:
        grids.append(http_grid(results.http))
    if results.sizes:
        grids.append(sizes_grid(results.sizes))
    if results.variants:
        grids.append(variants_grid(results.variants))
    if results.python:
        grids += [python_grid(results.python), targets_grid(results.python.targets, "What was aimed at with Python models")]
    if results.start:
        grids.append(start_grid(results.start))
    if results.targets:
        grids.append(targets_grid(results.targets))
    return grids


def _publish(results: Results, console: Console) -> int:
    DOCUMENT.write_text(fill(DOCUMENT.read_text(), results, PICTURES))
    draw(results, ROOT / PICTURES)
    console.print(f"{DOCUMENT.name} and {PICTURES} are made anew")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="bench", description=__doc__)
    what = made.add_subparsers(dest="what", required=True, metavar="WHAT")
    install_only = what.add_parser("install", help="install the other servers, each into an environment of its own in the cache folder")
    install_only.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BY_NAME)} (default: all)")
    http = what.add_parser("http", help="small requests: add_sub INT32[16], batch size 1")
    sizes = what.add_parser("sizes", help="identity FP32 from 1 KiB to 64 MiB as JSON, binary and through shared memory")
    variants = what.add_parser("variants", help="the other servers in every way in which they were set up")
    python = what.add_parser("python", help="Python models: small, 16 MiB in and out, calls between models, streams")
    start = what.add_parser("start", help="time from start to ready beside a bare Python, and memory, with 1 and 100 small models")
    start.set_defaults(seconds=0.0, against="none", install=False)
    targets = what.add_parser("targets", help="what the front door and Python models were meant to reach, met or missed")
    publish = what.add_parser("publish", help="all of it; makes the tables and pictures of BENCHMARKS.md anew")
    for one in (http, sizes, variants, python, targets, publish):
        one.add_argument("--seconds", type=float, default=3.0, help="length of one measurement (default: %(default)s)")
        names = f"all, or some of {TRITONSERVER},{','.join(BY_NAME)}, or none (default: those that are installed)"
        one.add_argument("--against", default="installed", metavar="NAMES", help=names)
        one.add_argument("--install", action="store_true", help="first install those that are missing")
    for one in (http, sizes, variants, python, start, targets, publish):
        one.add_argument("--rounds", type=int, default=3, help="measurements of each kind; the median counts (default: %(default)s)")
        one.add_argument("--json", metavar="FILE", help="write the figures to a file as well")
    for one, default in ((http, runs.SMALL), (variants, (1, 32))):
        levels = ",".join(map(str, default))
        one.add_argument("--concurrency", default=levels, help="connections, each with one request at a time (default: %(default)s)")
    for one in (http, sizes, python):
        one.add_argument("--plot", metavar="FILE.png", help="draw them too")
    sizes.add_argument("--largest", type=int, default=64, metavar="MIB", help="largest tensor (default: %(default)s)")
    publish.add_argument("--parts", default=",".join(PARTS), help="only some: the others stay as they are (default: %(default)s)")
    publish.add_argument("--redraw", action="store_true", help="measure nothing: from the figures of the last time")
    return made


def main() -> int:
    """Measure what the command line says."""
    arguments = parser().parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=MIN_COLUMNS)
    try:
        return run(arguments, console)
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    except (ValueError, OSError, DocumentError) as error:
        console.print(f"[red]error:[/] {escape(str(error))}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
