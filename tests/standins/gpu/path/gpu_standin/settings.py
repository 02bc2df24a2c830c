"""What the environment says: which GPUs there are, which of them this process sees, and where faults and ledgers lie."""

from __future__ import annotations

import functools
import os

GPUS = "TENSORFARM_STANDIN_GPUS"
USED = "TENSORFARM_STANDIN_USED"
BYTES = "TENSORFARM_STANDIN_BYTES"
FAULT = "TENSORFARM_STANDIN_FAULT"
LEDGER = "TENSORFARM_STANDIN_LEDGER"
NO_CUDA_EP = "TENSORFARM_STANDIN_NO_CUDA_EP"
LIBRARIES = "TENSORFARM_STANDIN_LIBRARIES"
"""The folder that ``tests.standins.cuda.build`` has made, where ONNX Runtime is to use its own provider for CUDA with what lies there."""


def host_uuids() -> list[str]:
    """The uuids of the host's GPUs, in NVML's order."""
    return [f"GPU-standin-{number}" for number in range(int(os.environ.get(GPUS, "1")))]


def total_byte_size() -> int:
    """How much memory a process may have."""
    return int(os.environ.get(BYTES, str(1 << 30)))


@functools.cache
def visible_uuids() -> tuple[str, ...]:
    """The uuids of the GPUs that this process sees, by ordinal; the real library looks once, too."""
    uuids = host_uuids()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return tuple(uuids)
    seen: list[str] = []
    for name in map(str.strip, wanted.split(",")):
        if name.isdecimal():
            found = uuids[int(name) : int(name) + 1]
        else:
            found = [uuid for uuid in uuids if uuid == name] or [uuid for uuid in uuids if name and uuid.startswith(name)]
        # What comes behind one that is not there is not seen either.
        if len(found) != 1 or found[0] in seen:
            break
        seen += found
    return tuple(seen)
