"""What several tests of the farm share: environments of other Pythons."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..pythons import environment


@pytest.fixture(scope="session", params=["3.10", "3.13"])
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment of another Python that has numpy and nothing of ours."""
    return environment(request.param, Path(tmp_path_factory.getbasetemp()) / "pythons")
