"""Certificates for the tests of TLS, made with the openssl program: one authority and what it signs."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=60)  # noqa: S603, S607
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates; all files lie in ``folder``."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._own = self._pair(name)
        _openssl("req", "-x509", *_NEW_KEY, "-keyout", self._own.key, "-out", self._own.cert, "-days", "30", "-subj", f"/CN={name}")

    @property
    def root(self) -> Path:
        """The authority's own certificate."""
        return self._own.cert

    def _pair(self, name: str) -> Pair:
        return Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")

    def pair(self, name: str, *, days: int = 30) -> Pair:
        """A certificate for localhost with the common name ``name``; one that has expired where ``days`` is negative."""
        made, request, extra = self._pair(name), self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extra.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n")
        _openssl("req", "-new", *_NEW_KEY, "-keyout", made.key, "-out", request, "-subj", f"/CN={name}")
        signer = ("-CA", self._own.cert, "-CAkey", self._own.key, "-CAcreateserial")
        _openssl("x509", "-req", "-in", request, *signer, "-days", str(days), "-extfile", extra, "-out", made.cert)
        return made

    def client(self, own: Pair | None = None, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
        """The TLS of a client that trusts this authority and shows ``own``."""
        context = ssl.create_default_context(cafile=str(self.root))
        if own is not None:
            context.load_cert_chain(own.cert, own.key)
        if alpn:
            context.set_alpn_protocols(alpn)
        return context


def encrypted(pair: Pair) -> Path:
    """The pair's key with a pass phrase."""
    path = pair.key.with_suffix(".locked")
    _openssl("ec", "-in", pair.key, "-aes256", "-passout", "pass:secret", "-out", path)
    return path
