"""The scanner of configuration texts, held to protobuf's own reader and writer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.check.config_lines import Position, scan
from tensorfarm.workers.contract.configuration import ModelConfig

TEXT = """\
# a comment { input [
name: "first" 'second'  # { "
input [
  {
    name: "A"
    dims: [ 1, -1,
            3 ]
  }, {
    name: "B", reshape: { shape: [ ] }
  }
]
output { name: "C" } output < name: "D"; dims: 4 dims: 5 >
parameters { key: "one" value { string_value: "x" } }
parameters: { key: "two" value: { string_value: "}" } }
max_batch_size: 8
"""


@pytest.mark.parametrize(
    ("path", "line", "column"),
    [
        ("name", 2, 1),
        ("input", 3, 1),
        ("input[0]", 3, 1),
        ("input[0].name", 5, 5),
        ("input[0].dims", 6, 5),
        ("input[0].dims[1]", 6, 16),
        ("input[0].dims[2]", 7, 13),
        ("input[1]", 8, 6),
        ("input[1].name", 9, 5),
        ("input[1].reshape", 9, 16),
        ("input[1].reshape.shape", 9, 16),
        ("input[1].data_type", 8, 6),
        ("output[0].name", 12, 10),
        ("output[1]", 12, 22),
        ("output[1].dims[1]", 12, 50),
        ("max_batch_size", 15, 1),
    ],
)
def test_fields_are_found_where_they_stand(path: str, line: int, column: int) -> None:
    assert scan(TEXT).find(path) == Position(line, column)


def test_what_is_not_there_has_no_place() -> None:
    lines = scan(TEXT)
    assert lines.find("optimization.cuda") is None
    assert lines.find("input[2].name") is None
    assert not lines.has("input[0].data_type")
    assert lines.has("input[0].dims")


def test_map_entries_are_found_by_their_keys() -> None:
    lines = scan(TEXT)
    assert lines.find(lines.in_map("parameters", "two")) == Position(14, 1)
    assert lines.find(lines.in_map("parameters", "two") + ".value.string_value") == Position(14, 35)
    assert lines.in_map("parameters", "three") == "parameters"


def test_values_are_read_as_protobuf_reads_them() -> None:
    values = {entry.path: entry.value for entry in scan('name: "a\\n\\x41" \'\\101"\' max_batch_size: 0x10').entries}
    assert values == {"name[0]": 'a\nAA"', "max_batch_size[0]": "0x10"}


def _scalar(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        return st.binary(max_size=6) if field.type == field.TYPE_BYTES else st.text(max_size=6)
    if kind == field.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return st.sampled_from([0.0, 1.5, -2e30, float("inf"), float("-inf"), float("nan")])
    low = 0 if kind in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else -(2**31)
    return st.integers(low, 2**31 - 1)


@st.composite
def messages(draw: st.DrawFn, kind: Any = ModelConfig, depth: int = 0) -> Any:
    """Any message of a type with up to four of its fields set."""
    message = kind()
    for field in draw(st.lists(st.sampled_from(list(kind.DESCRIPTOR.fields) or [None]), max_size=4)):
        if field is None:
            continue  # a message without fields
        if field.message_type is None:
            if field.is_repeated:
                getattr(message, field.name).extend(draw(st.lists(_scalar(field), max_size=3)))
            else:
                setattr(message, field.name, draw(_scalar(field)))
        elif depth < 3:
            _set_message(draw, message, field, depth)
    return message


def _set_message(draw: st.DrawFn, message: Any, field: Any, depth: int) -> None:
    inner = field.message_type
    target = getattr(message, field.name)
    if inner.GetOptions().map_entry:
        value = inner.fields_by_name["value"]
        for key in draw(st.lists(_scalar(inner.fields_by_name["key"]), max_size=2, unique=True)):
            if value.message_type is None:
                target[key] = draw(_scalar(value))
            else:
                target[key].CopyFrom(draw(messages(value.message_type._concrete_class, depth + 1)))
    elif field.is_repeated:
        for _ in range(draw(st.integers(0, 2))):
            target.add().CopyFrom(draw(messages(inner._concrete_class, depth + 1)))
    else:
        target.SetInParent()
        target.CopyFrom(draw(messages(inner._concrete_class, depth + 1)))


def _paths(message: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Path, name and value of everything in a message whose order is kept: not of what is inside maps."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        for number, one in enumerate(value if field.is_repeated else [value]):
            path = f"{prefix}{field.name}[{number}]"
            yield path, field.name, one
            if field.message_type is not None:
                yield from _paths(one, f"{path}.")


@settings(max_examples=150, deadline=None)
@given(
    message=messages(),
    one_line=st.booleans(),
    short=st.booleans(),
    pointy=st.booleans(),
    utf8=st.booleans(),
    comments=st.lists(st.sampled_from(["", "# } ] {", "   ", '#"', "\t# input: 1"]), max_size=5),
)
def test_all_that_protobuf_writes_is_found(
    message: Any, one_line: bool, short: bool, pointy: bool, utf8: bool, comments: list[str]
) -> None:
    text = text_format.MessageToString(
        message, as_one_line=one_line, use_short_repeated_primitives=short, pointy_brackets=pointy, as_utf8=utf8
    )
    if comments:
        lines = text.split("\n")
        text = "\n".join(part for number, line in enumerate(lines) for part in (comments[number % len(comments)], line))
        assert text_format.Parse(text, ModelConfig()) is not None
    found = scan(text)
    known = {entry.path: entry for entry in found.entries}
    rows = text.split("\n")
    for path, name, value in _paths(message):
        entry = known[path]
        here = rows[entry.position.line - 1][entry.position.column - 1 :]
        assert here.startswith(name) or (short and not path.endswith("[0]"))
        assert found.find(path) == entry.position
        if isinstance(value, str):
            assert entry.value == value


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab_.:;,{}[]<>\"'\\#-+01 \n\r\té", max_size=60) | st.text(max_size=40))
def test_no_text_is_too_broken(text: str) -> None:
    rows = text.split("\n")
    for entry in scan(text).entries:
        assert 1 <= entry.position.line <= len(rows)
        assert 1 <= entry.position.column <= len(rows[entry.position.line - 1])


@pytest.mark.parametrize("text", ["a {" * 20_000, "a [" * 20_000, "a { b: [ {" * 10_000, '"' * 20_001, "\\" * 20_000, "a: " * 20_000])
def test_depth_and_length_do_no_harm(text: str) -> None:
    scan(text).find("a.b.c")
