from __future__ import annotations

import pytest

from tensorfarm.workers.python import host

from .fake_host import FakeHost


@pytest.fixture
def fake_host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """The host of this process while a test runs."""
    fake = FakeHost()
    monkeypatch.setattr(host, "current", fake)
    return fake
