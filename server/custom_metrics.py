"""Metrics that models define: kept here, shown on the metrics page, gone with the worker that asked for them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

from ..workers.contract.messages import Forget, Measure, OpenFamily, OpenMetric, ReadMetric
from ..workers.contract.status import internal, invalid, unsupported
from .latency import Histogram
from .prometheus_text import Family

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)

Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True, eq=False)
class _Series:
    """One set of labels of a family; ``holders`` counts the handles that have asked for it."""

    labels: Labels
    histogram: Histogram | None
    value: float = 0.0
    holders: int = 0


@dataclass(slots=True, eq=False)
class _Named:
    """A family by its name, shared by all who open it with its kind."""

    name: str
    kind: str
    description: str
    series: dict[Labels, _Series] = field(default_factory=dict)
    holders: int = 0


@dataclass(slots=True, eq=False)
class _Handle:
    """What one owner has of a family: the numbers of the series it has asked for."""

    owner: Hashable
    family: _Named
    numbers: dict[Labels, int] = field(default_factory=dict)


class CustomMetrics:
    """Families of metrics, each shared by all who open it by name and kind.

    An owner is whoever speaks: numbers are good for the one they were given to. ``built_in`` gives names and kinds of
    the page's own families. A family's series go when the last handle that asked for them is forgotten or its owner dropped.
    """

    def __init__(self, built_in: Callable[[], Mapping[str, str]] = dict) -> None:
        self._built_in = built_in
        self._named: dict[str, _Named] = {}
        self._handles: dict[int, _Handle] = {}
        self._series: dict[int, tuple[_Handle, _Series]] = {}
        self._count = itertools.count(1)

    def open_family(self, owner: Hashable, question: OpenFamily) -> int:
        """The number of a new handle to a family. Raises StatusError for a bad name, and where another kind has the name."""
        name, kind = question.name, question.kind
        named = self._named.get(name)
        if (self._built_in().get(name, kind) if named is None else named.kind) != kind:
            raise invalid("Family name already exists with different type")
        if named is None:
            if not _NAME.fullmatch(name):
                raise internal("Invalid metric name")
            named = self._named[name] = _Named(name, kind, question.description)
        named.holders += 1
        number = next(self._count)
        self._handles[number] = _Handle(owner, named)
        return number

    def open_metric(self, owner: Hashable, question: OpenMetric) -> int:
        """The number of a series; the same labels again are the same series. Raises StatusError for bad labels or bounds."""
        handle = self._handles.get(question.family)
        if handle is None or handle.owner != owner:
            raise internal("Could not create metric. Metric family has been invalidated.")
        family = handle.family
        bounds = question.bounds or []
        if any(not low < high for low, high in itertools.pairwise(bounds)):
            raise internal("Bucket Boundaries must be strictly sorted")
        labels = tuple(sorted(question.labels.items()))
        known = handle.numbers.get(labels)
        if known is not None:
            return known
        for name, _ in labels:
            if not _LABEL.fullmatch(name) or (family.kind == "histogram" and name == "le"):
                raise internal("Invalid label name")
        series = family.series.get(labels)
        if series is None:
            series = family.series[labels] = _Series(labels, Histogram(bounds) if family.kind == "histogram" else None)
        series.holders += 1
        number = handle.numbers[labels] = next(self._count)
        self._series[number] = handle, series
        return number

    def measure(self, owner: Hashable, message: Measure) -> None:
        """Change a series. Raises StatusError where its kind cannot, or it is not there."""
        series, kind = self._found(owner, message.metric, message.verb)
        value = message.value
        if message.verb == "observe" and series.histogram is not None:
            series.histogram.observe(value)
        elif message.verb == "increment" and kind in ("counter", "gauge"):
            if kind == "counter" and value < 0:
                raise invalid("TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values.")
            series.value += value
        elif message.verb == "set" and kind == "gauge":
            series.value = value
        else:
            raise unsupported(f"TRITONSERVER_METRIC_KIND_{kind.upper()} does not support {message.verb.capitalize()}")

    def read(self, owner: Hashable, question: ReadMetric) -> float:
        """The value of a counter or a gauge. Raises StatusError for a histogram, and where it is not there."""
        series, kind = self._found(owner, question.metric, "get")
        if series.histogram is not None:
            raise unsupported(f"TRITONSERVER_METRIC_KIND_{kind.upper()} does not support Value")
        return series.value

    def forget(self, owner: Hashable, message: Forget) -> None:
        """Drop series and handles of an owner; others' stay."""
        for number in message.metrics:
            handle, series = self._series.get(number, (None, None))
            if handle is not None and series is not None and handle.owner == owner:
                self._drop_series(number, handle, series)
        for number in message.families:
            handle = self._handles.get(number)
            if handle is not None and handle.owner == owner:
                self._drop_handle(number, handle)

    def drop_owner(self, owner: Hashable) -> None:
        """Drop all that an owner has: its process has ended."""
        for number, handle in list(self._handles.items()):
            if handle.owner == owner:
                self._drop_handle(number, handle)

    def families(self) -> list[Family]:
        """All families with their series, in the order in which they were made: a source of the metrics page."""
        return [_shown(named) for named in self._named.values()]

    def family(self, name: str) -> Family | None:
        """The family of that name with its series."""
        named = self._named.get(name)
        return None if named is None else _shown(named)

    def _found(self, owner: Hashable, number: int, verb: str) -> tuple[_Series, str]:
        handle, series = self._series.get(number, (None, None))
        if handle is None or series is None or handle.owner != owner:
            raise internal(f"Could not {verb} metric value. Metric has been invalidated.")
        return series, handle.family.kind

    def _drop_series(self, number: int, handle: _Handle, series: _Series) -> None:
        del self._series[number]
        del handle.numbers[series.labels]
        series.holders -= 1
        if not series.holders:
            del handle.family.series[series.labels]

    def _drop_handle(self, number: int, handle: _Handle) -> None:
        for member in list(handle.numbers.values()):
            self._drop_series(member, *self._series[member])
        del self._handles[number]
        handle.family.holders -= 1
        if not handle.family.holders:
            del self._named[handle.family.name]


def _shown(named: _Named) -> Family:
    family = Family(named.name, named.kind, named.description)
    for series in named.series.values():
        labels = dict(series.labels)
        if series.histogram is None:
            family.add(labels, series.value)
        else:
            family.add_histogram(labels, series.histogram)
    return family
