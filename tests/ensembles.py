"""Ensembles for test repositories, as ``config.pbtxt`` and folders; the same for both servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .model_repository import TestTensor, config_type


@dataclass(frozen=True)
class Step:
    """A step; the maps go from the model's tensor to the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    version: int = -1


@dataclass(frozen=True)
class TestEnsemble:
    """An ensemble. Names in ``optional`` are optional inputs; ``extra`` is appended to its configuration."""

    __test__ = False

    name: str
    steps: tuple[Step, ...]
    inputs: tuple[TestTensor, ...]
    outputs: tuple[TestTensor, ...]
    max_batch_size: int = 0
    versions: tuple[int, ...] = (1,)
    optional: tuple[str, ...] = ()
    extra: str = ""
    max_inflight: int = 0


def _map(field: str, pairs: Mapping[str, str]) -> str:
    return " ".join(f'{field} {{ key: "{name}" value: "{tensor}" }}' for name, tensor in pairs.items())


def _tensor(section: str, tensor: TestTensor, optional: bool = False) -> str:
    parts = [f'name: "{tensor.name}" data_type: {config_type(tensor.datatype)} dims: [ {", ".join(map(str, tensor.dims))} ]']
    if tensor.reshape is not None:
        parts.append(f"reshape {{ shape: [ {', '.join(map(str, tensor.reshape))} ] }}")
    if tensor.label_filename:
        parts.append(f'label_filename: "{tensor.label_filename}"')
    if optional:
        parts.append("optional: true")
    return f"{section} {{ {' '.join(parts)} }}"


def ensemble_text(ensemble: TestEnsemble) -> str:
    """The ``config.pbtxt`` of an ensemble."""
    steps = [
        f'  step {{ model_name: "{step.model}" model_version: {step.version} {_map("input_map", step.inputs)} '
        f"{_map('output_map', step.outputs)} }}"
        for step in ensemble.steps
    ]
    return "\n".join(
        [
            f'name: "{ensemble.name}" platform: "ensemble" max_batch_size: {ensemble.max_batch_size}',
            *(_tensor("input", tensor, tensor.name in ensemble.optional) for tensor in ensemble.inputs),
            *(_tensor("output", tensor) for tensor in ensemble.outputs),
            "ensemble_scheduling {",
            *steps,
            *([f"  max_inflight_requests: {ensemble.max_inflight}"] if ensemble.max_inflight else []),
            "}",
            ensemble.extra,
        ]
    )


def write_ensembles(root: Path, ensembles: Iterable[TestEnsemble]) -> Path:
    """Write ensembles' folders beside the models of a repository."""
    for ensemble in ensembles:
        folder = root / ensemble.name
        for version in ensemble.versions:
            (folder / str(version)).mkdir(parents=True)
        (folder / "config.pbtxt").write_text(ensemble_text(ensemble))
    return root


MEMBER = Path(__file__).resolve().parent / "python_models" / "ensemble_member" / "1" / "model.py"
"""The one source of all Python members; what each does is the ``verb`` of its configuration."""


@dataclass(frozen=True)
class Member:
    """A Python model for ensembles, see ``MEMBER``. ``settings`` are more parameters of its configuration."""

    name: str
    verb: str
    inputs: tuple[TestTensor, ...]
    outputs: tuple[TestTensor, ...]
    max_batch_size: int = 0
    versions: tuple[int, ...] = (1,)
    optional: tuple[str, ...] = ()
    extra: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def write_members(root: Path, members: Iterable[Member]) -> Path:
    """Write Python members' folders into a repository."""
    for member in members:
        folder = root / member.name
        for version in member.versions:
            (folder / str(version)).mkdir(parents=True)
            shutil.copy(MEMBER, folder / str(version) / "model.py")
        for name, content in member.files.items():
            (folder / name).write_text(content)
        settings = {"verb": member.verb, **member.settings}
        lines = [
            f'name: "{member.name}" backend: "python" max_batch_size: {member.max_batch_size}',
            *(_tensor("input", tensor, tensor.name in member.optional) for tensor in member.inputs),
            *(_tensor("output", tensor) for tensor in member.outputs),
            "instance_group { kind: KIND_CPU count: 1 }",
            *(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in settings.items()),
            member.extra,
        ]
        (folder / "config.pbtxt").write_text("\n".join(lines))
    return root
