"""A repository of models whose answers are kept, and of models that ask those."""

from __future__ import annotations

import shutil
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "python_models" / "system_cached"
CACHE = "response_cache { enable: true }\n"
TENSORS = """
input [ { name: "X", data_type: TYPE_INT32, dims: [ -1 ] } ]
output [ { name: "Y", data_type: TYPE_INT32, dims: [ -1 ] }, { name: "RUN", data_type: TYPE_INT32, dims: [ 1 ] } ]
"""


def put(repository: Path, name: str, *settings: str) -> Path:
    """The model under a name, with further settings."""
    folder = Path(shutil.copytree(SOURCE, repository / name))
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace('"system_cached"', f'"{name}"') + "\n".join(settings))
    return folder


def put_ensemble(repository: Path, name: str, member: str, *settings: str) -> None:
    """An ensemble that passes everything on to one model."""
    (repository / name / "1").mkdir(parents=True)
    maps = 'input_map { key: "X" value: "X" } output_map [ { key: "Y" value: "Y" }, { key: "RUN" value: "RUN" } ]'
    steps = f'ensemble_scheduling {{ step [ {{ model_name: "{member}" model_version: -1 {maps} }} ] }}\n'
    (repository / name / "config.pbtxt").write_text(
        f'name: "{name}"\nplatform: "ensemble"\nmax_batch_size: 8\n{TENSORS}{steps}' + "\n".join(settings)
    )


def write(repository: Path) -> Path:
    """``cached`` (default scheduler), ``batched`` (dynamic batching), ``plain``, and what asks them."""
    repository.mkdir(parents=True)
    put(repository, "cached", CACHE)
    put(repository, "batched", CACHE, "dynamic_batching { }")
    put(repository, "plain")
    put(repository, "asking", 'parameters [ { key: "ASK", value { string_value: "cached" } } ]')
    put_ensemble(repository, "whole", "plain", CACHE)
    put_ensemble(repository, "step", "cached")
    return repository
