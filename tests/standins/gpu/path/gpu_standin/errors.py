"""CUDA's error numbers, with the names and texts of the real library."""

from __future__ import annotations

INVALID_VALUE = 1
OUT_OF_MEMORY = 2
INVALID_DEVICE = 101
INVALID_CONTEXT = 201
INVALID_HANDLE = 400
ILLEGAL_ADDRESS = 700
ALREADY_REGISTERED = 712
NOT_REGISTERED = 713
MISALIGNED_ADDRESS = 716
UNKNOWN = 999

NAMES = {
    0: ("cudaSuccess", "no error"),
    INVALID_VALUE: ("cudaErrorInvalidValue", "invalid argument"),
    OUT_OF_MEMORY: ("cudaErrorMemoryAllocation", "out of memory"),
    100: ("cudaErrorNoDevice", "no CUDA-capable device is detected"),
    INVALID_DEVICE: ("cudaErrorInvalidDevice", "invalid device ordinal"),
    INVALID_CONTEXT: ("cudaErrorDeviceUninitialized", "invalid device context"),
    205: ("cudaErrorMapBufferObjectFailed", "mapping of buffer object failed"),
    214: ("cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"),
    INVALID_HANDLE: ("cudaErrorInvalidResourceHandle", "invalid resource handle"),
    ILLEGAL_ADDRESS: ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
    710: ("cudaErrorAssert", "device-side assert triggered"),
    ALREADY_REGISTERED: (
        "cudaErrorHostMemoryAlreadyRegistered",
        "part or all of the requested memory range is already mapped",
    ),
    NOT_REGISTERED: ("cudaErrorHostMemoryNotRegistered", "pointer does not correspond to a registered memory region"),
    MISALIGNED_ADDRESS: ("cudaErrorMisalignedAddress", "misaligned address"),
    719: ("cudaErrorLaunchFailure", "unspecified launch failure"),
    801: ("cudaErrorNotSupported", "operation not supported"),
    UNKNOWN: ("cudaErrorUnknown", "unknown error"),
}


class Refused(Exception):
    """A call that does not succeed: the number of its error."""

    def __init__(self, status: int) -> None:
        super().__init__(": ".join(NAMES.get(status, NAMES[UNKNOWN])))
        self.status = status

    @property
    def text(self) -> str:
        """The error's text without its name."""
        return NAMES.get(self.status, NAMES[UNKNOWN])[1]
