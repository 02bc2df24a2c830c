"""One model: what loading it would come to, version by version."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...workers.contract.backends import NATIVE, PYTHON
from ...workers.contract.configuration import document, model_config, parse_document
from ...workers.contract.messages import Inspect
from ...workers.contract.signature import signature_of
from ...workers.contract.status import StatusError, label
from ..farm.environments import Environments
from ..farm.interpreter import resolve
from ..options import Options, backend_settings
from ..repository.agents import run_agents
from ..repository.backend_choice import BackendChoice, choose_backend, environment_path
from ..repository.built import fields_without_effect
from ..repository.ensemble_members import is_ensemble
from ..repository.layout import NoVersion, chosen_versions
from ..repository.normalization import normalize_instance_groups
from ..repository.preparation import finish_config, merge_completed, prepare_config
from .config_file import START, ConfigFile, read_config_file, report_error
from .files import is_file, present
from .findings import Finding, Findings
from .folders import check_model_folder
from .labels import check_labels
from .python_source import check_python_source
from .workers import CheckWorkers, WorkerDied

_GROUP = model_config.ModelInstanceGroup


@dataclass(slots=True, eq=False)
class CheckedModel:
    """A model and what was found of it.

    ``config`` is its configuration as a server reads it, None where that cannot be read. ``ready`` are the final configurations of
    the versions that would load. ``hidden``: only running it would tell all of its tensors.
    """

    name: str
    repository: Path
    findings: Findings
    file: ConfigFile | None = None
    config: Any = None
    versions: tuple[int, ...] = ()
    ready: dict[int, Any] = field(default_factory=dict)
    hidden: bool = False

    @property
    def directory(self) -> Path:
        """The model's folder, as its findings name it."""
        return self.repository / self.name

    @property
    def ensemble(self) -> bool:
        """Does it run other models?"""
        return self.config is not None and is_ensemble(self.config)

    @property
    def all(self) -> list[Finding]:
        """What was found."""
        return self.findings.all


def open_model(name: str, repository: Path, options: Options) -> CheckedModel:
    """Check the folder and the configuration of a model as far as its own text goes."""
    findings = Findings(name)
    model = CheckedModel(name, repository, findings)
    directory = model.directory
    file = model.file = read_config_file(directory, options.model_config_name, findings)
    named = options.model_config_name
    if named and file is not None and file.path == directory / "config.pbtxt" and present(directory / "configs"):
        findings.note(directory / "configs", f"has no {named}.pbtxt: config.pbtxt is read")
    model_file = file.message.default_model_filename if file is not None else ""
    present_versions = check_model_folder(directory, model_file, findings)
    if file is None:
        return model
    config = file.message
    auto_complete = not options.disable_auto_complete_config
    try:
        if file.path is None and not auto_complete:
            findings.error(directory / "config.pbtxt", "is missing", hint="write one, or leave --disable-auto-complete-config out")
            return model
        prepare_config(config, directory, name, auto_complete=auto_complete)
    except StatusError as error:
        report_error(error, config, file, findings, file.path or directory)
        return model
    model.config = config
    try:
        chosen = chosen_versions(config, present_versions.numbers)
    except NoVersion as error:
        _report_no_version(model, file, error, present_versions.numbers)
        return model
    for note in chosen.notes:
        findings.warning(file.path or directory, note, file.place(note, config))
    try:
        run_agents(config, directory, options.repoagent_directory)
    except StatusError as error:
        report_error(error, config, file, findings, file.path or directory)
        return model
    model.versions = chosen.numbers
    return model


def _report_no_version(model: CheckedModel, file: ConfigFile, error: NoVersion, numbers: tuple[int, ...]) -> None:
    findings = model.findings
    if numbers:
        for note in error.notes:
            findings.error(file.path or model.directory, note, file.place(note, model.config))
        report_error(error, model.config, file, findings, file.path or model.directory)
        return
    hint = "make a folder called 1 with the model file in it"
    if model.ensemble:
        hint = "an ensemble too needs a folder for its version: make an empty one called 1 (git keeps it once there is a file in it)"
    findings.error(model.directory, "has no version: a version is a folder whose name is a number", hint=hint)


