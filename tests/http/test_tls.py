"""TLS by flags: which files the server takes and refuses, and certificates that change while it runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from pathlib import Path

import pytest

from tensorfarm.server.command_line import parse
from tensorfarm.server.door.tls import Tls, TlsFiles, objection, tls_context, tls_of
from tensorfarm.server.http.listener import HttpDoor
from tensorfarm.server.log import Log
from tensorfarm.server.usage import usage_text
from tensorfarm.workers.contract.status import Code, StatusError
from tests.certificates import Authority, Pair, encrypted
from tests.http.doors import PATIENCE_S, Recorder, run, until


class Lines(Log):
    """A log that keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def info(self, message: str) -> None:
        self.said.append(message)

    def warning(self, message: str) -> None:
        self.said.append(message)


def refusal(*flags: str) -> str:
    with pytest.raises(StatusError) as caught:
        tls_of(parse(flags, {}), Lines())
    assert caught.value.code is Code.INVALID_ARG
    return caught.value.message


# flags


def test_flags_and_help() -> None:
    options = parse(["--http-use-ssl=1", "--http-server-cert=c", "--http-server-key", "k", "--http-root-cert=r"], {})
    assert (options.http_use_ssl, options.http_use_ssl_mutual) == (True, False)
    assert (options.http_server_cert, options.http_server_key, options.http_root_cert) == ("c", "k", "r")
    assert parse(["--http-use-ssl-mutual=true"], {}).http_use_ssl, "as with --grpc-use-ssl-mutual"
    assert not parse([], {}).http_use_ssl
    text = usage_text()
    for flag in ("use-ssl <boolean>", "use-ssl-mutual <boolean>", "server-cert <string>", "server-key <string>", "root-cert <string>"):
        assert f"\n  --http-{flag}\n" in text


def test_errors_name_flag_and_file(authority: Authority, server_pair: Pair, tmp_path: Path) -> None:
    cert, key = f"--http-server-cert={server_pair.cert}", f"--http-server-key={server_pair.key}"
    other = authority.pair("other")
    folder, unreadable = tmp_path, tmp_path / "none.pem"
    locked = encrypted(other)
    use = "--http-use-ssl=true"
    assert refusal(use, key) == "--http-use-ssl needs --http-server-cert"
    assert refusal(use, cert) == "--http-use-ssl needs --http-server-key"
    assert refusal("--http-use-ssl-mutual=true", cert, key) == "--http-use-ssl-mutual needs --http-root-cert"
    missing = f"cannot read '{unreadable}': No such file or directory"
    assert refusal(use, f"--http-server-cert={unreadable}", key) == f"--http-server-cert: {missing}"
    assert refusal(use, cert, f"--http-server-key={unreadable}") == f"--http-server-key: {missing}"
    mutual = "--http-use-ssl-mutual=true"
    assert refusal(mutual, cert, key, f"--http-root-cert={unreadable}") == f"--http-root-cert: {missing}"
    assert refusal(use, f"--http-server-cert={folder}", key) == f"--http-server-cert: cannot read '{folder}': Is a directory"
    assert (
        refusal(use, f"--http-server-cert={server_pair.key}", key)
        == f"--http-server-cert: '{server_pair.key}' holds no certificate in PEM form"
    )
    assert (
        refusal(use, cert, f"--http-server-key={server_pair.cert}")
        == f"--http-server-key: '{server_pair.cert}' holds no private key in PEM form"
    )
    mismatch = f"--http-server-key: '{other.key}' is not the key of the certificate in '{server_pair.cert}'"
    assert refusal(use, cert, f"--http-server-key={other.key}") == mismatch
    encrypted_key = f"--http-server-key: '{locked}' is encrypted; the server needs a key without a pass phrase"
    assert refusal(use, f"--http-server-cert={other.cert}", f"--http-server-key={locked}") == encrypted_key
    assert refusal(mutual, cert, key, f"--http-root-cert={server_pair.key}").endswith("holds no certificate in PEM form")


