"""Calls of ModelStreamInfer, one message at a time or as a whole."""

from __future__ import annotations

import contextlib
import difflib
import queue
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from ..servers import wait_until
from .grpc_case import PATIENCE_S, SERVICE, Answer, Metadata, Side, as_text, encoded, failure

METHOD = "ModelStreamInfer"


class Stream:
    """One call. Requests are sent as they are given; responses are taken as text, in order of their coming."""

    def __init__(self, side: Side, metadata: Metadata = (), timeout_s: float = PATIENCE_S) -> None:
        self._side = side
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method = side.channel.stream_stream(f"/{SERVICE}/{METHOD}")
        self._call: Any = method(iter(self._requests.get, None), timeout=timeout_s, metadata=tuple(metadata))

    def send(self, *messages: Message | bytes) -> None:
        """Send requests."""
        for message in messages:
            self._requests.put(encoded(message))

    def close(self) -> None:
        """Say that there will be no more of them."""
        self._requests.put(None)

    def cancel(self) -> None:
        """Give the call up."""
        self._call.cancel()
        self.close()

    def receive(self) -> str | Answer:
        """The next response, or how the call has ended."""
        try:
            return self._side.alike(as_text(METHOD, next(self._call)))
        except StopIteration:
            return Answer(
                "OK", self._call.details() or "", metadata=tuple((key, value) for key, value in self._call.trailing_metadata() or ())
            )
        except grpc.RpcError as error:
            self.close()
            return failure(self._side, error)

    def rest(self) -> list[str | Answer]:
        """All that comes until the call has ended, and how it did."""
        found = [self.receive()]
        while isinstance(found[-1], str):
            found.append(self.receive())
        return found


@contextlib.contextmanager
def streaming(side: Side, metadata: Metadata = (), timeout_s: float = PATIENCE_S) -> Any:
    """A stream that is given up at the end of the block, unless it has ended."""
    stream = Stream(side, metadata, timeout_s)
    try:
        yield stream
    finally:
        stream.cancel()


def surviving(play: Callable[[Side], Any], side: Side) -> Any:
    """What comes of ``play``; where the real server has died meanwhile (seen: SIGSEGV a while after streams), of a next time."""
    for _ in range(3):
        failure: Exception | None = None
        shown: Any = None
        try:
            shown = play(side)
        except (AssertionError, grpc.RpcError) as error:
            failure = error
        if side.ours or not _died(side, str(shown) + str(failure)):
            if failure is not None:
                raise failure
            return shown
        for note in side.notes.iterdir():
            note.unlink()
        side.server.wait_live()
        wait_until(side.server.ready, "the models to be ready again", 60.0, 0.05)
        grpc.channel_ready_future(side.channel).result(20)
    raise AssertionError("the real server does not survive this")


def _died(side: Side, shown: str) -> bool:
    """Whether the server is gone. Its process may end a moment after its connections."""
    if re.search("Socket closed|failed to connect|Connection reset", shown):
        with contextlib.suppress(AssertionError):
            wait_until(lambda: side.server.process.poll() is not None, "the end of its process", 3.0)
    return side.server.process.poll() is not None


def same(theirs: Any, ours: Any) -> None:
    """Fail, with what is different line by line, unless both servers have shown the same."""
    if theirs != ours:
        lines = difflib.unified_diff(_lines(theirs), _lines(ours), "the real server", "tensorfarm", n=1, lineterm="")
        raise AssertionError("\n".join(line[:1500] for line in lines))


def _lines(shown: Any) -> list[str]:
    if isinstance(shown, list | tuple):
        return [line for one in shown for line in _lines(one)]
    return [str(shown)]


@dataclass(frozen=True)
class Talk:
    """Requests that are sent at once, then the end of the client's half.

    ``apart``: responses of several requests may come in any order, so they are told by the ids that all requests have.
    """

    messages: Sequence[Message | bytes]
    metadata: Metadata = ()
    apart: bool = False

    def on(self, side: Side) -> Any:
        """What comes of it at one server."""
        with streaming(side, self.metadata) as stream:
            stream.send(*self.messages)
            stream.close()
            came = stream.rest()
        if not self.apart:
            return came
        groups: dict[str, list[str]] = {}
        for text in came[:-1]:
            groups.setdefault(str(text).partition(' id: "')[2].partition('"')[0], []).append(str(text))
        return sorted(groups.items()), came[-1]
