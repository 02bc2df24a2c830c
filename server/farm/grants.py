"""Which GPU a worker gets, and how it comes to see that one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...workers.contract.messages import DeviceGrant
from ..gpus import Gpus

DEFAULT_POOL_BYTE_SIZE = 64 << 20
"""How much of a GPU's memory holds tensors on their way, where nobody says."""


@dataclass(frozen=True)
class Grant:
    """A GPU for a worker: what it is told of it, and the environment variables that have it see it."""

    device: DeviceGrant
    variables: dict[str, str]


@dataclass(frozen=True)
class Grants:
    """Gives out the usable ``gpus``; ``pool_byte_sizes`` are by ordinal."""

    gpus: Gpus = field(default_factory=Gpus)
    pool_byte_sizes: Mapping[int, int] = field(default_factory=dict)

    def grant(self, ordinal: int, *, alone: bool) -> Grant:
        """A usable GPU: ``alone``, so that no context can come to lie on another, or beside all others, for models that count them."""
        pool_byte_size = self.pool_byte_sizes.get(ordinal, DEFAULT_POOL_BYTE_SIZE)
        device = DeviceGrant(ordinal, self.gpus.device_ordinal(ordinal, alone), pool_byte_size)
        return Grant(device, self.gpus.environment(ordinal, alone))
