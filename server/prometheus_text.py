"""Metric families and their text form, Prometheus exposition format 0.0.4.

prometheus-client cannot write it: its exposition appends ``_total`` to every counter's name, and
dashboards know the counters of this protocol by names without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .latency import Histogram, Summary


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: the labels in their order, the value, and what the name ends in beyond the family's."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


@dataclass(slots=True)
class Family:
    """A metric's name, kind (counter, gauge, histogram, summary), help text and series."""

    name: str
    kind: str
    help_text: str
    samples: list[Sample] = field(default_factory=list)

    def add(self, labels: Mapping[str, str], value: float, suffix: str = "") -> None:
        """Add one line."""
        self.samples.append(Sample(labels, value, suffix))

    def add_summary(self, labels: Mapping[str, str], summary: Summary, quantiles: Sequence[float], now_ns: int) -> None:
        """Add a summary's lines."""
        self.add(labels, summary.count, "_count")
        self.add(labels, summary.sum, "_sum")
        for quantile, value in zip(quantiles, summary.quantiles(quantiles, now_ns), strict=True):
            self.add({**labels, "quantile": _number(quantile)}, value)

    def add_histogram(self, labels: Mapping[str, str], histogram: Histogram) -> None:
        """Add a histogram's lines."""
        self.add(labels, histogram.count, "_count")
        self.add(labels, histogram.sum, "_sum")
        for bound, count in zip(histogram.bounds, histogram.cumulative(), strict=True):
            self.add({**labels, "le": _number(bound)}, count, "_bucket")
        self.add({**labels, "le": "+Inf"}, histogram.count, "_bucket")


def exposition(families: Iterable[Family]) -> bytes:
    """Families as Prometheus text; one without series leaves nothing, not even its HELP line."""
    lines = []
    for family in families:
        if not family.samples:
            continue
        help_text = family.help_text.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {family.name} {help_text}\n# TYPE {family.name} {family.kind}\n")
        lines += [f"{family.name}{sample.suffix}{_braces(sample.labels)} {_number(sample.value)}\n" for sample in family.samples]
    return "".join(lines).encode()


def _braces(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join([f'{name}="{_escaped(value)}"' for name, value in labels.items()]) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return "Nan"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
