"""Metadata: what the server is, what a model takes and gives, how it is configured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.routing import Route

from ...workers.contract.configuration import config_json
from ...workers.contract.signature import TensorSpec
from .endpoint import Call, EndpointOf, json_reply
from .exchange import Reply

if TYPE_CHECKING:
    from ..service import Service


def _server(service: Service, call: Call) -> Reply:
    return json_reply({"name": service.server_id, "version": service.version, "extensions": list(service.extensions)})


def _tensors(specs: Iterable[TensorSpec]) -> list[dict[str, object]]:
    return [{"name": spec.name, "datatype": spec.datatype.name, "shape": list(spec.shape)} for spec in specs]


def _model(service: Service, call: Call) -> Reply:
    version = service.find(call.model, call.version)
    numbers = [version.version] if call.version else service.ready_versions(call.model)
    return json_reply(
        {
            "name": version.name,
            "versions": [str(number) for number in numbers],
            "platform": version.platform,
            "inputs": _tensors(version.signature.inputs.values()),
            "outputs": _tensors(version.signature.outputs.values()),
        }
    )


def _config(service: Service, call: Call) -> Reply:
    return json_reply(config_json(service.find(call.model, call.version).config))


def model_routes(endpoint: EndpointOf) -> list[Route]:
    """A model's metadata and configuration."""
    model, config = endpoint("metadata", {"GET": _model}), endpoint("model-config", {"GET": _config})
    return [
        Route("/v2/models/{model}/versions/{version:digits}/config", config),
        Route("/v2/models/{model}/config", config),
        Route("/v2/models/{model}/versions/{version:digits}", model),
        Route("/v2/models/{model}", model),
    ]


def routes(endpoint: EndpointOf) -> list[Route]:
    """The server's metadata."""
    return [Route("/v2", endpoint("metadata", {"GET": _server}))]