def test_settings_that_do_nothing_are_warned_about(authority: Authority, server_pair: Pair) -> None:
    lines = Lines()
    assert tls_of(parse([f"--http-server-cert={server_pair.cert}", "--http-root-cert=none"], {}), lines) is None
    assert lines.said == ["HTTP is served without TLS: --http-use-ssl is not set, so --http-server-cert, --http-root-cert has no effect"]
    lines = Lines()
    flags = [
        "--http-use-ssl=1",
        f"--http-server-cert={server_pair.cert}",
        f"--http-server-key={server_pair.key}",
        f"--http-root-cert={authority.root}",
    ]
    tls = tls_of(parse(flags, {}), lines)
    assert tls is not None and tls.context.verify_mode is ssl.CERT_NONE
    assert len(lines.said) == 1 and "--http-use-ssl-mutual is not set" in lines.said[0]
    lines = Lines()
    tls = tls_of(parse(["--http-use-ssl-mutual=1", *flags[1:]], {}), lines)
    assert tls is not None and tls.context.verify_mode is ssl.CERT_REQUIRED
    assert lines.said == []


def test_settings_of_the_context(server_pair: Pair) -> None:
    context = tls_context(TlsFiles(str(server_pair.cert), str(server_pair.key)))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    for cipher in context.get_ciphers():
        assert cipher["aead"], cipher["name"]
        assert cipher["kea"] in ("kx-ecdhe", "kx-any"), cipher["name"]


def test_certificates_that_clients_refuse_are_warned_about(authority: Authority) -> None:
    old = authority.pair("old", days=-1)
    lines = Lines()
    Tls(TlsFiles(str(old.cert), str(old.key)), lines)
    assert lines.said == [f"--http-server-cert: clients will refuse '{old.cert}': certificate has expired"]
    mutual = tls_context(TlsFiles(str(old.cert), str(old.key), str(authority.root)))
    assert objection(mutual, str(old.cert)) == "certificate has expired"


# certificates that change


def test_changed_files_are_read_again(authority: Authority, server_pair: Pair, tmp_path: Path) -> None:
    """New connections get the new certificate once its key is there too; open ones go on; a broken file changes nothing."""
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    shutil.copy(server_pair.cert, cert)
    shutil.copy(server_pair.key, key)
    new = authority.pair("renewed")
    lines = Lines()
    tls = Tls(TlsFiles(str(cert), str(key)), lines, look_s=0.01)

    async def scenario() -> None:
        door = HttpDoor(Recorder())
        await door.start("127.0.0.1", 0, False, tls)

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
            opened = asyncio.open_connection("127.0.0.1", door.port, ssl=authority.client(), server_hostname="localhost")
            reader, writer = await asyncio.wait_for(opened, PATIENCE_S)
            return reader, writer, writer.get_extra_info("peercert")["subject"][0][0][1]

        async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)).startswith(b"HTTP/1.1 200")

        reader, writer, name = await connect()
        assert name == "server"
        _replace(cert, new.cert)
        await until(lambda: len(lines.said) == 1)
        assert "is not the key of the certificate" in lines.said[0]
        await asyncio.sleep(0.05)
        assert len(lines.said) == 1, "it is said once"
        _, half_way, name = await connect()
        assert name == "server"
        _replace(key, new.key)
        await until(lambda: len(lines.said) == 2)
        _, renewed, name = await connect()
        assert name == "renewed"
        cert.unlink()
        await until(lambda: len(lines.said) == 3)
        assert lines.said[2].endswith(f"cannot read '{cert}': No such file or directory")
        _, last, name = await connect()
        assert name == "renewed"
        await ask(reader, writer)
        for one in (writer, half_way, renewed, last):
            one.transport.abort()
        await door.close()

    run(scenario)


def _replace(path: Path, source: Path) -> None:
    """Put a copy of ``source`` in the place of ``path`` in one step."""
    copy = path.with_suffix(".new")
    shutil.copy(source, copy)
    os.replace(copy, path)
