"""The model repository extension: what there is, load it, unload it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...workers.contract.status import invalid, unsupported
from .method import Method
from .protocol import messages

if TYPE_CHECKING:
    from ..service import Service


def _check_no_repository(request: Any) -> None:
    if request.repository_name:
        raise unsupported("'repository_name' specification is not supported")


def _text(name: str) -> str:
    """A folder's name, which may be anything, as text that a message can hold."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


async def _index(service: Service, request: Any, peer_is_local: bool) -> Any:
    _check_no_repository(request)
    entry = messages.RepositoryIndexResponse.ModelIndex
    return messages.RepositoryIndexResponse(
        models=[
            entry(name=_text(found.name), version=found.version, state=str(found.state), reason=_text(found.reason))
            for found in await service.index(request.ready)
        ]
    )


async def _load(service: Service, request: Any, peer_is_local: bool) -> Any:
    _check_no_repository(request)
    parameters: dict[str, object] = {}
    for name, value in request.parameters.items():
        wanted = "string_param" if name == "config" else "bytes_param" if name.startswith("file:") else ""
        if not wanted:
            raise invalid(f"unrecognized load parameter '{name}'.")
        if value.WhichOneof("parameter_choice") != wanted:
            raise invalid(f"invalid value type for load parameter '{name}', expected {wanted}.")
        parameters[name] = getattr(value, wanted)
    await service.load(request.model_name, parameters)
    return messages.RepositoryModelLoadResponse()


async def _unload(service: Service, request: Any, peer_is_local: bool) -> Any:
    _check_no_repository(request)
    dependents = False
    if "unload_dependents" in request.parameters:
        value = request.parameters["unload_dependents"]
        if value.WhichOneof("parameter_choice") != "bool_param":
            raise invalid("invalid value type for 'unload_dependents' parameter, expected bool_param.")
        dependents = value.bool_param
    await service.unload(request.model_name, dependents)
    return messages.RepositoryModelUnloadResponse()


METHODS = {
    "RepositoryIndex": Method("model-repository", messages.RepositoryIndexRequest, _index),
    "RepositoryModelLoad": Method("model-repository", messages.RepositoryModelLoadRequest, _load),
    "RepositoryModelUnload": Method("model-repository", messages.RepositoryModelUnloadRequest, _unload),
}
