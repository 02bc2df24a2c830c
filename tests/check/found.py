"""Repositories for checks, and what was found in them."""

from __future__ import annotations

from pathlib import Path

import uvloop

from tensorfarm.server.check.command import read_arguments
from tensorfarm.server.check.findings import Finding
from tensorfarm.server.check.run import ModelReport, check_repositories

from ..model_repository import PLAIN, onnx_model

# libuv makes a pipe with its first loop and keeps it: that is to be before the leak check looks
uvloop.new_event_loop().close()

PYTHON_MODEL = "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
IO = 'input { name: "A" data_type: TYPE_FP32 dims: 4 }\noutput { name: "B" data_type: TYPE_FP32 dims: 4 }\n'


def check(*words: str) -> list[ModelReport]:
    """What ``tensorfarm check`` finds with these words behind it."""
    arguments = read_arguments(words)
    return uvloop.run(check_repositories(arguments.directories, arguments.options, lambda model, done, total: None))


def found(*words: str) -> dict[str, list[Finding]]:
    """The findings by model."""
    return {report.name: list(report.findings) for report in check(*words)}


def python_model(root: Path, name: str, config: str | None = IO, source: str = PYTHON_MODEL, version: str = "1") -> Path:
    """Write a Python model; ``config`` gets its backend."""
    folder = root / name
    (folder / version).mkdir(parents=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(f'backend: "python"\n{config}')
    (folder / version / "model.py").write_text(source)
    return folder


def onnx_folder(root: Path, name: str, config: str | None = None) -> Path:
    """Write an ONNX model (INT32[16] INPUT0 and INPUT1 to OUTPUT0 and OUTPUT1) with this configuration."""
    folder = root / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(onnx_model(PLAIN).SerializeToString())
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    return folder


def lines(findings: list[Finding], root: Path) -> list[str]:
    """Findings as ``path:line:column severity message``, paths below ``root``."""
    return [
        f"{Path(each.path).relative_to(root)}{'' if each.line is None else f':{each.line}:{each.column}'} {each.severity} {each.message}"
        for each in findings
    ]
