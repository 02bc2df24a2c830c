"""Other Pythons of this machine, and environments of them that hold numpy and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

INSTALL_TIMEOUT_S = 180.0


def _found(version: str) -> str | None:
    """The program of a Python version: from the path, or where pyenv keeps its own."""
    roots = [Path(root) for root in (os.environ.get("PYENV_ROOT"), Path.home() / ".pyenv") if root]
    candidates = [shutil.which(f"python{version}")]
    candidates += [str(path) for root in roots for path in sorted(root.glob(f"versions/{version}.*/bin/python"), reverse=True)]
    for candidate in filter(None, candidates):
        # pyenv's own links are on the path for versions that it will not run
        done = subprocess.run([candidate, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True, timeout=30)
        if done.returncode == 0:
            return done.stdout.strip()
    return None


@cache
def _environment(version: str, folder: Path) -> tuple[Path | None, str]:
    program = _found(version)
    if program is None:
        return None, f"no Python {version} on this machine"
    home = folder / version
    commands = (
        [program, "-m", "venv", str(home)],
        [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "numpy"],
    )
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            return None, f"no environment of Python {version} within {INSTALL_TIMEOUT_S:g} s"
        if done.returncode:
            return None, f"no environment of Python {version} with numpy: {(done.stderr or done.stdout).strip()[-200:]}"
    return home, ""


def environment(version: str, folder: Path) -> Path:
    """A virtual environment of a Python version that has numpy; the test is skipped where there can be none."""
    assert not sys.version.startswith(version)
    home, reason = _environment(version, folder)
    if home is None:
        pytest.skip(reason)
    return home
