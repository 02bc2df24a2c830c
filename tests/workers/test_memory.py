"""A worker's memory: regions that come and go beside the batches, and blocks that are divided."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorfarm.shm.arena import Arena, create_memory, read_only
from tensorfarm.shm.placement import Lease, Placement, Span
from tensorfarm.shm.system import open_object
from tensorfarm.workers import memory as memory_module
from tensorfarm.workers.contract.status import Code, StatusError

from .real_memory import ARENA_BYTE_SIZE, REGION, REGION_BYTE_SIZE, REGION_OFFSET, Bench, bench, inline

SHRUNK = "the shared memory object behind a region is smaller than it was when the region was registered"


@pytest.fixture
def world() -> Iterator[Bench]:
    with bench() as made:
        yield made
        assert made.outputs.used_byte_size == 0


def failure(world: Bench, span: Span) -> StatusError:
    with pytest.raises(StatusError) as raised:
        world.memory.view(span)
    return raised.value


def test_every_kind_of_placement(world: Bench) -> None:
    assert world.content(inline(b"in the message")) == b"in the message"
    assert world.content(world.leased(b"in the server's arena")) == b"in the server's arena"
    assert world.content(world.spanned(9, b"in a region")) == b"in a region"
    lease = world.memory.reserve(14)
    world.memory.view(lease)[:] = b"in our arena  "
    assert world.content(lease) == b"in our arena  "
    assert lease.arena == 1
    world.memory.free(lease)


def test_the_servers_arena_cannot_be_written(world: Bench) -> None:
    view = world.memory.view(world.leased(b"abc"))
    with pytest.raises(TypeError):
        view[0] = 1


def test_a_part_beyond_its_region(world: Bench) -> None:
    error = failure(world, Span(REGION, REGION_BYTE_SIZE, 1))
    assert (error.code, error.message) == (Code.INVALID_ARG, "a span reaches beyond its region")


def test_a_region_that_shrinks_costs_its_users_only(world: Bench) -> None:
    world.attach(6, 0, 16)
    world.client.truncate(REGION_OFFSET + REGION_BYTE_SIZE - 1)
    error = failure(world, Span(REGION, 0, 1))
    assert (error.code, error.message) == (Code.INVALID_ARG, SHRUNK)
    assert len(world.memory.view(Span(6, 0, 16))) == 16


def test_a_region_that_had_shrunk_before_it_came(world: Bench) -> None:
    world.attach(6, 0, REGION_OFFSET + REGION_BYTE_SIZE + 1)
    assert failure(world, Span(6, 0, 1)).message == SHRUNK


def test_a_region_that_cannot_be_mapped(world: Bench) -> None:
    world.client.truncate(2**62)
    world.attach(6, 0, 2**62)
    error = failure(world, Span(6, 0, 1))
    assert error.code is Code.INVALID_ARG
    assert error.message.startswith("failed to map a shared memory region: ")


def test_a_region_whose_descriptor_was_lost(world: Bench) -> None:
    world.memory.attach(6, None, 0, 16)
    error = failure(world, Span(6, 0, 1))
    assert (error.code, error.message) == (
        Code.UNAVAILABLE,
        "a shared memory region could not be passed to the worker: too many open files",
    )


@pytest.mark.parametrize("byte_size", [16, 2**62], ids=["mapped", "refused"])
def test_the_descriptor_that_came_is_closed(world: Bench, byte_size: int) -> None:
    fd = open_object(world.client.key)
    world.memory.attach(6, fd, 0, byte_size)
    with pytest.raises(OSError):
        os.fstat(fd)
    world.memory.detach(6)


def test_a_batch_may_overtake_its_region(world: Bench) -> None:
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.append(world.content(Span(6, 1, 2))))
    reader.start()
    world.client.write(0, b"abcd")
    world.attach(7, 0, 4)
    assert reader.is_alive()
    world.attach(6, 0, 4)
    reader.join(5)
    assert seen == [b"bc"]


def test_a_region_that_never_comes(world: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "ATTACH_TIMEOUT_SECS", 0.01)
    error = failure(world, Span(6, 0, 1))
    assert (error.code, error.message) == (Code.UNAVAILABLE, "a shared memory region did not reach the worker in time")


def test_a_detached_region_is_unmapped_once_its_last_array_goes(world: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def descriptors() -> int:
        links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return sum(os.readlink(path) == str(world.client.path) for path in links)

    before = descriptors()
    world.attach(6, 0, 16)
    view = world.memory.view(Span(6, 0, 16))
    world.memory.detach(6)
    world.memory.detach(6)
    assert len(bytes(view)) == 16
    assert descriptors() == before + 1
    del view
    assert descriptors() == before
    monkeypatch.setattr(memory_module, "ATTACH_TIMEOUT_SECS", 0.0)
    failure(world, Span(6, 0, 1))


def test_a_full_arena_says_what_to_do(world: Bench) -> None:
    lease = world.memory.reserve(ARENA_BYTE_SIZE)
    with pytest.raises(StatusError) as raised:
        world.memory.reserve(5000)
    assert raised.value.code is Code.UNAVAILABLE
    assert raised.value.message == (
        f"no room for an output of 5000 bytes in the worker's tensor memory: 5000 bytes wanted, {ARENA_BYTE_SIZE} of {ARENA_BYTE_SIZE} "
        "bytes in use. Use --pinned-memory-pool-byte-size to give it more."
    )
    world.memory.free(lease)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_divided_block_goes_with_the_last_of_its_parts(world: Bench, order: tuple[int, ...]) -> None:
    lease = world.memory.reserve(9000)
    parts = [Lease(1, lease.offset, 10), Lease(1, lease.offset + 10, 5000), Lease(1, lease.offset + 5010, 3990)]
    world.memory.divide(lease, parts)
    for index in order:
        assert world.outputs.used_byte_size == 3 * 4096
        world.memory.free_offset(parts[index].offset)
    assert world.outputs.used_byte_size == 0
    # its first page is an ordinary block's again
    whole = world.memory.reserve(9000)
    assert whole.offset == lease.offset
    world.memory.free(whole)
    assert world.outputs.used_byte_size == 0


def test_warm_pages_are_given_back(world: Bench) -> None:
    def resident_byte_size() -> int:
        return os.fstat(world.outputs.fd).st_blocks * 512

    kept, freed = world.memory.reserve(8192), world.memory.reserve(1 << 20)
    for lease in (kept, freed):
        world.memory.view(lease)[:] = b"\1" * lease.byte_size
    world.memory.free(freed)
    assert resident_byte_size() == 8192 + (1 << 20)
    world.memory.give_back()
    assert resident_byte_size() == 8192 and bytes(world.memory.view(kept)) == b"\1" * 8192
    world.memory.free(kept)


def test_what_is_not_taken_cannot_be_given_back(world: Bench) -> None:
    with pytest.raises(KeyError):
        world.memory.free_offset(4096)


def test_threads_share_the_arena(world: Bench) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def work(byte: int) -> None:
        try:
            start.wait(5)
            for turn in range(200):
                lease = world.memory.reserve(100 + turn)
                half = Lease(1, lease.offset + 50, lease.byte_size - 50)
                world.memory.divide(lease, [Lease(1, lease.offset, 50), half])
                view = world.memory.view(lease)
                view[:] = bytes([byte]) * lease.byte_size
                world.memory.free(half)
                assert bytes(view) == bytes([byte]) * lease.byte_size
                world.memory.free(lease)
        except BaseException as error:  # noqa: BLE001  # told to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(byte,)) for byte in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert failures == []


# other workers' arenas


@pytest.fixture
def other() -> Iterator[Arena]:
    """Another worker's arena."""
    fd = create_memory(1 << 20)
    arena = Arena(9, fd, 1 << 20)
    arena.view(Lease(9, 0, 5))[:] = b"other"
    yield arena
    # pytest holds the last test's fixtures beyond the leak check
    arena.__dict__.clear()
    os.close(fd)


