"""Compressed bodies, both ways: gzip and zlib ("deflate"), bounded while they grow."""

from __future__ import annotations

import asyncio
import re
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from ...workers.contract.status import Code, StatusError, invalid, unavailable

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

MOST_WAITING = 512
"""Jobs that may wait for a thread. To undo 64 MiB, the most that is allowed unless a flag says otherwise, takes 0.2 s: behind so many
of that kind, the last waits 50 s in two threads, which is about as long as clients have patience."""

_POOL = ThreadPoolExecutor(2, "compression")

_HTTP_ADVICE = " Use --http-max-input-size to increase the limit."

T = TypeVar("T")
Wanted = Callable[[], bool]
"""Is the outcome still wanted? Asked, from any thread, before each piece of the work."""
_WEIGHT = re.compile(r"q=(?P<weight>[0-9]*\.?[0-9]+|[0-9]+\.)")


class UnknownEncoding(StatusError):
    """A body is compressed in a way that is not understood; its reply carries the header ``ACCEPTED``."""

    def __init__(self) -> None:
        super().__init__(Code.UNSUPPORTED, "Unsupported compression type")


class Unwanted(Exception):
    """Work has stopped because nobody wants its outcome any more."""


def _always() -> bool:
    return True


def is_compressed(encoding: bytes) -> bool:
    """Does this Content-Encoding mean that there is something to undo? Raises UnknownEncoding."""
    if encoding in (b"gzip", b"deflate"):
        return True
    if encoding != b"identity":
        raise UnknownEncoding
    return False


def decompress(body: memoryview, limit: int, wanted: Wanted = _always, *, advice: str = _HTTP_ADVICE, whole: bool = False) -> bytes:
    """Undo gzip or zlib, whichever it is; what follows the first stream is ignored, a stream may end early but where it must be ``whole``.

    Raises StatusError INVALID_ARG: nothing there, no such format, or more than ``limit`` bytes. Raises Unwanted.
    """
    if not len(body):
        raise invalid("nothing to be decompressed")
    stream = zlib.decompressobj(_EITHER_FORMAT)
    parts: list[bytes] = []
    size = at = 0
    rest: bytes | memoryview = b""
    try:
        while not stream.eof:
            if not wanted():
                raise Unwanted
            if not rest:
                # In pieces, because zlib copies all that is left of its input at each step.
                rest = body[at : at + _STEP]
                at += len(rest)
            ended = not rest
            part = stream.decompress(rest, min(_STEP, limit + 1 - size))
            rest = stream.unconsumed_tail
            size += len(part)
            parts.append(part)
            if size > limit:
                raise invalid(f"Decompressed data size exceeds the maximum allowed value of {limit} bytes.{advice}")
            if ended and not part:
                if whole:
                    raise invalid("unable to decompress the request body")
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


def compress(parts: Sequence[bytes | memoryview], encoding: str, wanted: Wanted = _always) -> bytes:
    """Compress a body given in parts; ``encoding`` is ``gzip`` or ``deflate``. Raises Unwanted."""
    stream = zlib.compressobj(_LEVEL, wbits=_WINDOWS[encoding])
    pieces: list[bytes] = []
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), _STEP):
            if not wanted():
                raise Unwanted
            pieces.append(stream.compress(view[start : start + _STEP]))
    return b"".join([*pieces, stream.flush()])


class Beside(Generic[T]):
    """``work`` in a thread of its own, because long bodies must not stop all others; then ``done`` with its outcome, on the loop.

    Jobs begin in the order they came. Raises StatusError UNAVAILABLE where ``MOST_WAITING`` of them wait already.
    """

    __slots__ = ("_done", "_loop", "_outcome", "_wanted", "_work")

    _places = threading.BoundedSemaphore(MOST_WAITING)

    def __init__(self, work: Callable[[Wanted], T], done: Callable[[Future[T]], None]) -> None:
        if not self._places.acquire(blocking=False):
            raise unavailable("too many compressed bodies wait for a thread; try again later")
        self._work: Callable[[Wanted], T] | None = work
        self._done: Callable[[Future[T]], None] | None = done
        self._wanted = True
        self._loop = asyncio.get_running_loop()
        self._outcome = _POOL.submit(self._run)
        self._outcome.add_done_callback(self._ended)

    def cancel(self) -> bool:
        """Nobody wants the outcome any more. True: the work had not begun, now never will, and nothing is called.

        False: it is under way or over. It stops soon, and ``done`` is called, perhaps with Unwanted: until then it may read its input.
        """
        self._wanted = False
        if not self._outcome.cancel():
            return False
        self._places.release()
        # The pool knows this object until a thread comes by; what it was to work on is free at once.
        self._work = self._done = None
        return True

    def _run(self) -> T:
        self._places.release()
        work, self._work = self._work, None
        assert work is not None
        return work(lambda: self._wanted)

    def _ended(self, outcome: Future[T]) -> None:
        if self._done is not None and not outcome.cancelled() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._done, outcome)
