"""Which of the instances that could run something may: those that share resources take turns, by how much each has run.

Sans-IO and without a clock. Source: Triton's rate limiter (``ModelRateLimiter``, ``--rate-limit=execution_count``). The original lets
the first instance in the order that does not get its resources block all behind it; here it holds back those that compete with it.
"""

from __future__ import annotations

import heapq
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...workers.contract.status import invalid
from ..option_values import EVERY_DEVICE, Resource
from .instance import Instance

GLOBAL = -2
"""The device of a resource of which all devices have the same."""

_UNLIMITED = sys.maxsize


class Pool(NamedTuple):
    """A resource of one device, or of all together: ``device`` is `GLOBAL` then."""

    device: int
    name: str


@dataclass(slots=True)
class _Share:
    """What an instance needs for one execution, and how much it has run: its turn comes by ``weight`` times ``executions``."""

    needs: dict[Pool, int]
    weight: int
    order: int
    executions: int = 0


def needs_of(limits: Any, device: int) -> dict[Pool, int]:
    """What a ``ModelRateLimiter`` asks for an instance on a device; of a resource that is named twice, the last count."""
    return {Pool(GLOBAL if getattr(resource, "global") else device, resource.name): resource.count for resource in limits.resources}


class RateLimiter:
    """The resources of all devices, who may have them, and who has them.

    ``explicit`` are the only ones there are, if any are given; a count below 0 is no limit. Otherwise there is as much of each
    resource as the neediest instance asks for.
    """

    def __init__(self, explicit: Iterable[Resource] = ()) -> None:
        self._explicit = tuple(explicit)
        self._shares: dict[Instance, _Share] = {}
        self._available: dict[Pool, int] = {}
        self._in_use: Counter[Pool] = Counter()
        self._running: set[Instance] = set()
        self._order = 0

    def register(self, instance: Instance, needs: Mapping[Pool, int], priority: int = 0) -> None:
        """An instance is to take its turns. Raises StatusError INVALID_ARG where it never could, and then nothing has changed."""
        available = {}
        for pool, count in sorted(needs.items()):
            if self._explicit:
                available[pool] = self._limit(pool)
                if count > available[pool]:
                    raise invalid(
                        f'Resource count for "{pool.name}" is limited to {available[pool]} which will prevent scheduling of one or more '
                        f"model instances, the minimum required count is {count}"
                    )
            else:
                available[pool] = max(count, self._available.get(pool, 0))
        self._check_reach(needs)
        self._available.update(available)
        self._shares[instance] = _Share(dict(needs), max(priority, 1), self._order)
        self._order += 1

    def forget(self, instance: Instance) -> None:
        """An instance is gone, and with it what it asked for."""
        self.give_back(instance)
        share = self._shares.pop(instance, None)
        if share is None:
            return
        for pool in share.needs:
            counts = [other.needs[pool] for other in self._shares.values() if pool in other.needs]
            if not counts:
                del self._available[pool], self._in_use[pool]
            elif not self._explicit:
                self._available[pool] = max(counts)

    def choose(self, candidates: Iterable[Instance], waits: Callable[[Instance], bool] = lambda instance: False) -> Instance | None:
        """The next of these idle instances that may run, None where none may.

        One that has to wait for resources keeps those behind it from all that it needs, so that its turn comes; but not while it
        waits for what instances hold that ``waits`` is true of: they wait themselves, for requests that may have to run first.
        """
        turns = []
        for candidate in candidates:
            share = self._shares[candidate]
            turns.append((share.weight * share.executions, share.order, candidate))
        heapq.heapify(turns)
        kept: set[Pool] = set()
        while turns:
            instance = heapq.heappop(turns)[2]
            needs = self._shares[instance].needs
            if not kept.isdisjoint(pool for pool, count in needs.items() if count):
                continue
            if all(count <= self._available[pool] - self._in_use[pool] for pool, count in needs.items()):
                return instance
            if not self.stuck(instance, waits):
                kept.update(pool for pool, count in needs.items() if count)
        return None

    def stuck(self, instance: Instance, waits: Callable[[Instance], bool]) -> bool:
        """Would an instance still be short of something if all those gave back what they hold that ``waits`` is not true of?"""
        lasting: Counter[Pool] = Counter()
        for other in self._running:
            if waits(other):
                lasting.update(self._shares[other].needs)
        return any(count > self._available[pool] - lasting[pool] for pool, count in self._shares[instance].needs.items())

    def take(self, instance: Instance) -> None:
        """An instance runs, with all that it needs."""
        assert instance not in self._running
        share = self._shares[instance]
        self._running.add(instance)
        share.executions += 1
        self._in_use.update(share.needs)

    def give_back(self, instance: Instance) -> None:
        """An instance does not run any more, if it did."""
        if instance in self._running:
            self._running.remove(instance)
            self._in_use.subtract(self._shares[instance].needs)

    def _limit(self, pool: Pool) -> int:
        """How much there is of what the flags name."""
        devices = (pool.device, EVERY_DEVICE)
        counts = [one.count for one in self._explicit if one.name == pool.name and (pool.device == GLOBAL or one.device in devices)]
        return max((_UNLIMITED if count < 0 else count for count in counts), default=0)

    def _check_reach(self, needs: Mapping[Pool, int]) -> None:
        """A name stands for resources of devices or for one of all devices, never for both."""
        pools = {*needs, *self._available}
        everywhere = {pool.name for pool in pools if pool.device == GLOBAL}
        both = sorted(pool.name for pool in pools if pool.device != GLOBAL and pool.name in everywhere)
        if both:
            raise invalid(f'Resource "{both[0]}" is present as both global and device-specific resource in the model configuration.')
