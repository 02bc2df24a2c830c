"""What becomes of a check whose worker dies."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import uvloop

from tensorfarm.server.check.command import read_arguments
from tensorfarm.server.check.run import check_repositories
from tensorfarm.server.check.workers import CheckWorkers
from tensorfarm.server.farm.farm import Farm
from tensorfarm.workers.contract.messages import Inspect, Inspected

from .found import onnx_folder


def test_a_file_that_kills_its_reader_costs_no_other_model_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is killed once the model has been sent to it: as by a file that ends its reader."""
    for name in ("a", "b", "killer", "killer_too", "y", "z"):
        onnx_folder(tmp_path, name)
    real = Farm.inspect

    async def inspect(farm: Farm, worker: str, message: Inspect) -> Inspected:
        if "killer" not in message.directory:
            return await real(farm, worker, message)
        farm.start(worker)
        while not farm.seats[worker].up:
            await asyncio.sleep(0.001)
        seat = farm.seats[worker]
        assert seat.process is not None
        os.kill(seat.process.pid, signal.SIGSTOP)  # so that it cannot be faster
        asking = asyncio.ensure_future(real(farm, worker, message))
        while not seat.tasks:
            await asyncio.sleep(0.001)
        os.kill(seat.process.pid, signal.SIGKILL)
        return await asking

    monkeypatch.setattr(Farm, "inspect", inspect)
    arguments = read_arguments([str(tmp_path)])
    reports = uvloop.run(check_repositories(arguments.directories, arguments.options, lambda model, done, total: None))
    errors = {report.name: [each.message for each in report.findings if each.severity == "error"] for report in reports}
    for name in ("a", "b", "y", "z"):
        assert errors[name] == []
    for name in ("killer", "killer_too"):
        [message] = errors[name]
        assert message.startswith("the process that opened the model ") and "SIGKILL" in message
    [report] = [report for report in reports if report.name == "killer"]
    assert report.findings[0].path == str(tmp_path / "killer" / "1" / "model.onnx")


def test_without_models_there_are_no_workers() -> None:
    async def run() -> None:
        await CheckWorkers().close()

    uvloop.run(run())
