"""Long JSON parts are read in pieces, and as if they were read in one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.door.scratch import INLINE_BYTE_SIZE, NO_MEMORY, Scratch
from tensorfarm.server.http import json_cutting
from tensorfarm.server.http.infer_call import InferCall, infer_settings
from tensorfarm.server.http.infer_request import read_request
from tensorfarm.server.http.json_text import MAX_CONTAINERS, STEPWISE_BYTE_SIZE
from tensorfarm.server.http.long_request import LongScratch, read_long_request
from tensorfarm.shm.datatypes import DATATYPES, serialize_bytes
from tensorfarm.shm.placement import Inline, Lease
from tensorfarm.workers.contract.status import StatusError

from .doors import an_arena
from .echo_service import EchoService, http_request
from .infer_reading import LIMIT, TYPES, finish

LONG = b" " * STEPWISE_BYTE_SIZE
REGIONS = EchoService({}, regions_by_name={"r": 7}).regions


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut as often as can be."""
    for name, size in (("PIECE_BYTE_SIZE", 96), ("KEPT_BYTE_SIZE", 4), ("_FIRST_WINDOW", 8)):
        monkeypatch.setattr(json_cutting, name, size)


def in_pieces(text: bytes, scratch: LongScratch | None = None, limit: int = LIMIT) -> InferCall:
    steps = read_long_request(http_request(text), len(text), TYPES, REGIONS, scratch or LongScratch(), infer_settings(limit, ""))
    return finish(steps)


def in_one(text: bytes, limit: int = LIMIT) -> InferCall:
    return read_request(http_request(text), len(text), TYPES, REGIONS, Scratch(), infer_settings(limit, ""))


def outcome(read: Any, text: bytes, limit: int = LIMIT) -> Any:
    """What a reader makes of a text made long, in a form that can be compared."""
    try:
        call = read(LONG + text, limit=limit)
    except StatusError as error:
        return error.code, error.message
    tensors = []
    for item in call.body.inputs:
        assert type(item.place) is Inline
        tensors.append((item.name, item.datatype, item.shape, bytes(item.place.content)))
    return call.body.id, call.body.parameters, call.body.outputs, tensors


def document(datatype: str, count: int, data: str, more: str = "") -> str:
    return f'{{"id":"a",{more}"inputs":[{{"name":"I{datatype}","shape":[{count}],"datatype":"{datatype}","data":{data}}}],"outputs":[]}}'


BLANKS = st.sampled_from(["", "", "", " ", "\n", "\t ", "\r\n  "])
INTEGERS = st.one_of(
    st.integers(-300, 300),
    st.integers(-(2**31) - 2, 2**32 + 2),
    st.integers(-(2**63) - 2, 2**64 + 2),
    st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, 10**30]),
).map(str)
DOUBLES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(["1E5", "-0", "-0.0", "1e-400", "0.1e+3", "1e39", "NaN", "Infinity", "-Infinity", "123456789012345678901234567890"]),
)
STRINGS = st.one_of(
    st.text().map(json.dumps),
    st.text().map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(
        ['"],["', '",\\"', '"\\\\"', '"\\\\\\""', '"{"', '"a,b"', '","', '"\\ud83d\\ude00"', '"\\"data\\":[1,2"', '"' + "x" * 300 + '"']
    ),
)
WORDS = st.sampled_from(["true", "false"])
ODD = st.sampled_from(
    [*("null", "true", "1", "1.0", '"x"', "{}", '{"a":[1,{"b":"]}"}],"c":2}', "[]", "[[],[]]", "nul", "01", "+1", ".5", "1.", "-", "1e999"),
     *("", "Inf", "'a'", '"\\ud800"', '"\\udc00"', '"\\x"', '"a\tb"', "}", "]", '"', "1 2", "[1][2]")]
)  # fmt: skip
ELEMENTS = {"BOOL": WORDS, "BYTES": STRINGS, "FP32": DOUBLES | INTEGERS, "FP64": DOUBLES | INTEGERS}


@st.composite
def arrays(draw: Any, elements: st.SearchStrategy[str]) -> tuple[str, int]:
    """The text of an array, nested or not, and how many elements are in it."""
    items: list[str] = draw(st.lists(elements, min_size=1, max_size=40))
    count = len(items)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2, 3]))):
        width = draw(st.integers(1, 5))
        blank = draw(BLANKS)
        groups = [items[at : at + width] for at in range(0, len(items), width)]
        items = [f"[{blank}{f',{blank}'.join(group)}{blank}]" if draw(st.integers(0, 9)) else ",".join(group) for group in groups]
    blank = draw(BLANKS)
    return f"[{blank}{f'{blank},{draw(BLANKS)}'.join(items)}{blank}]", count


@st.composite
def regular(draw: Any) -> bytes:
    datatype = draw(st.sampled_from([name for name in DATATYPES if name not in ("FP16", "BF16")]))
    text, count = draw(arrays(ELEMENTS.get(datatype, INTEGERS)))
    count += draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
    more = draw(
        st.sampled_from(
            ["", '"parameters":{"a":1},', '"data":[1,2,3],', '"other":{"data":["x",[1],{}]},', '"id":"b",', '"a":"\\"data\\":[",']
        )
    )
    return document(datatype, count, text, more).encode("utf-8", "surrogateescape")


@st.composite
def odd(draw: Any) -> bytes:
    datatype = draw(st.sampled_from(["BOOL", "BYTES", "FP32", "INT8", "INT64", "UINT64", "FP16", "INT33"]))
    usual = ELEMENTS.get(datatype, INTEGERS)
    text, count = draw(arrays(st.one_of(usual, usual, usual, usual, ODD)))
    count += draw(st.sampled_from([0, 0, 3, -3]))
    return document(datatype, count, text).encode()


