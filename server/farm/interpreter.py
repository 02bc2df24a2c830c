"""Which Python a worker runs in: the server's own, or one that a model brings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

from ...workers.contract.status import internal
from .archive import ArchiveError
from .environments import Environments

MODEL_DIRECTORY = "$$TRITON_MODEL_DIRECTORY"
"""At the start of EXECUTION_ENV_PATH, stands for the model's directory."""

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")
LEAST_PYTHON = (3, 10)
LEAST_NUMPY = (1, 22)
CHECK_TIMEOUT_SECS = 60.0
_SAID_BYTE_SIZE = 64 << 10

_ENVIRONMENT_MARKS = ("PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX")
"""What the server's own environment may say about its own Python."""


@dataclass(frozen=True)
class Interpreter:
    """A Python: the path of its program, and the environment variables that a worker in it gets beside the server's."""

    program: str
    variables: dict[str, str]

    def environment(self) -> dict[str, str] | None:
        """All environment variables of a worker; None for those of the server as they are."""
        if self is OWN:
            return None
        return {name: value for name, value in os.environ.items() if name not in _ENVIRONMENT_MARKS} | self.variables


OWN = Interpreter(sys.executable, {})
"""The server's own Python."""


async def resolve(path_text: str, model_directory: str, environments: Environments) -> Interpreter:
    """The interpreter that a model's EXECUTION_ENV_PATH names.

    That is a directory (a virtual environment, an unpacked conda environment), an archive of one, or a Python program.
    It is tried before it is given out. Raises StatusError, which says what is wrong with it.
    """
    if path_text.startswith(MODEL_DIRECTORY):
        path_text = model_directory + path_text.removeprefix(MODEL_DIRECTORY)
    try:
        path = await asyncio.to_thread(os.path.realpath, path_text, strict=True)
    except (OSError, ValueError):
        raise internal(f"Failed to get the canonical path for {path_text}.") from None
    if os.path.isdir(path):
        interpreter = _of_directory(Path(path), path_text)
    elif os.path.isfile(path) and (path_text.endswith(ARCHIVE_SUFFIXES) or path.endswith(ARCHIVE_SUFFIXES)):
        interpreter = _of_directory(await _unpacked(path, path_text, environments), path_text)
    elif os.path.isfile(path) and os.access(path, os.X_OK):
        # Not the canonical path: a virtual environment's program is a link, and knows its environment by the link's place.
        interpreter = Interpreter(os.path.abspath(path_text), {})
    else:
        raise internal(
            f"EXECUTION_ENV_PATH '{path_text}' is neither a directory nor an archive ({', '.join(ARCHIVE_SUFFIXES)}) nor a program"
        )
    await environments.once(_identity(interpreter), lambda: _check(interpreter, path_text))
    return interpreter


async def _unpacked(path: str, path_text: str, environments: Environments) -> Path:
    try:
        return await environments.unpacked(Path(path))
    except ArchiveError as error:
        raise internal(f"the Python environment '{path_text}' could not be unpacked: {error}") from error
    except OSError as error:
        raise internal(f"the Python environment '{path_text}' could not be unpacked: {error.strerror}") from error


def _of_directory(folder: Path, path_text: str) -> Interpreter:
    program = folder / "bin" / "python"
    if not os.access(program, os.X_OK):
        if not (folder / "bin" / "activate").exists():
            raise internal(f"Path {path_text}/bin/activate does not exist. The Python environment should contain an 'activate' script.")
        raise internal(f"the Python environment '{path_text}' has no program bin/python that can be run on this machine")
    variables = {
        "VIRTUAL_ENV" if (folder / "pyvenv.cfg").exists() else "CONDA_PREFIX": str(folder),
        "PATH": _in_front(folder / "bin", os.environ.get("PATH", os.defpath)),
        "LD_LIBRARY_PATH": _in_front(folder / "lib", os.environ.get("LD_LIBRARY_PATH", "")),
    }
    return Interpreter(str(program), variables)


def _in_front(folder: Path, others: str) -> str:
    return f"{folder}{os.pathsep}{others}" if others else str(folder)


# Fit for any Python, 2 included. The first entry of the path may be the folder that the server was started in.
_SCRIPT = """
import sys
sys.path[:] = [path for path in sys.path if path]
sys.stdout.write("tensorfarm python %d.%d\\n" % sys.version_info[:2])
sys.stdout.flush()
try:
    import numpy
except ImportError:
    sys.stdout.write("tensorfarm numpy none\\n")
else:
    sys.stdout.write("tensorfarm numpy %s\\n" % numpy.__version__)
"""


def _identity(interpreter: Interpreter) -> tuple[Hashable, ...]:
    """Equal for interpreters of which one need be tried."""
    try:
        status = os.stat(interpreter.program)
    except OSError:
        return (interpreter.program,)  # it has gone meanwhile, as the trial will tell
    return interpreter.program, status.st_ino, status.st_mtime_ns, tuple(interpreter.variables.items())


async def _check(interpreter: Interpreter, path_text: str) -> None:
    """Run an interpreter once. Raises StatusError where workers could not run in it."""
    # What it says fits into the pipe and is read when it has ended: whoever says more gets no further, and fills no memory here.
    output, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(theirs, True)
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *(interpreter.program, "-c", _SCRIPT),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs,
                stderr=asyncio.subprocess.DEVNULL,
                env=interpreter.environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise internal(f"the Python of '{path_text}' cannot be run: {error.strerror}") from error
        finally:
            os.close(theirs)
        try:
            await asyncio.wait_for(process.wait(), CHECK_TIMEOUT_SECS)
        except TimeoutError:
            raise internal(f"the Python of '{path_text}' did not import numpy within {CHECK_TIMEOUT_SECS:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        said = b""
        with contextlib.suppress(BlockingIOError):
            said = os.read(output, _SAID_BYTE_SIZE)
    finally:
        os.close(output)
    found = dict(re.findall(r"^tensorfarm (python|numpy) (\S+)$", said.decode(errors="replace"), re.MULTILINE))
    complaint = _complaint(found, process.returncode)
    if complaint is not None:
        raise internal(f"the Python of '{path_text}' {complaint}")


def _complaint(found: dict[str, str], returncode: int | None) -> str | None:
    """What speaks against an interpreter that said this, and ended like this."""
    python, numpy = found.get("python"), found.get("numpy")
    if python is None:
        return f"does not work: it ended with code {returncode} before it ran anything"
    if _numbers(python) < LEAST_PYTHON:
        return f"is version {python}; workers need {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or later"
    if numpy == "none":
        return "has no numpy that can be imported; install it there, workers need nothing else"
    if numpy is None or returncode:
        return f"ended with code {returncode} while it imported numpy"
    if _numbers(numpy) < LEAST_NUMPY:
        return f"has numpy {numpy}; workers need {LEAST_NUMPY[0]}.{LEAST_NUMPY[1]} or later"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
