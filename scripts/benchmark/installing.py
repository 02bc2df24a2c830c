"""Puts the other servers where they can be run: each into an environment of its own in the user's cache, with pip."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

from models.cache import cache_folder

from .frameworks import Framework

_STAMP = "installed"
_SAID = re.compile(r"(Collecting|Downloading|Building wheel|Installing collected packages)\b *:? *(\S+)")


class InstallError(Exception):
    """A server could not be installed; the text says why."""


def folder_of(framework: Framework) -> Path:
    """Where its environment lies."""
    return cache_folder() / "contenders" / framework.name


def python_of(framework: Framework) -> Path:
    """The interpreter of its environment."""
    return folder_of(framework) / "bin" / "python"


def installed(framework: Framework) -> bool:
    """Is there a whole environment, made for what the table asks for now?"""
    try:
        stamp = (folder_of(framework) / _STAMP).read_text()
    except OSError:
        return False
    return stamp == _wanted(framework) and os.access(python_of(framework), os.X_OK)


def version_of(framework: Framework, distribution: str = "") -> str:
    """The version of it, or of another distribution in its environment; empty where there is none."""
    wanted = distribution or re.split(r"[\[ ]", framework.requirements[0])[0]
    site = [str(path) for path in folder_of(framework).glob("lib/python*/site-packages")]
    return next((found.version for found in distributions(path=site) if found.name.lower() == wanted), "")


def install(framework: Framework, on_step: Callable[[str], None]) -> None:
    """Make its environment, unless it is there; ``on_step`` is told what pip does. Raises InstallError."""
    if installed(framework):
        return
    folder = folder_of(framework)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    on_step("making an environment")
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if made.returncode:
        raise InstallError(f"no virtual environment can be made: {(made.stdout + made.stderr).strip()[-300:]}")
    # Our own pip fills it: to put one there takes longer than all the rest.
    own = [sys.executable, "-m", "pip", "--python", str(folder), "--disable-pip-version-check"]
    log = folder / "install.log"
    errors = []
    with (
        log.open("w") as sink,
        subprocess.Popen(
            [*own, "install", "--no-input", "--no-cache-dir", *framework.requirements],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as pip,
    ):
        try:
            for line in pip.stdout or ():
                sink.write(line)
                if line.startswith("ERROR"):
                    errors.append(line.strip())
                elif found := _SAID.match(line.strip()):
                    on_step(f"{found[1]} {found[2]}")
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        why = errors[0] if errors else f"pip ended with exit status {pip.returncode}"
        raise InstallError(f"{why} (Python {sys.version_info.major}.{sys.version_info.minor}; all that pip said: {log})")
    (folder / _STAMP).write_text(_wanted(framework))


def _wanted(framework: Framework) -> str:
    return "".join(f"{requirement}\n" for requirement in framework.requirements)
