"""The shared memory extensions: clients register regions, ask about them and take them back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from ...shm.cuda import HANDLE_BYTE_SIZE
from ...workers.contract.status import invalid
from . import json_text
from .endpoint import Call, EndpointOf, empty_json_reply, json_reply
from .exchange import Reply
from .members import as_string, as_uint, member
from .model_repository import file_content

if TYPE_CHECKING:
    from ..service import Service


def _registration(service: Service, call: Call, kind: str) -> tuple[str, dict[str, object]]:
    """The region's name and the request's members. Raises StatusError."""
    service.check_shm_allowed(call.peer_is_local)
    if "region" not in call.params:
        raise invalid(f"'region name' is necessary to register {kind} shared memory region")
    document = json_text.parse(call.body)
    return call.params["region"], document if isinstance(document, dict) else {}


def _needed(members: dict[str, object], name: str) -> object:
    if name not in members:
        raise invalid(f"Shared memory register request has no '{name}' field")
    return members[name]


def _system_status(service: Service, call: Call) -> Reply:
    regions = service.regions_for(call.peer_is_local).system_status(call.params.get("region"))
    return json_reply(
        [{"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.byte_size} for region in regions]
    )


def _system_register(service: Service, call: Call) -> Reply:
    name, members = _registration(service, call, "system")
    key = as_string(_needed(members, "key"))
    offset = as_uint(members.get("offset", 0))
    byte_size = as_uint(_needed(members, "byte_size"))
    service.regions.register_system(name, key, offset, byte_size)
    return empty_json_reply()


def _system_unregister(service: Service, call: Call) -> Reply:
    service.check_shm_allowed(call.peer_is_local)
    service.regions.unregister_system(call.params.get("region"))
    return empty_json_reply()


def _cuda_status(service: Service, call: Call) -> Reply:
    regions = service.regions_for(call.peer_is_local).cuda_status(call.params.get("region"))
    return json_reply([{"name": region.name, "device_id": region.device_id, "byte_size": region.byte_size} for region in regions])


async def _cuda_register(service: Service, call: Call) -> Reply:
    name, members = _registration(service, call, "cuda")
    text = as_string(member(_needed(members, "raw_handle"), "b64"))
    byte_size = as_uint(member(members, "byte_size"))
    device_id = as_uint(member(members, "device_id"))
    raw_handle = file_content(text)
    if len(raw_handle) != HANDLE_BYTE_SIZE:
        raise invalid("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t")
    await service.cuda_regions.register(name, raw_handle, device_id, byte_size)
    return empty_json_reply()


async def _cuda_unregister(service: Service, call: Call) -> Reply:
    service.check_shm_allowed(call.peer_is_local)
    await service.cuda_regions.unregister(call.params.get("region"))
    return empty_json_reply()


def routes(endpoint: EndpointOf) -> list[Route]:
    """Both kinds' status, register and unregister, with and without a region's name."""
    families = {
        "systemsharedmemory": (_system_status, _system_register, _system_unregister),
        "cudasharedmemory": (_cuda_status, _cuda_register, _cuda_unregister),
    }
    found = []
    for family, (status, register, unregister) in families.items():
        for action, method, handler in (("status", "GET", status), ("register", "POST", register), ("unregister", "POST", unregister)):
            app = endpoint("shared-memory", {method: handler})
            found += [Route(f"/v2/{family}/{action}", app), Route(f"/v2/{family}/region/{{region}}/{action}", app)]
    return found
