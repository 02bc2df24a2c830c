"""The quickstart as a newcomer runs it, less the making of the environment: that is this one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ..servers import wait_until
from .tree import COULD_NOT_DOWNLOAD, ROOT


def quickstart(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, cwd=folder)
    if done.returncode == COULD_NOT_DOWNLOAD:
        pytest.skip(f"the example models could not be downloaded: {done.stderr.strip()}")
    return done


def test_once_answers_rightly_and_stops(tmp_path: Path) -> None:
    shm = sorted(path.name for path in Path("/dev/shm").glob("tensorfarm_quickstart*"))
    done = quickstart("--once", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for said in (
        "tiger cat",
        "synthetic speech",
        "Region-based segmentation",
        "1.06 s to 3.87 s",
        "All answers equal those of ONNX Runtime",
    ):
        assert said in done.stdout
    assert done.stdout.count("95.1%  espresso") == 2
    assert sorted(path.name for path in Path("/dev/shm").glob("tensorfarm_quickstart*")) == shm


UNASKED = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import quickstart
quickstart._classify = quickstart._listen = quickstart._pipe = lambda *what: None
quickstart.main()
"""
"""The quickstart less its questions, which the test above has asked."""


def test_ctrl_c_stops_the_server_in_order(tmp_path: Path) -> None:
    with (tmp_path / "said").open("wb") as said:
        command = [sys.executable, "-u", "-c", UNASKED, str(ROOT / "scripts")]
        # a session of its own, to which a Ctrl-C goes as a whole
        shown = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=tmp_path, start_new_session=True)
    try:
        wait_until(lambda: "Ctrl-C" in (tmp_path / "said").read_text() or shown.poll() is not None, "the quickstart to serve on", 120)
        if shown.returncode == COULD_NOT_DOWNLOAD:
            pytest.skip("the example models could not be downloaded")
        os.killpg(shown.pid, signal.SIGINT)
        assert shown.wait(timeout=60) == 0, (tmp_path / "said").read_text()
    finally:
        if shown.poll() is None:
            shown.kill()
            shown.wait()


def test_a_taken_port_is_a_plain_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = quickstart("--once", "--http-port", str(taken.getsockname()[1]), folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: port ")
    assert done.stderr.endswith("cannot be had: Address already in use\n")


def test_a_server_that_does_not_start_is_a_plain_error(tmp_path: Path) -> None:
    done = quickstart("--once", "--no-such-flag", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the server ended at start with exit status 1\n")
    assert "no-such-flag" in done.stderr
    assert "Traceback" not in done.stderr
