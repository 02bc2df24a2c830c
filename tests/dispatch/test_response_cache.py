"""What requests are called, and the cache in this process."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.dispatch.response_cache import Entry, LocalCache, cacheable, contents, digest, entry_byte_size
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.messages import RequestBody, RequestContext, Tensor, WantedOutput


def inline(content: bytes) -> Inline:
    return Inline(memoryview(content))


def tensor(name: str = "X", content: bytes = bytes(8), datatype: str = "INT32", shape: tuple[int, ...] = (1, 2)) -> Tensor:
    return Tensor(name, datatype, shape, inline(content))


def body(*inputs: Tensor, **fields: object) -> RequestBody:
    given = {"id": "", "batch_size": 1, "inputs": list(inputs or (tensor(),)), "outputs": [], "parameters": {}, "context": None}
    return RequestBody(**{**given, **fields})  # type: ignore[arg-type]


def no_lease(lease: Lease) -> memoryview:
    raise AssertionError("nothing lies in an arena")


def called(request: RequestBody, identity: bytes = b"m/1") -> bytes:
    return digest(identity, 3, request, contents(request, no_lease))


def test_equal_requests_have_one_name() -> None:
    assert called(body()) == called(body())
    assert len(called(body())) == 32


def test_what_does_not_change_the_answer_does_not_count() -> None:
    plain = called(body())
    assert called(body(id="7")) == plain
    assert called(body(context=RequestContext(timeout_us=5, trace="t", lends=True))) == plain
    one, two = tensor("A", b"a" * 8), tensor("B", b"b" * 8)
    assert called(body(one, two)) == called(body(two, one))
    wanted = [WantedOutput(name) for name in "XYZ"]
    assert called(body(outputs=wanted)) == plain
    assert called(body(outputs=wanted[:2])) == called(body(outputs=wanted[1::-1])) != plain
    assert called(body(parameters={"a": 1, "b": 2})) == called(body(parameters={"b": 2, "a": 1}))


@pytest.mark.parametrize(
    "other",
    [
        body(tensor(content=bytes(7) + b"\1")),
        body(tensor(shape=(2, 1))),
        body(tensor(shape=(1, 2, 1))),
        body(tensor(datatype="FP32")),
        body(tensor("Y")),
        body(tensor(), tensor("Y")),
        body(outputs=[WantedOutput("Y")]),
        body(outputs=[WantedOutput("Y"), WantedOutput("Z")]),
        body(outputs=[WantedOutput("YZ")]),
        body(outputs=[WantedOutput("X"), WantedOutput("Z")]),
        body(parameters={"a": 1}),
        body(parameters={"a": 1.0}),
        body(parameters={"a": True}),
        body(parameters={"a": "1"}),
        body(parameters={"b": 1}),
        body(tensor(content=b"", shape=(1, 0))),
    ],
)
def test_what_may_change_the_answer_counts(other: RequestBody) -> None:
    assert called(other) != called(body())


def test_no_two_of_many_requests_share_a_name() -> None:
    parts = (b"", b"a", b"aa", b"\0", bytes(4))
    names = ("A", "AA", "B")
    found = [
        called(body(tensor("X", one, "UINT8", shape), tensor(name, two, "UINT8", (1,)), parameters=parameters, outputs=outputs), identity)
        for one in parts
        for two in parts
        for name in names
        for shape in ((len(one),), (1, len(one)))
        for parameters in ({}, {"p": ""}, {"p": 0}, {"p": False}, {"p": 0.0})
        for outputs in ([], [WantedOutput("A")], [WantedOutput("A"), WantedOutput("B")])
        for identity in (b"m", b"m1")
    ]
    assert len(set(found)) == len(found)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
tensors = st.builds(
    lambda name, datatype, shape, content: Tensor(name, datatype, tuple(shape), inline(content)),
    texts,
    st.sampled_from(["INT32", "FP32", "BYTES"]),
    st.lists(st.integers(0, 3), max_size=3),
    st.binary(max_size=6),
)
parameters = st.dictionaries(texts, st.one_of(st.booleans(), st.integers(-2, 2), texts, st.floats(allow_nan=False, width=16)), max_size=3)
bodies = st.builds(
    lambda inputs, outputs, parameters: body(*inputs, outputs=[WantedOutput(name) for name in outputs], parameters=parameters),
    st.lists(tensors, min_size=1, max_size=3, unique_by=lambda one: one.name),
    st.lists(texts, max_size=2),
    parameters,
)


def meaning(request: RequestBody) -> object:
    """What must be equal for two requests to be answered alike; types count, and so does the sign of a zero."""
    return (
        sorted((one.name, one.datatype, one.shape, bytes(one.place.content)) for one in request.inputs),  # type: ignore[union-attr]
        {output.name for output in request.outputs},
        sorted((name, type(value).__name__, repr(value)) for name, value in request.parameters.items()),
    )


@given(bodies, bodies)
def test_names_are_equal_where_requests_mean_the_same(one: RequestBody, two: RequestBody) -> None:
    assert (called(one) == called(two)) == (meaning(one) == meaning(two))


def test_inputs_in_an_arena_are_read_where_they_lie() -> None:
    content = bytes(range(8))
    leased = body(Tensor("X", "INT32", (1, 2), Lease(3, 64, 8)))
    views = contents(leased, lambda lease: memoryview(content) if lease == Lease(3, 64, 8) else memoryview(b""))
    assert views[0].obj is content
    assert digest(b"m/1", 3, leased, views) == called(body(tensor(content=content)))


def test_regions_and_sequences_are_never_cached() -> None:
    assert cacheable(body())
    assert cacheable(body(context=RequestContext(timeout_us=3, lends=True)))
    assert not cacheable(body(Tensor("X", "INT32", (1, 2), Span(1, 0, 8))))
    assert not cacheable(body(outputs=[WantedOutput("Y"), WantedOutput("Z", Span(1, 0, 8))]))
    assert not cacheable(body(context=RequestContext(5)))
    assert not cacheable(body(context=RequestContext("five")))
    assert not cacheable(body(context=RequestContext(flags=1)))


# the cache


def entry(byte_size: int) -> Entry:
    return Entry((tensor("Y"),), byte_size)


def kept(cache: LocalCache, key: bytes) -> Entry | None:
    answers: list[Entry | None] = []
    cache.look_up(key, answers.append)
    return answers[0]


def insert(cache: LocalCache, key: bytes, one: Entry) -> bool:
    known: list[bool] = []
    cache.insert(key, one, known.append)
    return known[0]


def test_what_was_used_least_recently_goes_first() -> None:
    cache = LocalCache(100)
    for key in (b"a", b"b", b"c"):
        assert not insert(cache, key, entry(30))
    assert kept(cache, b"a") is not None
    insert(cache, b"d", entry(30))
    assert [key for key in (b"a", b"b", b"c", b"d") if kept(cache, key)] == [b"a", b"c", b"d"]
    assert (cache.used_byte_size, cache.eviction_count, len(cache)) == (90, 1, 3)


def test_one_entry_may_cost_several() -> None:
    cache = LocalCache(100)
    for key in (b"a", b"b", b"c"):
        insert(cache, key, entry(33))
    insert(cache, b"d", entry(60))
    assert [key for key in (b"a", b"b", b"c", b"d") if kept(cache, key)] == [b"c", b"d"]


def test_what_is_larger_than_the_cache_is_not_kept_and_costs_nothing() -> None:
    cache = LocalCache(100)
    insert(cache, b"a", entry(100))
    assert not insert(cache, b"b", entry(101))
    assert kept(cache, b"a") is not None
    assert kept(cache, b"b") is None


def test_a_second_answer_to_the_same_request_changes_nothing() -> None:
    cache = LocalCache(100)
    first = entry(40)
    insert(cache, b"a", first)
    assert insert(cache, b"a", entry(40))
    assert kept(cache, b"a") is first
    assert cache.used_byte_size == 40


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60))))
def test_the_budget_holds(insertions: list[tuple[int, int]]) -> None:
    cache = LocalCache(100)
    sizes: dict[bytes, int] = {}
    for number, size in insertions:
        key = b"%d" % number
        if not insert(cache, key, entry(size)):
            sizes[key] = size
        there = [key for key in sizes if kept(cache, key)]
        assert cache.used_byte_size == sum(sizes[key] for key in there) <= 100
        assert len(cache) == len(there)
        sizes = {key: sizes[key] for key in there}


@pytest.mark.parametrize("outputs", [1, 5])
def test_memory_is_not_much_more_than_what_is_counted(outputs: int) -> None:
    cache = LocalCache(1 << 20)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(2000):
            made = tuple(tensor(f"Y{place}", bytes([1]) * 16, "UINT8", (1, 16 + number)) for place in range(outputs))
            insert(
                cache, digest(b"", 1, body(tensor(content=b"%d" % number)), [b"%d" % number]), Entry(made, entry_byte_size(_sized(made)))
            )
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert cache.eviction_count > 0
    assert after - before < 1.2 * (1 << 20)


def _sized(tensors: tuple[Tensor, ...]) -> list[tuple[Tensor, int]]:
    return [(one, one.place.byte_size) for one in tensors]
