"""Certificates for the tests of TLS, made once."""

from __future__ import annotations

import pytest

from tensorfarm.server.door.tls import Tls
from tests.certificates import Authority, Pair
from tests.http.tls_doors import tls_of_pair


@pytest.fixture(scope="package")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs all certificates that are trusted here."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="package")
def server_pair(authority: Authority) -> Pair:
    """A server's certificate and key."""
    return authority.pair("server")


@pytest.fixture
def tls(server_pair: Pair) -> Tls:
    """TLS that asks clients for nothing."""
    return tls_of_pair(server_pair)
