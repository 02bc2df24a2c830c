"""The stand-in for msgspec against msgspec itself, over every message there is."""

from __future__ import annotations

import enum
import types
import typing
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tensorfarm.shm.placement import Inline
from tensorfarm.workers.contract import messages
from tensorfarm.workers.portable import msgspec as stand_in
from tensorfarm.workers.portable.structs import StructType

from .tree import module

# what channels and lifelines decode
UNIONS = ("ToWorker", "ToInstance", "FromWorker", "LifelineMessage")

ours = module("workers.contract.messages")
placement = module("shm.placement")

encode = msgspec.msgpack.Encoder().encode
stand_in_encode = stand_in.msgpack.Encoder().encode
real_decoders = {name: msgspec.msgpack.Decoder(getattr(messages, name)) for name in UNIONS}
our_decoders: dict[str, Any] = {name: stand_in.msgpack.Decoder(getattr(ours, name)) for name in UNIONS}

EDGES = [
    0,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**32 - 1,
    2**32,
    2**63,
    2**64 - 1,
    -1,
    -32,
    -33,
    -128,
    -129,
    -32768,
    -32769,
    -(2**31),
    -(2**31) - 1,
    -(2**63),
]
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    int: st.sampled_from(EDGES) | st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=40) | st.sampled_from(["x" * 31, "x" * 32, "é" * 128]),
    bytes: st.binary(max_size=40) | st.just(bytes(256)),
    memoryview: (st.binary(max_size=40) | st.just(bytes(256))).map(memoryview),
}


@cache
def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type of the messages, made of the real structs."""
    if kind in SCALARS:
        return SCALARS[kind]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, *[values(hints[field]) for field in kind.__struct_fields__])
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values(argument) for argument in arguments])
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=18)
    elements = st.lists(values(arguments[0]), max_size=4) | st.lists(values(arguments[0]), min_size=15, max_size=17)
    assert origin in (list, tuple), kind
    return elements.map(origin)


def translated(value: Any) -> Any:
    """The same value of stand-in structs."""
    if isinstance(value, msgspec.Struct):
        name = type(value).__name__
        kind = getattr(ours, name, None) or getattr(placement, name)
        return kind(*[translated(getattr(value, field)) for field in value.__struct_fields__])
    if isinstance(value, list | tuple):
        return type(value)(translated(element) for element in value)
    if isinstance(value, dict):
        return {key: translated(element) for key, element in value.items()}
    return value


def outcome(decode: Any, content: bytes) -> tuple[str, Any]:
    """What decoding comes to: a value or an exception's name."""
    try:
        return "value", decode(content)
    except (msgspec.MsgspecError, stand_in.MsgspecError, UnicodeDecodeError) as error:
        return type(error).__name__, None


@pytest.mark.parametrize("union", UNIONS)
def test_messages_are_encoded_and_decoded_as_the_original_does(union: str) -> None:
    kinds = typing.get_args(getattr(messages, union))
    assert set(kinds) == {getattr(messages, kind.__name__) for kind in typing.get_args(getattr(ours, union))}

    @settings(max_examples=15 * len(kinds), deadline=None, suppress_health_check=list(HealthCheck))
    @given(values(getattr(messages, union)))
    def check(message: Any) -> None:
        content = encode(message)
        assert stand_in_encode(translated(message)) == content
        decoded = our_decoders[union].decode(content)
        assert decoded == translated(real_decoders[union].decode(content)) == translated(message)
        assert type(decoded).__name__ == type(message).__name__

    check()


# dd and df announce up to 2**32 elements, for which the original makes room at once
GIANTS = {0xDD, 0xDF}
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-40, 300) | st.floats(allow_nan=False) | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(UNIONS), st.data())
def test_what_is_no_message_is_refused_as_the_original_does(union: str, data: st.DataObject) -> None:
    content = bytearray(encode(data.draw(values(getattr(messages, union)))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(content), 200)))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2) | anything.map(encode))
    assume(not GIANTS & set(content))
    check_outcomes(union, bytes(content))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(UNIONS), st.integers(0, 60), st.lists(anything, max_size=10))