class ModelCheck:
    """Checks models against their files. ``environments`` unpacks the Python environments that models bring."""

    def __init__(self, options: Options, workers: CheckWorkers, environments: Environments) -> None:
        self._options = options
        self._workers = workers
        self._environments = environments

    async def check(self, model: CheckedModel) -> None:
        """Check every version that would be loaded, but for ensembles, and what they have in common."""
        if model.config is None or model.file is None or model.ensemble:
            return
        for version in model.versions:
            await self._version(model, model.file, version)
        # One that did not make it to its final form still names files.
        _check_final(model, model.file, next(iter(model.ready.values()), model.config))

    async def _version(self, model: CheckedModel, file: ConfigFile, version: int) -> None:
        config = _copied(model.config)
        directory = model.directory
        try:
            chosen = choose_backend(config, directory, version, Path(self._options.backend_directory))
        except StatusError as error:
            report_error(error, config, file, model.findings, file.path or directory)
            return
        if chosen.file and not config.runtime:
            config.runtime = Path(chosen.file).name
        if chosen.name == PYTHON:
            await self._python(model, file, config, chosen, version)
        elif not self._options.disable_auto_complete_config and not await self._complete(model, file, config, chosen, version):
            return
        if not _finish(model, file, config):
            return
        # Of a Python model only the warm-up can be compared, and that only with tensors that are known.
        comparable = chosen.name in NATIVE or (bool(config.model_warmup) and not model.hidden)
        if comparable and await self._inspect(model, file, config, chosen, version, complete=False) is None:
            return
        model.ready[version] = config

    # ONNX models

    async def _complete(self, model: CheckedModel, file: ConfigFile, config: Any, chosen: BackendChoice, version: int) -> bool:
        """Complete a configuration from the model; False where that fails."""
        lacking = [section for section in ("input", "output") if not getattr(config, section)]
        completed = await self._inspect(model, file, config, chosen, version, complete=True)
        if completed is None:
            return False
        try:
            merge_completed(config, completed)
        except StatusError as error:
            report_error(error, config, file, model.findings, file.path or model.directory)
            return False
        if lacking:
            model.findings.note(file.path or model.directory, f"completed from the model: {_described(config)}", _start(file))
        return True

    async def _inspect(
        self, model: CheckedModel, file: ConfigFile, config: Any, chosen: BackendChoice, version: int, *, complete: bool
    ) -> Any | None:
        """What a worker says of a configuration and the model file: the configuration, None and a finding where they do not fit."""
        settings = backend_settings(self._options, config.backend)
        folder = os.path.abspath(model.directory)
        inspect = Inspect(0, chosen.name, folder, version, document(config), settings, complete, chosen.file)
        # The file's name may be a folder's, or missing: then the version's folder is what the error is about.
        shown = model.directory / str(version) / (config.default_model_filename or "")
        if not present(shown):
            shown = shown.parent if present(shown.parent) else model.directory
        try:
            inspected = await self._workers.inspect(inspect)
            return parse_document(inspected.config)
        except WorkerDied as error:
            model.findings.error(shown, error.message, hint=f"its last words: {error.last_words}" if error.last_words else "")
        except StatusError as error:
            if "failed with ModuleNotFoundError" in error.message:
                model.findings.error(shown, error.message, hint="ONNX Runtime is not installed: pip install 'tensorfarm[cpu]'")
            else:
                # Warm-up samples are checked as requests are, but are none of a client's.
                error = StatusError(error.code, error.message.removeprefix(label("")))
                report_error(error, config, file, model.findings, shown)
        return None

    # Python models

    async def _python(self, model: CheckedModel, file: ConfigFile, config: Any, chosen: BackendChoice, version: int) -> None:
        directory, findings = model.directory, model.findings
        # What the model is shown for completion has its instances.
        normalize_instance_groups(config, _gpus_of(model.config))
        environment = ""
        try:
            environment = environment_path(config)
            if environment:
                await resolve(environment, os.path.abspath(directory), self._environments)
        except StatusError as error:
            report_error(error, config, file, findings, file.path or directory)
        path = _python_file(model, file, config, chosen, version)
        if path is None:
            model.hidden = True
            return
        source = check_python_source(path, findings, own_python=not environment)
        model.hidden = source.completes and not self._options.disable_auto_complete_config
        lacking = [section for section in ("input", "output") if not getattr(config, section)]
        if lacking and not model.hidden:
            text = f"no {' and no '.join(lacking)} is configured"
            hint = "a Python model's tensors are listed in config.pbtxt, or added by its auto_complete_config"
            findings.warning(file.path or directory, text, _start(file), hint)
        elif lacking:
            findings.note(
                file.path or directory, "inputs and outputs are the model's auto_complete_config's to add, which a check does not run"
            )


