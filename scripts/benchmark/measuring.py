"""The measuring itself: the same cases on every server, in turns, in rounds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .contender import Contender, ContenderError
from .load import LoadError, Result, exchange
from .progress import Steps
from .results import Figures, Length
from .workload import Ask, WrongAnswer

_PATIENCE_SECS = 120.0
_WARM_TRIES = 5


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure on a server; ``key`` names it."""

    key: str
    ask: Ask
    concurrency: int


@dataclass(frozen=True, slots=True)
class Entrant:
    """A server that takes part: how it is started, and what is measured on it once it runs."""

    key: str
    name: str
    start: Callable[[], AbstractContextManager[Contender]]
    cases: Callable[[Contender], Sequence[Case]]
    alone: bool = False
    """Runs only in its own turns, because it would take CPU from the others'."""


@dataclass(slots=True)
class Measured:
    """What came of it: figures by entrant and case, memory in bytes by entrant, sentences about what failed."""

    figures: dict[tuple[str, str], Figures] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def measure(port: int, ask: Ask, sha256: str, concurrency: int, seconds: float) -> Result:
    """One measurement by a load generator of its own process. Raises LoadError."""
    settings = {"port": port, "concurrency": concurrency, "seconds": seconds, "sha256": sha256}
    command = [sys.executable, "-P", str(Path(__file__).with_name("load.py"))]
    try:
        run = subprocess.run(
            command, input=json.dumps(settings).encode() + b"\n" + ask.request, capture_output=True, timeout=seconds + _PATIENCE_SECS
        )
    except subprocess.TimeoutExpired:
        raise LoadError(f"no answer within {_PATIENCE_SECS:g} s after the end") from None
    if run.returncode:
        said = run.stderr.decode(errors="replace").strip().splitlines()
        raise LoadError(said[-1].removeprefix("error: ") if said else "the load generator failed")
    return Result(**json.loads(run.stdout))


def checked(port: int, ask: Ask) -> str:
    """Ask once and look at the answer closely; returns its hash, which all others must have. Raises LoadError, OSError or WrongAnswer."""
    reply, _ = exchange(("127.0.0.1", port), ask.request)
    ask.check(reply)
    return reply.sha256


class _Running:
    """A started server, its cases with the hashes of the right answers."""

    def __init__(self, entrant: Entrant, contender: Contender, first: bool) -> None:
        self.entrant = entrant
        self.contender = contender
        self.cases = list(entrant.cases(contender))
        self.hashes = {case.key: checked(contender.port, case.ask) for case in self.cases}
        self._warm(1.0 if first else 0.5)

    def _warm(self, seconds: float) -> None:
        case = max(self.cases, key=lambda case: (case.concurrency, -len(case.ask.request)))
        for tried in range(1, _WARM_TRIES + 1):
            try:
                measure(self.contender.port, case.ask, self.hashes[case.key], case.concurrency, seconds)
                return
            except LoadError:
                # some servers put their front up a second time shortly after their start, and close connections by it
                if tried == _WARM_TRIES:
                    raise
                time.sleep(1.0)


class Rounds:
    """Runs the cases of all entrants and keeps what they gave."""

    def __init__(self, length: Length, steps: Steps) -> None:
        self._length = length
        self._steps = steps
        self._results: dict[tuple[str, str], list[tuple[Result, float]]] = {}
        self._failed: dict[tuple[str, str], str] = {}
        self._memory: dict[str, int] = {}
        self._failures: list[str] = []

    def run(self, entrants: Sequence[Entrant]) -> Measured:
        """Measure all; an entrant or a case that fails is left out, and said."""
        with ExitStack() as stack:
            residents = [one for entrant in entrants if not entrant.alone and (one := self._start(stack, entrant, True))]
            visitors = [entrant for entrant in entrants if entrant.alone]
            for number in range(self._length.rounds):
                keys = list(dict.fromkeys(case.key for running in residents for case in running.cases))
                for key in keys:
                    for running in residents:
                        self._measure(running, [case for case in running.cases if case.key == key])
                for entrant in visitors:
                    if any(failure.startswith(f"{entrant.key}:") for failure in self._failures):
                        continue
                    with ExitStack() as visit:
                        visitor = self._start(visit, entrant, number == 0)
                        if visitor:
                            self._measure(visitor, visitor.cases)
                            self._memory[entrant.key] = visitor.contender.memory_byte_size()
            for running in residents:
                self._memory[running.entrant.key] = running.contender.memory_byte_size()
        failures = self._failures + [f"{entrant}, {case}: {why}" for (entrant, case), why in self._failed.items()]
        figures = {
            key: Figures.of([result for result, _ in found], [secs for _, secs in found])
            for key, found in self._results.items()
            if key not in self._failed
        }
        return Measured(figures, self._memory, failures)

    def _start(self, stack: ExitStack, entrant: Entrant, first: bool) -> _Running | None:
        self._steps.say(f"starting {entrant.key}")
        try:
            return _Running(entrant, stack.enter_context(entrant.start()), first)
        except (ContenderError, LoadError, WrongAnswer, OSError) as error:
            self._failures.append(f"{entrant.key}: {error}")
            return None

    def _measure(self, running: _Running, cases: Sequence[Case]) -> None:
        entrant, contender = running.entrant, running.contender
        for case in cases:
            key = (entrant.key, case.key)
            self._steps.advance(f"{entrant.key}, {case.key}")
            if key in self._failed:
                continue
            before = contender.cpu_secs()
            try:
                result = measure(contender.port, case.ask, running.hashes[case.key], case.concurrency, self._length.seconds)
            except LoadError as error:
                self._failed[key] = str(error)
                continue
            self._results.setdefault(key, []).append((result, contender.cpu_secs() - before))
