"""What was measured, as it is kept in a file: numbers and the machine they come from, nothing that is drawn or printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from .load import Result


class Figures(msgspec.Struct, frozen=True):
    """Medians over the rounds of one measurement, and the rate of every round."""

    requests_per_second: float
    p50_us: float
    p99_us: float
    cpu_us_per_request: float
    rates: list[float]

    @classmethod
    def of(cls, results: Sequence[Result], cpu_secs: Sequence[float]) -> Figures:
        """From the results of the rounds and the CPU seconds that the server's processes spent in each."""
        return cls(
            requests_per_second=statistics.median(result.rate for result in results),
            p50_us=statistics.median(result.p50_us for result in results),
            p99_us=statistics.median(result.p99_us for result in results),
            cpu_us_per_request=statistics.median(secs / result.requests * 1e6 for secs, result in zip(cpu_secs, results, strict=True)),
            rates=[result.rate for result in results],
        )


class Length(msgspec.Struct, frozen=True):
    """How long was measured: rounds, of which the median counts, and seconds of one measurement."""

    rounds: int
    seconds: float

    def __str__(self) -> str:
        if self.rounds == 1:
            return f"one round of {self.seconds:g} s"
        return f"medians of {self.rounds} rounds of {self.seconds:g} s, in turns"


class HttpRow(msgspec.Struct, frozen=True):
    """add_sub on one server at one concurrency."""

    contender: str
    concurrency: int
    figures: Figures


class Http(msgspec.Struct, frozen=True):
    """add_sub over HTTP; ``memory`` has bytes by server, after the load."""

    length: Length
    rows: list[HttpRow]
    memory: dict[str, int]


class VariantRow(msgspec.Struct, frozen=True):
    """add_sub on one server set up in one way."""

    contender: str
    variant: str
    says: str
    concurrency: int
    figures: Figures


class Variants(msgspec.Struct, frozen=True):
    """The ways in which the frameworks were tried."""

    length: Length
    rows: list[VariantRow]


class SizeRow(msgspec.Struct, frozen=True):
    """identity FP32 of ``byte_size`` bytes on one server, sent and received in one way, one request at a time."""

    contender: str
    way: str
    byte_size: int
    figures: Figures


class Sizes(msgspec.Struct, frozen=True):
    """Tensors of growing size, and why some were not sent."""

    length: Length
    rows: list[SizeRow]
    left_out: list[str]


class TargetRow(msgspec.Struct, frozen=True):
    """One thing that should be so: ``ours / theirs`` at least (or, where less is better, at most) ``target``."""

    work: str
    against: str
    unit: str
    ours: float
    theirs: float
    target: float
    stretch: float | None = None
    less_is_better: bool = False

    @property
    def ratio(self) -> float:
        """Ours through theirs."""
        return self.ours / self.theirs

    def meets(self, target: float) -> bool:
        """Is the ratio on the right side of ``target``?"""
        return self.ratio <= target if self.less_is_better else self.ratio >= target


class Targets(msgspec.Struct, frozen=True):
    """The rows that were measured, and why others were not."""

    length: Length
    rows: list[TargetRow]
    left_out: list[str]


class PythonRow(msgspec.Struct, frozen=True):
    """One thing that a Python model was asked on one server, by ``clients`` at once."""

    contender: str
    work: str
    clients: int
    figures: Figures


class Python(msgspec.Struct, frozen=True):
    """Python models, and what they were meant to reach; ``memory`` has bytes by server, after the load."""

    length: Length
    rows: list[PythonRow]
    memory: dict[str, int]
    targets: Targets


class StartRow(msgspec.Struct, frozen=True):
    """A start with so many models: seconds until tensorfarm was ready, then resident bytes of the server and of its workers."""

    models: int
    ready_secs: float
    server_byte_size: int
    worker_byte_size: int


class Start(msgspec.Struct, frozen=True):
    """Starts, and the seconds in which a bare Python imports ONNX Runtime and opens one of the models; medians of the rounds."""

    length: Length
    bare_secs: float
    rows: list[StartRow]


class Facts(msgspec.Struct, frozen=True):
    """The machine, the share of its CPU that other work took just before, and the version of everything that took part."""

    date: str
    cpu: str
    cores: int
    memory_byte_size: int
    kernel: str
    python: str
    busy_share: float
    versions: dict[str, str]


class Results(msgspec.Struct):
    """All that one run gave."""

    facts: Facts
    http: Http | None = None
    variants: Variants | None = None
    sizes: Sizes | None = None
    targets: Targets | None = None
    python: Python | None = None
    start: Start | None = None


def save(results: Results, path: Path) -> None:
    """Write results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def read(path: Path) -> Results:
    """Read what ``save`` wrote. Raises ValueError where it is something else."""
    return msgspec.json.decode(path.read_bytes(), type=Results)
