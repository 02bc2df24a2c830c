"""Gives way to the real ONNX Runtime, which it lets think that it can use CUDA, unless that has libraries that do as CUDA's do."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_OWN = Path(__file__).resolve().parent.parent


def _real() -> None:
    spec = PathFinder.find_spec(__name__, [entry for entry in sys.path if Path(entry or ".").resolve() != _OWN])
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {__name__!r}", name=__name__)
    module = importlib.util.module_from_spec(spec)
    # Who imports this finds what lies here afterwards.
    sys.modules[__name__] = module
    spec.loader.exec_module(module)

    from gpu_standin.settings import LIBRARIES

    if not os.environ.get(LIBRARIES):
        from gpu_standin.onnx import patch

        patch(module)


_real()
