"""Inference by a path's model and version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from ...workers.contract.status import StatusError
from ..door.version_text import version_text
from .errors import error_reply
from .exchange import Answer, Cancel, HttpRequest
from .handler_app import HandlerApp
from .infer import infer
from .infer_head import infer_head
from .limits import Limits
from .restriction import Restrictions

if TYPE_CHECKING:
    from ..inference_service import InferenceService


def infer_guarded(service: InferenceService, model: str, version: str, request: HttpRequest, answer: Answer) -> Cancel | None:
    """Hand a request to ``infer`` once its version is known to be a number; takes over its body in any case."""
    try:
        version = version_text(version)
    except StatusError as failure:
        request.body.release()
        answer(error_reply(failure, plain=True))
        return None
    head = request.head.seen = infer_head(request.head, model, version)
    return infer(service, head, request, answer)


def model_routes(service: InferenceService, restrictions: Restrictions, limits: Limits) -> list[Route]:
    """Inference with a model."""
    app = HandlerApp(service, restrictions, limits, infer_guarded, plain=True)
    return [Route("/v2/models/{model}/versions/{version:digits}/infer", app), Route("/v2/models/{model}/infer", app)]
