"""What a client is told whose connection is one too many."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .errors import plain_error_reply
from .exchange import Answer, Cancel, Reply

if TYPE_CHECKING:
    from .pipelined import PipelinedRequest

CROWDED = "too many connections"
_PROBES = ("/v2/health/", "/metrics")


def crowded_reply() -> Reply:
    """The refusal."""
    return plain_error_reply(503, CROWDED)


def answer_probe(handle: Callable[[PipelinedRequest, Answer], Cancel | None], request: PipelinedRequest, answer: Answer) -> Cancel | None:
    """Have ``handle`` answer a health probe, and refuse everything else; then the connection closes."""
    request.keep_alive = False
    head = request.head
    if head.method == "GET" and (head.path.startswith(_PROBES) or head.path.endswith("/ready")):
        return handle(request, answer)
    request.body.release()
    answer(crowded_reply())
    return None
