"""What the farm tells the rest of the server."""

from __future__ import annotations

from typing import Protocol

from ...workers.contract.messages import Done, Respond, Spoken, Warmed
from ...workers.contract.status import StatusError
from .child_process import ChildProcess


class FarmEvents(Protocol):
    """Called on the loop."""

    def instance_ready(self, instance: int) -> None:
        """An instance can take batches: after its first load, and again after each restart of its worker."""

    def instance_warmed(self, instance: int, warmed: list[Warmed]) -> None:
        """An instance has run its warm-up samples, before it takes its first batch; whether it will is not said yet."""

    async def outdated(self, model: int) -> bool:
        """Is a model, whose worker has been started again, not to be loaded into it any more, because its files are others now?"""

    def instance_lost(self, instance: int, error: StatusError) -> None:
        """An instance went down with its worker; ``error`` is for the requests it was running."""

    def model_lost(self, model: int, error: StatusError) -> None:
        """A model will not be back soon (crash loop), or could not be loaded again after its worker's restart."""

    def batch_done(self, done: Done, process: ChildProcess) -> None:
        """A batch has been answered."""

    def responded(self, message: Respond, process: ChildProcess) -> None:
        """A model has answered a request by its sender."""

    def spoken(self, message: Spoken, process: ChildProcess) -> None:
        """A model asks or tells the server something else."""

    def worker_gone(self, process: ChildProcess) -> None:
        """A worker process has ended: what it was lent, and what it asked, is nobody's any more."""

    def worker_says(self, worker: str, line: str) -> None:
        """A worker printed a line."""

    def worker_event(self, severity: str, text: str) -> None:
        """Something about a worker that belongs in the log. ``severity``: I, W or E."""
