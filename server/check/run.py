"""A whole check: every model of the repositories, in the order in which they can be judged."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..farm.environments import Environments
from ..options import Options
from .ensembles import check_ensembles, resolver
from .files import reason
from .findings import Finding, Findings
from .folders import check_repository
from .model import CheckedModel, ModelCheck, open_model
from .workers import CheckWorkers

DUPLICATE = "model appears in two or more repositories"


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What was found of a model, or of a repository: then ``name`` is "". ``state`` is a few words about a model that was read."""

    name: str
    directory: str
    state: str
    findings: tuple[Finding, ...]


Progress = Callable[[str, int, int], None]
"""Told the model that was just checked, how many have been, and how many there are."""


async def check_repositories(directories: Sequence[str], options: Options, progress: Progress) -> list[ModelReport]:
    """Check all models of these repositories. Never raises because of what lies in them."""
    reports = []
    models: list[CheckedModel] = []
    for directory in directories:
        root = Path(directory)
        findings = Findings()
        models += [await asyncio.to_thread(_opened, name, root, options) for name in check_repository(root, findings)]
        if findings.all:
            reports.append(ModelReport("", directory, "", tuple(findings.all)))
    if not options.model_namespacing:
        _note_duplicates(models)
    workers, environments = CheckWorkers(), Environments()
    try:
        await _check_all(models, ModelCheck(options, workers, environments), progress)
    finally:
        await workers.close()
        await environments.close()
    check_ensembles(models, resolver(models, options.model_namespacing))
    return reports + [ModelReport(model.name, str(model.directory), _state(model), _sorted(model.findings)) for model in models]


def _opened(name: str, root: Path, options: Options) -> CheckedModel:
    try:
        return open_model(name, root, options)
    except (OSError, ValueError, RuntimeError) as error:
        model = CheckedModel(name, root, Findings(name))
        _report_failure(model, error)
        return model


async def _check_all(models: list[CheckedModel], check: ModelCheck, progress: Progress) -> None:
    total = sum(not model.ensemble for model in models)
    done = 0

    async def one(model: CheckedModel) -> None:
        nonlocal done
        try:
            await check.check(model)
        except (OSError, ValueError, RuntimeError) as error:
            _report_failure(model, error)
        done += 1
        progress(model.name, done, total)

    await asyncio.gather(*[one(model) for model in models if not model.ensemble])


def _report_failure(model: CheckedModel, error: OSError | ValueError | RuntimeError) -> None:
    """Something there is unlike anything a model repository should have: a file that goes away meanwhile, a circle of links …"""
    why = reason(error) if isinstance(error, OSError | ValueError) else str(error)
    path = error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else str(model.directory)
    model.findings.error(path, f"cannot be checked: {why}")


def _note_duplicates(models: list[CheckedModel]) -> None:
    counts = Counter(model.name for model in models)
    for model in models:
        if counts[model.name] > 1:
            others = ", ".join(str(other.directory) for other in models if other.name == model.name and other is not model)
            hint = f"the other is {others}: rename one, or give --model-namespacing=true"
            model.findings.error(model.directory, DUPLICATE, hint=hint)


def _state(model: CheckedModel) -> str:
    if model.config is None:
        return ""
    kind = "ensemble" if model.ensemble else model.config.backend
    numbers = ", ".join(map(str, model.versions))
    if not numbers:
        return str(kind)
    return f"{kind}, version{'s' if len(model.versions) > 1 else ''} {numbers}"


def _sorted(findings: Findings) -> tuple[Finding, ...]:
    """By file, the configuration first, then line; those of one line in the order in which they were found."""
    return tuple(
        sorted(findings.all, key=lambda each: (not each.path.endswith(".pbtxt"), each.path, each.line or 0, each.column or 0)),
    )