@pytest.mark.usefixtures("small_pieces")
class TestReadsAlike:
    @settings(max_examples=300, deadline=None, database=None)
    @given(regular())
    def test_what_is_right(self, text: bytes) -> None:
        assert outcome(in_pieces, text) == outcome(in_one, text)

    @settings(max_examples=300, deadline=None, database=None)
    @given(odd())
    def test_what_has_odd_elements(self, text: bytes) -> None:
        assert outcome(in_pieces, text) == outcome(in_one, text)

    @settings(max_examples=300, deadline=None, database=None)
    @given(
        regular() | odd(),
        st.floats(0, 1),
        st.sampled_from([b"", b",", b"]", b"[", b'"', b"}", b"{", b"\\", b"0", b"\xff", b"\0", b" ", b"-"]),
        st.booleans(),
    )
    def test_what_is_damaged(self, text: bytes, where: float, put: bytes, replace: bool) -> None:
        at = int(where * len(text))
        text = text[:at] + put + text[at + replace :]
        assert outcome(in_pieces, text) == outcome(in_one, text)

    @settings(max_examples=300, deadline=None, database=None)
    @given(regular() | odd(), st.floats(0, 1))
    def test_what_is_cut_short(self, text: bytes, where: float) -> None:
        text = text[: int(where * len(text))]
        assert outcome(in_pieces, text) == outcome(in_one, text)


def large(datatype: str, data: str, count: int, more: str = "") -> bytes:
    return document(datatype, count, data, more).encode()


def test_tensors_lie_in_the_arena_and_nowhere_else() -> None:
    numbers = np.arange(100_000, dtype=np.int32)
    strings = [f"text {index} é" for index in range(20_000)]
    for datatype, elements, content in (
        ("INT32", numbers.tolist(), numbers.tobytes()),
        ("BYTES", strings, serialize_bytes(map(str.encode, strings))),
    ):
        text = large(datatype, json.dumps(elements, ensure_ascii=False), len(elements))
        with an_arena() as arena:
            scratch = LongScratch(arena)
            place = in_pieces(text, scratch).body.inputs[0].place
            assert type(place) is Lease
            assert bytes(arena.view(place)) == content
            assert arena.used_byte_size < len(text) * 4 / 3 + 4096
            scratch.release()


def test_long_strings() -> None:
    elements = ["x" * 300_000, "", 'a"b' * 1000, "é" * 100_000, "[,]" * 500]
    for more in ([], [1], [["y"]]):
        text = LONG + large("BYTES", json.dumps([*elements, *more], ensure_ascii=False), 5 + len(more))
        assert outcome(in_pieces, text) == outcome(in_one, text)
    plain = [element for element in elements if '"' not in element]
    text = large("BYTES", json.dumps(plain, ensure_ascii=False), 4)
    assert outcome(in_pieces, text)[3][0][3] == serialize_bytes(map(str.encode, plain))


def test_small_tensors_of_long_documents_ride_in_messages() -> None:
    with an_arena() as arena:
        scratch = LongScratch(arena)
        place = in_pieces(large("INT8", "[" + "1,   " * 30_000 + "2]", 30_001), scratch).body.inputs[0].place
        assert type(place) is Inline and bytes(place.content) == b"\1" * 30_000 + b"\2"
        assert place.byte_size < INLINE_BYTE_SIZE


def test_a_full_arena() -> None:
    with an_arena(1 << 16) as arena:
        scratch = LongScratch(arena)
        with pytest.raises(StatusError) as caught:
            in_pieces(large("FP64", "[" + "1," * 30_000 + "2]", 30_001), scratch)
        assert caught.value.message == NO_MEMORY
        scratch.release()


@pytest.mark.parametrize(
    ("datatype", "count", "data"),
    [
        ("FP64", 40_001, "[" + "1," * 40_000 + "1]"),
        ("BYTES", 200_001, "[" + '"",' * 200_000 + '""]'),
        ("INT64", 2**40, "[" + "1," * 50_000 + "1]"),
    ],
)
def test_tensors_beyond_the_limit(datatype: str, count: int, data: str) -> None:
    text = large(datatype, data, count)
    limit = len(LONG) + len(text)
    got = outcome(in_pieces, text, limit)
    assert got == outcome(in_one, text, limit)
    assert f"exceeds the maximum allowed value of {limit} bytes" in got[1]


def test_no_memory_is_taken_for_what_cannot_come() -> None:
    """A shape may promise more than the text is long."""
    with an_arena() as arena:
        with pytest.raises(StatusError, match="Shape does not match true shape"):
            in_pieces(large("INT8", "[" + "1," * 50_000 + "1]", 8_000_000), LongScratch(arena))


def test_too_many_arrays() -> None:
    text = LONG + large("INT8", "[" + "[]," * MAX_CONTAINERS + "1]", 1)
    assert outcome(in_pieces, text) == outcome(in_one, text)
    assert "JSON holds more than" in str(outcome(in_pieces, text))


def test_steps_are_short() -> None:
    """However long the document, and its tensors."""
    text = large("FP32", json.dumps(np.arange(400_000).reshape(-1, 4).tolist()), 400_000)
    steps = read_long_request(http_request(text), len(text), TYPES, REGIONS, LongScratch(), infer_settings(LIMIT, ""))
    assert sum(1 for _ in steps) > 2 * len(text) // json_cutting.PIECE_BYTE_SIZE
