"""Python models, read without being run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tensorfarm.server.check.findings import Findings, Severity
from tensorfarm.server.check.python_source import check_python_source

GOOD = "class TritonPythonModel:\n    def execute(self, requests): ...\n"


def checked(tmp_path: Path, source: str | bytes, *, own_python: bool = True) -> tuple[Findings, bool]:
    path = tmp_path / "model.py"
    path.write_bytes(source.encode() if isinstance(source, str) else source)
    findings = Findings("m")
    return findings, check_python_source(path, findings, own_python=own_python).completes


@pytest.mark.parametrize(
    ("source", "completes"),
    [
        (GOOD, False),
        ("class TritonPythonModel:\n    async def execute(self, requests): ...\n    def auto_complete_config(c): ...\n", True),
        ("class Base:\n    def execute(self, r): ...\nclass TritonPythonModel(Base): ...\n", False),
        ("from base import Base\nclass TritonPythonModel(Base): ...\n", True),
        ("from mine import Model as TritonPythonModel\n", True),
        ("from mine import *\n", True),
        ("def made(): ...\nTritonPythonModel = made()\n", True),
        ("try:\n    import x\nexcept ImportError:\n    class TritonPythonModel:\n        def execute(self, r): ...\n", False),
        ("class TritonPythonModel:\n    execute = print\n", False),
        ("class TritonPythonModel:\n    if True:\n        def execute(self, r): ...\n", False),
        ("@decorated\nclass TritonPythonModel: ...\n", True),
        ("class TritonPythonModel(TritonPythonModel): ...\nclass TritonPythonModel(object):\n    def execute(self, r): ...\n", False),
        ("globals()['TritonPythonModel'] = 1\n", True),
        ("raise SystemExit('never run')\n" + GOOD, False),
    ],
)
def test_models_that_are_well(tmp_path: Path, source: str, completes: bool) -> None:
    findings, found = checked(tmp_path, source)
    assert findings.all == []
    assert found is completes


@pytest.mark.parametrize(
    ("source", "line", "column", "text"),
    [
        ("def broken(:\n", 1, 12, "SyntaxError"),
        ("x = 1\n  y = 2\n", 2, 2, "IndentationError"),
        ("", 1, 1, "has no class TritonPythonModel"),
        ("\nclass Model:\n    def execute(self, r): ...\n", 2, 1, "has no class TritonPythonModel"),
        ("import os\n\nclass TritonPythonModel:\n    def initialize(self, args): ...\n", 3, 1, "has no method execute"),
        (b"x = '\xff'\n", 1, 1, "SyntaxError"),
        ("x = '\0'\n", 1, 1, "null bytes"),
        ("(" * 10_000, 1, 1, ""),
        ("-" * 100_000 + "1", 1, 1, "MemoryError"),
        ("x" + ".x" * 100_000, 1, 1, "RecursionError"),
    ],
)
def test_models_that_are_not(tmp_path: Path, source: str | bytes, line: int, column: int, text: str) -> None:
    [one] = checked(tmp_path, source)[0].all
    assert one.severity is Severity.ERROR
    assert text in one.message
    assert one.line == line
    assert one.column == column or isinstance(source, bytes) or len(source) > 1000


def test_another_python_may_know_another_grammar(tmp_path: Path) -> None:
    [one] = checked(tmp_path, "def broken(:\n", own_python=False)[0].all
    assert one.severity is Severity.WARNING
