"""Results as tables, for a terminal and for a document."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.table import Table

from .frameworks import LABELS, TENSORFARM, TRITONSERVER
from .results import Facts, Http, Python, Sizes, Start, TargetRow, Targets, Variants

_KIB, _MIB = 1 << 10, 1 << 20


@dataclass(slots=True)
class Grid:
    """A table's content: the columns named in ``left`` hold words, all others numbers; a line is drawn after the rows in ``sections``."""

    title: str
    columns: list[str]
    left: frozenset[str]
    rows: list[list[str]] = field(default_factory=list)
    sections: set[int] = field(default_factory=set)

    def rich(self) -> Table:
        """For a terminal."""
        made = Table(title=self.title, title_justify="left")
        for column in self.columns:
            made.add_column(column, justify="left" if column in self.left else "right")
        for index, row in enumerate(self.rows):
            made.add_row(*row, end_section=index in self.sections)
        return made

    def markdown(self) -> str:
        """For a document."""
        head = [self.columns, ["---" if column in self.left else "---:" for column in self.columns]]
        lines = ["| " + " | ".join(row) + " |" for row in (*head, *self.rows)]
        return f"{self.title}:\n\n" + "\n".join(lines) + "\n"


def ratio(ours: float | None, theirs: float | None) -> str:
    """``ours / theirs`` for people; a dash where one is missing."""
    if not ours or not theirs:
        return "-"
    value = ours / theirs
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def size_name(byte_size: int) -> str:
    """``64 KiB``, ``1 MiB``."""
    return f"{byte_size // _MIB} MiB" if byte_size >= _MIB else f"{byte_size // _KIB} KiB"


def _name(contender: str) -> str:
    return LABELS[contender]


def http_grid(http: Http) -> Grid:
    """add_sub by concurrency: one row for each server, with how many times as fast tensorfarm is."""
    columns = ["clients", "server", "requests/s", "tensorfarm is", "p50 ms", "p99 ms", "CPU µs/request", "memory MiB"]
    grid = Grid(f"add_sub INT32[1,16] over HTTP; {http.length}", columns, frozenset({"server"}))
    for level in dict.fromkeys(row.concurrency for row in http.rows):
        rows = [row for row in http.rows if row.concurrency == level]
        ours = next((row.figures.requests_per_second for row in rows if row.contender == TENSORFARM), None)
        for row in rows:
            one = row.figures
            times = "" if row.contender == TENSORFARM else f"{ratio(ours, one.requests_per_second)} ×"
            memory = http.memory.get(row.contender)
            cells = [str(level), _name(row.contender), f"{one.requests_per_second:,.0f}", times]
            cells += [f"{one.p50_us / 1000:.2f}", f"{one.p99_us / 1000:.2f}", f"{one.cpu_us_per_request:.0f}"]
            grid.rows.append([*cells, f"{memory / _MIB:.0f}" if memory else "-"])
        grid.sections.add(len(grid.rows) - 1)
    return grid


def variants_grid(variants: Variants) -> Grid:
    """Every way in which a framework was set up, the chosen one first."""
    levels = list(dict.fromkeys(row.concurrency for row in variants.rows))
    columns = ["server", "set up as", *(f"requests/s at {level}" for level in levels), *(f"p50 ms at {level}" for level in levels)]
    grid = Grid(f"add_sub, the first of each is the one compared above; {variants.length}", columns, frozenset({"server", "set up as"}))
    figures = {(row.contender, row.variant, row.concurrency): row.figures for row in variants.rows}
    seen = ""
    for contender, variant, says in dict.fromkeys((row.contender, row.variant, row.says) for row in variants.rows):
        found = [figures.get((contender, variant, level)) for level in levels]
        rates = [f"{one.requests_per_second:,.0f}" if one else "-" for one in found]
        latencies = [f"{one.p50_us / 1000:.2f}" if one else "-" for one in found]
        if seen and contender != seen:
            grid.sections.add(len(grid.rows) - 1)
        grid.rows.append([_name(contender) if contender != seen else "", says, *rates, *latencies])
        seen = contender
    return grid


