"""Runs what a test does with the two ends of something, which are closed after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar


class Ends(Protocol):
    """Made and used on a loop."""

    def close(self) -> None: ...


E = TypeVar("E", bound=Ends)
Script = Callable[[E], Coroutine[Any, Any, None]]


def runner(make: Callable[[], E]) -> Callable[[Script[E]], None]:
    """What runs a script on a loop of its own."""

    def run(script: Script[E]) -> None:
        async def main() -> None:
            ends = make()
            try:
                await script(ends)
            finally:
                ends.close()

        asyncio.run(main())

    return run
