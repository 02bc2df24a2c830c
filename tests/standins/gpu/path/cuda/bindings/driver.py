"""As much of ``cuda.bindings.driver`` as the stock client uses."""

from __future__ import annotations

from enum import IntEnum

from gpu_standin import driver, settings


class CUresult(IntEnum):
    """The driver's errors."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_INVALID_DEVICE = 101


class CUdevice:
    """A device by its ordinal."""

    def __init__(self, ordinal: int) -> None:
        self._ordinal = ordinal

    def __int__(self) -> int:
        return self._ordinal


def cuGetErrorString(error: CUresult) -> tuple[CUresult, bytes]:
    return CUresult.CUDA_SUCCESS, error.name.encode()


def cuDeviceGet(ordinal: int) -> tuple[CUresult, CUdevice | None]:
    if not 0 <= ordinal < len(settings.visible_uuids()):
        return CUresult.CUDA_ERROR_INVALID_DEVICE, None
    return CUresult.CUDA_SUCCESS, CUdevice(ordinal)


def cuDevicePrimaryCtxGetState(device: CUdevice) -> tuple[CUresult, int, int]:
    return CUresult.CUDA_SUCCESS, 0, int(driver.has_context(int(device)))
