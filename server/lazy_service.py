"""The service of a server whose models load at their first request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .dispatch.request import Request
from .inference_service import Version
from .repository.demand import Awaited, NotResident, OnReady
from .repository.lazy_lifecycle import LazyLifecycle
from .repository.version import ModelVersion
from .service import Service


class LazyService(Service):
    """A ``Service`` whose ``find`` raises NotResident for a model that is not in memory; whoever can wait for it has ``bring``.

    Readiness probes load nothing: a model that could be loaded is ready. Metrics and statistics are those of the models in memory.
    """

    def __init__(self, models: LazyLifecycle, *parts: Any) -> None:
        super().__init__(*parts)
        self._models = models
        self._residency = models.residency

    # readiness

    def ready(self) -> bool:
        """Is it live? No model has to be there before it is asked."""
        return self.live

    async def asked_ready(self) -> bool:
        """As ``ready``."""
        return self.live

    def version_ready(self, name: str, version: str = "") -> bool:
        """Can it be asked, or be loaded as far as is known? Raises what the base class raises, but for models that are not there."""
        if self._residency.resident(name) or not self._models.knows(name):
            return self._catalogue.find(name, version).healthy
        return self._models.loadable(name, version)

    async def asked_version_ready(self, name: str, version: str = "") -> bool:
        """As ``version_ready``, with the model's own check where it is in memory."""
        if self._residency.resident(name):
            return await self._readiness.ready(self._catalogue.find(name, version))
        return self.version_ready(name, version)

    # requests

    def find(self, name: str, version: str = "") -> ModelVersion:
        """As in the base class; raises NotResident where ``bring`` is to be asked first."""
        if self._residency.used(name):
            return self._catalogue.find(name, version)
        return self._absent(name, version)

    def find_number(self, name: str, version: int) -> ModelVersion:
        """As ``find``, for a model that asks another one: it is let in before clients are."""
        if self._residency.used(name, nested=True):
            return self._catalogue.find_number(name, version)
        return self._absent(name, "" if version < 0 else str(version))

    def _absent(self, name: str, version: str) -> ModelVersion:
        if self._models.knows(name):
            raise NotResident(name)
        return self._catalogue.find(name, version)

    def bring(self, absent: NotResident, on_ready: OnReady, caller: str = "") -> Awaited:
        """Have a model loaded. ``on_ready`` is called once, perhaps before this returns, unless what is returned is cancelled before.

        It gets the error to answer with, or None, and then must find the model and submit its request before it returns: the model
        cannot leave until then. ``caller`` is the model whose request waits for it, "" for a client's.
        """
        return self._models.demand(absent.name, on_ready, caller)

    def ask(self, model: str, version: int, request: Request) -> Callable[[], None]:
        """As in the base class; a circle of requests that wait for room may be closed by it."""
        cancel = super().ask(model, version, request)
        self._reconsider()
        return cancel

    def _submit(self, version: Version, request: Request) -> None:
        super()._submit(version, request)
        if version.ensemble is not None:
            self._reconsider()

    def submit_checked(self, version: Version, request: Request) -> None:
        """As in the base class."""
        super().submit_checked(version, request)
        if version.ensemble is not None:
            self._reconsider()

    def _reconsider(self) -> None:
        if self._residency.callers_wait:
            self._residency.reconsider()