def test_other_arrays_are_taken_or_refused_as_by_the_original(union: str, tag: int, fields: list[Any]) -> None:
    check_outcomes(union, encode([tag, *fields]))


def check_outcomes(union: str, content: bytes) -> None:
    expected, message = outcome(real_decoders[union].decode, content)
    got, ours_message = outcome(our_decoders[union].decode, content)
    assert (got == "value") == (expected == "value"), (got, expected, content)
    if expected == "value":
        assert repr(ours_message) == repr(translated(message)) or ours_message == translated(message)


@pytest.mark.parametrize(("kind", "stand_ins"), [
    (int, int), (float, float), (str, str), (bool, bool), (bytes, bytes), (memoryview, memoryview), (type(None), type(None)),
    (list[int], list[int]), (tuple[int, ...], tuple[int, ...]), (dict[str, int], dict[str, int]), (str | float, str | float),
    (str | int | float | bool, str | int | float | bool), (bool | int | float | None, bool | int | float | None),
    (list[str] | dict[str, bytes], list[str] | dict[str, bytes]), (messages.Placement, placement.Placement),
])  # fmt: skip
def test_types_are_strict_as_in_the_original(kind: Any, stand_ins: Any) -> None:
    real, made = msgspec.msgpack.Decoder(kind), stand_in.msgpack.Decoder(stand_ins)
    raws = [
        encode(value)
        for value in (
            None,
            True,
            0,
            1,
            -1,
            2**63,
            1.0,
            "",
            "a",
            b"",
            b"a",
            [],
            [1],
            ["a"],
            {},
            {"a": 1},
            {"a": b""},
            {1: 1},
            [0, b"x"],
            [1, 2, 3, 4],
            [2, 3, 4, 5, 6],
        )
    ]
    raws += [
        b"",
        b"\xc1",
        b"\xca\x3f\x80\x00\x00",
        b"\xd4\x01\x01",
        b"\xcc\x01",
        b"\xa1\xff",
        b"\xa2a",
        b"\xc4\x02a",
        b"\xd9\x01a",
        b"\xda\x00\x01a",
        b"\xdb\x00\x00\x00\x01a",
        b"\xcd\x00",
        b"\xc0\xc0",
    ]
    for raw in raws:
        expected, value = outcome(real.decode, raw)
        got = outcome(made.decode, raw)
        assert (got[0] == "value", got[1]) == (expected == "value", translated(value)), raw
        if expected == "value":
            assert type(made.decode(raw)).__name__ == type(value).__name__


@pytest.mark.parametrize("extra", [
    b"\xc7\x01\x05x", b"\xd4\x05x", b"\xd8\x05" + bytes(16), b"\xc8\x00\x01\x05x", b"\xc9\x00\x00\x00\x01\x05x", b"\x82\xa1a\x92\x01\x02\xa1b\xc4\x01x",
    b"\xa1\xff", b"\xcb" + bytes(8), b"\xd9\x01x", b"\xcf" + bytes(8), b"\xde\x00\x01\xc0\xc3", b"\xdc\x00\x01\xc2",
])  # fmt: skip
def test_fields_of_a_later_version_are_passed_over(extra: bytes) -> None:
    content = b"\x94\x18\x07" + extra + b"\x01"
    assert real_decoders["FromWorker"].decode(content) == messages.Unloaded(7)
    assert our_decoders["FromWorker"].decode(content) == ours.Unloaded(7)
    for end in range(1, len(content)):
        with pytest.raises(stand_in.DecodeError):
            our_decoders["FromWorker"].decode(content[:end])


