"""JSON as the protocol's own server reads and writes it. Reasons and offsets were asked of release 24.10."""

from __future__ import annotations

import contextlib
import json
import math
import struct
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.http.json_text import MAX_DEPTH, STEPWISE_BYTE_SIZE, doubles, parse
from tensorfarm.workers.contract.json_writing import double, quote, write
from tensorfarm.workers.contract.status import Code, StatusError

NO_COMMA_IN_OBJECT = "Missing a comma or '}' after an object member."
NO_COMMA_IN_ARRAY = "Missing a comma or ']' after an array element."

SYNTAX = [
    (b" ", "The document is empty.", 1),
    (b"\0", "The document is empty.", 0),
    (b"{", "Missing a name for object member.", 1),
    (b"}", "Invalid value.", 0),
    (b"[", "Invalid value.", 1),
    (b"nul", "Invalid value.", 3),
    (b"nulL", "Invalid value.", 3),
    (b"True", "Invalid value.", 0),
    (b"truex", "The document root must not be followed by other values.", 4),
    (b"{} x", "The document root must not be followed by other values.", 3),
    (b"{}{}", "The document root must not be followed by other values.", 2),
    (b"{,}", "Missing a name for object member.", 1),
    (b'{"a"', "Missing a colon after a name of object member.", 4),
    (b'{"a" 1}', "Missing a colon after a name of object member.", 5),
    (b'{"a":', "Invalid value.", 5),
    (b'{"a":}', "Invalid value.", 5),
    (b'{"a":1', NO_COMMA_IN_OBJECT, 6),
    (b'{"a":1 "b":2}', NO_COMMA_IN_OBJECT, 7),
    (b'{"a":1,}', "Missing a name for object member.", 7),
    (b"{1:2}", "Missing a name for object member.", 1),
    (b'{"a":[1 2]}', NO_COMMA_IN_ARRAY, 8),
    (b'{"a":[1,]}', "Invalid value.", 8),
    (b'{"a":[1,2', NO_COMMA_IN_ARRAY, 9),
    (b'{"a":[,1]}', "Invalid value.", 6),
    (b'{"a":01}', NO_COMMA_IN_OBJECT, 6),
    (b'{"a":-}', "Invalid value.", 6),
    (b'{"a":1.}', "Miss fraction part in number.", 7),
    (b'{"a":.5}', "Invalid value.", 5),
    (b'{"a":1e}', "Miss exponent in number.", 7),
    (b'{"a":1e+}', "Miss exponent in number.", 8),
    (b'{"a":+1}', "Invalid value.", 5),
    (b'{"a":1e400}', "Number too big to be stored in double.", 5),
    (b'{"a":-1e400}', "Number too big to be stored in double.", 5),
    (b'{"a":' + b"9" * 400 + b"}", "Number too big to be stored in double.", 5),
    (b'{"a":nan}', "Invalid value.", 6),
    (b'{"a":Na}', "Invalid value.", 7),
    (b'{"a":Infinit}', "Invalid value.", 12),
    (b'{"a":Infx}', NO_COMMA_IN_OBJECT, 8),
    (b'{"a":-I}', "Invalid value.", 7),
    (b'{"a":"x', "Missing a closing quotation mark in string.", 7),
    (b'{"a":"a\0b"}', "Missing a closing quotation mark in string.", 7),
    (b'{"a":"\\', "Invalid escape character in string.", 6),
    (b'{"a":"\\x"}', "Invalid escape character in string.", 6),
    (b'{"a":"a\tb"}', "Invalid escape character in string.", 7),
    (b'{"a":"\\u12g4"}', "Incorrect hex digit after \\u escape in string.", 6),
    (b'{"a":"\\ud800"}', "The surrogate pair in string is invalid.", 6),
    (b'{"a":"\\ud800\\u0041"}', "The surrogate pair in string is invalid.", 6),
    (b"//c\n{}", "Invalid value.", 0),
    (b'{"a":\x0b1}', "Invalid value.", 5),
    (b"\xff", "Invalid value.", 0),
    (b'\xef\xbb\xbf{"a"}', "Missing a colon after a name of object member.", 7),
    (b"[1,2,3 4]", NO_COMMA_IN_ARRAY, 7),
    (b"[1,2,3.]", "Miss fraction part in number.", 7),
    (b'["a","b" "c"]', NO_COMMA_IN_ARRAY, 9),
    (b'["a",]', "Invalid value.", 5),
    (b"[[[]", NO_COMMA_IN_ARRAY, 4),
]


