"""The shared memory extensions: clients register regions, ask about them and take them back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .method import Method
from .protocol import messages

if TYPE_CHECKING:
    from ..service import Service


def _system_status(service: Service, request: Any, peer_is_local: bool) -> Any:
    reply = messages.SystemSharedMemoryStatusResponse()
    for region in service.regions_for(peer_is_local).system_status(request.name or None):
        status = reply.regions[region.name]
        status.name, status.key, status.offset, status.byte_size = region.name, region.key, region.offset, region.byte_size
    return reply


def _system_register(service: Service, request: Any, peer_is_local: bool) -> Any:
    service.check_shm_allowed(peer_is_local)
    service.regions.register_system(request.name, request.key, request.offset, request.byte_size)
    return messages.SystemSharedMemoryRegisterResponse()


def _system_unregister(service: Service, request: Any, peer_is_local: bool) -> Any:
    service.check_shm_allowed(peer_is_local)
    service.regions.unregister_system(request.name or None)
    return messages.SystemSharedMemoryUnregisterResponse()


def _cuda_status(service: Service, request: Any, peer_is_local: bool) -> Any:
    reply = messages.CudaSharedMemoryStatusResponse()
    for region in service.regions_for(peer_is_local).cuda_status(request.name or None):
        status = reply.regions[region.name]
        status.name, status.device_id, status.byte_size = region.name, region.device_id, region.byte_size
    return reply


async def _cuda_register(service: Service, request: Any, peer_is_local: bool) -> Any:
    service.check_shm_allowed(peer_is_local)
    await service.cuda_regions.register(request.name, request.raw_handle, request.device_id, request.byte_size)
    return messages.CudaSharedMemoryRegisterResponse()


async def _cuda_unregister(service: Service, request: Any, peer_is_local: bool) -> Any:
    service.check_shm_allowed(peer_is_local)
    await service.cuda_regions.unregister(request.name or None)
    return messages.CudaSharedMemoryUnregisterResponse()


METHODS = {
    "SystemSharedMemoryStatus": Method("shared-memory", messages.SystemSharedMemoryStatusRequest, _system_status),
    "SystemSharedMemoryRegister": Method("shared-memory", messages.SystemSharedMemoryRegisterRequest, _system_register),
    "SystemSharedMemoryUnregister": Method("shared-memory", messages.SystemSharedMemoryUnregisterRequest, _system_unregister),
    "CudaSharedMemoryStatus": Method("shared-memory", messages.CudaSharedMemoryStatusRequest, _cuda_status),
    "CudaSharedMemoryRegister": Method("shared-memory", messages.CudaSharedMemoryRegisterRequest, _cuda_register),
    "CudaSharedMemoryUnregister": Method("shared-memory", messages.CudaSharedMemoryUnregisterRequest, _cuda_unregister),
}
