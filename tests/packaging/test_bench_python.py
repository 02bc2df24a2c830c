"""scripts/bench python: what its checks believe, and a short run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .test_bench import Import, bench, load

__all__ = ["load"]

STATUS = b"HTTP/1.1 200 OK"


def events(numbers: list[int]) -> bytes:
    return b"".join(b"data: " + json.dumps({"model_name": "count", "NUMBER": number}).encode() + b"\n\n" for number in numbers)


def values(*numbers: float, shape: str = "[4]") -> bytes:
    return f'{{"outputs":[{{"name":"VALUES","shape":{shape}}}]}}'.encode() + np.array(numbers, np.float32).tobytes()


def test_checks_know_right_from_wrong(load: Import) -> None:
    python, workload, generator = load("benchmark.python_workload"), load("benchmark.workload"), load("benchmark.load")
    added = python.plus_one(4096).tobytes()
    cases: list[tuple[Any, bytes, list[bytes]]] = [
        (python.stream(3), events([0, 1, 2]), [events([0, 1]), events([0, 2, 1]), events([0, 1, 2, 3]), b"", b"data: nothing\n\n"]),
        (python.hop("identity", 64, 4), values(0, 4, 8, 12), [values(0, 4, 8, 13), values(0, 4, 8), values(0, 4, 8, 12, shape="[5]"), b""]),
        (python.hop("plus_one", 64, 4), values(1, 5, 9, 13), [values(0, 4, 8, 12)]),
        (python.plus_one_binary(4096), b"{}" + added, [b"{}" + workload.tensor(4096).tobytes(), added[:-1], b""]),
    ]
    for ask, right, wrongs in cases:
        ask.check(generator.Reply(STATUS, right, 0))
        for wrong in wrongs:
            with pytest.raises(workload.WrongAnswer):
                ask.check(generator.Reply(STATUS, wrong, 0))


def test_regions_tell_an_answer_that_is_not_there(load: Import) -> None:
    regions, workload, generator = load("benchmark.regions"), load("benchmark.workload"), load("benchmark.load")
    with regions.shared_regions(4096) as both:
        value = workload.tensor(4096)
        ask = both.ask("plus_one", value, value + 1)
        assert ask.request.startswith(b"POST /v2/models/plus_one/infer HTTP/1.1\r\n")
        assert both.inward[:] == value.tobytes()
        both.outward[:] = (value + 1).tobytes()
        ask.check(generator.Reply(STATUS, b"", 0))
        # what one answer left there is not taken for the next one's
        with pytest.raises(workload.WrongAnswer):
            ask.check(generator.Reply(STATUS, b"", 0))


def test_a_short_run_of_every_python_model(load: Import, tmp_path: Path) -> None:
    flags = ("--rounds=1", "--seconds=0.01", "--json=python.json", "--plot=python.png")
    done = bench("python", "--against=none", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = load("benchmark.results").read(tmp_path / "python.json").python
    assert [(row.work, row.clients) for row in found.rows] == [
        *(("add_sub INT32[16]", clients) for clients in (1, 8, 32)),
        ("16 MiB plus one, shared memory", 1),
        ("16 MiB plus one, shared memory", 2),
        ("16 MiB plus one, binary", 1),
        ("call with 16 MiB, which come back", 1),
        ("call with 16 MiB, as many new ones back", 1),
        ("call with 64 bytes", 1),
        ("16 MiB passed on to a model, shared memory", 1),
        ("stream of 100 events", 1),
        ("stream of 100 events", 8),
    ]
    assert all(row.contender == "tensorfarm" and row.figures.requests_per_second > 0 for row in found.rows)
    assert len(found.targets.left_out) == 6
    assert "16 MiB plus one, shared memory, 2 clients: tritonserver was not measured" in done.stdout
    assert (tmp_path / "python.png").stat().st_size > 5_000
