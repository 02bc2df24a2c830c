"""Defaults that a configuration gets once it is read, so that what is reported is what is in force."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...workers.contract.configuration import model_config

SEQUENCE_IDLE_DEFAULT_US = 1_000_000
"""How long a sequence may idle where the configuration does not say."""

CPU_INSTANCE_COUNTS = {"onnxruntime": 2, "tensorflow": 2}
"""Instances of a CPU group without a count, by backend; 1 for the others."""

_GROUP = model_config.ModelInstanceGroup


def normalize(config: Any) -> None:
    """Fill in version policy, preferred batch sizes, the idle time of sequences and pinned memory, in place.

    Done again after auto-completion, which may have set the batch size or a scheduler.
    """
    if not config.HasField("version_policy"):
        config.version_policy.latest.num_versions = 1
    if config.HasField("dynamic_batching"):
        _prefer_largest(config.dynamic_batching, config.max_batch_size)
    if config.HasField("sequence_batching"):
        batching = config.sequence_batching
        batching.max_sequence_idle_microseconds = batching.max_sequence_idle_microseconds or SEQUENCE_IDLE_DEFAULT_US
        if batching.HasField("oldest"):
            _prefer_largest(batching.oldest, config.max_batch_size)
    if not config.HasField("ensemble_scheduling"):
        for buffer in ("input_pinned_memory", "output_pinned_memory"):
            if not config.optimization.HasField(buffer):
                getattr(config.optimization, buffer).enable = True


def normalize_instance_groups(config: Any, gpus: Sequence[int]) -> None:
    """Fill in names, kinds, counts and GPUs of the instance groups, in place; add one group where there is none.

    ``gpus`` are the ids of the usable GPUs. Ensembles have no instances.
    """
    if config.HasField("ensemble_scheduling"):
        return
    if not config.instance_group:
        config.instance_group.add(name=config.name)
    for number, group in enumerate(config.instance_group):
        group.name = group.name or f"{config.name}_{number}"
        if group.kind == _GROUP.KIND_AUTO:
            group.kind = _GROUP.KIND_GPU if gpus and set(group.gpus) <= set(gpus) else _GROUP.KIND_CPU
        if group.count < 1:
            group.count = CPU_INSTANCE_COUNTS.get(config.backend, 1) if group.kind == _GROUP.KIND_CPU else 1
        if group.kind == _GROUP.KIND_GPU and not group.gpus:
            group.gpus.extend(sorted(gpus))


def _prefer_largest(batching: Any, max_batch_size: int) -> None:
    if not batching.preferred_batch_size and max_batch_size > 0:
        batching.preferred_batch_size.append(max_batch_size)