@pytest.mark.parametrize(("text", "reason", "offset"), SYNTAX)
def test_syntax_errors(text: bytes, reason: str, offset: int) -> None:
    with pytest.raises(StatusError) as caught:
        parse(text)
    assert caught.value.message == f"failed to parse the request JSON buffer: {reason} at {offset}"
    assert caught.value.code is Code.INTERNAL


VALUES: list[tuple[bytes, Any]] = [
    (b"{}", {}),
    (b" [ ] ", []),
    (b'{"a":1,"a":2}', {"a": 1}),
    (b'{"a":{"b":[1,{"c":null}]},"d":[]}', {"a": {"b": [1, {"c": None}]}, "d": []}),
    (b"[true,false,null]", [True, False, None]),
    (b"[1,-1,0,-0,18446744073709551615,-9223372036854775808]", [1, -1, 0, 0, 2**64 - 1, -(2**63)]),
    (
        b"[18446744073709551616,-9223372036854775809,123456789012345678901234567890]",
        [2.0**64, -(2.0**63), 123456789012345678901234567890.0],
    ),
    (b"[1.0,1e3,1E-2,-0.0,1e-400]", [1.0, 1000.0, 0.01, -0.0, 0.0]),
    (b"[Inf,-Inf,Infinity,-Infinity]", [math.inf, -math.inf, math.inf, -math.inf]),
    (b'"\\u00e9\\ud83d\\ude00\\/\\b\\f\\n\\r\\t\\\\\\"\x7f"', 'é😀/\b\f\n\r\t\\"\x7f'),
    (b'"\xff\xed\xa0\x80"', "\udcff\udced\udca0\udc80"),
    (b'"\\udc00"', "\udced\udcb0\udc80"),
    (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
    (b'{"a":1}\0anything', {"a": 1}),
    (b'["a", "b" ,"c"]', ["a", "b", "c"]),
    (b'[1,"a",2,"b",[3],"c"]', [1, "a", 2, "b", [3], "c"]),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_values(text: bytes, value: Any) -> None:
    got = parse(text)
    assert got == value
    assert json.dumps(got) == json.dumps(value)  # types and signs too


def test_nan() -> None:
    assert all(math.isnan(value) for value in parse(b"[NaN,-NaN]"))


@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
def test_nesting_is_limited(pair: tuple[bytes, bytes]) -> None:
    levels = len(pair[0].replace(b'"a":', b""))
    times = MAX_DEPTH // levels
    parse(pair[0] * times + b"1" + pair[1] * times)
    for deeper in (times + 1, 250_000):
        with pytest.raises(StatusError) as caught:
            parse(pair[0] * deeper)
        assert caught.value.message == "JSON nesting depth exceeds maximum allowed limit (100)"
        assert caught.value.code is Code.INVALID_ARG


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)


@given(JSON_VALUES, st.sampled_from([None, 1]))
def test_reads_what_json_writes(value: Any, indent: int | None) -> None:
    assert parse(json.dumps(value, indent=indent).encode()) == value


@given(JSON_VALUES)
def test_reads_what_it_writes(value: Any) -> None:
    assert parse(write(value)) == value


@given(st.binary() | st.text(alphabet='{}[]",:\\ue0123456789.+-tfnNaIinfy ').map(str.encode))
def test_anything_is_a_value_or_a_status(text: bytes) -> None:
    try:
        parse(text)
    except StatusError as error:
        assert error.code is Code.INTERNAL


@given(st.lists(st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(), min_size=1))
def test_cut_short(values: list[Any]) -> None:
    with pytest.raises(StatusError):
        parse(json.dumps(values).encode()[:-1])


NUMBERS = [
    (1.0, "1.0"),
    (-0.0, "-0.0"),
    (0.1, "0.1"),
    (struct.unpack("<f", struct.pack("<f", 0.1))[0], "0.10000000149011612"),
    (1e15, "1000000000000000.0"),
    (1e16, "10000000000000000.0"),
    (1.5e20, "150000000000000000000.0"),
    (1e21, "1e21"),
    (1.1e21, "1.1e21"),
    (123456789012345680.0, "123456789012345680.0"),
    (1e-5, "0.00001"),
    (1e-6, "0.000001"),
    (-1.25e-6, "-0.00000125"),
    (9.99e-7, "9.99e-7"),
    (1e-10, "1e-10"),
    (5e-324, "5e-324"),
    (1.7976931348623157e308, "1.7976931348623157e308"),
    (math.nan, "NaN"),
    (math.inf, "Infinity"),
    (-math.inf, "-Infinity"),
]


@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_doubles(value: float, text: str) -> None:
    assert double(value) == text.encode()
    assert doubles([0.5, value, 2.0]) == f"[0.5,{text},2.0]".encode()


@given(st.lists(st.floats()))
def test_doubles_read_back(values: list[float]) -> None:
    text = doubles(values)
    assert text == b"[" + b",".join(map(double, values)) + b"]"
    assert repr(json.loads(text)) == repr(values)


STRINGS = [
    ("a/b", '"a/b"'),
    ('"\\', '"\\"\\\\"'),
    ("\x00\x08\t\n\x0c\r\x1f\x7f", '"\\u0000\\b\\t\\n\\f\\r\\u001F\x7f"'),
    ("é\u2028", '"é\u2028"'),
]


@pytest.mark.parametrize(("text", "quoted"), STRINGS)
def test_quote(text: str, quoted: str) -> None:
    assert quote(text) == quote(text.encode()) == quoted.encode()


def test_quote_keeps_bytes() -> None:
    assert quote(b"\xff\xed\xa0\x80") == b'"\xff\xed\xa0\x80"' == quote("\udcff\udced\udca0\udc80")


def test_write_keeps_the_order_of_members() -> None:
    assert write({"b": [1, True, None, 1.0], "a": {"c": "x"}}) == b'{"b":[1,true,null,1.0],"a":{"c":"x"}}'


LONG = b" " * STEPWISE_BYTE_SIZE
LONG_DOCUMENTS = [
    b'{"a":1,"a":2,"b":3}',
    b'["\xff","\\ud83d\\ude00","\\\\ud800","a\\u0000b"]',
    b"[NaN,Infinity,-Infinity,1.0,-0.0,1e-400]",
    b"[9223372036854775807,18446744073709551615,18446744073709551616,-9223372036854775809,0.1]",
    b"\xef\xbb\xbf[1]\0rubbish",
    b'{"":{"x":[[],{},null,true,false]}}',
    b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
    b'"' + b"[{" * 200 + b'"',
]
LONG_FAULTS = [
    (b"{", "Missing a name for object member."),
    (b"{} x", "The document root must not be followed by other values."),
    (b'{"a" 1}', "Missing a colon after a name of object member."),
    (b'"abc', "Missing a closing quotation mark in string."),
    (b'"\\x"', "Invalid escape character in string."),
    (b'"\\ud800"', "The surrogate pair in string is invalid."),
    (b"[1e999]", "Number too big to be stored in double."),
    (b"[" + b"1" * 5000 + b"]", "Number too big to be stored in double."),
    (b"[" * (MAX_DEPTH + 1), "JSON nesting depth exceeds maximum allowed limit (100)"),
    (b"[" * 300_000, "JSON nesting depth exceeds maximum allowed limit (100)"),
    (b'{"a":' * 300_000, "JSON nesting depth exceeds maximum allowed limit (100)"),
    (b"", "The document is empty."),
]


@pytest.mark.parametrize("text", LONG_DOCUMENTS, ids=lambda text: str(text[:30]))
def test_long_documents_read_as_short_ones(text: bytes) -> None:
    cut = 3 if text.startswith(b"\xef") else 0
    assert repr(parse(text[:cut] + LONG + text[cut:])) == repr(parse(text))


@pytest.mark.parametrize(("text", "reason"), LONG_FAULTS, ids=lambda value: str(value[:30]))
def test_faults_of_long_documents(text: bytes, reason: str) -> None:
    with pytest.raises(StatusError) as caught:
        parse(LONG + text)
    assert reason in caught.value.message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_long_document(value: Any) -> None:
    text = json.dumps(value).encode()
    try:
        short = repr(parse(text))
    except StatusError:
        return
    assert repr(parse(LONG + text)) == short


@pytest.mark.parametrize(
    "text",
    [b'{"x":[' + b"{}," * 500_000 + b"NaN]}", b'"' + b'\\"' * 2_000_000, b'["' + b'","' * 2_000_000, b"-" * 4_000_000, b"\\" * 4_000_001],
)
def test_megabytes_are_read_at_once(text: bytes) -> None:
    """Whatever they say, and whether it is JSON or not: value by value, they would take seconds."""
    start = time.process_time()
    with contextlib.suppress(StatusError):
        parse(text)
    assert time.process_time() - start < 2.0
