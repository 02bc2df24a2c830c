"""The README's clients and commands, run as they stand there."""

from __future__ import annotations

import difflib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ..servers import Server, tensorfarm
from .tree import ROOT

README = (ROOT / "README.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE))

SUM = "[[ 1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16]]"
DIFFERENCE = "[[-1  0  1  2  3  4  5  6  7  8  9 10 11 12 13 14]]"


def blocks(section: str, language: str) -> list[str]:
    """The code blocks of a section, in order."""
    return [text for name, text in re.findall(r"```(\w*)\n(.*?)```", SECTIONS[section], re.DOTALL) if name == language]


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tensorfarm(repository, folder=tmp_path_factory.mktemp("readme") / "server", grpc=True) as running:
        yield running


def here(text: str, server: Server) -> str:
    """The same for the server under test."""
    ports = {8000: server.http_port, 8001: server.grpc_port, 8002: server.metrics_port}
    for theirs, ours in ports.items():
        text = text.replace(f"localhost:{theirs}", f"localhost:{ours}")
    return text


def run_python(client: str, server: Server, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", here(client, server)], capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_bash(lines: str, server: Server, folder: Path) -> str:
    """Run what stands behind the prompts, with the lines that continue it, up to the next prompt or the output."""
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("there is no curl or no bash here")
    script = here("\n".join(re.findall(r"^\$ (.*(?:\n {2,}.*)*)", lines, re.MULTILINE)), server)
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{script}\n{done.stderr}"
    return done.stdout


def shown(lines: str) -> str:
    """What stands in a console block and is no command."""
    return re.sub(r"^\$ .*(?:\n {2,}.*)*\n", "", lines, flags=re.MULTILINE)


def test_clients_print_sum_and_difference(server: Server, tmp_path: Path) -> None:
    clients = blocks("A first client", "python")
    assert len(clients) == 3
    for client in clients:
        assert run_python(client, server, tmp_path).split() == f"{SUM} {DIFFERENCE}".split()


def test_first_commands_are_answered(server: Server, tmp_path: Path) -> None:
    (commands,) = blocks("A first client", "console")
    said = run_bash(commands, server, tmp_path)
    assert '"data":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]' in said
    assert "# HELP nv_inference_request_success" in said


def test_pipelines_answer_the_client_as_shown(server: Server, pictures: Path) -> None:
    pytest.importorskip("requests")
    (client,), (output,) = blocks("Pipelines", "python"), blocks("Pipelines", "")
    said = run_python(client, server, pictures)
    # other processors may round the networks' numbers to another letter
    assert difflib.SequenceMatcher(None, said, output, autojunk=False).ratio() > 0.98, said


def test_pipelines_answer_curl_as_shown(server: Server, pictures: Path, tmp_path: Path) -> None:
    (commands,) = blocks("Pipelines", "console")
    for name in ("coffee.png", "page.png"):
        (tmp_path / name).write_bytes((pictures / name).read_bytes())
    said, expected = json.loads(run_bash(commands, server, tmp_path)), json.loads(shown(commands))
    np.testing.assert_allclose(said["outputs"][1].pop("data"), expected["outputs"][1].pop("data"), rtol=1e-3)
    assert said == expected
    assert b"Region-based segmentation" in (tmp_path / "lines").read_bytes()


def test_links_lead_somewhere() -> None:
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert "://" in target or (ROOT / target).exists(), f"{document.name}: {target}"
