"""What models say: to whom it goes, and that every question has its reply."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tensorfarm.server.log import Log, LogSettings
from tensorfarm.server.model_talk import ModelTalk
from tensorfarm.workers.contract.messages import (
    AskLoad,
    AskReady,
    AskUnload,
    Call,
    CancelCall,
    Fault,
    Forget,
    Measure,
    OpenFamily,
    OpenMetric,
    ReadMetric,
    Release,
    Reply,
    RequestBody,
    Say,
)
from tensorfarm.workers.contract.status import Code, StatusError, internal, not_found, unavailable

BODY = RequestBody("", 1, [], [], {})


@dataclass(eq=False)
class FakeProcess:
    name: str = "m:1#0"
    pid: int = 77
    returncode: int | None = None
    said: list[Any] = field(default_factory=list)

    def send(self, message: Any) -> None:
        self.said.append(message)


class Done:
    """What can be awaited any number of times, and is done."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class Recorder:
    """Notes what it is told by the names of its methods; ``failures`` are raised by those named."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.failures: dict[str, StatusError] = {}
        self.answers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        def method(*arguments: Any) -> Any:
            self.heard.append((name, *arguments))
            if name in self.failures:
                raise self.failures[name]
            return self.answers.get(name)

        return method


class Room:
    def __init__(self) -> None:
        self.service, self.calls, self.metrics, self.log = Recorder(), Recorder(), Recorder(), Recorder()
        self.log.settings = LogSettings()
        self.log.takes = Log(self.log.settings).takes
        self.process = FakeProcess()
        self.talk = ModelTalk(self.service, self.calls, self.metrics, self.log, asyncio.run)  # type: ignore[arg-type]

    def hear(self, message: Any) -> list[Any]:
        """What the worker is told."""
        self.talk.heard(message, self.process)  # type: ignore[arg-type]
        said, self.process.said = self.process.said, []
        return said


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.mark.parametrize(
    ("message", "method"),
    [(Call(1, 2, "m", -1, BODY), "call"), (CancelCall(1), "cancel"), (Release([1]), "release")],
    ids=["call", "cancel", "release"],
)
def test_calls(room: Room, message: Any, method: str) -> None:
    assert room.hear(message) == []
    assert room.calls.heard == [(method, message, room.process)]


@pytest.mark.parametrize(("severity", "level", "logged"), [("I", 0, "I"), ("W", 0, "W"), ("E", 0, "E"), ("V", 0, ""), ("V", 1, "I")])
def test_lines_for_the_log(room: Room, severity: str, level: int, logged: str) -> None:
    room.log.settings.log_verbose_level = level
    room.hear(Say(severity, "text", "model.py", 8))
    assert room.log.heard == ([("record", logged, "text", "model.py:8", 77)] if logged else [])


@pytest.mark.parametrize(("severity", "switch"), [("I", "log_info"), ("W", "log_warning"), ("E", "log_error")])
def test_the_logs_switches_hold_for_models_as_well(room: Room, severity: str, switch: str) -> None:
    setattr(room.log.settings, switch, False)
    room.hear(Say(severity, "text", "model.py", 8))
    assert room.log.heard == []


@pytest.mark.parametrize(
    ("question", "method"),
    [
        (OpenFamily(5, "n", "d", "counter"), "open_family"),
        (OpenMetric(5, 1, {"a": "b"}), "open_metric"),
        (ReadMetric(5, 1), "read"),
    ],
    ids=["family", "metric", "value"],
)
def test_questions_about_metrics(room: Room, question: Any, method: str) -> None:
    room.metrics.answers[method] = 3
    assert room.hear(question) == [Reply(5, 3)]
    assert room.metrics.heard == [(method, room.process, question)]
    room.metrics.failures[method] = internal("no")
    assert room.hear(question) == [Reply(5, None, Fault(Code.INTERNAL, "no"))]


def test_metrics_that_are_told_of(room: Room) -> None:
    forget, measure = Forget([1], [2]), Measure(1, "increment", 1.0)
    assert room.hear(forget) == room.hear(measure) == []
    assert room.metrics.heard == [("forget", room.process, forget), ("measure", room.process, measure)]
    room.metrics.failures["measure"] = internal("no")
    assert room.hear(measure) == []
    assert room.log.heard == [("warning", "a custom metric of worker 'm:1#0' was not changed: no")]


def test_is_a_model_ready(room: Room) -> None:
    room.service.answers["version_ready"] = True
    assert room.hear(AskReady(1, "m", "")) == room.hear(AskReady(1, "m", "2")) == [Reply(1, True)]
    assert room.service.heard == [("version_ready", "m", ""), ("version_ready", "m", "2")]
    room.service.failures["version_ready"] = not_found("unknown")
    assert room.hear(AskReady(1, "m", "3")) == [Reply(1, False)]


@pytest.mark.parametrize("version", ["x", "-1", "1.0", "٣", "9" * 19, "9" * 5000])
def test_a_version_that_is_none(room: Room, version: str) -> None:
    (reply,) = room.hear(AskReady(1, "m", version))
    assert reply.fault.code == Code.INVALID_ARG and "failed to get model version" in reply.fault.message
    assert room.service.heard == []


def test_loading_and_unloading(room: Room) -> None:
    room.service.answers["load"] = room.service.answers["unload"] = Done()
    assert room.hear(AskLoad(1, "m", "", {})) == room.hear(AskLoad(1, "m", "{}", {"file:1/f": b"x"})) == [Reply(1)]
    assert room.hear(AskUnload(2, "m", True)) == [Reply(2)]
    assert room.service.heard == [("load", "m", {}), ("load", "m", {"config": "{}", "file:1/f": b"x"}), ("unload", "m", True)]
    room.service.failures["load"] = unavailable("not now")
    assert room.hear(AskLoad(3, "m", "", {})) == [Reply(3, None, Fault(Code.UNAVAILABLE, "not now"))]


def test_whoever_asked_for_a_load_may_be_gone_when_it_is_done(room: Room) -> None:
    room.service.answers["load"] = Done()
    room.process.returncode = -9
    assert room.hear(AskLoad(1, "m", "", {})) == []


def test_a_worker_that_has_gone(room: Room) -> None:
    room.talk.gone(room.process)  # type: ignore[arg-type]
    assert room.calls.heard == [("gone", room.process)] and room.metrics.heard == [("drop_owner", room.process)]
