"""How exceptions of models read."""

from __future__ import annotations

import pytest

from tensorfarm.workers.contract.status import Code, StatusError
from tensorfarm.workers.python.failure import failure_text, sayable
from tensorfarm.workers.python.module import attempted


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001  # what the test is about
        return caught


class Local(Exception):
    pass


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("boom"), "ValueError: boom"),
        (Local("x"), "Local: x"),
        (AssertionError(), "AssertionError: <EMPTY MESSAGE>"),
        (KeyError("k"), "KeyError: 'k'"),
        (SystemExit(3), "SystemExit: 3"),
        (ValueError("two\nlines, é"), "ValueError: two\nlines, é"),
        (FileNotFoundError(2, "no such", "/a/\udcff"), "FileNotFoundError: [Errno 2] no such: '/a/\\udcff'"),
        (ValueError("\ud800"), "ValueError: \\ud800"),
        (Unspeakable(), "Unspeakable: <its text cannot be made: ValueError>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_first_line(error: BaseException, text: str) -> None:
    assert failure_text(error) == text
    whole = failure_text(raised(error))
    line = raised.__code__.co_firstlineno + 2
    assert whole == f"{text}\n\nAt:\n  {__file__}({line}): raised\n"
    whole.encode()


def test_frames_are_innermost_first_and_ours_are_left_out() -> None:
    def inner() -> None:
        raise ValueError("no")

    def outer() -> None:
        inner()

    with pytest.raises(StatusError) as failure:
        attempted(outer)
    assert failure.value.code is Code.INTERNAL
    text, *frames = failure.value.message.split("\n")
    assert text == "ValueError: no" and frames[:2] == ["", "At:"]
    assert [frame.rpartition(": ")[2] for frame in frames[2:-1]] == ["inner", "outer"]


def test_only_the_last_exception_counts() -> None:
    def fail() -> None:
        try:
            raise ValueError("first")
        except ValueError as error:
            raise TypeError("second") from error

    with pytest.raises(StatusError, match="^Internal|TypeError: second") as failure:
        attempted(fail)
    assert "first" not in failure.value.message


@pytest.mark.parametrize(("text", "said"), [("plain", "plain"), ("é✓", "é✓"), ("a\udcffb", "a\\udcffb")])
def test_what_can_be_said(text: str, said: str) -> None:
    assert sayable(text) == said
