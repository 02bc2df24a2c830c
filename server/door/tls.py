"""TLS of a port: the certificate files that the flags name, checked, loaded, and loaded again when they change."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from dataclasses import dataclass

from ...workers.contract.status import StatusError, invalid
from ..log import Log
from ..options import Options

_PROTOCOLS = ("h2", "http/1.1")
# Forward secrecy and authenticated encryption, which is also all that HTTP/2 allows; TLS 1.3 has nothing else.
_TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_LOOK_S = 10.0

_State = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files of a TLS port, as flags like ``--http-server-cert``, ``--http-server-key`` and ``--http-root-cert`` name them.

    ``server_cert`` begins with the server's own certificate. With a ``root_cert`` every client must show a certificate
    that leads to one in there; "" asks clients for none. ``flags`` is what the flags begin with, for messages; ``protocols`` are those
    that clients may choose from.
    """

    server_cert: str
    server_key: str
    root_cert: str = ""
    flags: str = "--http"
    protocols: tuple[str, ...] = _PROTOCOLS

    @property
    def state(self) -> _State:
        """What changes when the files do."""
        return tuple(_state(path) for path in (self.server_cert, self.server_key, self.root_cert) if path)


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class _Encrypted(Exception):
    """The private key is encrypted."""


def _no_pass_phrase() -> str:
    # Without this, OpenSSL would ask the terminal and wait.
    raise _Encrypted


def _check_readable(flag: str, path: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as failure:
        raise invalid(f"{flag}: cannot read '{path}': {failure.strerror}") from None
    except ValueError:
        raise invalid(f"{flag}: not a path") from None


def _read_certificates(context: ssl.SSLContext, flag: str, path: str) -> None:
    """Make the certificates in a file trusted ones of ``context``. Raises INVALID_ARG."""
    _check_readable(flag, path)
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError):
        raise invalid(f"{flag}: '{path}' holds no certificate in PEM form") from None


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """The server's side of TLS: 1.2 and 1.3, no renegotiation, what is spoken by ALPN. Raises INVALID_ARG."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS_1_2_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(files.protocols)
    _read_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), f"{files.flags}-server-cert", files.server_cert)
    _check_readable(f"{files.flags}-server-key", files.server_key)
    try:
        context.load_cert_chain(files.server_cert, files.server_key, _no_pass_phrase)
    except _Encrypted:
        raise invalid(
            f"{files.flags}-server-key: '{files.server_key}' is encrypted; the server needs a key without a pass phrase"
        ) from None
    except ssl.SSLError as failure:
        if failure.reason == "KEY_VALUES_MISMATCH":
            complaint = f"'{files.server_key}' is not the key of the certificate in '{files.server_cert}'"
        elif failure.reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
            raise invalid(f"{files.flags}-server-cert: '{files.server_cert}' is too weak: {failure.reason}") from None
        else:
            complaint = f"'{files.server_key}' holds no private key in PEM form"
        raise invalid(f"{files.flags}-server-key: {complaint}") from None
    except OSError as failure:
        raise invalid(f"{files.flags}-server-key: cannot read '{files.server_key}': {failure.strerror}") from None
    if files.root_cert:
        _read_certificates(context, f"{files.flags}-root-cert", files.root_cert)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def objection(context: ssl.SSLContext, server_cert: str) -> str:
    """Why clients will refuse the server's certificate whoever issued it (it has expired, say), or ""."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(server_cert)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    try:
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
                return ""
            with contextlib.suppress(ssl.SSLWantReadError):
                server.do_handshake()
    except ssl.SSLCertVerificationError as failure:
        return str(failure.verify_message)
    except ssl.SSLError as failure:
        return failure.reason or str(failure)


class Tls:
    """TLS of one port. ``context`` is for the next connection: those that are open keep the certificate they began with.

    The constructor raises INVALID_ARG where the files cannot be used.
    """

    def __init__(self, files: TlsFiles, log: Log, look_s: float = _LOOK_S) -> None:
        self._files = files
        self._log = log
        self._look_s = look_s
        self._state = files.state
        self.context, reason = self._read()
        self._warn(reason)

    def _read(self) -> tuple[ssl.SSLContext, str]:
        context = tls_context(self._files)
        return context, objection(context, self._files.server_cert)

    def _warn(self, reason: str) -> None:
        if reason:
            self._log.warning(f"{self._files.flags}-server-cert: clients will refuse '{self._files.server_cert}': {reason}")

    async def watch(self) -> None:
        """Look at the files now and then, for ever; what does not fit together yet is left alone until it changes again."""
        while True:
            await asyncio.sleep(self._look_s)
            # In a thread: file systems may hang.
            state = await asyncio.to_thread(lambda: self._files.state)
            if state != self._state:
                self._state = state
                await self._load()

    async def _load(self) -> None:
        try:
            self.context, reason = await asyncio.to_thread(self._read)
        except (StatusError, OSError) as error:
            # An OSError: a file that has changed once more while it was read.
            self._log.warning(f"TLS goes on with the certificate it has: {error}")
            return
        self._log.info("the TLS certificate files have changed: new connections get the new ones")
        self._warn(reason)

    def refused(self, peer: object, failure: ssl.SSLError) -> None:
        """Note that a handshake failed."""
        self._log.verbose(1, f"TLS handshake with {peer} failed: {failure.reason or failure}")


def tls_of(options: Options, log: Log, service: str = "HTTP") -> Tls | None:
    """TLS of a service, HTTP or gRPC, as the flags ask for it; None: without. Raises INVALID_ARG."""
    name = service.lower()
    flags = f"--{name}"
    cert, key, root = (str(getattr(options, f"{name}_{which}")) for which in ("server_cert", "server_key", "root_cert"))
    mutual = getattr(options, f"{name}_use_ssl_mutual")
    named = {f"{flags}-server-cert": cert, f"{flags}-server-key": key, f"{flags}-root-cert": root}
    if not getattr(options, f"{name}_use_ssl"):
        idle = [flag for flag, path in named.items() if path]
        if idle:
            log.warning(f"{service} is served without TLS: {flags}-use-ssl is not set, so {', '.join(idle)} has no effect")
        return None
    for flag in (f"{flags}-server-cert", f"{flags}-server-key"):
        if not named[flag]:
            raise invalid(f"{flags}-use-ssl needs {flag}")
    if mutual and not root:
        raise invalid(f"{flags}-use-ssl-mutual needs {flags}-root-cert")
    if root and not mutual:
        log.warning(f"clients are not asked for certificates: {flags}-use-ssl-mutual is not set, so {flags}-root-cert has no effect")
    files = TlsFiles(cert, key, root if mutual else "", flags, _PROTOCOLS if name == "http" else _PROTOCOLS[:1])
    return Tls(files, log)
