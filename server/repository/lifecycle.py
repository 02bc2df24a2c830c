"""The life of models: from their directories to live instances and back.

Each load of a version is a ``ModelVersion`` of its own with its own scheduler, so that a later load
can be made ready beside the one that serves.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...workers.contract.backends import PYTHON
from ...workers.contract.configuration import ConfigurationError, document, parse_document
from ...workers.contract.messages import Done, Inspect, InstanceSpec, Load, Respond, Spoken
from ...workers.contract.signature import signature_of
from ...workers.contract.status import StatusError, not_found, unavailable
from ..dispatch.dispatcher import Dispatcher
from ..dispatch.ensemble import Ensemble
from ..dispatch.ensemble_plan import EnsemblePlan
from ..dispatch.instance import Instance
from ..dispatch.scheduler import scheduler_of
from ..farm.environments import Environments
from ..farm.farm import Farm
from ..farm.interpreter import OWN, Interpreter, resolve
from ..farm.placement import worker_name
from ..farm.worker_process import WorkerProcess
from ..log import Log
from ..options import Options, backend_settings
from ..statistics import StatisticsBook, VersionStatistics
from .backend_choice import BackendChoice, choose_backend, environment_path
from .built import check_supported, fields_without_effect
from .ensemble_members import is_ensemble
from .ensembles import METRICS_VERSION, check_ensemble, ensemble_labels, ensembles_of, members_of, plan_ensemble, refused_at_once
from .labels import read_labels
from .layout import NoVersion, chosen_versions, present_versions, scan
from .normalization import normalize_instance_groups
from .preparation import finish_config, merge_completed, read_config
from .readiness import ReadinessChecks
from .version import Model, ModelVersion, State, VersionSlot

DUPLICATE = "model appears in two or more repositories"
UNLOADED = "unloaded"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of the repository index; empty members are left out of it."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


class Lifecycle:
    """Every model of the repositories, and what the farm says about their instances.

    ``checked`` are those with a readiness check of their own. ``heard`` gets what models say beside their answers, ``worker_left``
    each worker process that has ended.
    """

    def __init__(self, options: Options, dispatcher: Dispatcher, book: StatisticsBook, log: Log, environments: Environments) -> None:
        self.models: dict[str, Model] = {}
        self.farm: Farm
        self.make_ensemble: Callable[[EnsemblePlan, VersionStatistics], Ensemble]
        self.heard: Callable[[Spoken, WorkerProcess], None]
        self.worker_left: Callable[[WorkerProcess], None]
        self._environments = environments
        self._options = options
        self._dispatcher = dispatcher
        self._book = book
        self._log = log
        self._batch_numbers = itertools.count(1)
        self._model_numbers = itertools.count(1)
        self._instance_numbers = itertools.count(1)
        self._instances: dict[int, tuple[Instance, ModelVersion]] = {}
        self._loads: dict[int, ModelVersion] = {}
        self.checked: set[ModelVersion] = set()
        self._readiness = ReadinessChecks(lambda worker, model: self.farm.check(worker, model), log.warning)
        self._loading = asyncio.Semaphore(options.model_load_thread_count)

    # questions

    def find(self, name: str, version: str) -> ModelVersion:
        """The version a request means. Raises StatusError with the protocol's lookup texts."""
        model = self.models.get(name)
        if model is None or not model.known:
            raise not_found(f"Request for unknown model: '{name}' is not found")
        if version:
            number = int(version)
            slot = model.slots.get(number)
            if slot is None or slot.state is State.UNKNOWN:
                raise not_found(f"Request for unknown model: '{name}' version {number} is not found")
            if slot.state is not State.READY or slot.served is None:
                raise unavailable(f"Request for unknown model: '{name}' version {number} is not at ready state")
            return slot.served
        newest = model.newest
        if newest is None:
            raise not_found(f"Request for unknown model: '{name}' has no available versions")
        return newest

    def ready_versions(self, name: str) -> list[int]:
        """The versions of a model that can be asked, ascending."""
        model = self.models.get(name)
        return [] if model is None else model.ready_versions

    def versions(self) -> list[ModelVersion]:
        """Every ready version, by name, then version."""
        return [
            slot.served
            for _, model in sorted(self.models.items())
            for _, slot in sorted(model.slots.items())
            if slot.state is State.READY and slot.served is not None
        ]

    def all_ready(self) -> bool:
        """Is every known model fully there? A version that was unloaded on purpose does not count against it."""
        return all(
            model.slots
            and all(
                (slot.state is State.READY and slot.served is not None and slot.served.healthy)
                or (slot.state is State.UNAVAILABLE and slot.reason == UNLOADED)
                for slot in model.slots.values()
            )
            for model in self.models.values()
            if model.known
        )

    def index(self, ready_only: bool) -> list[IndexEntry]:
        """What the repositories hold, by name, then version."""
        entries = []
        for name, model in sorted(self.models.items()):
            if model.ambiguous:
                entries.append(IndexEntry(name, "", State.UNAVAILABLE, DUPLICATE))
            elif not model.slots and not ready_only:
                entries.append(IndexEntry(name))
            entries += [
                IndexEntry(name, str(version), slot.state, slot.reason)
                for version, slot in sorted(model.slots.items())
                if slot.state is State.READY or not ready_only
            ]
        return entries

    def all_loaded(self) -> bool:
        """Did every model load that should have?"""
        return all(model.slots and all(slot.state is State.READY for slot in model.slots.values()) for model in self.models.values())

    def live_count(self) -> int:
        """How many versions are loaded."""
        return len(self._loads)

    def status_rows(self) -> list[tuple[str, str, str]]:
        """Model, version and state of every known model, for people."""
        rows = []
        for name, model in sorted((name, model) for name, model in self.models.items() if model.known):
            for version, slot in sorted(model.slots.items()):
                rows.append((name, str(version), f"{slot.state}: {slot.reason}" if slot.reason else str(slot.state)))
            if not model.slots:
                rows.append((name, "", ""))
        return rows

    def in_flight(self) -> list[tuple[str, int, int]]:
        """Name, version and number of requests of every version that has some."""
        return [(load.name, load.version, count) for load in self._loads.values() if (count := load.in_flight)]

    async def asked_ready(self, served: ModelVersion) -> bool:
        """Can it be asked, and does it say so itself where it has a check?"""
        return await self._readiness.ready(served)

    # loading

    async def load_all(self) -> None:
        """Load every model of the repositories; what fails is told by the index, the log and readiness."""
        for found in scan(self._options.model_repository):
            model = self.models[found.name] = Model(found.name, [str(path) for path in found.directories])
            if model.ambiguous:
                self._log.error(f"failed to poll model '{model.name}': {DUPLICATE}")
        read = {model.name: self._read(model) for model in self.models.values() if not model.ambiguous}
        configs = {name: config for name, config in read.items() if config is not None}
        ensembles = ensembles_of(configs)
        for name, error in refused_at_once(ensembles, self.models).items():
            self._refuse(self.models[name], error)
        await asyncio.gather(*[self._load_model(self.models[name], config) for name, config in configs.items() if name not in ensembles])
        for name, config in ensembles.items():
            await self._load_ensemble(self.models[name], config)

    def _read(self, model: Model) -> Any | None:
        """A model's configuration, or None where it cannot be read."""
        try:
            config = read_config(
                Path(model.directories[0]),
                model.name,
                config_name=self._options.model_config_name,
                auto_complete=not self._options.disable_auto_complete_config,
            )
        except StatusError as error:
            detail = f" ({error.detail})" if isinstance(error, ConfigurationError) else ""
            self._log.error(f"Poll failed for model directory '{model.name}': {error.message}{detail}")
            return None
        model.known = True
        return config

    def _refuse(self, model: Model, error: StatusError) -> None:
        """An ensemble does not fit its members: it is as little known as a model without a configuration."""
        model.known, model.fault = False, error.message
        self._log.error(error.reason)

    async def _load_ensemble(self, model: Model, config: Any) -> None:
        if not model.known:
            return
        try:
            check_ensemble(config, self.models, self._member)
        except StatusError as error:
            self._refuse(model, error)
        else:
            await self._load_model(model, config)

    def _member(self, name: str, version: int) -> ModelVersion:
        return self.find(name, "" if version < 0 else str(version))

    async def _load_model(self, model: Model, config: Any) -> None:
        """Load the versions that the model's policy chooses; all of them, or none."""
        try:
            versions = self._versions(Path(model.directories[0]), config)
        except NoVersion as error:
            for note in error.notes:
                self._log.error(note)
            model.fault = error.message
            self._log.error(f"failed to load model '{model.name}': {error.message}")
            return
        model.slots = {number: VersionSlot(number, State.LOADING) for number in versions}
        await asyncio.gather(*[self._load_version(model, slot, config) for slot in model.slots.values()])
        failed = [slot for slot in model.slots.values() if slot.state is not State.READY]
        if failed:
            for slot in model.slots.values():
                if slot.state is State.READY and slot.served is not None:
                    await self._unload(slot)
            self._log.info(f"failed to load '{model.name}'")
        elif model.slots:
            self._log.info(f"successfully loaded '{model.name}'")

    def _versions(self, directory: Path, config: Any) -> tuple[int, ...]:
        present = present_versions(directory)
        for note in present.notes:
            self._log.warning(note)
        chosen = chosen_versions(config, present.numbers)
        for note in chosen.notes:
            self._log.error(note)
        return chosen.numbers

    async def _load_version(self, model: Model, slot: VersionSlot, config: Any) -> None:
        async with self._loading:
            for attempt in range(self._options.model_load_retry_count + 1):
                self._log.info(f"loading: {model.name}:{slot.version}")
                began_ns = time.monotonic_ns()
                try:
                    served = await self._create(model, slot.version, config)
                except StatusError as error:
                    slot.state, slot.reason = State.UNAVAILABLE, error.reason
                    self._log.error(f"failed to load '{model.name}' version {slot.version}: {error.reason}")
                    continue
                served.statistics.load_duration_ns = time.monotonic_ns() - began_ns
                slot.state, slot.reason, slot.served = State.READY, "", served
                if attempt:
                    self._log.info(f"'{model.name}' version {slot.version} was loaded at attempt {attempt + 1}")
                return

    async def _create(self, model: Model, version: int, read: Any) -> ModelVersion:
        directory = model.directories[0]
        config = type(read)()
        config.CopyFrom(read)
        check_supported(config)
        if is_ensemble(config):
            return self._create_ensemble(model, version, config)
        settings = backend_settings(self._options, config.backend)
        chosen = choose_backend(config, Path(directory), version, Path(self._options.backend_directory))
        if chosen.file and not config.runtime:
            config.runtime = Path(chosen.file).name
        interpreter = await self._interpreter(config, chosen, directory)
        if chosen.name == PYTHON:
            # What the model is shown for completion has its instances.
            normalize_instance_groups(config, ())
        if not self._options.disable_auto_complete_config:
            home = worker_name(config, chosen.name, version, "KIND_CPU", 0, 0)
            inspect = Inspect(0, chosen.name, directory, version, document(config), settings, True, chosen.file)
            inspected = await self.farm.inspect(home, inspect, interpreter)
            for note in inspected.notes:
                self.worker_event(note.severity, note.text)
            merge_completed(config, parse_document(inspected.config))
        self._finish(config, version)
        signature = signature_of(config)
        number = next(self._model_numbers)
        statistics = self._book.open(model.name, version, config.metric_tags, decoupled=signature.decoupled)
        served = ModelVersion(
            name=model.name,
            version=version,
            number=number,
            directory=directory,
            config=config,
            signature=signature,
            statistics=statistics,
            scheduler=scheduler_of(config, signature, self._batch_numbers, statistics),
            labels=read_labels(Path(directory), config),
        )
        await self._place(served, chosen, settings, interpreter)
        return served

    def _create_ensemble(self, model: Model, version: int, config: Any) -> ModelVersion:
        self._finish(config, version)
        plan = plan_ensemble(config, self._member)
        signature = signature_of(config)
        statistics = self._book.open(model.name, METRICS_VERSION, config.metric_tags, decoupled=signature.decoupled)
        served = ModelVersion(
            name=model.name,
            version=version,
            number=next(self._model_numbers),
            directory=model.directories[0],
            config=config,
            signature=signature,
            statistics=statistics,
            scheduler=scheduler_of(config, signature, self._batch_numbers, statistics),
            labels=ensemble_labels(Path(model.directories[0]), config, plan, self._member),
            ensemble=self.make_ensemble(plan, statistics),
            members=members_of(plan, self._member),
        )
        self._loads[served.number] = served
        return served

    def _finish(self, config: Any, version: int) -> None:
        """Bring a configuration to its final form. Raises StatusError."""
        finish_config(config, ())
        check_supported(config)
        idle = fields_without_effect(config)
        if idle:
            self._log.warning(f"model '{config.name}' version {version} asks for what this release does not do yet: {', '.join(idle)}")
        if self._log.settings.log_verbose_level >= 1:
            self._log.verbose(1, f"configuration of '{config.name}' version {version}: {document(config).decode()}")

    async def _interpreter(self, config: Any, chosen: BackendChoice, directory: str) -> Interpreter:
        """The Python that a model's workers run in."""
        path = environment_path(config) if chosen.name == PYTHON else ""
        if not path:
            return OWN
        interpreter = await resolve(path, directory, self._environments)
        self._log.info(f"Using Python execution env {path}")
        return interpreter

    async def _place(self, served: ModelVersion, chosen: BackendChoice, settings: dict[str, str], interpreter: Interpreter) -> None:
        """Have each worker that the placement names create its share of the instances."""
        shares: dict[str, list[InstanceSpec]] = {}
        for group in served.config.instance_group:
            if group.passive:
                continue
            kind = group.Kind.Name(group.kind)
            for device in list(group.gpus) or [0]:
                for index in range(group.count):
                    instance = Instance(next(self._instance_numbers), f"{group.name}_{index}")
                    served.instances.append(instance)
                    self._instances[instance.number] = (instance, served)
                    worker = worker_name(served.config, chosen.name, served.version, kind, device, len(served.instances) - 1)
                    shares.setdefault(worker, []).append(InstanceSpec(instance.number, instance.name, kind, device))
        self._loads[served.number] = served
        served.workers = list(shares)
        config = document(served.config)
        load = Load(0, served.number, served.name, chosen.name, served.directory, served.version, config, settings, [], chosen.file)
        loads = [self.farm.load(worker, msgspec.structs.replace(load, instances=specs), interpreter) for worker, specs in shares.items()]
        results = await asyncio.gather(*loads, return_exceptions=True)
        for failure in results:
            if isinstance(failure, BaseException):
                await self._remove(served)
                raise failure
        served.checks = any(result is True for result in results)
        if served.checks:
            self.checked.add(served)

    async def _unload(self, slot: VersionSlot) -> None:
        """Take a version out of service, wait for its requests, and free it."""
        served, slot.served = slot.served, None
        slot.state, slot.reason = State.UNLOADING, ""
        if served is not None:
            await self._remove(served)
        slot.state, slot.reason = State.UNAVAILABLE, UNLOADED
        if served is not None:
            self._log.info(f"successfully unloaded '{served.name}' version {served.version}")

    async def _remove(self, served: ModelVersion) -> None:
        served.stop()
        idle = asyncio.Event()
        if served.ensemble is None:
            self._dispatcher.when_idle(served.scheduler, idle.set)
        else:
            served.ensemble.when_idle(idle.set)
        await idle.wait()
        await asyncio.gather(*[self.farm.unload(worker, served.number) for worker in served.workers])
        for instance in served.instances:
            served.scheduler.instance_down(instance)
            del self._instances[instance.number]
        del self._loads[served.number]
        self.checked.discard(served)

    # the end

    def stop_accepting(self) -> None:
        """Refuse new requests; those already taken are finished."""
        for served in self._loads.values():
            served.stop()

    async def unload_all(self, timeout_secs: float) -> None:
        """Unload everything once nothing is in flight, so that models can clean up; what takes longer is cut short by the farm's end."""
        unloading = [asyncio.ensure_future(self._remove(served)) for served in list(self._loads.values())]
        if unloading:
            _, late = await asyncio.wait(unloading, timeout=timeout_secs)
            for task in late:
                task.cancel()
            if late:
                self._log.warning(f"{len(late)} model versions were not unloaded within {timeout_secs:g} s")

    def abandon(self, error: StatusError) -> None:
        """Answer everything that is still in flight with ``error``."""
        self._dispatcher.abandon([served.scheduler for served in self._loads.values()], error)

    # what the farm says

    def instance_ready(self, instance: int) -> None:
        """An instance can take batches."""
        found, served = self._instances[instance]
        served.scheduler.suspend(None)
        self._dispatcher.instance_up(served.scheduler, found)

    def instance_lost(self, instance: int, error: StatusError) -> None:
        """An instance went down with its worker."""
        found, served = self._instances[instance]
        self._dispatcher.instance_down(served.scheduler, found, error)

    def model_lost(self, model: int, error: StatusError) -> None:
        """A model will not be back soon."""
        served = self._loads.get(model)
        if served is not None and not served.healthy:
            self._log.error(f"'{served.name}' version {served.version} cannot be asked: {error.message}")
            served.scheduler.suspend(error)
            self._dispatcher.touch(served.scheduler)

    def batch_done(self, done: Done, process: WorkerProcess) -> None:
        """A batch has been answered."""
        self._dispatcher.batch_done(done, process)

    def responded(self, message: Respond, process: WorkerProcess) -> None:
        """A model has answered a request by its sender."""
        self._dispatcher.respond(message, process)

    def spoken(self, message: Spoken, process: WorkerProcess) -> None:
        """A model says something else."""
        self.heard(message, process)

    def worker_gone(self, process: WorkerProcess) -> None:
        """A worker process has ended."""
        self.worker_left(process)

    def worker_says(self, worker: str, line: str) -> None:
        """A worker printed a line."""
        self._log.info(f"[worker {worker}] {line}")

    def worker_event(self, severity: str, text: str) -> None:
        """Something of a worker, or about one, that belongs in the log."""
        {"I": self._log.info, "W": self._log.warning, "E": self._log.error}[severity](text)