def sizes_grid(sizes: Sizes) -> Grid:
    """Milliseconds a request by way and size, tensorfarm's beside tritonserver's."""
    columns = ["way", "tensor", "tensorfarm ms", "tritonserver ms", "ratio", "CPU ms, tensorfarm", "CPU ms, tritonserver"]
    grid = Grid(f"identity FP32, one client, p50; {sizes.length}", columns, frozenset({"way"}))
    found = {(row.contender, row.way, row.byte_size): row.figures for row in sizes.rows}
    for way in dict.fromkeys(row.way for row in sizes.rows):
        for byte_size in sorted({row.byte_size for row in sizes.rows if row.way == way}):
            pair = [found.get((name, way, byte_size)) for name in (TENSORFARM, TRITONSERVER)]
            times = [one.p50_us / 1000 if one else None for one in pair]
            cpu = [one.cpu_us_per_request / 1000 if one else None for one in pair]
            cells = [way, size_name(byte_size), *map(_milliseconds, times), ratio(times[0], times[1]), *map(_milliseconds, cpu)]
            grid.rows.append(cells)
        grid.sections.add(len(grid.rows) - 1)
    return grid


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def python_grid(python: Python) -> Grid:
    """Python models: one row for each thing asked, tensorfarm's figures beside tritonserver's."""
    columns = ["work", "clients", "tensorfarm/s", "tritonserver/s", "ratio", *(f"{what}, {who}" for what in _PYTHON for who in _WHO)]
    grid = Grid(f"Python models over HTTP; {python.length}", columns, frozenset({"work"}))
    found = {(row.contender, row.work, row.clients): row.figures for row in python.rows}
    before = ""
    for work, clients in dict.fromkeys((row.work, row.clients) for row in python.rows):
        pair = [found.get((name, work, clients)) for name in (TENSORFARM, TRITONSERVER)]
        rates = [one.requests_per_second if one else None for one in pair]
        cells = [work if work != before else "", str(clients), *("-" if rate is None else _plain(rate) for rate in rates), ratio(*rates)]
        cells += [_milliseconds(one.p50_us / 1000 if one else None) for one in pair]
        cells += [_plain(one.cpu_us_per_request) if one else "-" for one in pair]
        if before and work != before:
            grid.sections.add(len(grid.rows) - 1)
        grid.rows.append(cells)
        before = work
    return grid


def start_grid(start: Start) -> Grid:
    """Time until ready and memory by number of models; below, what one more model costs."""
    columns = ["", "s until ready", "of a bare Python's", "server MiB", "worker MiB", "MiB a model"]
    rounds = "one round" if start.length.rounds == 1 else f"medians of {start.length.rounds} rounds"
    grid = Grid(f"Start with add_sub models; resident memory; {rounds}, in turns", columns, frozenset({""}))
    grid.rows.append(["bare Python, one InferenceSession", f"{start.bare_secs:.3f}", "", "", "", ""])
    for row in start.rows:
        name = "1 model" if row.models == 1 else f"{row.models} models"
        memory = [f"{byte_size / _MIB:.0f}" for byte_size in (row.server_byte_size, row.worker_byte_size)]
        first = start.rows[0]
        more = row.server_byte_size + row.worker_byte_size - first.server_byte_size - first.worker_byte_size
        each = f"{more / _MIB / (row.models - first.models):.2f}" if row.models > first.models else ""
        grid.rows.append([name, f"{row.ready_secs:.3f}", f"{ratio(row.ready_secs, start.bare_secs)} ×", *memory, each])
    return grid


_PYTHON = ("p50 ms", "CPU µs")
_WHO = ("ours", "theirs")


def targets_grid(targets: Targets, what: str = "What was aimed at") -> Grid:
    """Every row with what it should be and whether it is."""
    columns = ["work", "against", "in", "tensorfarm", "theirs", "ratio", "target", "result"]
    grid = Grid(f"{what}; {targets.length}", columns, frozenset({"work", "against", "in", "target", "result"}))
    for row in targets.rows:
        cells = [row.work, row.against, row.unit, _plain(row.ours), _plain(row.theirs), f"{row.ratio:.2f}"]
        grid.rows.append([*cells, _target(row), _result(row)])
    return grid


def _target(row: TargetRow) -> str:
    sign = "≤" if row.less_is_better else "≥"
    return f"{sign} {row.target:g}" + (f" (stretch {row.stretch:g})" if row.stretch is not None else "")


def _result(row: TargetRow) -> str:
    if not row.meets(row.target):
        return "missed"
    return "met, stretch too" if row.stretch is not None and row.meets(row.stretch) else "met"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def facts_grid(facts: Facts) -> Grid:
    """The machine and the versions."""
    grid = Grid("Machine and versions", ["what", "which"], frozenset({"what", "which"}))
    grid.rows = [
        ["date", facts.date],
        ["CPU", f"{facts.cpu}, {facts.cores} cores"],
        ["memory", f"{facts.memory_byte_size / 2**30:.1f} GiB"],
        ["kernel", facts.kernel],
        ["Python", facts.python],
        ["other work just before", f"{facts.busy_share:.0%} of the CPU"],
        *([name, version] for name, version in facts.versions.items()),
    ]
    return grid
