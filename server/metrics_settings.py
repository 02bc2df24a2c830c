"""What ``--metrics-config`` chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

DEFAULT_QUANTILES: tuple[float, ...] = (0.5, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """What ``--metrics-config`` chooses. Without ``counter_latencies`` request counters stay at zero."""

    counter_latencies: bool = True
    histogram_latencies: bool = False
    summary_latencies: bool = False
    quantiles: tuple[float, ...] = DEFAULT_QUANTILES


def parse_settings(pairs: Iterable[tuple[str, str]], on_error: Callable[[str], None]) -> MetricsSettings:
    """Settings from (name, value) pairs, a later one winning; unknown names are ignored.

    Only the literals ``false`` and ``true`` change a switch from its default. A quantile that cannot
    be read is told to ``on_error`` and left out. Its error bound is read and not used: quantiles
    here are exact in rank and within 0.4 % in value.
    """
    values = dict(pairs)
    quantiles = DEFAULT_QUANTILES
    if "summary_quantiles" in values:
        quantiles = tuple(_quantiles(values["summary_quantiles"], on_error))
    return MetricsSettings(
        counter_latencies=values.get("counter_latencies") != "false",
        histogram_latencies=values.get("histogram_latencies") == "true",
        summary_latencies=values.get("summary_latencies") == "true",
        quantiles=quantiles,
    )


def _quantiles(text: str, on_error: Callable[[str], None]) -> Iterable[float]:
    for pair in text.split(","):
        rank, colon, error = pair.partition(":")
        if not colon:
            on_error(f"Invalid option: [{pair}]. No ':' delimiter found. Expected format is <quantile>:<error>")
            continue
        try:
            quantile, bound = float(rank), float(error)
        except ValueError:
            quantile = bound = math.nan
        if 0 <= quantile <= 1 and 0 <= bound <= 1:
            yield quantile
        else:
            on_error(f"Invalid option: [{pair}]. Quantile and error must be numbers from 0 to 1")
