"""From an edition of a model to a version that serves, and back: configuration, backend, placement, instances."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ...workers.contract.backends import PYTHON
from ...workers.contract.configuration import copied, document, model_config, parse_document
from ...workers.contract.messages import Inspect, InstanceSpec, Load
from ...workers.contract.signature import signature_of
from ...workers.contract.status import StatusError
from ..dispatch.cached import Cached, Caching
from ..dispatch.carried import Carried, Mover
from ..dispatch.delay_hooks import NO_HOOKS, DelayHooks
from ..dispatch.dispatcher import Dispatcher
from ..dispatch.ensemble import Ensemble
from ..dispatch.ensemble_plan import EnsemblePlan
from ..dispatch.instance import Instance
from ..dispatch.rate_limiter import RateLimiter, needs_of
from ..dispatch.schedulers import scheduler_of
from ..farm.environments import Environments
from ..farm.farm import Farm
from ..farm.interpreter import OWN, Interpreter, resolve
from ..farm.placement import worker_name
from ..gpus import Gpus
from ..log import Log
from ..options import Options, backend_settings
from ..statistics import StatisticsBook, VersionStatistics
from .backend_choice import BackendChoice, choose_backend, environment_path
from .built import fields_without_effect
from .change import Edition
from .ensemble_members import is_ensemble
from .ensembles import METRICS_VERSION, Find, ensemble_labels, members_of, plan_ensemble, runs_decoupled
from .fingerprint import fingerprint
from .generations import Generations
from .labels import read_labels
from .normalization import normalize_instance_groups
from .preparation import finish_config, merge_completed
from .validation import validate_instance_groups
from .version import Home, ModelVersion


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a configuration wants an instance; the same place in another configuration is the same instance.

    ``limits`` is the ``ModelRateLimiter`` of its group, serialised.
    """

    name: str
    kind: str
    device: int
    limits: bytes


