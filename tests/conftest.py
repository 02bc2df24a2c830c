"""What all tests share: the leak check around every module and around the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .leaks import no_leaks


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
