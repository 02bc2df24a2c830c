"""Puts tables and pictures into BENCHMARKS.md, between two marks; what stands around them is written by people."""

from __future__ import annotations

from pathlib import Path

from .plot import draw_http, draw_python, draw_sizes
from .results import Results
from .tables import facts_grid, http_grid, python_grid, sizes_grid, start_grid, targets_grid, variants_grid

BEGIN = "<!-- measured: written by ./scripts/bench publish -->"
END = "<!-- /measured -->"


class DocumentError(Exception):
    """The document has not the marks."""


def fill(text: str, results: Results, pictures: str) -> str:
    """The document with the part between the marks made anew; ``pictures`` is the folder of the pictures as the document says it.

    Raises DocumentError where the marks are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DocumentError(f"the marks {BEGIN} and {END} are not in it")
    parts = ["## Machine", facts_grid(results.facts).markdown()]
    if results.targets:
        parts += ["## Targets", targets_grid(results.targets).markdown(), *(f"* {line}" for line in results.targets.left_out)]
    if results.http:
        parts += ["## Small requests", f"![Throughput and latency by number of clients]({pictures}/http.png)"]
        parts += [http_grid(results.http).markdown()]
    if results.variants:
        parts += ["## How the others were set up", variants_grid(results.variants).markdown()]
    if results.sizes:
        parts += ["## Tensors of growing size", f"![Time a request by size]({pictures}/sizes.png)", sizes_grid(results.sizes).markdown()]
        parts += [f"* {line}" for line in results.sizes.left_out]
    if results.python:
        parts += ["## Python models", f"![How many times tritonserver's rate]({pictures}/python.png)"]
        parts += [targets_grid(results.python.targets).markdown(), *(f"* {line}" for line in results.python.targets.left_out)]
        parts += [python_grid(results.python).markdown()]
    if results.start:
        parts += ["## Start", start_grid(results.start).markdown()]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(part.rstrip("\n") for part in parts) + f"\n\n{END}{after}"


def draw(results: Results, folder: Path) -> None:
    """The pictures of what there is."""
    if results.http:
        draw_http(results.http, folder / "http.png")
    if results.sizes:
        draw_sizes(results.sizes, folder / "sizes.png")
    if results.python:
        draw_python(results.python, folder / "python.png")
