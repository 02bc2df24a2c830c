"""The README's clients, run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..servers import tensorfarm
from .tree import ROOT

README = (ROOT / "README.md").read_text()
CLIENTS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

SUM = "[[ 1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16]]"
DIFFERENCE = "[[-1  0  1  2  3  4  5  6  7  8  9 10 11 12 13 14]]"


def test_clients_print_sum_and_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from models.examples import EXAMPLES, lay_out

    (example,) = (example for example in EXAMPLES if example.name == "add_sub")
    lay_out(example, {}, tmp_path / "models")
    assert len(CLIENTS) == 2
    with tensorfarm(tmp_path / "models", folder=tmp_path / "server") as server:
        for client in CLIENTS:
            client = client.replace("localhost:8000", f"localhost:{server.http_port}")
            done = subprocess.run([sys.executable, "-c", client], capture_output=True, text=True, timeout=60, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert done.stdout.split() == f"{SUM} {DIFFERENCE}".split()


def test_links_lead_somewhere() -> None:
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert "://" in target or (ROOT / target).exists(), f"{document.name}: {target}"
