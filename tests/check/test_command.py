"""The command: words, exit codes, what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from tensorfarm.server.check.command import BAD, GOOD, SERVER_FLAGS, WRONG_USAGE, main, read_arguments, usage
from tensorfarm.server.check.findings import Finding, Severity
from tensorfarm.server.check.progress import CheckProgress
from tensorfarm.server.check.report import shown, text_report
from tensorfarm.server.check.run import ModelReport

from .found import IO, python_model


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "At least one DIR"),
        ([""], "is empty"),
        (["dir", "s3://bucket/models"], "only folders of this machine can be checked: copy s3://bucket/models to one"),
        (["--strikt", "dir"], "unknown option '--strikt'"),
        (["-x", "dir"], "unknown option '-x'"),
        (["--format=xml", "dir"], "not 'xml'"),
        (["dir", "--format"], "--format needs a value"),
        (["dir", "--backend-config"], "--backend-config needs a value"),
        (["dir", "--backend-config=onnxruntime"], "--backend-config"),
        (["dir", "--model-namespacing=perhaps"], "--model-namespacing"),
        (["dir", "--http-port=1"], "unknown option"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], words: list[str], text: str) -> None:
    assert main(words) == WRONG_USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err


def test_words_become_options() -> None:
    words = ["a", "--strict", "--model-config-name", "gpu", "--backend-config=onnxruntime,intra_op_thread_count=2", "b", "a"]
    arguments = read_arguments([*words, "--disable-auto-complete-config", "--format", "json", "--", "--c"])
    assert arguments.directories == ("a", "b", "--c")
    assert arguments.strict and arguments.format == "json"
    assert arguments.options.model_config_name == "gpu"
    assert arguments.options.disable_auto_complete_config
    assert arguments.options.backend_config["onnxruntime"] == {"intra_op_thread_count": "2"}


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == GOOD
    out = capsys.readouterr().out
    assert out == usage()
    assert all(f"--{name}" in out for name in (*SERVER_FLAGS, "strict", "format", "help"))


def test_exit_codes_and_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = python_model(tmp_path, "m")
    assert main([str(tmp_path)]) == GOOD
    first, blank, last, end = capsys.readouterr().out.split("\n")
    assert (first, blank, end) == ("m (python, version 1): ok", "", "")
    assert last.startswith("1 model checked in ") and last.endswith(" s: 0 errors, 0 warnings")
    (folder / "v2").mkdir()
    assert main([str(tmp_path)]) == GOOD
    assert main([str(tmp_path), "--strict"]) == BAD
    capsys.readouterr()
    (folder / "config.pbtxt").write_text(f'backend: "python"\n{IO}  colour: "red"\n')
    assert main([str(tmp_path)]) == BAD
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "m: error"
    assert lines[1] == f'{folder}/config.pbtxt:4:3: error: Message type "inference.ModelConfig" has no field named "colour".'
    assert lines[-1].endswith("1 error, 1 warning")


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = python_model(tmp_path, "m", "inputs { }")
    assert main([str(tmp_path), "--format=json"]) == BAD
    assert json.loads(capsys.readouterr().out) == [
        {
            "path": f"{folder}/config.pbtxt",
            "line": 2,
            "column": 1,
            "severity": "error",
            "model": "m",
            "message": 'Message type "inference.ModelConfig" has no field named "inputs".',
            "hint": "did you mean input?",
        }
    ]
    (folder / "config.pbtxt").unlink()
    (folder / "config.pbtxt").write_text(f'backend: "python"\n{IO}')
    assert main([str(tmp_path), "--format=json"]) == GOOD
    assert json.loads(capsys.readouterr().out) == []


def test_names_cannot_play_with_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python_model(tmp_path, "m\x1b[31m\n")
    assert main([str(tmp_path)]) == GOOD
    assert capsys.readouterr().out.startswith("m\\u001B[31m\\u000A (python, version 1): ok\n")
    python_model(tmp_path, os.fsdecode(b"m\xff"))
    assert main([str(tmp_path)]) == BAD
    assert f"{tmp_path}/m\\uDCFF/config.pbtxt:1:1: error: the name of a model's directory is not UTF-8\n" in capsys.readouterr().out
    assert main([str(tmp_path), "--format=json"]) == BAD
    [one] = json.loads(capsys.readouterr().out)
    assert one["model"] == "m\udcff"
    assert shown("a\r\u2028é") == "a\\u000D\\u2028é"


def test_colours_are_for_terminals() -> None:
    report = ModelReport("m", "d/m", "python", (Finding(Severity.ERROR, "d/m/c", "bad", "m", 1, 2, "do\nthis"),))
    assert text_report([report], 0.0, strict=False, colour=False).startswith("m (python): error\nd/m/c:1:2: error: bad\n    do\n    this\n")
    assert "\x1b[31merror\x1b[0m" in text_report([report], 0.0, strict=False, colour=True)


def test_progress_is_for_terminals_and_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorfarm.server.check.progress.PATIENCE_SECS", 0.0)
    shown_on = StringIO()
    monkeypatch.setattr(sys, "stderr", shown_on)
    with CheckProgress() as progress:
        progress("m", 1, 3)
    assert shown_on.getvalue() == ""
    monkeypatch.setenv("TERM", "xterm")
    with CheckProgress(terminal=True) as progress:
        progress("m", 1, 3)
        progress("n", 2, 3)
    assert "2/3" in shown_on.getvalue()


def test_the_program_has_the_command(tmp_path: Path) -> None:
    python_model(tmp_path, "m", "max_batch_size: -1\n")
    ran = subprocess.run([sys.executable, "-m", "tensorfarm.server", "check", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert f"{tmp_path}/m/config.pbtxt:2:1: error: 'max_batch_size' must be non-negative value for m" in ran.stdout
