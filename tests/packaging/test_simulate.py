"""scripts/simulate: a small day ends well, and a core that is broken is noticed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest

from tensorfarm.server.dispatch import batching, dispatcher
from tensorfarm.server.dispatch.batching import BatchScheduler
from tensorfarm.server.dispatch.dispatcher import Dispatcher
from tensorfarm.server.dispatch.queue import RequestQueue
from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.server.dispatch.scheduler import Decision
from tensorfarm.server.dispatch.sequence_scheduler import SequenceScheduler

from .tree import ROOT

SCRIPT = ROOT / "scripts" / "simulate.py"
SMALL = ("--arrivals", "20000", "--models", "18", "--instances", "2", "--once")


@pytest.fixture(scope="module")
def simulate() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = util.spec_from_file_location("simulate_under_test", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_day(tmp_path: Path) -> None:
    """As a program."""
    command = [sys.executable, str(SCRIPT), "--arrivals", "20000", "--models", "100", "--once"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)  # noqa: S603
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = [line.split() for line in ended.stdout.splitlines()]
    figures = {" ".join(line[1:-3]): line[-2] for line in lines if len(line) > 4 and line[0] == "│" and line[-1] == "│"}
    assert figures["models"] == "100" and figures["requests"] == "20,000", ended.stdout
    assert int(figures["batches"].replace(",", "")) > 1000
    answers = {what: int(count.replace(",", "")) for what, count in figures.items() if what in ("ok", "cancelled")}
    assert set(answers) == {"ok", "cancelled"} and 15_000 < answers["ok"] < 20_000
    assert {"full", "preferred", "delay", "shape", "end"} <= set(figures)
    assert not list(tmp_path.iterdir())


def test_a_day_in_process(simulate: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """What the tests below change is what makes the difference."""
    assert simulate.main(SMALL) == 0
    assert "virtual time" in capsys.readouterr().out


def forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then a request that was to be refused is not."""
    fail = Dispatcher._fail
    count = 0

    def sometimes(self: Dispatcher, scheduler: object, request: Request, *more: object) -> None:
        nonlocal count
        count += 1
        if count % 50:
            fail(self, scheduler, request, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Dispatcher, "_fail", sometimes)


def answers_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    hand_over = dispatcher._hand_over

    def twice(response: Response) -> None:
        hand_over(response)
        hand_over(response)

    monkeypatch.setattr(dispatcher, "_hand_over", twice)


def overfills(monkeypatch: pytest.MonkeyPatch) -> None:
    form = batching.form

    def greedy(policy: batching.BatchPolicy, *more: object) -> batching.Formed:
        return form(batching.BatchPolicy(policy.max_batch_size * 2), *more)  # type: ignore[arg-type]

    monkeypatch.setattr(batching, "form", greedy)


def overtakes(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = RequestQueue.scan
    monkeypatch.setattr(RequestQueue, "scan", lambda self: reversed(list(scan(self))))


def idles(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the instances is never used."""
    free_instance = BatchScheduler._free_instance

    def lazy(self: BatchScheduler) -> object:
        instance = free_instance(self)
        return None if instance is self.instances[-1] else instance

    monkeypatch.setattr(BatchScheduler, "_free_instance", lazy)


def sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """No alarm is ever asked for."""
    decide = BatchScheduler.decide

    def without(self: BatchScheduler, now_ns: int) -> Decision:
        decision = decide(self, now_ns)
        decision.wake_ns = None
        return decision

    monkeypatch.setattr(BatchScheduler, "decide", without)


def loses_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead worker's sequences waited with is dropped."""
    monkeypatch.setattr(SequenceScheduler, "_put_back", lambda self, requests: None)
    monkeypatch.setattr(SequenceScheduler, "_refuse_rest", lambda self, sequence, error, reason: self._forget(sequence))


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (forgets, "never answered"),
        (answers_twice, "answered twice"),
        (overfills, "is allowed"),
        (overtakes, "overtakes"),
        (idles, "waits beside an idle instance"),
        (sleeps, "deadline"),
        (loses_sequences, "never answered"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_core_that_is_broken(
    simulate: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    breaks: Callable[[pytest.MonkeyPatch], None],
    said: str,
) -> None:
    breaks(monkeypatch)
    assert simulate.main(SMALL) == 1
    assert said in " ".join(capsys.readouterr().out.split())
