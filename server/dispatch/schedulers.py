"""The scheduler that a model's final configuration asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ...workers.contract.signature import Signature
from ..statistics import VersionStatistics
from .batching import BatchPolicy, batch_scheduler, grouping_of
from .delay_hooks import NO_HOOKS, DelayHooks
from .scheduler import Scheduler
from .sequence_controls import controls_of
from .sequence_scheduler import SequencePolicy, SequenceScheduler
from .sequence_strategies import DirectScheduler, OldestScheduler


def scheduler_of(
    config: Any,
    signature: Signature,
    numbers: Iterator[int],
    statistics: VersionStatistics,
    warn: Callable[[str], None],
    hooks: DelayHooks = NO_HOOKS,
) -> Scheduler:
    """The scheduler for a validated ``ModelConfig``. ``numbers`` are those of batches, ``warn`` takes a line for the log."""
    if config.HasField("sequence_batching"):
        return _sequence_scheduler(config, signature, numbers, statistics, warn, hooks)
    return batch_scheduler(config, signature, numbers, statistics, hooks.queued_count)


def _sequence_scheduler(
    config: Any,
    signature: Signature,
    numbers: Iterator[int],
    statistics: VersionStatistics,
    warn: Callable[[str], None],
    hooks: DelayHooks,
) -> SequenceScheduler:
    batching = config.sequence_batching
    rows = max(1, config.max_batch_size)
    grouping = grouping_of(signature)
    oldest = batching.oldest if batching.HasField("oldest") else None
    policy = SequencePolicy(
        model=config.name,
        slot_count=rows if oldest is None else oldest.max_candidate_sequences or rows,
        idle_ns=batching.max_sequence_idle_microseconds * 1000,
        controls=controls_of(config),
        iterative=batching.iterative_sequence,
    )
    if oldest is None:
        direct = batching.direct
        delay_ns = direct.max_queue_delay_microseconds * 1000
        return DirectScheduler(policy, grouping, numbers, statistics, warn, delay_ns, direct.minimum_slot_utilization, hooks)
    batches = BatchPolicy(
        max_batch_size=rows,
        preferred_sizes=frozenset(oldest.preferred_batch_size),
        max_queue_delay_ns=oldest.max_queue_delay_microseconds * 1000,
    )
    return OldestScheduler(policy, batches, grouping, numbers, statistics, warn, hooks)
