"""The model repository extension: what there is, load it, unload it."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

from starlette.routing import Route

from ...workers.contract.status import StatusError, internal, unsupported
from . import json_text
from .endpoint import Call, EndpointOf, empty_json_reply, json_reply
from .exchange import Reply
from .infer_request import clean
from .members import as_bool, as_string

if TYPE_CHECKING:
    from ..service import Service

_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]+")


async def _index(service: Service, call: Call) -> Reply:
    document = json_text.parse(call.body) if call.body else None
    ready_only = "ready" in document and as_bool(document["ready"]) if isinstance(document, dict) else False
    return json_reply(
        [
            {key: value for key, value in _members(entry.name, entry.version, entry.state, entry.reason) if value or key == "name"}
            for entry in await service.index(ready_only)
        ]
    )


def _members(name: str, version: str, state: str, reason: str) -> list[tuple[str, str]]:
    # A folder's name may be anything: one that is not UTF-8 is not to keep clients from reading of the others.
    return [("name", clean(name)), ("version", version), ("state", str(state)), ("reason", clean(reason))]


def _parameters(document: object) -> dict[str, object]:
    """The ``parameters`` member of a request. Raises INTERNAL where it is no object."""
    if not isinstance(document, dict) or "parameters" not in document:
        return {}
    parameters = document["parameters"]
    if not isinstance(parameters, dict):
        raise internal("attempt to get members for non-object")
    return parameters


def file_content(text: str) -> bytes:
    """Decode the base64 of a file, reading over characters that are none, as the reference does."""
    clean = _NOT_BASE64.sub("", text)
    clean = clean[: len(clean) - (len(clean) % 4 == 1)]
    return base64.b64decode(clean + "=" * (-len(clean) % 4))


async def _load(service: Service, call: Call) -> Reply:
    if "repository" in call.params:
        raise unsupported("'repository_name' specification is not supported")
    parameters: dict[str, object] = {}
    for name, value in _parameters(json_text.parse(call.body) if call.body else None).items():
        text = as_string(value)
        if name == "config":
            parameters[name] = text
        elif name.startswith("file:"):
            parameters[name] = file_content(text)
        else:
            raise internal("unexpected error on creating Triton parameter")
    await service.load(call.model, parameters)
    return empty_json_reply()


async def _unload(service: Service, call: Call) -> Reply:
    if "repository" in call.params:
        raise unsupported("'repository_name' specification is not supported")
    await service.unload(call.model, _unload_dependents(call.body))
    return empty_json_reply()


def _unload_dependents(body: bytes) -> bool:
    """The request's only parameter. The oracle unloads whatever the body says, so a body that makes no sense says no."""
    try:
        return _parameters(json_text.parse(body)).get("unload_dependents") is True if body else False
    except StatusError:
        return False


def routes(endpoint: EndpointOf) -> list[Route]:
    """Index, load and unload; a repository's name in the path means nothing to the index and is refused by the others."""
    index = endpoint("model-repository", {"POST": _index})
    load, unload = endpoint("model-repository", {"POST": _load}), endpoint("model-repository", {"POST": _unload})
    return [
        Route("/v2/repository/index", index),
        Route("/v2/repository/{repository}/index", index),
        Route("/v2/repository/models/{model}/load", load),
        Route("/v2/repository/models/{model}/unload", unload),
        Route("/v2/repository/{repository}/models/{model}/load", load),
        Route("/v2/repository/{repository}/models/{model}/unload", unload),
    ]
