"""Ensembles among the models of the repositories: members there, tensors that fit, no circles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...workers.contract.status import StatusError
from ..dispatch.ensemble_plan import origins_of
from ..repository.ensemble_members import MemberState, check_available, check_loaded, check_tensors, circles, member_names
from .config_file import ConfigFile, report_error
from .model import CheckedModel, finish_ensemble

Resolve = Callable[[CheckedModel, str], CheckedModel | None]
"""The model that a model's step means; None where there is none, or several."""


def resolver(models: Iterable[CheckedModel], namespacing: bool) -> Resolve:
    """How names of members are looked up: with namespacing in the ensemble's own repository first, then where only one has it."""
    by_name: dict[str, list[CheckedModel]] = {}
    for model in models:
        by_name.setdefault(model.name, []).append(model)

    def resolve(ensemble: CheckedModel, name: str) -> CheckedModel | None:
        found = by_name.get(name, [])
        if namespacing:
            found = [model for model in found if model.repository == ensemble.repository] or found
        return found[0] if len(found) == 1 else None

    return resolve


def check_ensembles(models: list[CheckedModel], resolve: Resolve) -> None:
    """Check every ensemble; the other models have been checked."""
    ensembles = [model for model in models if model.ensemble]
    keys = {_key(model): model for model in ensembles}
    members = {key: [_key(found) for name in member_names(model.config) if (found := resolve(model, name))] for key, model in keys.items()}
    circular = circles(members)
    for key in _members_first(members):
        model = keys[key]
        assert model.file is not None
        if key in circular:
            report_error(_plain(circular[key], keys), model.config, model.file, model.findings, model.file.path or model.directory)
        elif model.versions:
            _check(model, model.file, resolve)


def _key(model: CheckedModel) -> str:
    return f"{model.repository}\0{model.name}"


def _plain(error: StatusError, keys: Mapping[str, CheckedModel]) -> StatusError:
    """An error about models, their names as people know them."""
    message = error.message
    for key, model in keys.items():
        message = message.replace(key, model.name)
    return StatusError(error.code, message)


def _members_first(members: dict[str, list[str]]) -> list[str]:
    ordered: dict[str, None] = {}
    for key in members:
        waiting = [(key, False)]
        entered: set[str] = set()
        while waiting:
            at, done = waiting.pop()
            if done:
                ordered[at] = None
            elif at in members and at not in ordered and at not in entered:
                entered.add(at)
                waiting.append((at, True))
                waiting += [(member, False) for member in members[at]]
    return list(ordered)


def _check(model: CheckedModel, file: ConfigFile, resolve: Resolve) -> None:
    def member(name: str) -> CheckedModel:
        found = resolve(model, name)
        assert found is not None  # `check_available` has looked
        return found

    def ready(name: str, version: int) -> Any:
        found = member(name).ready
        return found[max(found) if version < 0 else version]

    final = finish_ensemble(model, file)
    if final is None:
        return
    config = _known_steps(final, lambda name: (found := resolve(model, name)) is not None and found.hidden)
    try:
        check_available(final, lambda name: resolve(model, name) is not None)
        check_loaded(final, lambda name: _state(member(name)))
        decoupled = check_tensors(config, ready)
        config.model_transaction_policy.decoupled = decoupled
        if len(config.ensemble_scheduling.step) == len(final.ensemble_scheduling.step):
            origins_of(config, lambda name, version: bool(ready(name, version).model_transaction_policy.decoupled))
            final = config
    except StatusError as error:
        report_error(error, model.config, file, model.findings, file.path or model.directory)
        return
    if config is not final:
        names = [name for name in member_names(final) if member(name).hidden]
        text = f"not compared with the tensors of {', '.join(names)}, which only running it would tell"
        model.findings.note(file.path or model.directory, text, file.lines.find("ensemble_scheduling"))
    model.hidden = any(member(name).hidden for name in member_names(final))
    model.ready = dict.fromkeys(model.versions, final)


def _state(model: CheckedModel) -> MemberState:
    if model.config is None:
        return MemberState(error="see what was found of it")
    return MemberState(model.ready, "", "" if model.ready else "see what was found of it")


def _known_steps(config: Any, hidden: Callable[[str], bool]) -> Any:
    """The configuration without the steps whose models' tensors nobody knows without running them."""
    copy = type(config)()
    copy.CopyFrom(config)
    steps = [step for step in config.ensemble_scheduling.step if not hidden(step.model_name)]
    if len(steps) < len(config.ensemble_scheduling.step):
        copy.ensemble_scheduling.ClearField("step")
        copy.ensemble_scheduling.step.extend(steps)
    return copy
