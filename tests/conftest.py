"""What all tests share: the leak check around every module and around the whole run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

REWRITTEN = ("leaks", "oracle", "servers", "wire", "parity.case", "parity.recorder_script", "parity.scenario")
pytest.register_assert_rewrite(*(f"tests.{name}" for name in REWRITTEN))
# The threads that numpy's OpenBLAS begins with turn round for a while: half of what it costs to import it, in every process that does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime reads it when it is imported; else it sends usage data and leaves files behind

from .leaks import no_leaks  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def no_leaks_in_session() -> Iterator[None]:
    """Nothing stays behind once every fixture has ended, servers of the whole run included."""
    with no_leaks():
        yield


@pytest.fixture(autouse=True, scope="module")
def no_leaks_in_module(no_leaks_in_session: None) -> Iterator[None]:
    """Nothing of a module stays behind, but for servers that other modules go on using."""
    with no_leaks():
        yield
