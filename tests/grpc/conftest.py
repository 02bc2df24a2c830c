"""Certificates for the tests of TLS, made once."""

from __future__ import annotations

import pytest

from tests.certificates import Authority, Pair


@pytest.fixture(scope="package")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs all certificates that are trusted here."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="package")
def server_pair(authority: Authority) -> Pair:
    """A server's certificate and key."""
    return authority.pair("server")
