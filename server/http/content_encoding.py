"""Compressed bodies, both ways: gzip and zlib ("deflate"), bounded while they grow."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ...workers.contract.status import Code, StatusError, invalid

ACCEPTED = (b"Accept-Encoding", b"gzip, deflate")
"""The reply header that tells a client whose encoding is unknown what would be understood."""

_EITHER_FORMAT = zlib.MAX_WBITS | 32
_WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_STEP = 256 * 1024
_LEVEL = 1
"""zlib's fastest: on numbers the higher ones cost three times as much and gain a few percent."""

SHORT_PACKED_BYTE_SIZE = 1024
"""A compressed body up to this size is undone at once: it holds a megabyte at most."""

SHORT_BYTE_SIZE = 16 * 1024
"""A reply up to this size is compressed at once."""

_POOL = ThreadPoolExecutor(2, "compression")

T = TypeVar("T")
_WEIGHT = re.compile(r"q=(?P<weight>[0-9]*\.?[0-9]+|[0-9]+\.)")


class UnknownEncoding(StatusError):
    """A body is compressed in a way that is not understood; its reply carries the header ``ACCEPTED``."""

    def __init__(self) -> None:
        super().__init__(Code.UNSUPPORTED, "Unsupported compression type")


def is_compressed(encoding: bytes) -> bool:
    """Does this Content-Encoding mean that there is something to undo? Raises UnknownEncoding."""
    if encoding in (b"gzip", b"deflate"):
        return True
    if encoding != b"identity":
        raise UnknownEncoding
    return False


def decompress(body: memoryview, limit: int) -> bytes:
    """Undo gzip or zlib, whichever it is; what follows the first stream is ignored, a stream may end early.

    Raises StatusError INVALID_ARG: nothing there, no such format, or more than ``limit`` bytes.
    """
    if not len(body):
        raise invalid("nothing to be decompressed")
    stream = zlib.decompressobj(_EITHER_FORMAT)
    parts: list[bytes] = []
    size = 0
    rest: bytes | memoryview = body
    try:
        while not stream.eof:
            part = stream.decompress(rest, min(_STEP, limit + 1 - size))
            rest = stream.unconsumed_tail
            size += len(part)
            parts.append(part)
            if size > limit:
                raise invalid(
                    f"Decompressed data size exceeds the maximum allowed value of {limit} bytes. "
                    "Use --http-max-input-size to increase the limit."
                )
            if not rest and not part:
                break
    except zlib.error:
        raise invalid("unable to decompress the request body") from None
    return b"".join(parts)


def chosen_encoding(accepted: bytes) -> str:
    """The encoding for a reply that an Accept-Encoding header asks for: ``gzip``, ``deflate`` or ``identity``.

    Names and weights must be spelled exactly; the highest weight wins, the first of several.
    """
    best, best_weight = "identity", 0.0
    for entry in accepted.decode("latin-1").split(","):
        name, parameters, attributes = entry.strip().partition(";")
        weight = 1.0
        if parameters:
            match = _WEIGHT.match(attributes)
            weight = float(match["weight"]) if match else 0.0
        if name in ("gzip", "deflate", "identity") and weight > best_weight:
            best, best_weight = name, weight
    return best


def compress(parts: Sequence[bytes | memoryview], encoding: str) -> bytes:
    """Compress a body given in parts; ``encoding`` is ``gzip`` or ``deflate``."""
    stream = zlib.compressobj(_LEVEL, wbits=_WINDOWS[encoding])
    return b"".join([*map(stream.compress, parts), stream.flush()])


def beside_the_loop(work: Callable[[], T], done: Callable[[asyncio.Future[T]], None]) -> None:
    """Run ``work`` in a thread of its own and call ``done`` with its outcome on the loop: long bodies must not stop all others."""
    asyncio.get_running_loop().run_in_executor(_POOL, work).add_done_callback(done)
