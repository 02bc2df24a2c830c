"""Metadata: what the server is, what a model takes and gives, how it is configured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ...workers.contract.signature import TensorSpec
from ..door.version_text import version_text
from .method import Method
from .protocol import messages

if TYPE_CHECKING:
    from ..service import Service


def _server(service: Service, request: Any, peer_is_local: bool) -> Any:
    return messages.ServerMetadataResponse(name=service.server_id, version=service.version, extensions=service.extensions)


def _tensors(specs: Iterable[TensorSpec]) -> list[Any]:
    kind = messages.ModelMetadataResponse.TensorMetadata
    return [kind(name=spec.name, datatype=spec.datatype.name, shape=spec.shape) for spec in specs]


def _model(service: Service, request: Any, peer_is_local: bool) -> Any:
    version = service.find(request.name, version_text(request.version))
    numbers = [version.version] if request.version else service.ready_versions(request.name)
    return messages.ModelMetadataResponse(
        name=version.name,
        versions=[str(number) for number in numbers],
        platform=version.platform,
        inputs=_tensors(version.signature.inputs.values()),
        outputs=_tensors(version.signature.outputs.values()),
    )


def _config(service: Service, request: Any, peer_is_local: bool) -> Any:
    return messages.ModelConfigResponse(config=service.find(request.name, version_text(request.version)).config)


METHODS = {
    "ServerMetadata": Method("metadata", messages.ServerMetadataRequest, _server),
    "ModelMetadata": Method("metadata", messages.ModelMetadataRequest, _model),
    "ModelConfig": Method("model-config", messages.ModelConfigRequest, _config),
}
