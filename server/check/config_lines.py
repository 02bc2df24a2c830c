"""Where in a ``config.pbtxt`` each field stands.

A small scanner of protobuf's text format. It knows no field names and no types: what it is given has been read by
protobuf, or is being looked at because protobuf could not read it, so it takes anything and never raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from google.protobuf import text_encoding

# The shapes of protobuf's own tokenizer; what is none of them is a token of one character. No token spans lines.
_TOKEN = re.compile(
    r"""\s+|\#.*
      |(?P<word>[a-zA-Z_][0-9a-zA-Z_+-]*|(?:[0-9+-]|\.[0-9])[0-9a-zA-Z_.+-]*)
      |(?P<text>"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?$)|'[^'\\]*(?:\\.[^'\\]*)*(?:'|\\?$))
      |(?P<mark>.)""",
    re.VERBOSE,
)
_OPEN = {"{": "}", "<": ">"}

MAX_DEPTH = 64
"""Messages and lists within each other; what is deeper has no place of its own, and is no configuration anyway."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a text, both counted from 1; columns are characters."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: Position


@dataclass(frozen=True, slots=True)
class Entry:
    """An occurrence of a field: ``input[1].dims[0]``. ``value`` is that of a scalar, unquoted; "" for a message."""

    path: str
    position: Position
    value: str


@dataclass(slots=True)
class ConfigLines:
    """Every field of a text, in its order. Paths count each field, repeated or not, from 0 within its message."""

    entries: list[Entry]
    _by_path: dict[str, Entry] = field(init=False)

    def __post_init__(self) -> None:
        self._by_path = {}
        for entry in self.entries:
            self._by_path.setdefault(entry.path, entry)

    def find(self, path: str) -> Position | None:
        """Where a field is, or the nearest message around it that is there; None where nothing of it is.

        A field without a number means its first occurrence: ``input[1].name``, ``dynamic_batching.priority_levels``.
        """
        parts = [part if part.endswith("]") else f"{part}[0]" for part in path.split(".")]
        while parts:
            entry = self._by_path.get(".".join(parts))
            if entry is not None:
                return entry.position
            parts.pop()
        return None

    def has(self, path: str) -> bool:
        """Is this very field there?"""
        return ".".join(part if part.endswith("]") else f"{part}[0]" for part in path.split(".")) in self._by_path

    def in_map(self, path: str, key: str) -> str:
        """The path of a map's entry with this key; of the whole map where there is none."""
        wanted = re.compile(rf"({re.escape(path)}\[\d+\])\.key\[0\]")
        for entry in self.entries:
            match = wanted.fullmatch(entry.path)
            if match and entry.value == key:
                return match[1]
        return path

    def with_value(self, value: str) -> Iterator[Entry]:
        """The scalars of this value."""
        return (entry for entry in self.entries if entry.value == value)


def scan(text: str) -> ConfigLines:
    """Find every field of a text. Of one that is broken, those in front of the break are found, and others perhaps."""
    return ConfigLines(list(_Scanner(text).entries()))


def _tokens(text: str) -> Iterator[_Token]:
    for number, line in enumerate(text.split("\n"), 1):
        for match in _TOKEN.finditer(line):
            if match.lastgroup is not None:
                yield _Token(match.lastgroup, match[0], Position(number, match.start() + 1))


@dataclass(slots=True)
class _Message:
    """A message that the scanner is in: its path with a dot behind it, how it ends, and how often each field was met.

    A list is one too: ``name`` is the field whose elements it holds.
    """

    prefix: str
    end: str
    name: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def next_path(self, name: str) -> str:
        count = self.counts.get(name, 0)
        self.counts[name] = count + 1
        return f"{self.prefix}{name}[{count}]"


class _Scanner:
    """One pass over a text, without recursion: a text may nest as deep as it likes."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0
        self._stack = [_Message("", "")]

    def _peek(self) -> str:
        token = self._tokens[self._at] if self._at < len(self._tokens) else None
        return token.text if token is not None and token.kind == "mark" else ""

    def entries(self) -> Iterator[Entry]:
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            here = self._stack[-1]
            if here.end and token.kind == "mark" and token.text == here.end:
                self._at += 1
                self._stack.pop()
            elif token.kind == "mark" and token.text in ",;":
                self._at += 1
            elif here.name:
                # An element of a list: it stands where its value begins.
                owner = self._stack[-2]
                yield from self._value(owner.next_path(here.name), token.position)
            elif token.kind == "word":
                self._at += 1
                yield from self._field(token)
            else:
                self._at += 1

    def _field(self, name: _Token) -> Iterator[Entry]:
        if self._peek() == ":":
            self._at += 1
        if self._peek() == "[":
            self._at += 1
            self._stack.append(_Message("", "]", name.text))
            if self._peek() == "]":
                return
            # The first element stands where the field's name does: that is the line one looks for.
            yield from self._value(self._stack[-2].next_path(name.text), name.position)
        else:
            yield from self._value(self._stack[-1].next_path(name.text), name.position)

    def _value(self, path: str, position: Position) -> Iterator[Entry]:
        """The value at the cursor: a message is entered, a scalar is read."""
        mark = self._peek()
        if mark in _OPEN:
            self._at += 1
            shallow = len(self._stack) <= MAX_DEPTH
            self._stack.append(_Message(f"{path}." if shallow else self._stack[-1].prefix, _OPEN[mark]))
            if shallow:
                yield Entry(path, position, "")
        elif mark:
            self._at += 1  # no value: the text is broken here
        else:
            yield Entry(path, position, self._scalar())

    def _scalar(self) -> str:
        if self._at >= len(self._tokens):
            return ""
        token = self._tokens[self._at]
        self._at += 1
        if token.kind == "word":
            return token.text
        texts = [token.text]
        while self._at < len(self._tokens) and self._tokens[self._at].kind == "text":
            texts.append(self._tokens[self._at].text)
            self._at += 1
        return "".join(_unquoted(text) for text in texts)


def _unquoted(text: str) -> str:
    try:
        content: bytes = text_encoding.CUnescape(text[1:-1])
    except ValueError:  # a broken escape
        return text[1:-1]
    return content.decode("utf-8", "replace")