class Creation:
    """Creates versions and takes them down again.

    ``make_ensemble(plan, statistics, members)`` makes what runs an ensemble's requests; ``members`` are the versions that it asks,
    by name and version as its steps have them. ``caching`` is where answers are kept of models that ask for it, if anywhere;
    ``mover`` copies tensors of GPUs for models that do not reach them, where there are any. ``limiter`` says which instance may run,
    if that is limited; ``gpus`` are those that models may run on.
    """

    def __init__(
        self,
        options: Options,
        farm: Farm,
        dispatcher: Dispatcher,
        book: StatisticsBook,
        log: Log,
        environments: Environments,
        generations: Generations,
        make_ensemble: Callable[[EnsemblePlan, VersionStatistics, dict[tuple[str, int], ModelVersion]], Ensemble],
        hooks: DelayHooks = NO_HOOKS,
        limiter: RateLimiter | None = None,
        gpus: Gpus | None = None,
    ) -> None:
        self._gpus = gpus or Gpus()
        self._limiter = limiter
        self._hooks = hooks
        self._options = options
        self._farm = farm
        self._make_ensemble = make_ensemble
        self.caching: Caching | None = None
        self.mover: Mover | None = None
        self._dispatcher = dispatcher
        self._book = book
        self._log = log
        self._environments = environments
        self._generations = generations
        self._batch_numbers = itertools.count(1)
        self._model_numbers = itertools.count(1)
        self._instance_numbers = itertools.count(1)

    async def create(self, edition: Edition, version: int, find: Find) -> ModelVersion:
        """A version with all its instances ready; ``find`` gives the members of an ensemble. Raises StatusError."""
        began_ns = time.monotonic_ns()
        config = copied(edition.config)
        if is_ensemble(config):
            served = self._ensemble(edition, version, config, find)
        else:
            served = await self._model(edition, version, config)
        if config.response_cache.enable:
            await self._keep_answers(served)
        served.statistics.load_duration_ns = time.monotonic_ns() - began_ns
        return served

    async def _keep_answers(self, served: ModelVersion) -> None:
        """Put the cache in front of a version."""
        caching, config = self.caching, served.config
        if caching is None:
            self._log.warning(
                f"model '{served.name}' asks for a response cache, and no --cache-config says which: its answers are not kept"
            )
            return
        identity = b"%d" % served.number
        if caching.store.shared:
            try:
                identity = await self._fingerprint(served)
            except BaseException:
                await self.remove(served)
                raise
        ordered = config.HasField("dynamic_batching") and config.dynamic_batching.preserve_ordering
        served.cached = Cached(
            msgspec.msgpack.encode((served.name, served.version, identity)),
            caching,
            served.enter,
            served.withdraw,
            served.statistics,
            output_count=len(served.signature.outputs),
            ordered=ordered,
            ensemble=served.ensemble is not None,
        )
        served.enter, served.withdraw = served.cached.submit, served.cached.cancel
        served.statistics.caching = True

    async def _fingerprint(self, served: ModelVersion) -> bytes:
        """What other servers call the same load of the same files; what none does, where the files cannot be read or change meanwhile."""
        if not served.fingerprint:
            try:
                backend_file = "" if served.load is None else served.load.backend_file
                own = await asyncio.to_thread(fingerprint, served.files.directory, served.version, served.config, backend_file)
                if await asyncio.to_thread(served.files.files.changed, served.version):
                    own = os.urandom(32)
            except (OSError, StatusError) as error:
                own = os.urandom(32)
                self._log.warning(f"the cached answers of '{served.name}' are shared with no other server: {error}")
            members = [await self._fingerprint(member) for _, member in sorted(served.members.items())]
            served.fingerprint = hashlib.sha256(b"".join((own, *members)), usedforsecurity=False).digest()
        return served.fingerprint

    async def _model(self, edition: Edition, version: int, config: Any) -> ModelVersion:
        directory = edition.copy.directory
        settings = backend_settings(self._options, config.backend)
        chosen = choose_backend(config, directory, version, Path(self._options.backend_directory))
        if chosen.file and not config.runtime:
            config.runtime = Path(chosen.file).name
        interpreter = await self._interpreter(config, chosen, directory)
        generation = self._generations.reserve(edition.name, version)
        try:
            return await self._model_with(edition, version, config, chosen, settings, interpreter, generation)
        finally:
            self._generations.give_up(edition.name, version, generation)

    async def _model_with(
        self,
        edition: Edition,
        version: int,
        config: Any,
        chosen: BackendChoice,
        settings: dict[str, str],
        interpreter: Interpreter,
        generation: int,
    ) -> ModelVersion:
        directory = edition.copy.directory
        if chosen.name == PYTHON:
            # What the model is shown for completion has its instances.
            normalize_instance_groups(config, self._gpus.ordinals)
        if not self._options.disable_auto_complete_config:
            home = worker_name(config, chosen.name, version, "KIND_CPU", 0, 0, generation)
            inspect = Inspect(0, chosen.name, str(directory), version, document(config), settings, True, chosen.file)
            inspected = await self._farm.inspect(home, inspect, interpreter)
            for note in inspected.notes:
                self._generations.worker_event(note.severity, note.text)
            merge_completed(config, parse_document(inspected.config))
        self._finish(config, version)
        number = next(self._model_numbers)
        load = Load(0, number, edition.name, chosen.name, str(directory), version, document(config), settings, [], chosen.file)
        labels = await asyncio.to_thread(read_labels, directory, config)
        served = self._version(edition, version, config, number, version, labels)
        served.generation, served.load, served.interpreter = generation, load, interpreter
        if self.mover is not None:
            served.carried = Carried(
                *(self.mover, served.takes, served.ties, served.enter, served.withdraw, served.statistics, self._dispatcher),
                model=served.name,
                ordered=served.scheduler.order is not None,
            )
            served.enter, served.withdraw = served.carried.submit, served.carried.cancel
        self._generations.add(served)
        try:
            await self._add_instances(served, list(_places(config)), load)
        except BaseException:
            await self.remove(served)
            raise
        return served

    def _version(
        self, edition: Edition, version: int, config: Any, number: int, metrics_version: int, labels: dict[str, list[str]]
    ) -> ModelVersion:
        signature = signature_of(config)
        statistics = self._book.open(
            *(edition.name, metrics_version, config.metric_tags),
            decoupled=signature.decoupled,
            namespace=edition.namespace,
            max_batch_size=0 if config.HasField("ensemble_scheduling") else config.max_batch_size,
        )
        scheduler = scheduler_of(config, signature, self._batch_numbers, statistics, self._log.warning, self._hooks)
        scheduler.limited = self._limiter is not None
        return ModelVersion(
            name=edition.name,
            version=version,
            number=number,
            files=edition.copy.take(),
            config=config,
            signature=signature,
            statistics=statistics,
            scheduler=scheduler,
            enter=partial(self._dispatcher.submit, scheduler),
            withdraw=partial(self._dispatcher.cancel, scheduler),
            hold=partial(self._dispatcher.hold, scheduler),
            labels=labels,
        )

    def _ensemble(self, edition: Edition, version: int, config: Any, find: Find) -> ModelVersion:
        # Not in the edition, which is compared with what is found later.
        config.model_transaction_policy.decoupled = runs_decoupled(config, find)
        self._finish(config, version)
        plan = plan_ensemble(config, find)
        labels = ensemble_labels(edition.copy.directory, config, plan, find)
        served = self._version(edition, version, config, next(self._model_numbers), METRICS_VERSION, labels)
        served.members = members_of(plan, find)
        ensemble = served.ensemble = self._make_ensemble(plan, served.statistics, served.members)
        served.enter, served.withdraw = ensemble.submit, ensemble.cancel
        self._generations.add(served)
        return served

    def _finish(self, config: Any, version: int) -> None:
        """Bring a configuration to its final form. Raises StatusError."""
        finish_config(config, self._gpus.ordinals, self._options.min_supported_compute_capability)
        idle = fields_without_effect(config)
        if idle:
            self._log.warning(f"model '{config.name}' version {version} asks for what this release does not do yet: {', '.join(idle)}")
        if self._log.settings.log_verbose_level >= 1:
            self._log.verbose(1, f"configuration of '{config.name}' version {version}: {document(config).decode()}")

    async def _interpreter(self, config: Any, chosen: BackendChoice, directory: Path) -> Interpreter:
        """The Python that a model's workers run in."""
        path = environment_path(config) if chosen.name == PYTHON else ""
        if not path:
            return OWN
        interpreter = await resolve(path, str(directory), self._environments)
        self._log.info(f"Using Python execution env {path}")
        return interpreter

    async def grow(self, served: ModelVersion, config: Any) -> None:
        """Add the instances that ``config`` asks for and a version lacks. Raises StatusError, and then nothing has changed."""
        assert served.load is not None
        wanted = self._with_instances_of(served.config, config)
        before = set(served.homes)
        load = msgspec.structs.replace(served.load, config=document(wanted))
        try:
            await self._add_instances(served, _missing(wanted, served), load)
        except BaseException:
            await self._drop_instances(served, [self._leaving(served, instance) for instance in served.homes if instance not in before])
            raise

    def _with_instances_of(self, config: Any, other: Any) -> Any:
        """A final configuration with the instance groups that another one asks for. Raises StatusError."""
        wanted = copied(config)
        wanted.ClearField("instance_group")
        wanted.instance_group.extend(other.instance_group)
        normalize_instance_groups(wanted, self._gpus.ordinals)
        validate_instance_groups(wanted, self._gpus.ordinals, self._options.min_supported_compute_capability)
        return wanted

    def trim(self, served: ModelVersion, config: Any) -> Coroutine[Any, Any, None]:
        """Give no more work to the instances that ``config`` does not ask for; what is returned waits for them and frees them."""
        served.config = self._with_instances_of(served.config, config)
        if served.load is not None:
            served.load = msgspec.structs.replace(served.load, config=document(served.config))
        return self._drop_instances(served, [self._leaving(served, instance) for instance in _surplus(served.config, served)])

    def _leaving(self, served: ModelVersion, instance: Instance) -> tuple[Instance, asyncio.Event]:
        """Give an instance no more work; the event says that it has finished what it had."""
        free = asyncio.Event()
        self._dispatcher.when_free(served.scheduler, instance, free.set)
        return instance, free

    async def _drop_instances(self, served: ModelVersion, leaving: list[tuple[Instance, asyncio.Event]]) -> None:
        for instance, free in leaving:
            await free.wait()
            async with served.freeing:
                home = served.homes.get(instance)
                if home is not None:
                    config = b"" if served.load is None else served.load.config
                    await self._farm.shrink(home.worker, served.number, [instance.number], config)
                    # Only now: until then its worker is no place for another.
                    del served.homes[instance]
                    self._generations.remove_instance(instance)
                    if self._limiter is not None:
                        self._limiter.forget(instance)

    async def _add_instances(self, served: ModelVersion, places: list[_Place], load: Load) -> None:
        """Have each worker that the placement names create its share of new instances, and keep it doing so. Raises StatusError."""
        limits = self._options.model_load_gpu_limit
        for place in places if limits else ():
            if place.kind == "KIND_GPU":
                await asyncio.to_thread(self._gpus.check_room, place.device, limits, place.name)
        shares: dict[str, list[InstanceSpec]] = {}
        taken = {home.worker for home in served.homes.values()}
        instances = [
            Instance(next(self._instance_numbers), place.name, device=place.device if place.kind == "KIND_GPU" else -1) for place in places
        ]
        if self._limiter is not None:
            _register(self._limiter, instances, places)
        for place, instance in zip(places, instances, strict=True):
            for index in itertools.count():
                worker = worker_name(served.config, load.backend, served.version, place.kind, place.device, index, served.generation)
                if load.backend != PYTHON or worker not in taken:
                    break
            taken.add(worker)
            spec = InstanceSpec(instance.number, instance.name, place.kind, place.device)
            served.homes[instance] = Home(worker, spec, place.limits)
            self._generations.add_instance(served, instance)
            shares.setdefault(worker, []).append(spec)
        loads = [
            self._farm.extend(worker, msgspec.structs.replace(load, instances=specs), served.interpreter)
            for worker, specs in shares.items()
        ]
        results = await asyncio.gather(*loads, return_exceptions=True)
        for failure in results:
            if isinstance(failure, BaseException):
                raise failure
        if any(result is True for result in results):
            served.checks = True

    async def remove(self, served: ModelVersion) -> None:
        """Take no more requests, wait for those that were taken, and free what it holds.

        That is done once, whoever asks for it, and goes on if they give up waiting.
        """
        if served.removal is None:
            served.removal = asyncio.get_running_loop().create_task(self._remove(served))
        await asyncio.shield(served.removal)

    async def _remove(self, served: ModelVersion) -> None:
        served.stop()
        if served.cached is not None:
            passed_on = asyncio.Event()
            served.cached.when_idle(passed_on.set)
            await passed_on.wait()
        if served.carried is not None:
            carried = asyncio.Event()
            served.carried.when_idle(carried.set)
            await carried.wait()
        idle = asyncio.Event()
        if served.ensemble is None:
            self._dispatcher.when_idle(served.scheduler, idle.set)
        else:
            served.ensemble.when_idle(idle.set)
        await idle.wait()
        # An instance that is being freed by itself may hold files and a worker's name as well.
        async with served.freeing:
            await asyncio.gather(*[self._farm.unload(worker, served.number) for worker in served.workers])
            self._generations.remove(served)
            if self._limiter is not None:
                for instance in served.homes:
                    self._limiter.forget(instance)
            served.homes.clear()
        served.files.drop()
        served.gone.set()


