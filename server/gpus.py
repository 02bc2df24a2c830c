"""The GPUs that models may run on: their ordinals, what a worker has to be told to see them, and whether there is room on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..workers.contract.status import unavailable
from .host_gpus import MIG_MARK, HostGpus, SeenGpu

_NO_LIMIT = 1.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by its ordinal, which is its place in what ``CUDA_VISIBLE_DEVICES`` shows the server; ``capability`` is major and minor."""

    ordinal: int
    uuid: str
    capability: tuple[int, int]

    @property
    def partial(self) -> bool:
        """Is it a MIG device?"""
        return self.uuid.startswith(MIG_MARK)


class Gpus:
    """The GPUs that models may run on: none until they have been looked for.

    ``usable`` are those with the least compute capability or more, ascending by ordinal; there are gaps where one is too old.
    """

    def __init__(self) -> None:
        self.usable: tuple[Gpu, ...] = ()
        self._seen: tuple[SeenGpu, ...] = ()
        self._host: HostGpus | None = None

    def look(self, host: HostGpus | None, least_capability: float, say: Callable[[str], None]) -> None:
        """Take what the machine has, None for nothing; ``say`` is told of each GPU that is left alone."""
        self._host = host
        self._seen = () if host is None else host.seen
        usable = []
        for ordinal, seen in enumerate(self._seen):
            uuid, capability = seen.uuid, seen.capability
            if capability is None:
                say(f"no model runs on GPU {ordinal} ({uuid}), which does not tell its compute capability")
            elif _number(capability) < least_capability:
                say(f"no model runs on GPU {ordinal} ({uuid}): its compute capability {_number(capability)} is below {least_capability:g}")
            else:
                usable.append(Gpu(ordinal, uuid, capability))
        self.usable = tuple(usable)

    @property
    def ordinals(self) -> tuple[int, ...]:
        """Those of the usable ones."""
        return tuple(gpu.ordinal for gpu in self.usable)

    def find(self, ordinal: int) -> Gpu | None:
        """A usable GPU; None where there is none by this ordinal."""
        return next((gpu for gpu in self.usable if gpu.ordinal == ordinal), None)

    def environment(self, ordinal: int, alone: bool) -> dict[str, str]:
        """The environment variables of a worker that is to have a usable GPU, alone or beside all others; see ``device_ordinal``."""
        shown = [self._seen[ordinal]] if self._apart(alone) else self._seen
        return {"CUDA_VISIBLE_DEVICES": ",".join(seen.uuid for seen in shown)}

    def device_ordinal(self, ordinal: int, alone: bool) -> int:
        """The ordinal by which a worker with that ``environment`` sees its GPU."""
        return 0 if self._apart(alone) else ordinal

    def _apart(self, alone: bool) -> bool:
        # Beside a MIG device CUDA shows a process nothing else.
        return alone or any(seen.uuid.startswith(MIG_MARK) for seen in self._seen)

    def check_room(self, ordinal: int, limit: Mapping[int, float], instance: str) -> None:
        """Raise StatusError UNAVAILABLE where more of a GPU's memory is used now than its ``limit``, a fraction, lets instances load.

        A GPU without a limit may be full, and one that does not tell how much is used is let pass.
        """
        allowed = limit.get(ordinal, _NO_LIMIT)
        if self._host is None or allowed >= _NO_LIMIT or self.find(ordinal) is None:
            return
        used = self._host.used_fraction(ordinal)
        if used is not None and used > allowed:
            raise unavailable(
                f"can not create model '{instance}': memory limit set for GPU {ordinal} has exceeded, model loading is rejected."
            )

    def names(self) -> str:
        """The usable ones for a text: ``0 (GPU-…), 1 (GPU-…)``, or ``none``."""
        return ", ".join(f"{gpu.ordinal} ({gpu.uuid})" for gpu in self.usable) or "none"


def _number(capability: tuple[int, int]) -> float:
    """As it is written, so that it is equal to what a command line has."""
    major, minor = capability
    return float(f"{major}.{minor}")
