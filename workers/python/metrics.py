"""Metrics that a model defines; the server keeps them, and shows them beside its own."""

from __future__ import annotations

import enum
import weakref
from collections.abc import Mapping, Sequence

from ..contract.messages import Forget, Measure, OpenFamily, OpenMetric, ReadMetric
from ..contract.status import StatusError
from . import host
from .errors import TritonModelException, are, in_process, incompatible, refused


class MetricKind(enum.IntEnum):
    """What a metric does: only grow, take any value, or count values into buckets."""

    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


class _Life:
    """What the metrics of a family know of it without keeping it alive."""

    __slots__ = ("alive", "kind", "number")

    def __init__(self, kind: MetricKind, number: int) -> None:
        self.kind = kind
        self.number = number
        self.alive = True


def _end(life: _Life, server: host.Host) -> None:
    life.alive = False
    server.tell(Forget([], [life.number]))


class Metric:
    """One series of a family, made by its ``Metric``."""

    __slots__ = ("_life", "_number")

    def __init__(self, life: _Life, number: int) -> None:
        self._life = life
        self._number = number

    def increment(self, value: float) -> None:
        """Add to a counter (nothing below zero) or a gauge. Raises TritonModelException for others, and without the family."""
        if self._life.kind is MetricKind.COUNTER and _number("increment(value: float)", value) < 0:
            self._alive("Failed to increment metric value")
            text = "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values."
            raise TritonModelException(f"Failed to increment metric value: {in_process(text)}")
        self._change("increment", value, (MetricKind.COUNTER, MetricKind.GAUGE))

    def set(self, value: float) -> None:
        """Give a gauge a value. Raises TritonModelException for others, and without the family."""
        self._change("set", value, (MetricKind.GAUGE,))

    def observe(self, value: float) -> None:
        """Count a value into a histogram. Raises TritonModelException for others, and without the family."""
        self._change("observe", value, (MetricKind.HISTOGRAM,))

    def value(self) -> float:
        """The value of a counter or a gauge. Raises TritonModelException for a histogram, and without the family."""
        what = "Failed to get metric value"
        self._alive(what)
        self._able(what, "Value", (MetricKind.COUNTER, MetricKind.GAUGE))
        try:
            answer = host.required().ask(ReadMetric(0, self._number))
        except StatusError as error:
            raise refused(what, error) from error
        return 0.0 if answer is None else float(answer)

    def _change(self, verb: str, value: float, kinds: Sequence[MetricKind]) -> None:
        number = _number(f"{verb}(value: float)", value)
        what = f"Failed to {verb} metric value"
        self._alive(what)
        self._able(what, verb.capitalize(), kinds)
        host.required().tell(Measure(self._number, verb, number))

    def _alive(self, what: str) -> None:
        if not self._life.alive:
            raise TritonModelException(
                f"{what}: Invalid metric operation as the corresponding 'MetricFamily' has been deleted. "
                "The 'MetricFamily' object should be deleted AFTER its corresponding 'Metric' objects have been deleted."
            )

    def _able(self, what: str, operation: str, kinds: Sequence[MetricKind]) -> None:
        kind = self._life.kind
        if kind not in kinds:
            raise TritonModelException(f"{what}: {in_process(f'TRITONSERVER_METRIC_KIND_{kind.name} does not support {operation}')}")


class MetricFamily:
    """Metrics of one name; ``description`` is the HELP line of those that have the name first.

    Families of the same name and kind are one, whichever model makes them. The series go when the object does.
    Raises TypeError for other types, TritonModelException for what the server refuses.
    """

    __slots__ = ("__weakref__", "_life")

    COUNTER = MetricKind.COUNTER
    GAUGE = MetricKind.GAUGE
    HISTOGRAM = MetricKind.HISTOGRAM

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        if not are(str, name, description) or not are(MetricKind, kind):
            raise incompatible("MetricFamily(name: str, description: str, kind: MetricKind)", name, description, kind)
        server = host.required()
        try:
            number = server.ask(OpenFamily(0, name, description, kind.name.lower()))
        except StatusError as error:
            raise refused("Error when creating MetricFamily", error) from error
        self._life = _Life(kind, int(number or 0))
        # a process that ends takes its metrics along: the server sees to it
        weakref.finalize(self, _end, self._life, server).atexit = False

    def Metric(self, labels: Mapping[str, str] | None = None, buckets: Sequence[float] | None = None) -> Metric:
        """A series with these labels; ``buckets`` are the upper bounds of a histogram's, and of nothing else's.

        Raises TritonModelException for what is missing, too much, of another type, or refused by the server.
        """
        if labels is not None and not isinstance(labels, dict):
            raise TritonModelException("Failed to create metric. Labels must be a dictionary.")
        if buckets is not None and not isinstance(buckets, list):
            raise TritonModelException("Failed to create metric. Buckets must be a list.")
        life = self._life
        if life.kind is MetricKind.HISTOGRAM and buckets is None:
            raise TritonModelException("Failed to create metric. Missing required buckets.")
        if life.kind is not MetricKind.HISTOGRAM and buckets is not None:
            raise TritonModelException("Failed to create metric. Unexpected buckets found.")
        texts = {str(name): str(value) for name, value in (labels or {}).items()}
        bounds = None if buckets is None else [_number("Metric(labels: dict = None, buckets: list[float] = None)", b) for b in buckets]
        try:
            number = host.required().ask(OpenMetric(0, life.number, texts, bounds))
        except StatusError as error:
            raise refused("Error when creating Metric", error) from error
        return Metric(life, int(number or 0))


def _number(signature: str, value: object) -> float:
    # numpy's numbers count as well
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise incompatible(signature, value)
    return float(value)
