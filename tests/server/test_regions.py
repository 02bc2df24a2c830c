"""The registry of clients' shared memory: names, checks at registration and at use, and regions in use."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.regions import CudaRegion, RegionRegistry, SystemRegion
from tensorfarm.shm.placement import Span
from tensorfarm.workers.contract.status import Code, StatusError

from ..shm.shm_objects import ShmObject, shm_object

SIZE = 10_000


@pytest.fixture
def client() -> Iterator[ShmObject]:
    with shm_object(SIZE) as made:
        yield made


@pytest.fixture
def registry() -> Iterator[RegionRegistry]:
    made = RegionRegistry()
    yield made
    made.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def refusal(code: Code, call: object, *arguments: object) -> str:
    with pytest.raises(StatusError) as raised:
        call(*arguments)  # type: ignore[operator]
    assert raised.value.code is code
    return raised.value.message


def test_a_region_is_told_as_it_was_registered(registry: RegionRegistry, client: ShmObject) -> None:
    registry.register_system("b", client.key, 100, 200)
    registry.register_system("a", client.key.lstrip("/"), 0, SIZE)
    assert registry.system_status("b") == [SystemRegion("b", client.key, 100, 200)]
    assert [region.name for region in registry.system_status(None)] == ["a", "b"]
    assert registry.cuda_status(None) == []
    number = registry.span("b", 0, 1).region
    region, fd = registry.region(number)
    assert (os.fstat(fd).st_size, region) == (SIZE, SystemRegion("b", client.key, 100, 200))
    assert registry.device_of(number) is None


def test_a_name_is_taken_once(registry: RegionRegistry, client: ShmObject) -> None:
    registry.register_system("r", client.key, 0, 10)
    message = refusal(Code.ALREADY_EXISTS, registry.register_system, "r", client.key, 0, 10)
    assert message == "shared memory region 'r' already in manager"


@pytest.mark.parametrize(("key", "code", "message"), [
    ("", Code.INVALID_ARG, "cannot register shared memory region 'r' - invalid shm key ''"),
    ("//", Code.INVALID_ARG, "cannot register shared memory region 'r' - invalid shm key '//'"),
    ("/nothing-here", Code.INTERNAL, "Unable to open shared memory region: '/nothing-here'"),
    ("a/b", Code.INTERNAL, "Unable to open shared memory region: 'a/b'"),
    ("\ud800", Code.INTERNAL, "Unable to open shared memory region: '\ud800'"),
    ("x" * 3000, Code.INTERNAL, f"Unable to open shared memory region: '{'x' * 3000}'"),
    (
        "//triton_python_backend_shm_region_1",
        Code.INVALID_ARG,
        "cannot register shared memory region 'r' with key '//triton_python_backend_shm_region_1' as the key contains the reserved prefix "
        "'triton_python_backend_shm_region_'",
    ),
])  # fmt: skip
def test_keys_that_are_refused(registry: RegionRegistry, key: str, code: Code, message: str) -> None:
    before = descriptors()
    assert refusal(code, registry.register_system, "r", key, 0, 10) == message
    assert descriptors() == before
    assert registry.system_status(None) == []


@pytest.mark.parametrize(("offset", "byte_size"), [(0, SIZE + 1), (SIZE, 1), (1, SIZE), (2**63, 2**63), (-1, 10)])
def test_parts_that_the_object_does_not_have(registry: RegionRegistry, client: ShmObject, offset: int, byte_size: int) -> None:
    before = descriptors()
    message = refusal(Code.INVALID_ARG, registry.register_system, "r", client.key, offset, byte_size)
    assert message == "failed to register shared memory region 'r': invalid args"
    assert descriptors() == before


@pytest.mark.parametrize(("offset", "byte_size", "message"), [
    (100, 0, "Invalid offset for shared memory region: 'r'"),
    (101, 1, "Invalid offset for shared memory region: 'r'"),
    (1, 100, "Invalid offset + byte size for shared memory region: 'r'"),
    (
        1,
        2**64 - 1,
        "Integer overflow detected: byte_size (18446744073709551615) + offset (1) exceeds maximum value (18446744073709551615) for region 'r'",
    ),
])  # fmt: skip
def test_spans_beyond_a_region(registry: RegionRegistry, client: ShmObject, offset: int, byte_size: int, message: str) -> None:
    registry.register_system("r", client.key, 50, 100)
    assert refusal(Code.INVALID_ARG, registry.span, "r", offset, byte_size) == message


def test_spans_count_from_the_regions_start(registry: RegionRegistry, client: ShmObject) -> None:
    registry.register_system("r", client.key, 50, 100)
    span = registry.span("r", 99, 1)
    assert span == Span(span.region, 99, 1)
    assert refusal(Code.NOT_FOUND, registry.span, "s", 0, 1) == "Unable to find shared memory region: 's'"


def test_status_of_what_is_not_there(registry: RegionRegistry, client: ShmObject) -> None:
    registry.register_system("r", client.key, 0, 10)
    assert refusal(Code.NOT_FOUND, registry.system_status, "s") == "Unable to find system shared memory region: 's'"
    assert refusal(Code.NOT_FOUND, registry.cuda_status, "s") == "Unable to find cuda shared memory region: 's'"
    message = refusal(Code.NOT_FOUND, registry.cuda_status, "r")
    assert message == "The region named 'r' is registered as system shared memory, not CUDA shared memory"


def test_unregistering(registry: RegionRegistry, client: ShmObject) -> None:
    dropped: list[int] = []
    registry.on_drop = lambda number, _: dropped.append(number)
    before = descriptors()
    for name in ("a", "b", "c"):
        registry.register_system(name, client.key, 0, 10)
    number = registry.span("b", 0, 1).region
    registry.unregister_system("none of this name")
    registry.unregister_cuda(None)
    registry.unregister_cuda("b")
    assert len(registry.system_status(None)) == 3
    registry.unregister_system("b")
    assert dropped == [number]
    registry.unregister_system(None)
    assert registry.system_status(None) == [] and len(dropped) == 3
    assert descriptors() == before


def test_a_region_in_use_goes_with_its_last_request(registry: RegionRegistry, client: ShmObject) -> None:
    dropped: list[int] = []
    registry.on_drop = lambda number, _: dropped.append(number)
    registry.register_system("r", client.key, 0, 10)
    number = registry.span("r", 0, 1).region
    registry.hold((number, number))
    registry.hold((number,))
    registry.unregister_system("r")
    registry.unregister_system(None)
    registry.release((number, number))
    assert dropped == [] and len(registry.system_status("r")) == 1
    refusal(Code.ALREADY_EXISTS, registry.register_system, "r", client.key, 0, 10)
    os.fstat(registry.region(number)[1])
    registry.release((number,))
    assert dropped == [number] and registry.system_status(None) == []
    registry.register_system("r", client.key, 0, 10)
    assert registry.span("r", 0, 1).region != number


def test_a_region_that_has_gone_is_not_held_and_nothing_else_either(registry: RegionRegistry, client: ShmObject) -> None:
    """Between a look-up and its use somebody may unregister."""
    for name in ("a", "b"):
        registry.register_system(name, client.key, 0, 10)
    numbers = tuple(registry.span(name, 0, 1).region for name in ("a", "b"))
    registry.unregister_system("b")
    refusal(Code.NOT_FOUND, registry.hold, numbers)
    registry.unregister_system("a")
    assert registry.system_status(None) == []


def test_the_end_drops_everything_even_what_is_in_use(client: ShmObject) -> None:
    before = descriptors()
    registry = RegionRegistry()
    for name in ("a", "b"):
        registry.register_system(name, client.key, 0, 10)
    registry.hold((registry.span("a", 0, 1).region,))
    registry.close()
    assert descriptors() == before


def test_an_object_that_is_unlinked_or_shrinks_stays_registered(registry: RegionRegistry, client: ShmObject) -> None:
    registry.register_system("r", client.key, 0, SIZE)
    client.truncate(0)
    client.path.unlink()
    assert registry.span("r", 0, SIZE).byte_size == SIZE
    assert len(registry.system_status("r")) == 1


CUDA = CudaRegion("c", 1, 100, b"h" * 64)


def test_a_cuda_region_is_there_once_it_has_been_opened(registry: RegionRegistry, client: ShmObject) -> None:
    number = registry.reserve_cuda(CUDA)
    assert registry.cuda_status(None) == []
    assert refusal(Code.NOT_FOUND, registry.cuda_status, "c") == "Unable to find cuda shared memory region: 'c'"
    assert refusal(Code.NOT_FOUND, registry.span, "c", 0, 1) == "Unable to find shared memory region: 'c'"
    for taken in (lambda: registry.reserve_cuda(CUDA), lambda: registry.register_system("c", client.key, 0, 10)):
        assert refusal(Code.ALREADY_EXISTS, taken) == "shared memory region 'c' already in manager"
    registry.unregister_cuda("c")
    registry.confirm(number)
    assert registry.cuda_status("c") == registry.cuda_status(None) == [CUDA]
    assert registry.span("c", 40, 60) == Span(number, 40, 60)
    assert (registry.device_of(number), registry.region(number)) == (1, (CUDA, -1))
    message = refusal(Code.NOT_FOUND, registry.system_status, "c")
    assert message == "The region named 'c' is registered as CUDA shared memory, not system shared memory"
    registry.unregister_system("c")
    registry.unregister_system(None)
    assert registry.cuda_status(None) == [CUDA] and registry.system_status(None) == []


def test_a_cuda_region_that_cannot_be_opened_leaves_its_name(registry: RegionRegistry) -> None:
    dropped: list[int] = []
    registry.on_drop = lambda number, _: dropped.append(number)
    registry.abandon(registry.reserve_cuda(CUDA))
    assert registry.device_of(1) is None
    number = registry.reserve_cuda(CUDA)
    registry.confirm(number)
    registry.hold((number,))
    registry.unregister_cuda("c")
    assert (dropped, registry.cuda_status("c")) == ([], [CUDA])
    registry.release((number,))
    assert (dropped, registry.cuda_status(None)) == ([number], [])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["register", "unregister", "hold", "release", "all"]), st.integers(0, 3)), max_size=40))
def test_any_order_of_calls_ends_at_zero(calls: list[tuple[str, int]]) -> None:
    before = descriptors()
    dropped: list[int] = []
    held: list[int] = []
    made: set[int] = set()
    registry = RegionRegistry()
    registry.on_drop = lambda number, _: dropped.append(number)
    with shm_object(100) as client:
        for call, which in calls:
            name = f"r{which}"
            try:
                if call == "register":
                    registry.register_system(name, client.key, 0, 10)
                    made.add(registry.span(name, 0, 1).region)
                elif call == "unregister":
                    registry.unregister_system(name)
                elif call == "all":
                    registry.unregister_system(None)
                elif call == "hold":
                    held.append(registry.span(name, 0, 1).region)
                    registry.hold(held[-1:])
                elif held:
                    registry.release((held.pop(which % len(held)),))
            except StatusError as error:
                assert error.code in (Code.ALREADY_EXISTS, Code.NOT_FOUND)
            assert not set(held) & set(dropped)
        registry.unregister_system(None)
        registry.release(held)
    assert sorted(dropped) == sorted(made) and registry.system_status(None) == []
    assert descriptors() == before


def test_there_is_an_end_to_registering(client: ShmObject) -> None:
    """Each region takes descriptors, of which connections and workers need some too."""
    few = RegionRegistry(3)
    for number in range(3):
        few.register_system(f"r{number}", client.key, 0, 1)
    open_before = descriptors()
    message = refusal(Code.UNAVAILABLE, few.register_system, "r3", client.key, 0, 1)
    assert message == "cannot register shared memory region 'r3': there can be no more than 3"
    assert descriptors() == open_before
    few.unregister_system("r0")
    few.register_system("r3", client.key, 0, 1)
    few.close()
