"""Model control without workers: repositories in memory, and loads that end when the test says so."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tensorfarm.server.command_line import parse
from tensorfarm.server.dispatch.batching import BatchPolicy, BatchScheduler
from tensorfarm.server.dispatch.instance import Instance
from tensorfarm.server.dispatch.queue import QueuePolicy, RequestQueue
from tensorfarm.server.dispatch.request import Request
from tensorfarm.server.repository.catalogue import Catalogue
from tensorfarm.server.repository.change import Edition
from tensorfarm.server.repository.ensemble_members import is_ensemble
from tensorfarm.server.repository.ensembles import Find, members_of, plan_ensemble
from tensorfarm.server.repository.lifecycle import Lifecycle
from tensorfarm.server.repository.source import Stamps
from tensorfarm.server.repository.version import Home, ModelVersion
from tensorfarm.server.statistics import VersionStatistics
from tensorfarm.workers.contract.configuration import copied
from tensorfarm.workers.contract.messages import InstanceSpec
from tensorfarm.workers.contract.signature import signature_of
from tensorfarm.workers.contract.status import StatusError

PATIENCE_S = 20.0


def tensors(datatype: str = "INT32") -> str:
    """One input X and one output Y."""
    return "".join(
        f'{end} [{{ name: "{name}" data_type: TYPE_{datatype} dims: [1] }}]\n' for end, name in (("input", "X"), ("output", "Y"))
    )


def plain(more: str = "", datatype: str = "INT32") -> str:
    """The configuration of a model that is no ensemble; its name is that of its folder."""
    return f'backend: "python"\n{tensors(datatype)}{more}'


def ensemble(*members: str, more: str = "") -> str:
    """The configuration of an ensemble that runs models one after the other, each by its newest version."""
    names = ["X", *(f"T{number}" for number in range(1, len(members))), "Y"]
    steps = "".join(
        f'step {{ model_name: "{member}" model_version: -1 input_map {{ key: "X" value: "{taken}" }}'
        f' output_map {{ key: "Y" value: "{given}" }} }}\n'
        for member, taken, given in zip(members, names[:-1], names[1:], strict=True)
    )
    return f'platform: "ensemble"\n{tensors()}ensemble_scheduling {{ {steps} }}{more}'


class MemoryCopy:
    """A ``Copy``, written to a folder of its own."""

    def __init__(self, source: Memory, directory: Path) -> None:
        self.directory = directory
        self.released = 0
        self.filled: list[tuple[int, ...]] = []
        self._source = source

    def changed(self, version: int) -> bool:
        return False

    def fill(self, versions: Sequence[int]) -> None:
        assert not self.released
        self.filled.append(tuple(versions))
        if self._source.unfilled:
            raise self._source.unfilled

    def release(self) -> None:
        self.released += 1


class Memory:
    """A ``Source``. Each change of a file gives it another stamp; ``copies`` are all that were made."""

    def __init__(self, folder: Path, name: str = "memory") -> None:
        self.name = name
        self.copies: list[MemoryCopy] = []
        self.unfilled: Exception | None = None
        self.unreadable: StatusError | None = None
        self.refused: dict[str, StatusError] = {}
        self.stopped = False
        self._folder = folder
        self._models: dict[str, dict[str, tuple[str, int]]] = {}
        self._marks = itertools.count(1)
        self._copy_numbers = itertools.count(1)

    def write(self, model: str, config: str | None, versions: Sequence[int] = (1,), **files: str) -> None:
        """Put a model there, in place of what was there by that name; version folders have one file."""
        written = {} if config is None else {"config.pbtxt": config}
        written |= {f"{version}/model.py": "" for version in versions} | files
        self._models[model] = {path: (content, next(self._marks)) for path, content in written.items()}

    def configure(self, model: str, config: str) -> None:
        """Change a model's configuration alone."""
        self._models[model]["config.pbtxt"] = (config, next(self._marks))

    def touch(self, model: str, path: str = "1/model.py") -> None:
        """Change a file, or make one."""
        self._models[model][path] = (self._models[model].get(path, ("", 0))[0], next(self._marks))

    def remove(self, model: str, prefix: str = "") -> dict[str, tuple[str, int]]:
        """Take a model away, or a part of it; what was taken may be put back."""
        files = self._models[model]
        taken = {path: files.pop(path) for path in list(files) if path.startswith(prefix)}
        if not prefix:
            del self._models[model]
        return taken

    def put_back(self, model: str, taken: dict[str, tuple[str, int]]) -> None:
        self._models.setdefault(model, {}).update(taken)

    @property
    def used(self) -> list[MemoryCopy]:
        """The copies that were not released; none was twice."""
        assert all(copy.released <= 1 for copy in self.copies)
        return [copy for copy in self.copies if not copy.released]

    # Source

    def check(self) -> None:
        pass

    def model_names(self) -> list[str]:
        if self.unreadable:
            raise self.unreadable
        return sorted(self._models)

    def stamps(self, model: str) -> Stamps | None:
        if model in self.refused:
            raise self.refused[model]
        files = self._models.get(model)
        if files is None:
            return None
        folders = {f"{path.rpartition('/')[0]}/": None for path in files if "/" in path}
        return {path: mark for path, (_, mark) in files.items()} | folders

    def copy(self, model: str, stamps: Stamps) -> MemoryCopy:
        directory = self._folder / str(next(self._copy_numbers)) / model
        for path, (content, _) in self._models[model].items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        copy = MemoryCopy(self, directory)
        self.copies.append(copy)
        return copy

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        pass


