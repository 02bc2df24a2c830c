"""Requests whose model is loaded first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ...workers.contract.status import StatusError
from ..repository.demand import NotResident

if TYPE_CHECKING:
    from ..inference_service import InferenceService

T = TypeVar("T")

Cancel = Callable[[], None]
"""Says that the client has gone: called at most once, and then no answer follows."""


class Bringing:
    """A request that waits for its model. ``run`` then begins it, or refuses it with the error it is given; it must answer in any case.

    ``drop`` gives back what the request holds where the client goes first.
    """

    __slots__ = ("_awaited", "_cancel", "_drop", "_run")

    def __init__(
        self, service: InferenceService, absent: NotResident, run: Callable[[StatusError | None], Cancel | None], drop: Callable[[], None]
    ) -> None:
        self._run: Callable[[StatusError | None], Cancel | None] | None = run
        self._drop = drop
        self._cancel: Cancel | None = None
        self._awaited = service.bring(absent, self._ready)

    @property
    def waits(self) -> bool:
        """Is it still to be begun?"""
        return self._run is not None

    def _ready(self, error: StatusError | None) -> None:
        run, self._run = self._run, None
        if run is not None:
            self._cancel = run(error)

    def cancel(self) -> None:
        """The client has gone."""
        if self._run is not None:
            self._run = None
            self._awaited.cancel()
            self._drop()
        elif self._cancel is not None:
            self._cancel()


async def bring(service: InferenceService, absent: NotResident, run: Callable[[], T]) -> T:
    """What ``run`` gives or raises once the model is there; raises StatusError where it does not come. Cancelling it gives it up."""
    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def ready(error: StatusError | None) -> None:
        if error is not None:
            outcome.set_exception(error)
            return
        try:
            outcome.set_result(run())
        except Exception as failure:  # noqa: BLE001
            # It is raised where the model was asked for.
            outcome.set_exception(failure)

    awaited = service.bring(absent, ready)
    try:
        return await outcome
    finally:
        awaited.cancel()
