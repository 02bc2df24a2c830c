"""Results as pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from .frameworks import LABELS, TENSORFARM, TRITONSERVER
from .results import Figures, Http, Python, Sizes
from .tables import size_name

_COLOURS = {
    TENSORFARM: "#c0392b",
    TRITONSERVER: "#2e7d32",
    "mosec": "#1f5fa8",
    "kserve": "#8e6bb0",
    "mlserver": "#d08a1d",
    "litserve": "#4aa3a2",
    "ray": "#7f7f7f",
}
_WAYS = {"JSON": ":", "binary": "-", "shared memory": "--"}
_DPI = 110
_TICKS_KIB = (1, 16, 256, 4096, 65536)


def draw_http(http: Http, path: Path) -> None:
    """Three panels over the number of clients: requests a second, p50, p99."""
    figure, axes = _subplots(3, (15, 4.6))
    panels: tuple[tuple[str, Callable[[Figures], float]], ...] = (
        ("requests per second", lambda one: one.requests_per_second),
        ("p50, ms", lambda one: one.p50_us / 1000),
        ("p99, ms", lambda one: one.p99_us / 1000),
    )
    levels = sorted({row.concurrency for row in http.rows})
    for axis, (title, value) in zip(axes, panels, strict=True):
        for contender in dict.fromkeys(row.contender for row in http.rows):
            rows = sorted((row for row in http.rows if row.contender == contender), key=lambda row: row.concurrency)
            axis.plot(
                [row.concurrency for row in rows],
                [value(row.figures) for row in rows],
                color=_COLOURS[contender],
                label=LABELS[contender],
                linewidth=2.4 if contender == TENSORFARM else 1.4,
                marker="o",
                markersize=3.5,
            )
        _frame(axis, title, "clients, one request at a time each")
        axis.set_xscale("log", base=2)
        axis.set_xticks(levels, [str(level) for level in levels])
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, frameon=False, fontsize=9, loc="lower center", ncols=len(labels))
    figure.suptitle("add_sub INT32[1,16] over HTTP", fontsize=11)
    _save(figure, path, below=0.06)


def draw_sizes(sizes: Sizes, path: Path) -> None:
    """Time a request over the tensor's size: one line for each server and way."""
    figure, (axis,) = _subplots(1, (8, 5.2))
    for contender in dict.fromkeys(row.contender for row in sizes.rows):
        for way, style in _WAYS.items():
            rows = sorted((row for row in sizes.rows if (row.contender, row.way) == (contender, way)), key=lambda row: row.byte_size)
            if rows:
                axis.plot(
                    [row.byte_size for row in rows],
                    [row.figures.p50_us / 1000 for row in rows],
                    style,
                    color=_COLOURS[contender],
                    label=f"{LABELS[contender]}, {way}",
                    marker="o",
                    markersize=3.5,
                )
    _frame(axis, "p50, ms", "tensor")
    axis.set_xscale("log", base=2)
    axis.set_xticks([kib << 10 for kib in _TICKS_KIB], [size_name(kib << 10) for kib in _TICKS_KIB])
    axis.legend(frameon=False, fontsize=8)
    figure.suptitle("identity FP32 over HTTP, one client", fontsize=11)
    _save(figure, path)


def draw_python(python: Python, path: Path) -> None:
    """A bar for each thing asked: how many times tritonserver's rate tensorfarm's is, and a mark where it was meant to be."""
    rates = {(row.contender, row.work, row.clients): row.figures.requests_per_second for row in python.rows}
    asked = [(work, clients) for name, work, clients in rates if name == TENSORFARM and (TRITONSERVER, work, clients) in rates]
    ratios = [rates[TENSORFARM, *one] / rates[TRITONSERVER, *one] for one in asked]
    named = [f"{work}, {clients} client{'s' if clients > 1 else ''}" for work, clients in asked]
    figure, (axis,) = _subplots(1, (8, 1.2 + 0.32 * len(asked)))
    axis.barh(named, ratios, color=_COLOURS[TENSORFARM], height=0.6)
    for place, value in enumerate(ratios):
        axis.annotate(f"{value:.2f}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    for row in python.targets.rows:
        if row.work in named:
            place = named.index(row.work)
            axis.plot([row.target, row.target], [place - 0.4, place + 0.4], color="#333333", linewidth=2)
    axis.axvline(1, color=_COLOURS[TRITONSERVER], linewidth=1.4)
    axis.set_xlim(0, 1.12 * max([1.0, *ratios]))
    axis.invert_yaxis()
    axis.set_title("requests/s of Python models, times tritonserver's (line: target)", fontsize=10)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    _save(figure, path)


def _subplots(count: int, inches: tuple[float, float]) -> tuple[Any, list[Any]]:
    matplotlib.use("Agg")  # files only: no display is needed
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=inches, squeeze=False)
    return figure, list(axes[0])


def _frame(axis: Any, title: str, below: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(below, fontsize=9)
    axis.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _save(figure: Any, path: Path, below: float = 0.0) -> None:
    """Write a picture; ``below`` is the share of its height that is left free for a legend."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout(rect=(0, below, 1, 1))
    # without the version in it: the same figures give the same file
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    pyplot.close(figure)
