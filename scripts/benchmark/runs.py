"""The things that can be measured: who takes part in each, and what is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from .contender import MAX_INPUT_BYTE_SIZE, Contender, framework_server, tensorfarm, tritonserver
from .frameworks import BY_NAME, LABELS, TENSORFARM, TRITONSERVER, Framework, Variant
from .measuring import Case, Entrant, Measured, Rounds
from .progress import steps
from .regions import Regions, shared_regions
from .results import Figures, Http, HttpRow, Length, SizeRow, Sizes, TargetRow, Targets, VariantRow, Variants
from .tables import size_name
from .workload import Ask, identity_binary, identity_json

LEVELS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SMALL = (1, 8, 32)
SIZES = tuple(1 << power for power in range(10, 27, 2))
JSON_LIMIT = 64 << 20
"""JSON is asked for up to this size of the body, which is the limit that tensorfarm starts with."""

_ASKS: dict[str, Callable[[int], Ask]] = {"JSON": identity_json, "binary": identity_binary}
_SHARED = "shared memory"
_MIB = 1 << 20


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def run_http(against: Sequence[str], levels: Sequence[int], length: Length, folder: Path, console: Console) -> tuple[Http, list[str]]:
    """add_sub at several concurrencies on tensorfarm and on those in ``against``; also sentences about what failed."""

    def cases(contender: Contender) -> list[Case]:
        return [Case(_clients(level), contender.add_sub, level) for level in levels]

    entrants = [_server(name, folder, cases) for name in (TENSORFARM, *against)]
    measured = _measure("http", entrants, len(levels), length, console)
    rows = []
    for level in levels:
        for entrant in entrants:
            if found := measured.figures.get((entrant.key, _clients(level))):
                rows.append(HttpRow(entrant.key, level, found))
    return Http(length, rows, measured.memory), measured.failures


def run_variants(
    against: Sequence[str], levels: Sequence[int], length: Length, folder: Path, console: Console
) -> tuple[Variants, list[str]]:
    """add_sub on every framework in ``against``, set up in every way of the table."""

    def cases(contender: Contender) -> list[Case]:
        return [Case(_clients(level), contender.add_sub, level) for level in levels]

    entrants, rows = [], []
    tried = [(BY_NAME[name], variant) for name in against if name in BY_NAME for variant in BY_NAME[name].variants]
    for framework, variant in tried:
        entrants.append(_framework(framework, variant, f"{framework.name} {variant.name}", folder, cases, alone=True))
    measured = _measure("variants", entrants, len(levels), length, console)
    for framework, variant in tried:
        for level in levels:
            if found := measured.figures.get((f"{framework.name} {variant.name}", _clients(level))):
                rows.append(VariantRow(framework.name, variant.name, variant.says, level, found))
    return Variants(length, rows), measured.failures


def run_sizes(against: Sequence[str], byte_sizes: Sequence[int], length: Length, folder: Path, console: Console) -> tuple[Sizes, list[str]]:
    """identity of growing size on tensorfarm and, where it is in ``against``, tritonserver; one client."""
    asked = {(way, byte_size): ask(byte_size) for way, ask in _ASKS.items() for byte_size in byte_sizes if _fits(way, byte_size)}
    too_large = [key for key, ask in asked.items() if key[0] == "JSON" and len(ask.request) > JSON_LIMIT]
    for key in too_large:
        del asked[key]
    with shared_regions(max(byte_sizes)) as regions:
        asked |= {(_SHARED, byte_size): regions.identity(byte_size) for byte_size in byte_sizes}
        cases = [Case(f"{way}, {byte_size} bytes", ask, 1) for (way, byte_size), ask in asked.items()]
        entrants = _with_identity(against, folder, cases, regions)
        measured = _measure("sizes", entrants, len(cases), length, console)
    rows = []
    for way, byte_size in asked:
        for entrant in entrants:
            if found := measured.figures.get((entrant.key, f"{way}, {byte_size} bytes")):
                rows.append(SizeRow(entrant.key, way, byte_size, found))
    left_out = [size_name(byte_size) for byte_size in byte_sizes if ("JSON", byte_size) not in asked]
    why = f"JSON stops before {left_out[0]}: the request's body would be longer than {JSON_LIMIT // _MIB} MiB" if left_out else ""
    return Sizes(length, rows, [why] if why else []), measured.failures


def _fits(way: str, byte_size: int) -> bool:
    """Is a request worth making? A number in JSON takes at least twice the four bytes of its value, and mostly five times."""
    return byte_size <= MAX_INPUT_BYTE_SIZE if way == "binary" else 2 * byte_size <= JSON_LIMIT


def run_targets(against: Sequence[str], length: Length, folder: Path, console: Console) -> tuple[Targets, list[str]]:
    """Exactly what the front door was meant to reach."""
    with shared_regions(16 * _MIB) as regions:
        large = [Case(f"binary, 1 MiB, {_clients(clients)}", identity_binary(_MIB), clients) for clients in (1, 4)]
        large += [Case(f"binary, 16 MiB, {_clients(clients)}", identity_binary(16 * _MIB), clients) for clients in (1, 2)]
        large += [Case(f"shared memory, 16 MiB, {_clients(clients)}", regions.identity(16 * _MIB), clients) for clients in (1, 2)]
        entrants = _with_identity(against, folder, large, regions, small=(1, 32))
        frameworks = [name for name in against if name in BY_NAME]
        entrants += [_server(name, folder, lambda contender: [Case(_clients(32), contender.add_sub, 32)]) for name in frameworks]
        total = length.rounds * (sum(entrant.name in (TENSORFARM, TRITONSERVER) for entrant in entrants) * 8 + len(frameworks))
        with steps(console, "targets", total) as shown:
            measured = Rounds(length, shown).run(entrants)
    rows, left_out = [], []
    for work, name, unit, case, value, target, stretch, less in _targets(measured):
        ours, theirs = measured.figures.get((TENSORFARM, case)), measured.figures.get((name, case))
        if ours and theirs:
            rows.append(TargetRow(work, LABELS[name], unit, value(ours), value(theirs), target, stretch, less))
        else:
            left_out.append(f"{work}: {LABELS[name]} was not measured")
    return Targets(length, rows, left_out), measured.failures


_Value = Callable[[Figures], float]
_Target = tuple[str, str, str, str, _Value, float, float | None, bool]


def _targets(measured: Measured) -> list[_Target]:
    """Work, server, unit, case, value of the figures, target, stretch target, whether less is better."""

    def rate(one: Figures) -> float:
        return one.requests_per_second

    def megabytes(mib: int) -> _Value:
        return lambda one: one.requests_per_second * mib * _MIB / 1e6

    small = "add_sub INT32[16], "
    rows: list[_Target] = [
        (f"{small}32 clients", TRITONSERVER, "requests/s", "32 clients", rate, 2.0, 3.5, False),
        (f"{small}1 client", TRITONSERVER, "p50 ms", "1 client", lambda one: one.p50_us / 1000, 1.0, 0.6, True),
    ]
    for mib, clients in ((1, 1), (1, 4), (16, 1), (16, 2)):
        case = f"binary, {mib} MiB, {_clients(clients)}"
        rows.append((f"identity FP32 {mib} MiB, binary, {_clients(clients)}", TRITONSERVER, "MB/s", case, megabytes(mib), 2.0, None, False))
    for clients in (1, 2):
        case = f"shared memory, 16 MiB, {_clients(clients)}"
        work = f"identity FP32 16 MiB, shared memory, {_clients(clients)}"
        rows.append((work, TRITONSERVER, "requests/s", case, rate, 3.0, None, False))
    work = f"{small}32 clients"
    rows.append((work, TRITONSERVER, "CPU µs/request", "32 clients", lambda one: one.cpu_us_per_request, 0.5, None, True))
    rows += [(work, name, "requests/s", "32 clients", rate, 5.0, None, False) for name in BY_NAME if name != "mosec"]
    return [*rows, (work, "mosec", "requests/s", "32 clients", rate, 1.0, None, False)]


def _with_identity(
    against: Sequence[str], folder: Path, cases: Sequence[Case], regions: Regions, small: Sequence[int] = ()
) -> list[Entrant]:
    """tensorfarm and tritonserver with the cases given, and add_sub at the concurrencies of ``small``."""

    def of(contender: Contender) -> list[Case]:
        regions.register(contender.port)
        return [*(Case(_clients(level), contender.add_sub, level) for level in small), *cases]

    return [_server(name, folder, of) for name in (TENSORFARM, TRITONSERVER) if name == TENSORFARM or name in against]


def _server(name: str, folder: Path, cases: Callable[[Contender], Sequence[Case]]) -> Entrant:
    if name == TENSORFARM:
        return Entrant(name, name, partial(tensorfarm, _own(folder, name)), cases)
    if name == TRITONSERVER:
        return Entrant(name, name, partial(tritonserver, _own(folder, name)), cases)
    framework = BY_NAME[name]
    return _framework(framework, framework.variants[0], name, folder, cases, alone=framework.busy_when_idle)


def _framework(
    framework: Framework, variant: Variant, key: str, folder: Path, cases: Callable[[Contender], Sequence[Case]], *, alone: bool
) -> Entrant:
    # short, because sockets lie below it, whose paths may not be long
    own = _own(folder, f"{framework.name}{framework.variants.index(variant)}")
    return Entrant(key, framework.name, partial(framework_server, framework, variant, own), cases, alone)


def _own(folder: Path, name: str) -> Path:
    own = folder / name
    own.mkdir(exist_ok=True)
    return own


def _measure(what: str, entrants: Sequence[Entrant], cases: int, length: Length, console: Console) -> Measured:
    with steps(console, what, length.rounds * len(entrants) * cases) as shown:
        return Rounds(length, shown).run(entrants)
