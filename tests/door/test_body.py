"""Bodies grow where they lie while they can, and move with what they hold where they cannot."""

from __future__ import annotations

import random
import sys

import pytest

from tensorfarm.server.door.body import ArenaBody, Growing, KnownLength
from tensorfarm.server.door.malformed import Malformed
from tensorfarm.server.http.chunked import Chunked
from tensorfarm.server.http.limits import Limits
from tensorfarm.shm.arena import Arena
from tests.http.doors import an_arena

CONTENT = random.Random(3).randbytes(900_000)
SMALL = Limits(inline_byte_size=1000, claim_byte_size=10_000, claim_share=1_000_000)


def offset_of(body: KnownLength | Growing) -> int:
    """Where a body lies in its arena."""
    assert body._block is not None
    return body._block.offset


def feed(body: KnownLength, content: bytes) -> None:
    """Hand over bytes as a socket would."""
    view = memoryview(content)
    at = 0
    while at < len(content):
        at = body.feed(view, at, len(content))


def test_a_known_body_grows_in_place() -> None:
    """With nothing behind it, it never moves, and takes at most four times what has come."""
    with an_arena(1 << 20) as arena:
        body = KnownLength(arena, len(CONTENT), SMALL, 100)
        for at in range(0, len(CONTENT), 5000):
            feed(body, CONTENT[at : at + 5000])
            assert offset_of(body) == 0
            assert arena.used_byte_size <= max(4 * (at + 5000), 10_000) + 8192
        taken = body.take()
        assert isinstance(taken, ArenaBody)
        assert taken.view == CONTENT
        taken.release()


def test_many_announced_bodies_leave_room() -> None:
    """The first take a part each, up to a quarter of the arena; those after them next to nothing."""
    with an_arena(64 << 20) as arena:
        bodies = [KnownLength(arena, 32 << 20, Limits()) for _ in range(500)]
        assert bodies[0].unfilled_byte_size == 1 << 20
        assert bodies[-1].unfilled_byte_size == 64 << 10
        assert arena.used_byte_size < arena.capacity_byte_size * 3 // 4
        last = bodies[-1]
        feed(last, CONTENT)
        assert last.received_byte_size == len(CONTENT)
        assert last.unfilled_byte_size == (1 << 20) - len(CONTENT)
        for body in bodies:
            body.abandon()


def test_a_small_body_takes_memory_as_it_comes() -> None:
    """What is only announced costs nothing."""
    content = CONTENT[:65_536]
    body = KnownLength(None, len(content), Limits())
    assert body.room is None
    for at in range(0, len(content), 1000):
        assert sys.getsizeof(body._content) <= 2 * at + 1000
        assert not body.complete
        feed(body, content[at : at + 1000])
    assert body.complete
    assert body.take().view == content


def test_a_small_body_ends_where_it_says() -> None:
    """What is behind it belongs to the next request."""
    body = KnownLength(None, 10, Limits())
    assert body.feed(memoryview(CONTENT), 0, 4) == 4
    assert body.feed(memoryview(CONTENT), 4, 100) == 10
    assert body.take().view == CONTENT[:10]


def test_a_known_body_moves_out_of_the_way() -> None:
    """Another block behind it: its bytes come along, its old place is free again."""
    with an_arena(4 << 20) as arena:
        body = KnownLength(arena, len(CONTENT), SMALL, 7)
        neighbour = arena.reserve(1)
        for at in range(0, len(CONTENT), 70_000):
            feed(body, CONTENT[at : at + 70_000])
        assert offset_of(body) > 0
        assert arena.reserve(1).offset == 0
        arena.free(0)
        taken = body.take()
        assert taken.view == CONTENT
        taken.release()
        neighbour.release()


@pytest.mark.parametrize("neighbour", [False, True])
def test_a_body_of_unknown_length_grows(neighbour: bool) -> None:
    """The same for one that only ends when it ends; with nothing behind it may fill the arena to the last page."""
    with an_arena(1 << 20) as arena:
        body = Growing(arena, SMALL)
        body.append(CONTENT[:2000])
        other = arena.reserve(1) if neighbour else None
        content = CONTENT[:300_000] if neighbour else CONTENT + CONTENT[: (1 << 20) - len(CONTENT)]
        for at in range(2000, len(content), 3000):
            body.append(content[at : at + 3000])
        assert (offset_of(body) == 0) is not neighbour
        if not neighbour:
            with pytest.raises(Malformed) as caught:
                body.append(b"x")
            assert caught.value.status == 413
        taken = body.take()
        assert taken.view == content
        taken.release()
        if other is not None:
            other.release()


def test_a_chunk_that_could_never_fit_is_refused_before_it_comes() -> None:
    """By its announced size, and what came before it counted in."""

    def sent(arena: Arena, *lines: bytes) -> int:
        body = Chunked(arena, SMALL)
        try:
            for line in lines:
                body.feed(line, memoryview(line), 0, len(line))
        except Malformed as failure:
            return failure.status
        finally:
            body.abandon()
        return 200

    with an_arena(1 << 20) as arena:
        assert sent(arena, b"100000\r\n") == 200
        assert sent(arena, b"100001\r\n") == 413
        assert sent(arena, b"1\r\nx\r\n", b"fffff\r\n") == 200
        assert sent(arena, b"1\r\nx\r\n", b"100000\r\n") == 413
