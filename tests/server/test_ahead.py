"""What a start brings forward and what it puts off; that it gets shorter by it is tests/system/test_start_time.py's."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorfarm.server import ahead

PUT_OFF = ("numpy", "hypercorn", "h2", "tritonclient.grpc", "grpc", "rich", "onnxruntime")
BEFORE_THE_WORKER = """
import sys, tensorfarm.server.__main__
print(*[name for name in ("asyncio", "uvloop", "msgspec", "zmq", "numpy", "google.protobuf") if name in sys.modules])
"""
BEFORE_READINESS = f"""
import sys, uvloop, tensorfarm.server.__main__, tensorfarm.server.server
from tensorfarm.server import ahead
ahead.own_doors(True)
print(*[name for name in {PUT_OFF} if name in sys.modules])
"""


@pytest.fixture
def signals() -> Iterator[None]:
    """Lets in again what a start holds."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("program", [BEFORE_THE_WORKER, BEFORE_READINESS])
def test_what_can_wait_is_not_imported(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize(("file", "wanted"), [("m/1/model.onnx", "onnxruntime"), ("m/1/model.py", ""), ("", "")])
def test_the_worker_imports_its_backend_where_there_is_a_model_for_it(
    file: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: None
) -> None:
    if file:
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    asked = []
    monkeypatch.setattr(ahead, "launch", lambda words: asked.append(words[2:]))
    ahead.first_worker(("/no/such/folder", "s3://bucket/models", "nul\0", str(tmp_path)))
    assert asked == [["--ahead", wanted] if wanted else []]


def test_a_worker_that_cannot_be_started_is_left_to_the_farm(monkeypatch: pytest.MonkeyPatch, signals: None) -> None:
    def fail(words: list[str]) -> None:
        raise BlockingIOError

    monkeypatch.setattr(ahead, "launch", fail)
    assert ahead.first_worker(()) is None


def test_stop_signals_wait_from_the_first_worker_on(monkeypatch: pytest.MonkeyPatch, signals: None) -> None:
    held = []
    monkeypatch.setattr(ahead, "launch", lambda ahead: held.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    ahead.first_worker(())
    assert set(ahead.STOP_SIGNALS) <= held[0]
