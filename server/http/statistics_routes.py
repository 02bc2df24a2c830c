"""The statistics extension: counts and times of one model, or of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from ..dispatch.batching import Cut
from .endpoint import Call, EndpointOf, json_reply
from .exchange import Reply

if TYPE_CHECKING:
    from ..repository.version import ModelVersion
    from ..service import Service


def _entry(version: ModelVersion) -> dict[str, object]:
    """The protocol's members, and one of ours behind them: how many batches ended for which reason."""
    statistics = version.statistics
    cuts = {cut.name.lower(): statistics.cuts[cut] for cut in Cut} if statistics.max_batch_size else {}
    return {**statistics.as_json(version.name, version.version), "batch_cuts": cuts}


def _document(versions: list[ModelVersion]) -> Reply:
    return json_reply({"model_stats": [_entry(version) for version in versions]})


def _all(service: Service, call: Call) -> Reply:
    return _document(service.reported())


def _one(service: Service, call: Call) -> Reply:
    return _document(service.reported(call.model, call.version))


def routes(endpoint: EndpointOf) -> list[Route]:
    """Statistics of all models: goes before every model route, and so shadows a model named "stats"."""
    return [Route("/v2/models/stats", endpoint("statistics", {"GET": _all}))]


def model_routes(endpoint: EndpointOf) -> list[Route]:
    """Statistics of one model."""
    app = endpoint("statistics", {"GET": _one})
    return [Route("/v2/models/{model}/versions/{version:digits}/stats", app), Route("/v2/models/{model}/stats", app)]
