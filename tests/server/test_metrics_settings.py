from __future__ import annotations

import pytest

from tensorfarm.server.metrics_settings import DEFAULT_QUANTILES, MetricsSettings, parse_settings


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], MetricsSettings()),
        ([("counter_latencies", "false")], MetricsSettings(counter_latencies=False)),
        ([("counter_latencies", "False")], MetricsSettings()),
        ([("counter_latencies", "0")], MetricsSettings()),
        ([("histogram_latencies", "true")], MetricsSettings(histogram_latencies=True)),
        ([("histogram_latencies", "1")], MetricsSettings()),
        ([("summary_latencies", "true")], MetricsSettings(summary_latencies=True)),
        ([("summary_latencies", "TRUE")], MetricsSettings()),
        ([("summary_latencies", "true"), ("summary_latencies", "false")], MetricsSettings()),
        ([("summary_quantiles", "0.5:0.05,0.9:0.01")], MetricsSettings(quantiles=(0.5, 0.9))),
        ([("colour", "blue")], MetricsSettings()),
    ],
)
def test_settings(pairs: list[tuple[str, str]], expected: MetricsSettings) -> None:
    errors: list[str] = []
    assert parse_settings(pairs, errors.append) == expected
    assert errors == []


def test_a_bad_quantile_is_told_and_left_out() -> None:
    errors: list[str] = []
    settings = parse_settings([("summary_quantiles", "0.5:0.05,junk,0.9:x,7:0.1,nan:0.1,0.99:0.001")], errors.append)
    assert settings.quantiles == (0.5, 0.99)
    assert errors[0] == "Invalid option: [junk]. No ':' delimiter found. Expected format is <quantile>:<error>"
    assert [error.partition("]")[0] for error in errors[1:]] == [
        "Invalid option: [0.9:x",
        "Invalid option: [7:0.1",
        "Invalid option: [nan:0.1",
    ]


def test_default_quantiles() -> None:
    assert DEFAULT_QUANTILES == (0.5, 0.9, 0.95, 0.99, 0.999)
