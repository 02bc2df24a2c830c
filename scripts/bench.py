"""Measures tensorfarm beside the real tritonserver: same request, same load generator, in turns, in one run.

Only the ratio of one run means anything: the client shares the machine with the servers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmark.contender import Contender, ContenderError, tensorfarm, tritonserver
from benchmark.load import LoadError, Result, exchange
from benchmark.workload import binary_request, check_reply, onnx_repository, python_repository

ROOT = Path(__file__).resolve().parent
LABELS = {"tensorfarm": "tensorfarm (ONNX)", "tritonserver": "tritonserver 24.10 (Python)"}
MIN_COLUMNS = 110


@dataclass(slots=True)
class Series:
    """All rounds of one server at one concurrency."""

    results: list[Result] = field(default_factory=list)
    cpu_secs: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(result.rate for result in self.results)

    @property
    def p50_us(self) -> float:
        return statistics.median(result.p50_us for result in self.results)

    @property
    def p99_us(self) -> float:
        return statistics.median(result.p99_us for result in self.results)

    @property
    def cpu_us(self) -> float:
        """CPU microseconds a request, on the server's side."""
        return statistics.median(secs / result.requests * 1e6 for secs, result in zip(self.cpu_secs, self.results, strict=True))


def measure(contender: Contender, request: bytes, concurrency: int, seconds: float) -> Result:
    """One measurement by a load generator of its own process. Raises LoadError."""
    settings = {"port": contender.port, "request": request.hex(), "concurrency": concurrency, "seconds": seconds}
    command = [sys.executable, "-P", str(ROOT / "benchmark" / "load.py")]
    run = subprocess.run(command, input=json.dumps(settings), capture_output=True, text=True, timeout=seconds + 60)
    if run.returncode:
        raise LoadError(f"{contender.name}: {run.stderr.strip().splitlines()[-1] if run.stderr.strip() else 'the load generator failed'}")
    return Result(**json.loads(run.stdout))


def bench_http(arguments: argparse.Namespace, console: Console) -> int:
    """Small requests over HTTP, at several concurrencies."""
    levels = [int(level) for level in arguments.concurrency.split(",")]
    request = binary_request()
    series: dict[str, dict[int, Series]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tensorfarm-bench.")))
        contenders = [stack.enter_context(tensorfarm(onnx_repository(folder / "onnx"), folder / "tensorfarm.log"))]
        try:
            repository = python_repository(folder / "python")
            contenders.append(stack.enter_context(tritonserver(ROOT / "oracle", repository, folder / "tritonserver.log")))
        except ContenderError as error:
            console.print(f"[yellow]without tritonserver:[/] {error}")
        for contender in contenders:
            check_reply(exchange(("127.0.0.1", contender.port), request))
            series[contender.name] = {level: Series() for level in levels}
            measure(contender, request, max(levels), 1.0)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("measuring", total=arguments.rounds * len(contenders) * len(levels))
            for _ in range(arguments.rounds):
                for level in levels:
                    for contender in contenders:
                        before = contender.cpu_secs()
                        result = measure(contender, request, level, arguments.seconds)
                        series[contender.name][level].results.append(result)
                        series[contender.name][level].cpu_secs.append(contender.cpu_secs() - before)
                        progress.advance(task)
        memory = {contender.name: contender.memory_byte_size() for contender in contenders}
    console.print(table(series, levels, memory, arguments))
    if arguments.json:
        document = {
            name: {
                level: {"requests_per_second": one.rate, "p50_us": one.p50_us, "p99_us": one.p99_us, "cpu_us_per_request": one.cpu_us}
                for level, one in by_level.items()
            }
            for name, by_level in series.items()
        }
        Path(arguments.json).write_text(json.dumps(document, indent=2) + "\n")
    return 0


def table(series: dict[str, dict[int, Series]], levels: list[int], memory: dict[str, int], arguments: argparse.Namespace) -> Table:
    """What was measured, for people."""
    made = Table(title=f"add_sub INT32[1,16], binary HTTP; medians of {arguments.rounds} rounds of {arguments.seconds:g} s, in turns")
    for name in ("clients", "server", "requests/s", "ratio", "p50 ms", "p99 ms", "CPU µs/request", "memory MiB"):
        made.add_column(name, justify="left" if name == "server" else "right")
    other = series.get("tritonserver")
    for level in levels:
        for name, by_level in series.items():
            one = by_level[level]
            ratio = f"{one.rate / other[level].rate:.2f}" if other else "-"
            made.add_row(
                *(str(level), LABELS[name], f"{one.rate:,.0f}", ratio),
                *(f"{one.p50_us / 1000:.2f}", f"{one.p99_us / 1000:.2f}", f"{one.cpu_us:.0f}", f"{memory[name] / 2**20:.0f}"),
            )
        made.add_section()
    return made


def main() -> int:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    http = what.add_parser("http", help="small requests over HTTP: add_sub INT32[16], batch size 1, binary")
    http.add_argument("--seconds", type=float, default=3.0, help="length of one measurement (default: %(default)s)")
    http.add_argument("--rounds", type=int, default=3, help="measurements of each kind, of which the median counts (default: %(default)s)")
    http.add_argument("--concurrency", default="1,8,32", help="connections, each with one request at a time (default: %(default)s)")
    http.add_argument("--json", metavar="FILE", help="write the figures to a file as well")
    arguments = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=MIN_COLUMNS)
    try:
        return bench_http(arguments, console)
    except (LoadError, ContenderError, ValueError) as error:
        console.print(f"[red]error:[/] {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
