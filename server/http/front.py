"""Who answers a request: inference and health at once, by cheap comparisons; everything else through the ASGI app."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from ..door.malformed import Malformed
from . import health
from .app import http_app
from .asgi_call import AsgiCalls
from .early_refusal import early_refusal
from .endpoint import ServiceEndpoint
from .exchange import Answer, Cancel, Head, Reply, StreamingRequest
from .generate import generate, generate_target
from .http2 import Http2
from .infer import infer
from .infer_head import InferHead
from .inference import infer_guarded
from .limits import Limits
from .listener import HttpDoor
from .restriction import Restrictions

if TYPE_CHECKING:
    from ..inference_service import InferenceService
    from ..service import Service

_MODELS = "/v2/models/"
_INFER = "/infer"
_HEALTH = {"/v2/health/live": health.live, "/v2/health/ready": health.ready}


def infer_target(path: str) -> tuple[str, str] | None:
    """The model and the version's digits ("" for the newest) of an inference path; None for any other path."""
    if not path.startswith(_MODELS) or not path.endswith(_INFER):
        return None
    pieces = path[len(_MODELS) : -len(_INFER)].split("/")
    if len(pieces) == 1 and pieces[0]:
        return pieces[0], ""
    if len(pieces) == 3 and pieces[0] and pieces[1] == "versions" and pieces[2].isascii() and pieces[2].isdigit():
        return pieces[0], pieces[2]
    return None


Probe = Callable[[Head], Reply | None]
"""Answers a health probe that needs no waiting; None for any other request."""


def no_probe(head: Head) -> None:
    """Leaves health probes to the app."""


class Front:
    """The handler of the service's HTTP door. ``app`` answers what is neither inference nor answered by ``probe``."""

    def __init__(
        self, service: InferenceService, restrictions: Restrictions, app: ASGIApp, probe: Probe = no_probe, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self._service = service
        self._restrictions = restrictions
        self._app = app
        self._probe = probe
        self._calls = AsgiCalls(app)

    def door(self, stay_awake: Callable[[], None] = lambda: None) -> HttpDoor:
        """A door that this front answers, with HTTP/2 by prior knowledge."""
        http2 = Http2(self._app, self.limits)
        service = self._service
        before = self._before_body
        return HttpDoor(self.handle, service.arena, http2, self.limits, self._calls.close, stay_awake, service.admission, before)

    def _before_body(self, head: Head) -> None:
        """Refuse an inference before its large body is read, where it would be refused for the same after that too. Raises Malformed."""
        if head.method != "POST":
            return
        target = infer_target(head.path) or generate_target(head.path)
        if target is None or self._restrictions.refusal("inference", head.headers) is not None:
            return
        refusal = early_refusal(self._service, target[0], target[1], head.content_length)
        if refusal is not None:
            raise Malformed(503, refusal.message, retry_after_s=refusal.retry_after_s)

    def handle(self, request: StreamingRequest, answer: Answer) -> Cancel | None:
        """Answer a request."""
        head = request.head
        seen = head.seen
        if type(seen) is InferHead:
            return infer(self._service, seen, request, answer)
        path = head.path
        if head.method == "POST":
            target = infer_target(path)
            if target is not None:
                refused = self._restrictions.refusal("inference", head.headers)
                if refused is None:
                    return infer_guarded(self._service, target[0], target[1], request, answer)
                request.body.release()
                answer(refused)
                return None
            wanted = generate_target(path)
            if wanted is not None:
                refused = self._restrictions.refusal("inference", head.headers)
                if refused is None:
                    return generate(self._service, wanted[0], wanted[1], request, answer, wanted[2])
                request.body.release()
                answer(refused)
                return None
        elif head.method == "GET":
            probed = self._probe(head)
            if probed is not None:
                request.body.release()
                answer(probed)
                return None
        return self._calls.begin(request, answer)


def probe_of(service: Service, restrictions: Restrictions) -> Probe:
    """Has the service itself say how it is."""

    def probe(head: Head) -> Reply | None:
        found = _HEALTH.get(head.path)
        # A model's own check takes a while, and is asked through the app.
        if found is None or (found is health.ready and service.checks):
            return None
        return restrictions.refusal("health", head.headers) or found(service)

    return probe


def own_app(service: Service, restrictions: Restrictions, limits: Limits) -> ASGIApp:
    """The app that the service itself answers."""
    return http_app(service, restrictions, limits, partial(ServiceEndpoint, service, restrictions))


def own_front(service: Service, rules: Mapping[str, tuple[str, str]], limits: Limits | None = None) -> Front:
    """A front that the service itself answers. ``rules``: restricted API category → (header name, value)."""
    limits = limits or Limits()
    restrictions = Restrictions(rules)
    return Front(service, restrictions, own_app(service, restrictions, limits), probe_of(service, restrictions), limits)
