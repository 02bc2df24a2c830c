"""Can a model be asked, and does it say so itself? Python models may have a check of their own, ``is_ready``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ...workers.contract.status import StatusError
from .version import ModelVersion

CHECK_TIMEOUT_SECS = 6.0
"""A worker gives a model's check five seconds, and says so itself; one that hangs as a whole says nothing."""


class ReadinessChecks:
    """Asks models that have a check, each once at a time: those who ask meanwhile share the outcome.

    ``ask(worker, model)`` is the question to one worker, which may raise StatusError; ``warn`` takes a line for the log.
    """

    def __init__(
        self, ask: Callable[[str, int], Awaitable[bool]], warn: Callable[[str], None], timeout_secs: float = CHECK_TIMEOUT_SECS
    ) -> None:
        self._ask = ask
        self._warn = warn
        self._timeout_secs = timeout_secs
        self._under_way: dict[ModelVersion, asyncio.Future[bool]] = {}

    async def ready(self, served: ModelVersion) -> bool:
        """Is it healthy, and ready by its own check where it has one? An ensemble is where all of its members are."""
        if served.ensemble is not None:
            return all(await asyncio.gather(*[self.ready(member) for member in served.members.values()]))
        if not served.checks or not served.healthy:
            return served.healthy
        check = self._under_way.get(served)
        if check is None:
            check = self._under_way[served] = asyncio.ensure_future(self._check(served))
        # One who gives up waiting is not to take the outcome from the others.
        return await asyncio.shield(check)

    async def _check(self, served: ModelVersion) -> bool:
        why = f"no answer within {self._timeout_secs:g} s"
        try:
            async with asyncio.timeout(self._timeout_secs):
                return all(await asyncio.gather(*[self._ask(worker, served.number) for worker in served.workers]))
        except StatusError as error:
            why = error.message
        except TimeoutError:
            pass
        finally:
            del self._under_way[served]
        self._warn(f"the readiness check of '{served.name}' version {served.version} failed: {why}")
        return False
