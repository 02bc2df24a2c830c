"""An inference request that has been read from HTTP: what to run, and how to answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ...workers.contract.messages import RequestBody
from ..door.forwarding import forward_pattern


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How an output is to be answered: as JSON, as binary data, as its best classes, or in a client's region."""

    binary: bool = False
    classes: int = 0
    in_region: bool = False


IN_JSON = OutputForm()
IN_BINARY = OutputForm(binary=True)
IN_REGION = OutputForm(in_region=True)


@dataclass(slots=True)
class InferCall:
    """An inference request that has been read.

    ``id_text`` is its id as JSON, empty where it has none. ``forms`` has how each output listed in the
    request is to be answered, ``form`` is for those that are not.
    """

    body: RequestBody
    id_text: bytes = b""
    form: OutputForm = IN_JSON
    forms: Mapping[str, OutputForm] | None = None
    priority: int = 0
    timeout_us: int = 0


@dataclass(frozen=True, slots=True)
class InferSettings:
    """What options say about inference requests: ``max_input_size`` in bytes, and which headers become parameters."""

    max_input_size: int = 64 * 1024 * 1024
    forward: re.Pattern[str] | None = None


@lru_cache(maxsize=16)
def infer_settings(max_input_size: int, forward: str) -> InferSettings:
    """The settings that two options make. Raises ``re.error`` where the pattern is none."""
    return InferSettings(max_input_size, forward_pattern(forward))
