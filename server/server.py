"""The server process: start-up, running, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..shm.arena import Arena, create_memory
from ..shm.placement import Lease
from ..workers.contract.backends import NATIVE, PYTHON
from ..workers.contract.cores import usable_core_count
from ..workers.contract.messages import Cancel, Hold
from ..workers.contract.status import StatusError, unavailable
from . import ahead
from .admission import Admission, AdmissionLimits
from .alarm import Alarm
from .busy_poll import DEFAULT_US, BusyPoll
from .caches import CacheThreads, local_families, open_cache
from .calls import ModelCalls
from .collector import relax_collector
from .cuda_regions import CudaRegions
from .custom_metrics import CustomMetrics
from .dispatch.cached import Caching
from .dispatch.delay_hooks import delay_hooks
from .dispatch.dispatcher import Dispatcher
from .dispatch.ensemble import Ensemble
from .dispatch.ensemble_plan import EnsemblePlan
from .dispatch.instance import PlannedBatch
from .dispatch.rate_limiter import RateLimiter
from .dispatch.response_cache import LocalCache
from .doors import Doors
from .farm.child_process import ChildProcess
from .farm.devices import Devices
from .farm.environments import Environments
from .farm.farm import Farm
from .farm.grants import Grants
from .farm.launch import Launched
from .farm.mover import DeviceMover
from .farm.processes import Processes
from .gpus import Gpus
from .host_cpu import HostCpu
from .host_gpus import HostGpus, open_gpus
from .lazy_service import LazyService
from .log import Log
from .metrics import MetricsExposition
from .metrics_settings import parse_settings
from .model_talk import ModelTalk
from .options import Options, backend_settings, check_creation
from .prometheus_text import Family
from .regions import RegionRegistry
from .release import EXTENSIONS_WITH_GPUS
from .repository.catalogue import Catalogue
from .repository.creation import Creation
from .repository.demand import Awaited, NotResident, OnReady
from .repository.generations import Generations
from .repository.lazy_lifecycle import LazyLifecycle
from .repository.lifecycle import Lifecycle
from .repository.namespaces import Namespaces
from .repository.polling import Polling
from .repository.readiness import ReadinessChecks
from .repository.source import Source
from .repository.sources import source_of
from .repository.version import ModelVersion
from .service import Service
from .statistics import StatisticsBook, VersionStatistics
from .tables import backend_table, model_table, option_rows, option_table, terminal_columns

if TYPE_CHECKING:
    from .redis_cache import RedisCache

_STDOUT, _STDERR = 1, 2

UNLOAD_SECS = 2.0
"""How long models have to clean up at the end, however little of the exit timeout is left."""

SHORTEST_LOOK_SECS = 0.05
"""How often GPUs are asked how they are at the most."""

LAST_WORDS_SECS = 0.05
"""How long the answers to abandoned requests have to leave before their connections are cut."""


def arena_byte_sizes(pool_byte_size: int) -> tuple[int, int]:
    """Capacity and resident part of an arena, in bytes.

    The pool is what stays in memory once used. Above it an arena may grow by a quarter of the
    machine's memory, which is given back as soon as it is free: a memfd costs nothing until it is written.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return pool_byte_size + physical // 4, pool_byte_size


def admission_limits(options: Options, arena_byte_size: int) -> AdmissionLimits:
    """What may be in flight. Where nobody says how many bytes, those of large bodies are bounded anyway: all together get that bound."""
    byte_size = options.max_inflight_byte_size
    bound = arena_byte_size if byte_size is None else byte_size
    return AdmissionLimits(options.max_inflight_requests, bound, options.max_inflight_requests_per_model)


def busy_poll_us(options: Options) -> int:
    """How long the loop stays awake for a lone client, in microseconds: not at all without a core more than doors need, for the workers."""
    if options.busy_poll_us is not None:
        return options.busy_poll_us
    return DEFAULT_US if usable_core_count() > 1 + options.front_ends else 0