def gone(world: Bench, lease: Lease) -> StatusError:
    with pytest.raises(StatusError) as raised:
        world.memory.view(lease)
    return raised.value


def test_an_adopted_arena_can_be_read_only(world: Bench, other: Arena) -> None:
    world.memory.adopt(9, read_only(other.fd))
    view = world.memory.view(Lease(9, 0, 5))
    assert bytes(view) == b"other"
    with pytest.raises(TypeError):
        view[0] = 1
    world.memory.disown(9)
    assert bytes(view) == b"other", "what still reads keeps its pages"
    error = gone(world, Lease(9, 0, 5))
    assert (error.code, error.message) == (Code.UNAVAILABLE, "the worker that made a tensor has gone, and the tensor with it")


def test_a_batch_may_overtake_an_arena(world: Bench, other: Arena) -> None:
    """The descriptor comes over the lifeline, the batch over ZeroMQ."""
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.append(world.content(Lease(9, 0, 5))))
    reader.start()
    world.memory.adopt(8, None)
    assert reader.is_alive()
    world.memory.adopt(9, read_only(other.fd))
    reader.join(5)
    assert seen == [b"other"]
    world.memory.disown(9)


def test_an_arena_whose_worker_went_before_it_was_shared(world: Bench) -> None:
    world.memory.adopt(9, None)
    assert gone(world, Lease(9, 0, 5)).code is Code.UNAVAILABLE
    world.memory.disown(9)
    world.memory.disown(9)


def test_an_arena_that_never_comes(world: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "ATTACH_TIMEOUT_SECS", 0.01)
    assert gone(world, Lease(9, 0, 5)).message == "a shared memory region did not reach the worker in time"


# copy-on-write


def test_private_pages_of_what_has_gone(world: Bench, other: Arena) -> None:
    forgotten: list[tuple[type[Placement], int]] = []
    world.memory.use_copy_on_write(lambda kind, number: forgotten.append((kind, number)))
    world.attach(6, 3, 100)
    world.memory.adopt(9, read_only(other.fd))
    world.client.write(3, b"client")
    for place, content in ((Span(6, 0, 6), b"client"), (Lease(9, 0, 5), b"other")):
        array, taken = world.memory.private_pages(place).take(place.offset, place.byte_size)
        assert array.tobytes() == content
        array[0] = 0
        del array, taken
    assert world.client.read(3, 6) == b"client"
    assert bytes(other.view(Lease(9, 0, 5))) == b"other"
    world.memory.detach(6)
    world.memory.disown(9)
    assert forgotten == [(Span, 6), (Lease, 9)]
    for place in (Span(6, 0, 6), Lease(9, 0, 5)):
        with pytest.raises(StatusError, match="gone"):
            world.memory.private_pages(place)


def test_descriptors_that_are_kept_for_it_are_closed(world: Bench, other: Arena) -> None:
    world.memory.use_copy_on_write(lambda kind, number: None)
    fds = [open_object(world.client.key), read_only(other.fd)]
    world.memory.attach(6, fds[0], 0, 16)
    world.memory.adopt(9, fds[1])
    for fd in fds:
        os.fstat(fd)
    world.memory.detach(6)
    world.memory.disown(9)
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)
