from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tensorfarm.server.latency import Histogram, Summary
from tensorfarm.server.prometheus_text import Family, exposition


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (268435456, "268435456"),
        (10**18 + 1, "1000000000000000001"),
        (0.0, "0"),
        (3.0, "3"),
        (0.09045226130653267, "0.09045226130653267"),
        (1e20, "1e+20"),
        (math.nan, "Nan"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    family = Family("g", "gauge", "A gauge")
    family.add({}, value)
    assert exposition([family]) == f"# HELP g A gauge\n# TYPE g gauge\ng {text}\n".encode()


def test_a_family_without_series_leaves_nothing() -> None:
    assert exposition([Family("a", "gauge", "A"), Family("b", "counter", "B")]) == b""


def test_summary_and_histogram_lines() -> None:
    summary = Summary()
    summary.observe(40, 0)
    family = Family("s", "summary", "S")
    family.add_summary({"model": "m"}, summary, (0.5, 0.999), 0)
    family.add_summary({"model": "n"}, Summary(), (0.5, 0.999), 0)
    histogram = Histogram([0.5, 100])
    histogram.observe(7)
    buckets = Family("h", "histogram", "H")
    buckets.add_histogram({"model": "m"}, histogram)
    assert exposition([family, buckets]).decode().splitlines() == [
        "# HELP s S",
        "# TYPE s summary",
        's_count{model="m"} 1',
        's_sum{model="m"} 40',
        's{model="m",quantile="0.5"} 40',
        's{model="m",quantile="0.999"} 40',
        's_count{model="n"} 0',
        's_sum{model="n"} 0',
        's{model="n",quantile="0.5"} Nan',
        's{model="n",quantile="0.999"} Nan',
        "# HELP h H",
        "# TYPE h histogram",
        'h_count{model="m"} 1',
        'h_sum{model="m"} 7',
        'h_bucket{model="m",le="0.5"} 0',
        'h_bucket{model="m",le="100"} 1',
        'h_bucket{model="m",le="+Inf"} 1',
    ]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")))
def test_label_values_survive_the_parser(value: str) -> None:
    family = Family("g", "gauge", "back\\slash\nand line")
    family.add({"model": value, "version": "1"}, 5)
    (parsed,) = text_string_to_metric_families(exposition([family]).decode())
    assert parsed.samples[0].labels == {"model": value, "version": "1"}
    assert parsed.documentation == "back\\slash\nand line"
