"""numpy, imported when something of it is first used: the server's start does not wait for it (server/ahead.py)."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["np"]


class _Numpy(ModuleType):
    """Stands for numpy until then, and is as numpy from then on: a plain module with the same content, no slower to ask."""

    def __getattr__(self, name: str) -> Any:
        import numpy

        # In this order, because other threads may ask meanwhile.
        self.__dict__.update(vars(numpy))
        self.__class__ = ModuleType  # type: ignore[assignment]
        return getattr(numpy, name)


if TYPE_CHECKING:
    import numpy as np
else:
    np = _Numpy("numpy")