class Loads:
    """What ``Creation`` and ``Generations`` are to a ``Lifecycle``. Models load at once, and end at once, but those that are held.

    ``held`` has a future for each load of a version that is to wait, ``faults`` what a load of it raises, ``busy`` an event for each
    version that has requests; ``events`` is what happened.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.held: dict[tuple[str, int], asyncio.Future[None]] = {}
        self.faults: dict[tuple[str, int], list[Exception]] = {}
        self.busy: dict[ModelVersion, asyncio.Event] = {}
        self.there: list[ModelVersion] = []
        self.growths: list[tuple[str, int, int]] = []
        self.trims: list[tuple[str, int, int]] = []
        self.grow_fault: Exception | None = None
        self.ending = False
        self.making = 0
        self.most_making = 0
        self._numbers = itertools.count(1)

    def all(self) -> list[ModelVersion]:
        return list(self.there)

    def hold(self, name: str, version: int = 1) -> asyncio.Future[None]:
        """Let a version's loads wait until the future has a result, or an exception."""
        future = self.held[name, version] = asyncio.get_running_loop().create_future()
        return future

    def occupy(self, served: ModelVersion) -> asyncio.Event:
        """A version has requests until the event is set."""
        event = self.busy[served] = asyncio.Event()
        return event

    async def create(self, edition: Edition, version: int, find: Find) -> ModelVersion:
        name = edition.name
        self.events.append(f"load {name}:{version}")
        assert getattr(edition.copy.files, "filled", True), "nothing is loaded from a copy that is not complete"
        self.making += 1
        self.most_making = max(self.most_making, self.making)
        try:
            if (name, version) in self.held:
                await self.held[name, version]
        finally:
            self.making -= 1
        faults = self.faults.get((name, version), [])
        if faults:
            raise faults[0] if len(faults) == 1 else faults.pop(0)
        served = self._served(edition, version, find)
        self.there.append(served)
        self.events.append(f"loaded {name}:{version}")
        return served

    def _served(self, edition: Edition, version: int, find: Find) -> ModelVersion:
        config = copied(edition.config)
        statistics = VersionStatistics()
        served = ModelVersion(
            name=edition.name,
            version=version,
            number=next(self._numbers),
            files=edition.copy.take(),
            config=config,
            signature=signature_of(config),
            statistics=statistics,
            scheduler=BatchScheduler(BatchPolicy(), RequestQueue(QueuePolicy()), None, itertools.count(1), statistics),
            enter=_nothing,
            withdraw=_nothing,
        )
        if is_ensemble(config):
            plan = plan_ensemble(config, find)
            served.members = members_of(plan, find)
            served.ensemble = SimpleNamespace(stopping=False, in_flight=0)  # type: ignore[assignment]
        else:
            instance = Instance(served.number, edition.name, live=True)
            served.homes[instance] = Home("cpu", InstanceSpec(instance.number, instance.name, "KIND_CPU", 0))
        return served

    async def grow(self, served: ModelVersion, config: Any) -> None:
        self.growths.append((served.name, served.version, config.instance_group[0].count))
        if self.grow_fault is not None:
            raise self.grow_fault

    def trim(self, served: ModelVersion, config: Any) -> Coroutine[Any, Any, None]:
        count = config.instance_group[0].count if config.instance_group else 1
        self.trims.append((served.name, served.version, count))
        served.config.ClearField("instance_group")
        served.config.instance_group.extend(config.instance_group)

        async def wait() -> None:
            return None

        return wait()

    async def remove(self, served: ModelVersion) -> None:
        if served.removal is None:
            served.removal = asyncio.get_running_loop().create_task(self._remove(served))
        await asyncio.shield(served.removal)

    async def _remove(self, served: ModelVersion) -> None:
        users = [other for other in self.there if served in other.members.values()]
        assert self.ending or not users, f"{served.name} goes before {users[0].name}, which asks it"
        served.stop()
        if served in self.busy:
            await self.busy[served].wait()
        self.events.append(f"gone {served.name}:{served.version}")
        self.there.remove(served)
        served.files.drop()
        served.gone.set()


