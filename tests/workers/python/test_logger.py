from __future__ import annotations

import inspect
from typing import Any

import pytest

from tensorfarm.workers.contract.messages import Say
from tensorfarm.workers.python.logger import Logger, LogLevel

from .fake_host import FakeHost


def line() -> int:
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return frame.f_back.f_lineno


def test_a_line_says_where_it_was_written(fake_host: FakeHost) -> None:
    Logger.log_info("a\nb")
    Logger.log("b", Logger.ERROR)
    assert fake_host.told == [
        Say("I", "a\nb", "test_logger.py", line() - 3),
        Say("E", "b", "test_logger.py", line() - 3),
    ]


def test_levels(fake_host: FakeHost) -> None:
    fake_host.verbose = True
    Logger.log("i")
    Logger.log(message="w", level=Logger.WARNING)
    Logger.log_warn("w2")
    Logger.log_error("e")
    Logger.log_verbose("v")
    assert [(say.severity, say.text) for say in fake_host.told] == [("I", "i"), ("W", "w"), ("W", "w2"), ("E", "e"), ("V", "v")]
    assert [level.name for level in LogLevel] == ["INFO", "WARNING", "ERROR", "VERBOSE"]
    assert Logger.LogLevel is LogLevel  # type: ignore[attr-defined]


def test_verbose_lines_stay_here_unless_wanted(fake_host: FakeHost) -> None:
    Logger.log_verbose("v")
    Logger.log("v", Logger.VERBOSE)
    assert fake_host.told == []


@pytest.mark.parametrize("arguments", [(5,), ("x", 2), ("x", "INFO")])
def test_other_types(fake_host: FakeHost, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="incompatible"):
        Logger.log(*arguments)
    assert fake_host.told == []


def test_outside_a_server() -> None:
    with pytest.raises(RuntimeError, match="inside a model"):
        Logger.log_info("x")