def _python_file(model: CheckedModel, file: ConfigFile, config: Any, chosen: BackendChoice, version: int) -> Path | None:
    if chosen.file:
        try:
            return model.directory / Path(chosen.file).relative_to(os.path.abspath(model.directory))
        except ValueError:
            return Path(chosen.file)
    folder = model.directory / str(version)
    name = config.default_model_filename or "model.py"
    if not name.endswith(".py"):
        place = file.lines.find("default_model_filename")
        model.findings.error(file.path or model.directory, f"a Python model's file ends in '.py', '{name}' does not", place)
        return None
    path = folder / name
    if not present(path):
        others = [other for other in _names(folder) if other.endswith(".py")]
        hint = f"rename {others[0]} to it, or set default_model_filename" if len(others) == 1 else ""
        model.findings.error(path, "is missing", hint=hint)
        return None
    if is_file(path) and not os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep):
        model.findings.error(path, "leads out of the folder of its version", hint="copy the file there instead of linking to it")
        return None
    return path


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _gpus_of(config: Any) -> list[int]:
    """The GPUs that a configuration takes for granted: a check is for servers elsewhere, and does not look what is here."""
    groups = [group for group in config.instance_group if _wants_gpu(group)]
    return sorted({gpu for group in groups for gpu in (group.gpus or [0]) if gpu >= 0})


def _wants_gpu(group: Any) -> bool:
    return group.kind == _GROUP.KIND_GPU or (group.kind == _GROUP.KIND_AUTO and bool(group.gpus))


def _note_gpus(model: CheckedModel, file: ConfigFile, config: Any) -> None:
    """Say which groups of a final configuration no server without GPUs would take."""
    for written, group in zip(model.config.instance_group, config.instance_group, strict=False):
        if _wants_gpu(written):
            which = f"GPU {', '.join(map(str, written.gpus))}" if written.gpus else "a GPU"
            text = f"instance group {group.name} of model {model.name} needs {which}: a server without it does not load the model"
            hint = "" if written.gpus else "leave the kind out for what is to run on GPUs where there are some, and elsewhere without"
            model.findings.note(file.path or model.directory, text, file.place(text, config), hint)


def _finish(model: CheckedModel, file: ConfigFile, config: Any) -> bool:
    """Bring a configuration to its final form; False, and a finding, where it is not fit for that."""
    try:
        finish_config(config, _gpus_of(model.config))
        signature_of(config)
    except StatusError as error:
        report_error(error, config, file, model.findings, file.path or model.directory)
        return False
    _note_gpus(model, file, config)
    return True


def finish_ensemble(model: CheckedModel, file: ConfigFile) -> Any | None:
    """The final configuration of an ensemble; None, and a finding, where there is none."""
    config = _copied(model.config)
    if not _finish(model, file, config):
        return None
    _check_final(model, file, config)
    return config


def _check_final(model: CheckedModel, file: ConfigFile, config: Any) -> None:
    for name in fields_without_effect(config):
        text = f"{name} has no effect in this release"
        model.findings.warning(file.path or model.directory, text, _place_of_field(name, config, file))
    check_labels(model.directory, config, file, model.findings)


def _place_of_field(name: str, config: Any, file: ConfigFile) -> Any:
    """Where a field is set; ``section.member`` is in the first of several sections that has it."""
    section, dot, member = name.partition(".")
    if dot:
        for number in range(len(getattr(config, section))):
            if file.lines.has(f"{section}[{number}].{member}"):
                return file.lines.find(f"{section}[{number}].{member}")
    return file.lines.find(section)


def _copied(config: Any) -> Any:
    copy = type(config)()
    copy.CopyFrom(config)
    return copy


def _start(file: ConfigFile) -> Any:
    return None if file.path is None else START


def _described(config: Any) -> str:
    tensors = [
        f"{section} '{tensor.name}' {model_config.DataType.Name(tensor.data_type)} {list(tensor.dims)}"
        for section in ("input", "output")
        for tensor in getattr(config, section)
    ]
    return ", ".join([f"max_batch_size: {config.max_batch_size}", *tensors])
