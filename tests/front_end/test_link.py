"""A front end's end of its link: what is said in a turn leaves together, and nothing that comes is left lying."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tensorfarm.server.farm.channel import Channel, new_context
from tensorfarm.server.front_end.link import Link
from tensorfarm.server.front_end.messages import Drop, Forget, Forgotten, FrontEndFrame, Leave, Said, Told
from tensorfarm.workers.contract.messages import Hello

from .scripts import runner

PATIENCE_S = 10.0
_names = itertools.count()
_decode = msgspec.msgpack.Decoder(FrontEndFrame).decode


class Ends:
    """A link, and the server process's end of it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.heard: list[tuple[bytes, Hello | Said]] = []
        self.told: list[Told] = []
        self.on_told: Callable[[Told], None] = self.told.append
        self.rejected: list[str] = []
        self._context = new_context()
        endpoint = f"ipc://front-end-link-{next(_names)}"
        self.channel = Channel(self._context, endpoint, loop, self._heard, self.rejected.append, _decode)
        self.link = Link(loop, endpoint, b"token", lambda told: self.on_told(told))

    def _heard(self, identity: bytes, frame: Hello | Said) -> None:
        self.heard.append((identity, frame))

    async def until(self, condition: Callable[[], object]) -> None:
        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.001)

        await asyncio.wait_for(wait(), PATIENCE_S)

    async def tell(self, *messages: Any) -> None:
        await self.until(lambda: self.heard)
        self.channel.send(self.heard[0][0], Told(list(messages)))

    def close(self) -> None:
        self.link.close()
        self.channel.close()
        self._context.destroy(0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Ends], Coroutine[Any, Any, None]]], None]:
    monkeypatch.chdir(tmp_path)  # the address of a socket has little room

    return runner(Ends)


Run = Callable[[Callable[[Ends], Coroutine[Any, Any, None]]], None]


def test_it_shows_its_token_first(run: Run) -> None:
    async def script(ends: Ends) -> None:
        ends.link.tell(Forgotten(1))
        await ends.until(lambda: len(ends.heard) == 2)
        (one, hello), (other, said) = ends.heard
        assert one == other and hello == Hello(b"token") and said == Said([Forgotten(1)])

    run(script)


def test_what_is_said_in_a_turn_leaves_together(run: Run) -> None:
    async def script(ends: Ends) -> None:
        for number in range(100):
            ends.link.tell(Drop(number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ends.link.tell(Drop(100))
        await ends.until(lambda: len(ends.heard) == 3)
        assert [frame for _, frame in ends.heard[1:]] == [Said([Drop(number) for number in range(100)]), Said([Drop(100)])]

    run(script)


def test_messages_cross_and_none_is_left_lying(run: Run) -> None:
    """A send may use up the edge that tells of what has come; nobody would look again."""

    async def script(ends: Ends) -> None:
        for number in range(300):
            await ends.tell(Forget(number))
            ends.link.tell(Forgotten(number))
            if number % 3:
                await asyncio.sleep(0)
        await ends.until(lambda: len(ends.told) == 300)

        def said() -> list[Any]:
            return [message for _, frame in ends.heard[1:] if isinstance(frame, Said) for message in frame.messages]

        await ends.until(lambda: len(said()) == 300)
        assert [told.messages for told in ends.told] == [[Forget(number)] for number in range(300)]
        assert said() == [Forgotten(number) for number in range(300)]

    run(script)


def test_what_is_said_in_answer_leaves_too(run: Run) -> None:
    async def script(ends: Ends) -> None:
        def answer(told: Told) -> None:
            for message in told.messages:
                if isinstance(message, Forget):
                    ends.link.tell(Forgotten(message.number))

        ends.on_told = answer
        await ends.tell(Forget(1), Leave(), Forget(2))
        await ends.until(lambda: len(ends.heard) == 2)
        assert ends.heard[1][1] == Said([Forgotten(1), Forgotten(2)])

    run(script)


def test_what_was_said_last_arrives(run: Run) -> None:
    async def script(ends: Ends) -> None:
        await ends.until(lambda: ends.heard)
        for number in range(1000):
            ends.link.tell(Drop(number))
        ends.link.close()
        ends.link.close()
        await ends.until(lambda: len(ends.heard) == 2)
        assert ends.heard[1][1] == Said([Drop(number) for number in range(1000)])
        ends.link.tell(Drop(0))
        await asyncio.sleep(0)
        assert len(ends.heard) == 2 and ends.rejected == []

    run(script)
