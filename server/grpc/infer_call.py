"""An inference request that has been read from gRPC: what to run, and how to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...workers.contract.messages import RequestBody


@dataclass(slots=True)
class InferCall:
    """An inference request that has been read.

    ``classes`` has how many classes an output is to be answered with. ``empty_final``: tell the client of the end of its responses,
    also where there is nothing but that to tell.
    """

    body: RequestBody
    priority: int = 0
    timeout_us: int = 0
    classes: Mapping[str, int] | None = None
    empty_final: bool = False
