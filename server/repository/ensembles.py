"""Ensembles among the models of a repository: the order they load in, and what makes one ready to be asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from ...workers.contract.signature import signature_of
from ...workers.contract.status import StatusError
from ..dispatch.ensemble_plan import EnsemblePlan, origins_of, plan_of
from .ensemble_members import MemberState, check_available, check_loaded, check_tensors, circles, is_ensemble, member_names
from .labels import read_labels
from .version import Model, ModelVersion, State

Find = Callable[[str, int], ModelVersion]
"""The version of a loaded model that a step means; -1 is the newest."""

METRICS_VERSION = 1
"""The version that the metrics of every ensemble are labelled with, whatever its own is."""


def ensembles_of(configs: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the configurations (by model name) that are ensembles', members before those that run them."""
    found = {name: config for name, config in configs.items() if is_ensemble(config)}
    ordered: dict[str, Any] = {}

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in found and name not in ordered and name not in above:
            for member in member_names(found[name]):
                add(member, (*above, name))
            ordered[name] = found[name]

    for name in found:
        add(name, ())
    return ordered


def users_of(names: Collection[str], models: Mapping[str, Model]) -> set[str]:
    """The ensembles that are wanted and run one of these models, directly or by way of others."""
    found: set[str] = set()
    while True:
        below = found.union(names)
        more = {name for name, model in models.items() if model.wanted and model.runs(below)}
        if more <= found:
            return found
        found |= more


def refused_at_once(ensembles: Mapping[str, Any], models: Mapping[str, Model]) -> dict[str, StatusError]:
    """The ensembles that cannot be, whatever becomes of their members, and why."""
    refused = circles({name: member_names(config) for name, config in ensembles.items()})
    for name, config in ensembles.items():
        try:
            check_available(config, lambda member: member in models and models[member].known)
        except StatusError as error:
            refused[name] = error
    return refused


def check_ensemble(config: Any, models: Mapping[str, Model], find: Find) -> None:
    """Check an ensemble whose members have been loaded. Raises StatusError."""
    check_loaded(config, lambda name: member_state(models[name]))
    check_tensors(config, lambda name, version: find(name, version).config)
    origins_of(config, lambda name, version: find(name, version).signature.decoupled)


def runs_decoupled(config: Any, find: Find) -> bool:
    """Is one of an ensemble's members decoupled, and so the ensemble itself?"""
    return any(
        find(step.model_name, step.model_version).config.model_transaction_policy.decoupled for step in config.ensemble_scheduling.step
    )


def member_state(model: Model) -> MemberState:
    """What has become of a model that is a member."""
    ready = {slot.version: slot.served.config for slot in model.slots.values() if slot.state is State.READY and slot.served is not None}
    if not model.known:
        return MemberState(error=model.fault)
    failed = [slot for _, slot in sorted(model.slots.items()) if slot.state is not State.READY]
    reason = "".join(f"version {slot.version} is at {slot.state} state: {slot.reason};" for slot in failed)
    return MemberState(ready, "", reason or model.fault)


def plan_ensemble(config: Any, find: Find) -> EnsemblePlan:
    """The plan of a checked ensemble with its final configuration."""
    return plan_of(config, signature_of(config), lambda name, version: find(name, version).signature)


def members_of(plan: EnsemblePlan, find: Find) -> dict[tuple[str, int], ModelVersion]:
    """The versions that an ensemble runs, by name and version as its steps have them."""
    return {(step.model, step.version): find(step.model, step.version) for step in plan.steps}


def ensemble_labels(directory: Path, config: Any, plan: EnsemblePlan, find: Find) -> dict[str, list[str]]:
    """The labels of an ensemble's outputs: its own, else those of the outputs that its members make them from. Raises StatusError."""
    labels = {}
    for step in plan.steps:
        member = find(step.model, step.version)
        for link in step.outputs:
            if link.tensor in plan.outputs and link.name in member.labels:
                labels[link.tensor] = member.labels[link.name]
    return labels | read_labels(directory, config)