class Server:
    """Everything that one server process owns."""

    def __init__(self, options: Options, log: Log, worker: Launched | None = None) -> None:
        self._options = options
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._signals = 0
        settings = parse_settings(options.metrics_config.items(), log.error)
        book = StatisticsBook(summaries=settings.summary_latencies, histograms=settings.histogram_latencies)
        self._sizes = arena_byte_sizes(options.pinned_memory_pool_byte_size)
        self._arena_fd = create_memory(self._sizes[0])
        arena = Arena(0, self._arena_fd, self._sizes[1])
        self._regions = RegionRegistry()
        self._busy_poll = BusyPoll(busy_poll_us(options), self._loop.call_soon)
        limiter = RateLimiter(options.rate_limit_resource) if options.rate_limit == "execution_count" else None
        self._dispatcher = Dispatcher(
            self._send,
            self._loop.call_soon,
            self._set_alarm,
            stay_awake=self._busy_poll.stay_awake,
            recall=self._recall,
            hold=self._hold,
            view=self._any_view,
            limiter=limiter,
        )
        self._alarm = Alarm(self._loop, self._dispatcher.alarm)
        self._environments = Environments()
        self.catalogue: Catalogue | Namespaces
        self.lifecycle: Lifecycle | Namespaces
        self._generations = Generations(self._dispatcher, log)
        self._processes = Processes(self._loop, self._regions, self._arena_fd, self._sizes)
        self._gpus = Gpus()
        grants = Grants(self._gpus, options.cuda_memory_pool_byte_size)
        self._farm = Farm(self._loop, self._generations, self._processes, worker, grants)
        self._devices = Devices(self._farm, self._processes, self._regions)
        self._sources: list[Source] = []
        self._lazy: LazyLifecycle | None = None
        self._cache: LocalCache | RedisCache | None = None
        self._cache_threads = CacheThreads(self._loop)
        creation = self._creation = Creation(
            *(options, self._farm, self._dispatcher, book, log, self._environments, self._generations, self._make_ensemble),
            hooks=delay_hooks(os.environ, log.warning),
            limiter=limiter,
            gpus=self._gpus,
        )
        if options.model_namespacing:
            self.catalogue = self.lifecycle = Namespaces(options, partial(Lifecycle, options, creation, self._generations, log))
        elif options.model_control_mode == "lazy":
            self.catalogue = Catalogue()
            self.lifecycle = self._lazy = LazyLifecycle(
                *(options, creation, self._generations, log, self.catalogue, self._dispatcher),
                memory=self._farm.resident_byte_size,
                calling=lambda name: calls.calling(name),
            )
        else:
            self.catalogue = Catalogue()
            self.lifecycle = Lifecycle(options, creation, self._generations, log, self.catalogue)
        readiness = ReadinessChecks(self._farm.check, log.warning)
        admission = Admission(admission_limits(options, self._sizes[0]), self._dispatcher, arena, lambda: self.service.counted())
        cuda_regions = CudaRegions(self._regions, self._gpus, self._devices)
        settings_of_log, view = log.settings, self._processes.view
        parts = (self.catalogue, self.lifecycle, readiness, self._regions, arena, settings_of_log, view, admission, cuda_regions)
        self.service = Service(options, *parts) if self._lazy is None else LazyService(self._lazy, options, *parts)
        metrics = CustomMetrics(lambda: self._exposition.kinds())
        calls = ModelCalls(self.service.find_number, self.service.ask, self._processes.share, bring=self._bring)
        talk = ModelTalk(self.service, calls, metrics, log, self.lifecycle.spawn)
        self._generations.heard, self._generations.worker_left = talk.heard, talk.gone
        self._generations.renew = self.lifecycle.renew
        self._exposition = MetricsExposition(
            self.service,
            book,
            settings,
            cpu=HostCpu(options.metrics_interval_ms * 1_000_000) if options.allow_cpu_metrics else None,
            pool_total_bytes=lambda: self._sizes[1],
            pool_used_bytes=lambda: arena.used_byte_size,
            worker_restarts=lambda: {seat.name: seat.restarts for seat in self._farm.seats.values()} | self._doors.restarts,
            arena_used_bytes=lambda: {"requests": arena.used_byte_size, **self._doors.arena_used_bytes},
            lazy=None if self._lazy is None else self._lazy.figures,
            admission=admission,
            held_elsewhere=lambda: self._doors.held_byte_size,
            sources=(self._gpu_families, metrics.families, self._cache_families),
        )
        self.service.family_of = metrics.family
        self._host_gpus: HostGpus | None = None
        self._gpu_watch: asyncio.Task[None] | None = None
        self._doors = Doors(options, log, self.service, self._processes, self._exposition.render, self._busy_poll.stay_awake)
        self.catalogue.on_change = self._doors.models_changed

    def _send(self, batch: PlannedBatch) -> None:
        self._farm.send(batch)

    def _recall(self, batch: PlannedBatch, index: int) -> None:
        self._farm.tell(batch, Cancel(batch.number, index))

    def _hold(self, batch: PlannedBatch, index: int, held: bool) -> None:
        self._farm.tell(batch, Hold(batch.number, index, held))

    def _bring(self, absent: NotResident, on_ready: OnReady, caller: ChildProcess) -> Awaited:
        return self.service.bring(absent, on_ready, next(iter(self._generations.models_in(caller.name)), ""))

    def _any_view(self, lease: Lease) -> memoryview:
        return self.service.view(lease)

    def _gpu_families(self) -> list[Family]:
        return [] if self._host_gpus is None or not self._options.allow_gpu_metrics else self._host_gpus.families()

    async def _look_for_gpus(self) -> None:
        self._host_gpus = await self._loop.run_in_executor(None, open_gpus, self._warn_later)
        if self._host_gpus is not None and importlib.util.find_spec("cupy") is None:
            self._log.warning("models get no GPU: the package cupy-cuda13x, which the extra 'gpu' brings, is not installed")
            return
        self._gpus.look(self._host_gpus, self._options.min_supported_compute_capability, self._log.warning)
        if self._gpus.usable:
            self._log.info(f"Models may run on the GPUs {self._gpus.names()}")
            self.service.extensions = EXTENSIONS_WITH_GPUS
            self._creation.mover = DeviceMover(self._loop, self._devices, self._log.error)

    async def _watch_gpus(self, gpus: HostGpus) -> None:
        """Ask the GPUs how they are, twice in each interval."""
        while True:
            await self._loop.run_in_executor(None, gpus.sample)
            await asyncio.sleep(max(SHORTEST_LOOK_SECS, self._options.metrics_interval_ms / 2000))

    def _warn_later(self, line: str) -> None:
        self._loop.call_soon_threadsafe(self._log.warning, line)

    def _cache_families(self) -> list[Family]:
        return local_families(self._cache) if isinstance(self._cache, LocalCache) else []

    def _make_ensemble(self, plan: EnsemblePlan, statistics: VersionStatistics, members: dict[tuple[str, int], ModelVersion]) -> Ensemble:
        ask = partial(self.service.ask_member, members)

        def device_workers(model: str, version: int) -> frozenset[str]:
            return members[model, version].device_workers

        return Ensemble(
            *(plan, statistics, ask),
            view=self.service.view,
            warn=self._log.warning,
            call_soon=self._loop.call_soon,
            device_workers=device_workers if self._gpus.usable else None,
        )

    def _set_alarm(self, at_ns: int | None) -> None:
        self._alarm.set(at_ns)

    async def run(self) -> int:
        """Serve until a signal comes; returns the exit code."""
        for number in ahead.STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._signalled, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ahead.STOP_SIGNALS)
        try:
            started = await self._unless_stopped(self._start())
            if not started:
                # Those that have been loaded clean up all the same.
                await self.lifecycle.unload_all(UNLOAD_SECS)
                return 0 if started is None else 1
            await self._stop.wait()
            return await self._drain()
        finally:
            await self._close()

    async def _unless_stopped(self, work: Coroutine[Any, Any, bool]) -> bool | None:
        """The result of ``work``, or None where a signal came first and it was given up."""
        task = self._loop.create_task(work)
        stopped = self._loop.create_task(self._stop.wait())
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait((task,))
        return None

    def _signalled(self, number: int) -> None:
        self._signals += 1
        if self._signals > 1:
            # Whoever asks twice does not want to wait: no clean-up but the workers and the sockets' folder.
            self._doors.end_now()
            self._farm.end_now()
            self._processes.end_now()
            self._environments.end_now()
            os._exit(1)
        self.service.exiting = True
        self._stop.set()
        _say(f"Signal ({number}) received.", _STDOUT)

    # start

    async def _start(self) -> bool:
        try:
            check_creation(self._options)
            self._cache = await open_cache(self._options, self._log)
            if self._cache is not None:
                self._creation.caching = Caching(self._cache, self.service.view, self._cache_threads, self._dispatcher)
            self._doors.check_certificates()
            self._sources += [source_of(name, self._say_later) for name in self._options.model_repository]
            await asyncio.gather(*[asyncio.to_thread(source.check) for source in self._sources])
            self._farm.start("cpu")
            await asyncio.gather(self._look_for_gpus(), self._doors.prepare())
            self.lifecycle.open(self._sources)
            failure = await self.lifecycle.start()
            self._print_tables()
            if self._options.exit_on_error and failure is not None:
                raise failure
        except StatusError as error:
            _say(f"error: creating server: {error.code.text} - {error.message}", _STDERR)
            return False
        self._follow_repositories()
        self.service.started = True
        relax_collector()
        if self._host_gpus is not None and self._options.allow_gpu_metrics:
            self._gpu_watch = self._loop.create_task(self._watch_gpus(self._host_gpus))
        opened = await self._doors.open()
        if opened:
            self._loop.run_in_executor(None, ahead.rest)
        return opened

    def _say_later(self, line: str) -> None:
        """Have the log say something that another thread knows."""
        self._loop.call_soon_threadsafe(self._log.info, line)

    def _follow_repositories(self) -> None:
        interval_secs = self._options.repository_poll_secs
        if interval_secs > 0:
            settle_secs = self._options.repository_settle_ms / 1000
            for sources, catalogue, lifecycle in self._followed():
                lifecycle.spawn(Polling(sources, catalogue, lifecycle, self._log, interval_secs, settle_secs).run())

    def _followed(self) -> list[tuple[Sequence[Source], Catalogue, Lifecycle]]:
        """The repositories with the models that are theirs."""
        if isinstance(self.lifecycle, Namespaces):
            return [([source], catalogue, lifecycle) for source, catalogue, lifecycle in self.lifecycle.pairs]
        assert isinstance(self.catalogue, Catalogue)
        return [(self._sources, self.catalogue, self.lifecycle)]

    def _print_tables(self) -> None:
        options = self._options
        columns = terminal_columns()
        self._log.table(backend_table([(name, "built in", backend_settings(options, name)) for name in (*NATIVE, PYTHON)], columns))
        self._log.table(model_table(self.catalogue.status_rows(), columns))
        self._log.table(option_table(option_rows(options, self.service.version, self.service.extensions), columns))

    # end

    async def _drain(self) -> int:
        """Let what is in flight finish, within the time the options give."""
        left = self._options.exit_timeout_secs
        await self._doors.stop_accepting()
        self.lifecycle.give_up_loads()
        self._generations.drain()
        self._log.info("Waiting for in-flight requests to complete.")
        while True:
            busy = self._generations.in_flight()
            connections, calls = self._doors.connection_count, self._doors.answering_count
            if not busy and not connections and not calls:
                break
            if calls:
                self._log.info(f"Timeout {left}: Found {calls} gRPC connections with calls under way")
            if connections:
                self._log.info(f"Timeout {left}: Found {connections} HTTP service connections")
            if busy:
                self._log.info(f"Timeout {left}: Found {len(busy)} model versions that have in-flight inferences")
            for name, version, count in busy:
                self._log.info(f"Model '{name}' (version {version}) has {count} in-flight inferences")
            if left <= 0:
                late = unavailable("Server is stopping; its exit timeout has expired")
                if self._lazy is not None:
                    self._lazy.abandon(late)
                self._generations.abandon(late)
                self._log.error("failed to stop server: Internal - Exit timeout expired. Exiting immediately.")
                await asyncio.sleep(LAST_WORDS_SECS)
                return 1
            await self._wait_quiet(1.0)
            left -= 1
        self._generations.stop_accepting()
        self._log.info("All models are stopped, unloading models")
        self._log.info(f"Timeout {left}: Found {len(self._generations)} live models and 0 in-flight non-inference requests")
        await self.lifecycle.unload_all(max(UNLOAD_SECS, left))
        return 0

    async def _wait_quiet(self, longest_secs: float) -> None:
        """Wait this long, or less where nothing is in flight any more."""
        deadline = self._loop.time() + longest_secs
        while self._loop.time() < deadline:
            await asyncio.sleep(0.01)
            if not self._generations.in_flight() and not self._doors.connection_count and not self._doors.answering_count:
                return

    async def _close(self) -> None:
        for source in self._sources:
            # Threads that wait for a store are needed by what follows.
            source.stop()
        await self._doors.close()
        await self._farm.close()
        self._processes.close()
        await self._environments.close()
        await asyncio.gather(*[asyncio.to_thread(source.close) for source in self._sources])
        await self._doors.close_metrics()
        if self._gpu_watch is not None:
            self._gpu_watch.cancel()
            await asyncio.gather(self._gpu_watch, return_exceptions=True)
        if self._host_gpus is not None:
            self._host_gpus.close()
        if self._cache is not None and not isinstance(self._cache, LocalCache):
            await self._cache.close()
        self._cache_threads.close()
        self._regions.close()
        self._alarm.close()
        os.close(self._arena_fd)


def _say(line: str, descriptor: int) -> None:
    """Write a line that is not of the log. Whoever reads it may have gone, so nothing is left in a buffer either."""
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{line}\n".encode())
