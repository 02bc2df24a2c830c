"""Test hooks that keep a scheduler from beginning before enough requests wait, so that a test knows what its batches will be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DelayHooks:
    """How many requests must wait before a model's first batch; suites for the original say so in the environment.

    ``queued_count`` counts those that could run, of sequence models at each instance by itself; ``backlog_count``, which counts for the
    direct strategy and only beside the other, those whose sequences wait for a place.
    Source: ``TRITONSERVER_DELAY_SCHEDULER`` and ``TRITONSERVER_BACKLOG_DELAY_SCHEDULER``.
    """

    queued_count: int = 0
    backlog_count: int = 0


NO_HOOKS = DelayHooks()


def delay_hooks(environment: Mapping[str, str], warn: Callable[[str], None]) -> DelayHooks:
    """The hooks that an environment sets; what is no count there is not used, and warned of."""
    counts = []
    for name in ("TRITONSERVER_DELAY_SCHEDULER", "TRITONSERVER_BACKLOG_DELAY_SCHEDULER"):
        text = environment.get(name, "") or "0"
        if not (text.isascii() and text.isdigit()):
            warn(f"the environment variable {name} is to be a number of requests; '{text}' is not used")
            text = "0"
        counts.append(int(text))
    return DelayHooks(*counts)