def test_deep_nesting_needs_no_stack() -> None:
    content = b"\x93\x18\x07" + b"\x91" * 100_000 + b"\x01"
    assert our_decoders["FromWorker"].decode(content) == ours.Unloaded(7)


def test_tensors_are_views_of_what_was_received() -> None:
    frame = bytearray(
        encode(messages.Execute(1, [messages.RequestBody("", 1, [messages.Tensor("a", "INT8", (3,), Inline(memoryview(b"abc")))], [], {})]))
    )
    decoded = our_decoders["ToInstance"].decode(memoryview(frame))
    (tensor,) = decoded.requests[0].inputs
    frame[frame.index(b"abc")] = ord("x")
    assert bytes(tensor.place.content) == b"xbc" and tensor.place.byte_size == 3


class Level(enum.IntEnum):
    HIGH = 70_000


class Grown(int):
    pass


@pytest.mark.parametrize("value", [
    Level.HIGH, bytearray(b"ab"), memoryview(np.arange(6, dtype=np.int32).reshape(2, 3)), float("nan"), float("inf"), -0.0, (1, (2,)), {1: 2.5, "a": None},
    np.float64(1), np.int64(1), np.bool_(True), Grown(1), 2**64, -(2**63) - 1, object(), "\ud800", memoryview(b"abcdef")[::2], list(range(70_000)), dict.fromkeys(range(70_000)), "x" * 70_000, bytes(70_000), bytearray(300), memoryview(bytes(70_000)),
], ids=lambda value: f"{type(value).__name__} {str(value)[:20]!a}")  # fmt: skip
def test_other_objects_are_encoded_or_refused_as_by_the_original(value: Any) -> None:
    try:
        expected = encode(value)
    except (TypeError, ValueError, OverflowError, BufferError) as error:
        with pytest.raises(type(error)):
            stand_in_encode(value)
    else:
        assert stand_in_encode(value) == expected


def test_structs_behave_as_the_originals() -> None:
    fault, real = ours.Fault(3, "x"), messages.Fault(3, "x")
    assert repr(fault) == repr(real) and fault == ours.Fault(code=3, message="x") != ours.Fault(4, "x")
    assert fault != ours.Note("3", "x") and hash(fault) == hash(ours.Fault(3, "x"))
    assert type(fault).__struct_fields__ == type(real).__struct_fields__ == type(fault).__match_args__
    for change in (
        lambda struct: setattr(struct, "code", 1),
        lambda struct: setattr(struct, "other", 1),
        lambda struct: delattr(struct, "code"),
    ):
        for struct in (fault, real):
            with pytest.raises(AttributeError):
                change(struct)
    for arguments, named in (
        ((), {}),
        ((1,), {}),
        ((1, "x", 2), {}),
        ((1,), {"code": 1, "message": ""}),
        ((1, ""), {"other": 1}),
        ((), {"code": 1}),
    ):
        for kind in (ours.Fault, messages.Fault):
            with pytest.raises(TypeError):
                kind(*arguments, **named)
    first, second = ours.Result([]), ours.Result([])
    assert first.parameters == {} and first.parameters is not second.parameters
    assert stand_in.structs.replace(fault, code=5) == ours.Fault(5, "x") and fault.code == 3
    with pytest.raises(TypeError):
        stand_in.structs.replace(fault, other=5)


@pytest.mark.parametrize(
    "options",
    [
        {"frozen": True},
        {"array_like": True},
        {"frozen": True, "array_like": True, "tag": "text"},
        {"frozen": True, "array_like": True, "default": [1]},
    ],
)
def test_what_the_stand_in_cannot_do_is_refused_at_once(options: dict[str, Any]) -> None:
    default = options.pop("default", [])
    with pytest.raises(TypeError):
        StructType("Strange", (stand_in.Struct,), {"__annotations__": {"a": "list[int]"}, "a": default}, **options)
    with pytest.raises(TypeError):
        stand_in.msgpack.Decoder(set[int])
