"""Stores for tests of repositories in the cloud: small web servers on this machine, and the end of fsspec's thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.server
import json
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec.asyn

from tensorfarm.server.repository.cloud import Cloud
from tensorfarm.server.repository.cloud_copy import CloudCopy


@contextlib.contextmanager
def fsspec_thread() -> Iterator[None]:
    """fsspec starts a thread with a loop at first use and keeps it for ever; here it ends, and with it all connections."""
    try:
        yield
    finally:
        gc.collect()
        loop, thread = fsspec.asyn.loop[0], fsspec.asyn.iothread[0]
        if loop is not None:
            asyncio.run_coroutine_threadsafe(_others_end(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            assert not thread.is_alive()
            loop.close()
            fsspec.asyn.reset_lock()


async def _others_end() -> None:
    """Sessions that are being closed."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=5)


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers from ``server.objects``, and counts requests in ``server.paths``."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a reply in one piece: in two, the second waits for the client's delayed acknowledgement
    server: ObjectServer

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.paths.append(f"{self.command} {self.path}")
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.answer(parts.path, query)

    def answer(self, path: str, query: dict[str, str]) -> None:
        raise NotImplementedError

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class ObjectServer(http.server.ThreadingHTTPServer):
    """A server on a free port of this machine."""

    daemon_threads = True

    def __init__(self, answers: type[Answers]) -> None:
        super().__init__(("127.0.0.1", 0), answers)
        self.objects: dict[str, bytes] = {}
        self.paths: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def listed(self, prefix: str, delimiter: str) -> tuple[list[str], list[str]]:
        """Keys and common prefixes, as object stores list them."""
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        if not delimiter:
            return keys, []
        below = [(key, key[len(prefix) :].partition(delimiter)) for key in keys]
        return [key for key, (_, found, _) in below if not found], sorted({f"{prefix}{name}/" for _, (name, found, _) in below if found})


@contextlib.contextmanager
def running(answers: type[Answers]) -> Iterator[ObjectServer]:
    """An ObjectServer while it runs."""
    server = ObjectServer(answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class GoogleAnswers(Answers):
    """The listings and downloads of Google's JSON API."""

    def answer(self, path: str, query: dict[str, str]) -> None:
        name = unquote(path.partition("/o/")[2])
        if path.endswith("/o"):
            keys, prefixes = self.server.listed(query.get("prefix", ""), query.get("delimiter", ""))
            self.document({"items": [self.described(key) for key in keys], "prefixes": prefixes})
        elif name not in self.server.objects:
            self.reply(404)
        elif query.get("alt") == "media":
            self.reply(200, self.server.objects[name])
        else:
            self.document(self.described(name))

    def described(self, key: str) -> dict[str, str]:
        content = self.server.objects[key]
        return {"name": key, "bucket": "bucket", "size": str(len(content)), "etag": str(zlib.crc32(content)), "generation": "1"}

    def document(self, content: object) -> None:
        self.reply(200, json.dumps(content).encode(), Content_Type="application/json")


class AzureAnswers(Answers):
    """The listings, properties and downloads of Azure's blobs."""

    def answer(self, path: str, query: dict[str, str]) -> None:
        _, _account, container, *rest = path.split("/", 3)
        name = unquote(rest[0]) if rest else ""
        content = self.server.objects.get(name)
        if query.get("comp") == "list":
            self.listing(container, *self.server.listed(query.get("prefix", ""), query.get("delimiter", "")))
        elif content is None:
            self.reply(404, x_ms_error_code="BlobNotFound")
        else:
            headers = {"ETag": f'"{zlib.crc32(content)}"', "Last-Modified": "Sun, 22 Nov 2026 00:00:00 GMT", "x-ms-blob-type": "BlockBlob"}
            wanted = self.headers.get("x-ms-range")
            if not wanted or not content:
                self.reply(200, content, **headers)
                return
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            part = content[int(start) : int(end) + 1]
            headers["Content-Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}"
            self.reply(206, part, **headers)

    def listing(self, container: str, keys: list[str], prefixes: list[str]) -> None:
        blobs = "".join(
            f"<Blob><Name>{key}</Name><Properties><Last-Modified>Sun, 22 Nov 2026 00:00:00 GMT</Last-Modified>"
            f"<Etag>{zlib.crc32(self.server.objects[key])}</Etag><Content-Length>{len(self.server.objects[key])}</Content-Length>"
            "<BlobType>BlockBlob</BlobType></Properties></Blob>"
            for key in keys
        )
        blobs += "".join(f"<BlobPrefix><Name>{prefix}</Name></BlobPrefix>" for prefix in prefixes)
        head = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="http://localhost/" ContainerName="{container}">'
        self.reply(200, f"{head}<Blobs>{blobs}</Blobs><NextMarker /></EnumerationResults>".encode(), Content_Type="application/xml")


def loaded(cloud: Cloud, model: str, *versions: int) -> CloudCopy:
    """A copy of a model as it is now, with these versions filled."""
    stamps = cloud.stamps(model)
    assert stamps is not None
    copy = cloud.copy(model, stamps)
    copy.fill(versions)
    return copy


def tree(directory: Path) -> dict[str, bytes | None]:
    """All files below a directory, by relative names; directories end with a slash and have None."""
    return {
        path.relative_to(directory).as_posix() + "/" * path.is_dir(): None if path.is_dir() else path.read_bytes()
        for path in directory.rglob("*")
    }
