"""As much of CuPy as tensorfarm uses, over the stand-in. Importing it makes ``ctypes.CDLL`` find libcuda there too."""

from __future__ import annotations

import ctypes
from typing import Any

from gpu_standin import driver

from . import cuda as cuda

__version__ = "14.2.0"

_DRIVER_LIBRARY = "libcuda.so.1"
_RealLibrary = ctypes.CDLL


class _Library(_RealLibrary):
    """The real class, but for the one name."""

    def __new__(cls, name: str | None = None, *arguments: Any, **named: Any) -> Any:
        if name == _DRIVER_LIBRARY:
            return driver.driver_library()
        return super().__new__(cls)


ctypes.CDLL = _Library  # type: ignore[misc]
