"""The product's shared modules a second time, as they are in an interpreter that has neither msgspec nor pyzmq."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec as real_msgspec
import zmq as real_zmq

import tensorfarm.shm.placement
from tensorfarm.workers.portable import msgspec, zmq

_PACKAGE = "tensorfarm_on_stand_ins"
_STAND_INS = {"msgspec": msgspec, "zmq": zmq}


@cache
def module(name: str) -> Any:
    """A module of the product (``workers.channel``) that was imported with the stand-ins under the originals' names."""
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(Path(tensorfarm.shm.placement.__file__).parents[1])]
        sys.modules[_PACKAGE] = package
    sys.modules.update(_STAND_INS)
    try:
        return importlib.import_module(f"{_PACKAGE}.{name}")
    finally:
        sys.modules.update({"msgspec": real_msgspec, "zmq": real_zmq})
