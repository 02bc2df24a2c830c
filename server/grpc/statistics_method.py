"""The statistics extension: counts and times of one model, or of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from ..door.version_text import version_text
from .method import Method
from .protocol import messages

if TYPE_CHECKING:
    from ..service import Service


def _statistics(service: Service, request: Any, peer_is_local: bool) -> Any:
    versions = service.reported(request.name, version_text(request.version))
    entries = [version.statistics.as_json(version.name, version.version) for version in versions]
    return json_format.ParseDict({"model_stats": entries}, messages.ModelStatisticsResponse())


METHODS = {"ModelStatistics": Method("statistics", messages.ModelStatisticsRequest, _statistics)}
