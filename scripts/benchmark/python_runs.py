"""Python models: tensorfarm and the real tritonserver with the same repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from .contender import Contender, tensorfarm, tritonserver
from .frameworks import LABELS, TENSORFARM, TRITONSERVER
from .measuring import Case, Entrant, Rounds, checked
from .progress import steps
from .python_workload import LARGE_BYTE_SIZE, STREAM_LENGTH, TINY_BYTE_SIZE, hop, plus_one, plus_one_binary, python_repository, stream
from .regions import Regions, shared_regions
from .results import Length, Python, PythonRow, TargetRow, Targets
from .workload import Ask, add_sub_v2_binary, tensor

_SERVERS = {TENSORFARM: tensorfarm, TRITONSERVER: tritonserver}


@dataclass(frozen=True, slots=True)
class _Item:
    """One thing that is asked, by how many clients at once; ``target`` is how many times tritonserver's rate it should have."""

    work: str
    ask: Ask
    clients: int
    target: float | None = None
    stretch: float | None = None

    @property
    def says(self) -> str:
        """What, and by how many."""
        return f"{self.work}, {self.clients} client{'s' if self.clients > 1 else ''}"


def _items(regions: Regions) -> list[_Item]:
    large, small = LARGE_BYTE_SIZE, TINY_BYTE_SIZE
    add_sub = add_sub_v2_binary("/v2/models/add_sub/infer")
    added = regions.ask("plus_one", tensor(large), plus_one(large))
    return [
        _Item("add_sub INT32[16]", add_sub, 1),
        _Item("add_sub INT32[16]", add_sub, 8),
        _Item("add_sub INT32[16]", add_sub, 32, 1.3, 2.0),
        _Item("16 MiB plus one, shared memory", added, 1, 3.0),
        _Item("16 MiB plus one, shared memory", added, 2, 3.0),
        _Item("16 MiB plus one, binary", plus_one_binary(large), 1),
        _Item("call with 16 MiB, which come back", hop("identity", large), 1, 3.0),
        _Item("call with 16 MiB, as many new ones back", hop("plus_one", large), 1, 3.0),
        _Item("call with 64 bytes", hop("identity", small), 1),
        _Item("16 MiB passed on to a model, shared memory", regions.ask("relay", tensor(large), tensor(large)), 1, 3.0),
        _Item(f"stream of {STREAM_LENGTH} events", stream(), 1),
        _Item(f"stream of {STREAM_LENGTH} events", stream(), 8),
    ]


def run_python(
    against: Sequence[str], length: Length, folder: Path, console: Console, *, only_targets: bool = False
) -> tuple[Python, list[str]]:
    """Python models on tensorfarm and, where it is in ``against``, tritonserver; also sentences about what failed."""
    names = [name for name in _SERVERS if name == TENSORFARM or name in against]
    with shared_regions(LARGE_BYTE_SIZE) as regions:
        items = [item for item in _items(regions) if item.target is not None or not only_targets]

        def cases(contender: Contender) -> list[Case]:
            regions.register(contender.port)
            # what is measured answers with a few elements only; here they come all
            for called in ("identity", "plus_one"):
                checked(contender.port, hop(called, LARGE_BYTE_SIZE, LARGE_BYTE_SIZE // 4))
            return [Case(item.says, item.ask, item.clients) for item in items]

        entrants = []
        for name in names:
            own = folder / name
            own.mkdir(exist_ok=True)
            entrants.append(Entrant(name, name, partial(_SERVERS[name], own, python_repository), cases))
        with steps(console, "python", length.rounds * len(entrants) * len(items)) as shown:
            measured = Rounds(length, shown).run(entrants)
    rows, targets, left_out = [], [], []
    for item in items:
        ours, theirs = (measured.figures.get((name, item.says)) for name in (TENSORFARM, TRITONSERVER))
        rows += [PythonRow(name, item.work, item.clients, one) for name, one in ((TENSORFARM, ours), (TRITONSERVER, theirs)) if one]
        if item.target is None:
            continue
        if ours and theirs:
            rates = ours.requests_per_second, theirs.requests_per_second
            targets.append(TargetRow(item.says, LABELS[TRITONSERVER], "requests/s", *rates, item.target, item.stretch))
        else:
            left_out.append(f"{item.says}: {LABELS[TRITONSERVER]} was not measured")
    return Python(length, rows, measured.memory, Targets(length, targets, left_out)), measured.failures
