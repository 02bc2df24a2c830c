"""Which protocol this release speaks, and how much of it."""

from __future__ import annotations

PROTOCOL_VERSION = "2.73.0"
"""The tritonserver release whose protocol is spoken; clients branch on it."""

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
)
"""The protocol extensions that are built, in the protocol's order."""

_AT = EXTENSIONS.index("system_shared_memory") + 1
EXTENSIONS_WITH_GPUS = (*EXTENSIONS[:_AT], "cuda_shared_memory", *EXTENSIONS[_AT:])
"""Those of a server that has GPUs."""
