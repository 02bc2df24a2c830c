"""A model's own files are run as they are, whatever Python remembers of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from tensorfarm.workers.python.fresh_source import import_anew
import_anew(sys.argv[1])
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import near, elsewhere
from package import inner
print(near.NUMBER, inner.NUMBER, elsewhere.NUMBER)
"""


def run(model: Path, other: Path) -> list[str]:
    """What a new process imports that may write bytecode."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, model, other], cwd="/", env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


def test_a_change_that_python_would_not_see(tmp_path: Path) -> None:
    """Same size, same second: the cache of a folder that is no model's is used, that of a model's is not, and none is left there."""
    model, other = tmp_path / "model", tmp_path / "model_of_others"
    files = [model / "near.py", model / "package" / "inner.py", other / "elsewhere.py"]
    for number in (1, 2):
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"NUMBER = {number}")
            os.utime(file, (1_700_000_000, 1_700_000_000))
        assert run(model, other) == ([str(number)] * 2 + ["1"])
    assert not list(model.rglob("__pycache__")) and list(other.rglob("__pycache__"))
