"""The checksum agent: what it accepts, and the words in which it refuses."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tensorfarm.server.repository.agents import run_agents
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.status import Code, StatusError

CONTENT = b"weights"
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


def agents(key: str, value: str, name: str = "checksum") -> str:
    return f'model_repository_agents {{ agents [ {{ name: "{name}" parameters: [ {{ key: "{key}" value: "{value}" }} ] }} ] }}'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(CONTENT)
    os.mkfifo(tmp_path / "m" / "pipe")
    (tmp_path / "secret").write_bytes(CONTENT)
    (tmp_path / "m" / "1" / "link").symlink_to(tmp_path / "secret")
    return tmp_path / "m"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model_repository_agents { }",
        'model_repository_agents { agents [ { name: "checksum" } ] }',
        agents("MD5:1/model.onnx", MD5),
        agents("md5:1/model.onnx", MD5.upper()),
    ],
)
def test_files_that_are_as_they_should_be(model: Path, text: str) -> None:
    run_agents(parse_text(text, "config.pbtxt"), model, "/agents")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (
            agents("MD5:1/model.onnx", "0" * 32),
            Code.INVALID_ARG,
            f"Mismatched MD5 hash for file 1/model.onnx, expect: {'0' * 32}, got: {MD5}",
        ),
        (agents("1/model.onnx", MD5), Code.INVALID_ARG, "failed to parse key: 1/model.onnx"),
        (agents("SHA1:1/model.onnx", MD5), Code.UNSUPPORTED, "Unsupported checksum algorithm: SHA1"),
        (agents("MD5:1/none", MD5), Code.INVALID_ARG, "failed to open text file for read 1/none: No such file or directory"),
        (agents("MD5:1", MD5), Code.INVALID_ARG, "failed to open text file for read 1: Is a directory"),
        (agents("MD5:pipe", MD5), Code.INVALID_ARG, "failed to open text file for read pipe: not a regular file"),
        (agents("MD5:../secret", MD5), Code.INVALID_ARG, "checksum of file '../secret' must stay within the model directory"),
        (agents("MD5:1/link", MD5), Code.INVALID_ARG, "checksum of file '1/link' must stay within the model directory"),
        (
            agents("k", "v", name="other"),
            Code.NOT_FOUND,
            "unable to find 'libtritonrepoagent_other.so' for repo agent 'other', searched: /agents",
        ),
    ],
    ids=["mismatch", "no-algorithm", "other-algorithm", "no-file", "folder", "pipe", "outside", "link-outside", "unknown-agent"],
)
def test_what_is_refused(model: Path, text: str, code: Code, message: str) -> None:
    with pytest.raises(StatusError) as caught:
        run_agents(parse_text(text, "config.pbtxt"), model, "/agents")
    assert (caught.value.code, caught.value.message) == (code, message)
