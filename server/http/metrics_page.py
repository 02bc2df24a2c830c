"""The metrics port: one page for Prometheus, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable

from .. import descriptors
from .endpoint import not_allowed
from .errors import JSON_TYPE, error_body
from .exchange import Answer, HttpRequest, Reply
from .limits import Limits
from .listener import HttpDoor

_logger = logging.getLogger(__name__)

_PATHS = frozenset(("/metrics", "/metrics/"))
_CONNECTIONS = 256
_HEADERS = ((b"Content-Type", b"text/plain; charset=utf-8"),)


def metrics_door(render: Callable[[], bytes]) -> HttpDoor:
    """A door that serves ``render()`` at /metrics, and an empty page at any other path."""

    def handle(request: HttpRequest, answer: Answer) -> None:
        request.body.release()
        if request.head.method != "GET":
            answer(not_allowed(plain=True))
            return
        try:
            page = render() if request.head.path in _PATHS else b""
        except Exception:
            _logger.exception("the metrics page failed")
            answer(Reply(500, (JSON_TYPE,), (error_body("internal error"),)))
            return
        answer(Reply(200, _HEADERS, (page,)))

    # Few ask for metrics: this port has no claim to the descriptors that the other one shares with regions, workers and models.
    most = min(_CONNECTIONS, descriptors.limit() // 16)
    return HttpDoor(handle, limits=Limits(connections=most, spare_connections=most // 8))