def _register(limiter: RateLimiter, instances: list[Instance], places: list[_Place]) -> None:
    """Have instances take turns with all others. Raises StatusError, and then none of them does."""
    try:
        for instance, place in zip(instances, places, strict=True):
            limits = model_config.ModelRateLimiter.FromString(place.limits)
            limiter.register(instance, needs_of(limits, place.device), limits.priority)
    except StatusError:
        for instance in instances:
            limiter.forget(instance)
        raise


def _missing(config: Any, served: ModelVersion) -> list[_Place]:
    """The instances that a configuration asks for and a version lacks."""
    there = Counter(_place_of(home) for instance, home in served.homes.items() if not instance.leaving)
    return list((Counter(_places(config)) - there).elements())


def _surplus(config: Any, served: ModelVersion) -> list[Instance]:
    """The instances of a version that a configuration does not ask for."""
    wanted = Counter(_places(config))
    surplus = []
    for instance, home in served.homes.items():
        if instance.leaving:
            continue
        place = _place_of(home)
        if wanted[place]:
            wanted[place] -= 1
        else:
            surplus.append(instance)
    return surplus


def _place_of(home: Home) -> _Place:
    return _Place(home.spec.name, home.spec.kind, home.spec.device, home.limits)


def _places(config: Any) -> Iterator[_Place]:
    """The instances that a final configuration asks for."""
    for group in config.instance_group:
        if not group.passive:
            limits = group.rate_limiter.SerializeToString(deterministic=True)
            for device in list(group.gpus) or [0]:
                for index in range(group.count):
                    yield _Place(f"{group.name}_{index}", group.Kind.Name(group.kind), device, limits)
