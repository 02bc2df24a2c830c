"""Starts a worker in any Python from 3.10 on that has numpy: run by its path, with a worker's arguments.

Neither this product nor the folder the server happens to be started in need be where that Python imports from, so that a
model can bring an interpreter of its own. The package is made here, of the folder that holds ``shm`` and ``workers``.
"""

from __future__ import annotations

import gc
import importlib
import importlib.machinery
import io
import re
import sys
from pathlib import Path
from types import ModuleType

_PACKAGE = "tensorfarm"
_FOLDER = Path(__file__).resolve().parent

_MSGSPEC = (0, 20)
"""The first msgspec that decodes memoryviews rightly."""

WHAT_RUNS_ANYWHERE = ("workers.__main__", "workers.backends.python")
"""All of our modules that a worker in a model's own interpreter uses: these, and what they import."""


def main() -> None:
    """Run a worker."""
    # A third of the time of importing what follows went into looking for cycles; ``__main__`` switches it on again.
    gc.disable()
    # What a model prints goes to the server's log line by line, not when a buffer is full.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    # Python puts a script's folder in front.
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != _FOLDER]
    package = ModuleType(_PACKAGE)
    package.__spec__ = importlib.machinery.ModuleSpec(_PACKAGE, None, is_package=True)
    package.__path__ = package.__spec__.submodule_search_locations = [str(_FOLDER.parent)]
    sys.modules[_PACKAGE] = package
    lacking = [name for name, there in (("msgspec", _has_msgspec()), ("zmq", _has_zmq())) if not there]
    if lacking:
        _import_with_stand_ins(lacking)
    importlib.import_module(f"{_PACKAGE}.workers.__main__").main()


def _has_msgspec() -> bool:
    try:
        import msgspec
    except ImportError:
        return False
    version = re.match(r"(\d+)\.(\d+)", getattr(msgspec, "__version__", ""))
    return version is not None and (int(version[1]), int(version[2])) >= _MSGSPEC


def _has_zmq() -> bool:
    try:
        import zmq
    except ImportError:
        return False
    return hasattr(zmq, "DEALER")


def _import_with_stand_ins(lacking: list[str]) -> None:
    """Import our modules with stand-ins under the names of what they lack.

    The names are for our modules alone: what a model imports is what its interpreter has, or an ImportError.
    """
    theirs = {name: sys.modules.pop(name, None) for name in lacking}
    for name in lacking:
        sys.modules[name] = importlib.import_module(f"{_PACKAGE}.workers.portable.{name}")
    try:
        for name in WHAT_RUNS_ANYWHERE:
            importlib.import_module(f"{_PACKAGE}.{name}")
    finally:
        for name, module in theirs.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


if __name__ == "__main__":
    main()
