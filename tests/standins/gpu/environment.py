"""How processes get GPUs that are made of ordinary memory, and what is known of them afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .path.gpu_ledger import read_ledger

PACKAGES = Path(__file__).resolve().parent / "path"
"""The folder of the fake packages, to be the first where a process looks for modules."""

FAULT_FILE = "fault"
LEDGER_FOLDER = "ledger"
LIBRARIES = "TENSORFARM_STANDIN_LIBRARIES"

_MODULES = ("cuda", "cupy", "gpu_ledger", "gpu_standin", "pynvml", "tritonclient.utils.cuda_shared_memory")


def environment(folder: Path, gpus: int = 1, **more: object) -> dict[str, str]:
    """The variables for a server or a client: it has ``gpus`` GPUs, counts in a folder in ``folder``, and finds faults there.

    ``more`` are those of the stand-in that have the prefix TENSORFARM_STANDIN_, in small letters and without it: ``used=0.9``,
    ``bytes=1 << 20``, ``no_cuda_ep=1``.
    """
    ledger = folder / LEDGER_FOLDER
    ledger.mkdir(parents=True, exist_ok=True)
    libraries = os.environ.get(LIBRARIES)
    search = {} if not libraries else {"LD_LIBRARY_PATH": str(Path(libraries) / "lib")}
    return {
        **search,
        "PYTHONPATH": os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TENSORFARM_STANDIN_GPUS": str(gpus),
        "TENSORFARM_STANDIN_LEDGER": str(ledger),
        "TENSORFARM_STANDIN_FAULT": str(folder / FAULT_FILE),
        **{f"TENSORFARM_STANDIN_{name.upper()}": str(value) for name, value in more.items()},
    }


def order_fault(folder: Path, status: int = 700, uuid: str = "") -> Path:
    """Have every process with a context, or with one on that GPU, lose it with its next call. Returns the file, whose removal ends that."""
    file = folder / FAULT_FILE
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(f"{status} {uuid}")
    unfinished.replace(file)
    return file


def ledger(folder: Path, pid: int) -> dict[str, Any] | None:
    """What a process has done with CUDA (``gpu_standin.ledger``); None where it has not touched it."""
    return read_ledger(folder / LEDGER_FOLDER / f"{pid}.ledger")


def ledgers(folder: Path) -> dict[int, dict[str, Any]]:
    """What each process has done, living or not, by its number."""
    found = {int(file.stem): read_ledger(file) for file in (folder / LEDGER_FOLDER).glob("*.ledger")}
    return {pid: content for pid, content in found.items() if content is not None}


@contextlib.contextmanager
def installed(variables: dict[str, str]) -> Iterator[None]:
    """This very process has the GPUs in the block, through CuPy, NVML and the stock client, but not through ONNX Runtime."""
    before = {name: os.environ.get(name) for name in variables}
    path, library = list(sys.path), ctypes.CDLL
    modules = _taken_out()
    os.environ.update(variables)
    sys.path.insert(0, str(PACKAGES))
    try:
        yield
    finally:
        importlib.import_module("gpu_standin.driver").end()
        _taken_out()
        sys.modules.update(modules)
        sys.path[:] = path
        ctypes.CDLL = library  # type: ignore[misc]
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _taken_out() -> dict[str, Any]:
    """The modules that this process has by the names of those that lie here; they are not there any more."""
    names = [name for name in sys.modules if any(name == one or name.startswith(f"{one}.") for one in _MODULES)]
    return {name: sys.modules.pop(name) for name in names}
