"""Which backend runs a model: one of ours, or a Python file that says it is one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...workers.contract.backends import CPU_ONLY, NATIVE, PYTHON
from ...workers.contract.status import invalid, unsupported

_FILES = ("model.py", "backend.py")
"""What a backend's Python file may be called."""

_ENVIRONMENT = "EXECUTION_ENV_PATH"


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """``name`` is the backend that workers know; ``file`` the path of a Python backend that is not the model's own file."""

    name: str
    file: str = ""


def choose_backend(config: Any, model_directory: Path, version: int, backend_directory: Path) -> BackendChoice:
    """The backend of a model version.

    One that is not ours is a file ``backend.py`` in the version's or the model's folder, or a ``model.py`` or ``backend.py``
    in the folder of its name below ``backend_directory``. Raises StatusError INVALID_ARG where there is none.
    """
    name = config.backend
    if name in NATIVE or name == PYTHON:
        return BackendChoice(name)
    places = [model_directory / str(version) / "backend.py", model_directory / "backend.py"]
    # The names are a client's words: they must not lead out of the folder.
    files = (config.runtime,) if config.runtime else _FILES
    if all(re.fullmatch(r"\w[\w.+-]*", word) for word in (name, *files)):
        places += [backend_directory / name / file for file in files if file.endswith(".py")]
    for place in places:
        if place.is_file():
            return BackendChoice(PYTHON, os.path.abspath(place))
    raise invalid(f"unable to find backend library for backend '{name}', try specifying runtime on the model configuration.")


def environment_path(config: Any) -> str:
    """The Python environment that a model brings, as its configuration names it; "" for the server's own.

    Raises UNSUPPORTED for a parameter that the Python backend does not understand.
    """
    parameters = config.parameters
    if CPU_ONLY in parameters:
        value = parameters[CPU_ONLY].string_value
        if value not in ("yes", "no"):
            # The lone quote is the protocol's.
            raise unsupported(f"Incorrect value for {CPU_ONLY}: {value}'")
    return str(parameters[_ENVIRONMENT].string_value) if _ENVIRONMENT in parameters else ""