class Log:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def info(self, text: str) -> None:
        self.lines.append(("I", text))

    def warning(self, text: str) -> None:
        self.lines.append(("W", text))

    def error(self, text: str) -> None:
        self.lines.append(("E", text))

    def errors(self) -> list[str]:
        return [text for severity, text in self.lines if severity == "E"]


class House:
    """A lifecycle over repositories in memory."""

    def __init__(self, folder: Path, *flags: str, sources: int = 1, mode: str = "explicit") -> None:
        self.options = parse([f"--model-repository={folder}", f"--model-control-mode={mode}", "--disable-auto-complete-config", *flags])
        self.sources = [Memory(folder / str(number), f"memory{number}") for number in range(sources)]
        self.source = self.sources[0]
        self.catalogue = Catalogue()
        self.loads = Loads()
        self.log = Log()
        self.lifecycle = Lifecycle(self.options, self.loads, self.loads, self.log, self.catalogue)  # type: ignore[arg-type]
        self.lifecycle.open(self.sources)

    async def load(self, name: str, parameters: Mapping[str, object] | None = None) -> StatusError | None:
        """Load a model; what was wrong with it."""
        try:
            await self.lifecycle.load(name, parameters or {})
        except StatusError as error:
            return error
        return None

    async def unload(self, name: str, dependents: bool = False) -> None:
        await self.lifecycle.unload(name, dependents)

    def states(self, name: str) -> dict[int, str]:
        """The state of each version, with the reason where there is one."""
        model = self.catalogue.models.get(name)
        slots = {} if model is None else model.slots
        return {version: f"{slot.state}: {slot.reason}" if slot.reason else str(slot.state) for version, slot in sorted(slots.items())}

    def served(self, name: str, version: int = -1) -> ModelVersion:
        return self.catalogue.find_number(name, version)

    @property
    def ready(self) -> list[str]:
        """All that can be asked."""
        return [f"{served.name}:{served.version}" for served in self.catalogue.versions()]

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the loop turn until something is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0)

    async def quiet(self) -> None:
        """Let all that is under way end."""
        await self.until(lambda: not self.lifecycle._background)

    def check_quiet(self) -> None:
        """What must be so when nothing is under way."""
        assert not self.lifecycle._claims._held and not self.lifecycle._claims._waiting
        catalogue = self.catalogue
        assert sorted(self.loads.there, key=id) == sorted(catalogue.versions(), key=id)
        used = {model.edition.copy.files for model in catalogue.models.values() if model.edition is not None}
        used |= {served.files.files for served in catalogue.versions()}
        assert {copy for source in self.sources for copy in source.used} == used
        for model in catalogue.models.values():
            assert (model.edition is not None) == bool(model.ready_versions)
            for slot in model.slots.values():
                assert slot.leaving is None
                assert slot.state in ("READY", "UNAVAILABLE")
                assert (slot.state == "READY") == (slot.served is not None)
                assert slot.state == "READY" or slot.reason
                if slot.served is not None:
                    assert not slot.served.stopping
                    assert slot.served.name == model.name and slot.served.version == slot.version
                    for member in slot.served.members.values():
                        assert catalogue.models[member.name].slots[member.version].served is member
            assert not model.edition or set(model.edition.versions) == set(model.ready_versions)


def in_house(folder: Path, play: Callable[[House], Coroutine[Any, Any, None]], *flags: str, **more: Any) -> None:
    """Run a play in a house, and see that nothing is left of it."""

    async def run() -> None:
        house = House(folder, *flags, **more)
        try:
            await play(house)
            await house.quiet()
            house.check_quiet()
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                house.loads.ending = True
                await house.lifecycle.unload_all(PATIENCE_S)
        assert not house.loads.there

    asyncio.run(run())


def _nothing(request: Request) -> None:
    """Requests are no matter of this world."""
