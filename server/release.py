"""What this release calls itself and what it can do."""

from __future__ import annotations

from importlib.metadata import version

PRODUCT_VERSION = version("tensorfarm")

PROTOCOL_VERSION = "2.73.0"
"""The tritonserver release whose protocol is spoken; clients branch on it."""

EXTENSIONS = (
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
)
"""The protocol extensions that are built, in the protocol's order."""
