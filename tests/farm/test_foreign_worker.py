"""Workers in interpreters that models bring: other Pythons that have numpy and nothing of ours."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tensorfarm.server.farm.environments import Environments
from tensorfarm.server.farm.interpreter import OWN, Interpreter, resolve
from tensorfarm.shm.placement import Span
from tensorfarm.workers import bootstrap

from ..shm.shm_objects import shm_object
from .harness import CONFIG, PATIENCE_S, WIDTH, House, Served, run

MODEL = """
import importlib.util
import json
import sys
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        def has(name):
            return importlib.util.find_spec(name) is not None
        print("seen:" + json.dumps({
            "version": list(sys.version_info[:2]), "executable": sys.executable, "prefix": sys.prefix,
            "has": [name for name in ("msgspec", "zmq", "google.protobuf", "tensorfarm.server", "posix_ipc") if has(name.split(".")[0]) and has(name)],
            "loaded": sorted(name for name in sys.modules if name.split(".")[0] in ("msgspec", "zmq", "google", "posix_ipc")),
            "stand_ins": sorted(name for name in sys.modules if name.startswith("tensorfarm.workers.portable.")),
            "path": sys.path[:1],
        }), flush=True)

    def execute(self, requests):
        answers = []
        for request in requests:
            first, second = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("IN0", "IN1"))
            outputs = [pb_utils.Tensor("SUM", first + second), pb_utils.Tensor("DIFFERENCE", first - second)]
            answers.append(pb_utils.InferenceResponse(outputs))
        return answers

    def finalize(self):
        print("finalized", flush=True)
"""


SAMPLE = """
model_warmup { name: "s" batch_size: 3
  inputs { key: "IN0" value { data_type: TYPE_INT32 dims: 20000 random_data: true } }
  inputs { key: "IN1" value { data_type: TYPE_INT32 dims: 20000 zero_data: true } } }
"""


def python_model(house: House) -> Served:
    """The harness's add_sub as a Python model."""
    served = house.model(CONFIG + SAMPLE)
    Path(served.load.directory, "1", "model.py").write_text(MODEL)
    served.load = msgspec.structs.replace(served.load, backend="python")
    return served


def seen(house: House) -> dict[str, Any]:
    """What the model has found in its process."""
    (line,) = [line for _, line in house.lines if line.startswith("seen:")]
    found: dict[str, Any] = json.loads(line.removeprefix("seen:"))
    return found


async def serve(house: House, interpreter: Interpreter) -> dict[str, Any]:
    """Load the model in an interpreter, ask it small and large things, kill its worker, ask again, unload it.

    Returns what the model has found in its process.
    """
    served = python_model(house)
    await asyncio.wait_for(house.farm.load("m:1#0", served.load, interpreter), PATIENCE_S)
    for value in range(5):
        await house.check(served, value)
    small = await asyncio.wait_for(house.ask(served, 7, width=3), PATIENCE_S)
    assert small.error is None and np.frombuffer(small.read(small.outputs[0]), np.int32).tolist() == [14] * 3
    small.release()
    with shm_object(4 * WIDTH) as client:
        client.write(0, np.arange(WIDTH, dtype=np.int32).tobytes())
        house.regions.register_system("region", client.key, 0, 4 * WIDTH)
        region = house.regions.span("region", 0, 4 * WIDTH).region
        response = await asyncio.wait_for(house.ask(served, places=[Span(region, 0, 4 * WIDTH)] * 2), PATIENCE_S)
        assert response.error is None
        assert (np.frombuffer(response.read(response.outputs[0]), np.int32) == 2 * np.arange(WIDTH)).all()
        response.release()
        house.regions.unregister_system("region")
    await asyncio.gather(*[house.check(served, value) for value in range(50)])
    await house.until(lambda: any(line.startswith("seen:") for _, line in house.lines), "the model's line")
    found = seen(house)
    house.lines.clear()
    house.process("m:1#0").kill()
    await house.until(lambda: len(house.ready) == 2, "the instance to be back")
    await house.check(served)
    assert seen(house) == found
    assert [(warmed[0].batch_size, warmed[0].execution_count) for _, warmed in house.warmed] == [(3, 1)] * 2
    await asyncio.wait_for(house.farm.unload("m:1#0", served.load.model), PATIENCE_S)
    await house.until(lambda: ("m:1#0", "finalized") in house.lines, "the model to be finalized")
    return found


def test_a_model_in_another_python(foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of ours nor of our dependencies is there, and the stand-ins are ours alone."""
    # neither the folder the server was started in nor that of our own files is a place to import from
    (tmp_path / "json.py").write_text("raise ImportError")
    (tmp_path / "numpy.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)

    async def work(house: House) -> None:
        environments = Environments()
        try:
            found = await serve(house, await resolve(str(foreign), "/models/m", environments))
        finally:
            await environments.close()
        assert found["version"] != list(sys.version_info[:2]) and found["prefix"] == str(foreign)
        assert found["has"] == ["tensorfarm.server"] and found["loaded"] == []
        assert {"tensorfarm.workers.portable.msgspec", "tensorfarm.workers.portable.zmq"} <= set(found["stand_ins"])

    run(tmp_path, work)


def test_a_model_in_our_own_python(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        found = await serve(house, OWN)
        assert found["stand_ins"] == [] and {"msgspec", "zmq"} <= set(found["loaded"])

    run(tmp_path, work)


@pytest.mark.parametrize("lacking", ["msgspec", "zmq", "msgspec 0.19.0"])
def test_what_is_there_is_used_and_what_is_not_is_stood_in_for(tmp_path: Path, lacking: str) -> None:
    """Our own Python without one of the two packages, or with one that is too old; models go on seeing the old one."""
    name, _, version = lacking.partition(" ")
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / f"{name}.py").write_text(f"__version__ = '{version}'" if version else "raise ImportError")

    async def work(house: House) -> None:
        found = await serve(house, Interpreter(OWN.program, {"PYTHONPATH": str(shadow)}))
        assert f"tensorfarm.workers.portable.{name}" in found["stand_ins"]
        assert (name in found["loaded"]) == bool(version)
        other = "zmq" if name == "msgspec" else "msgspec"
        assert other in found["loaded"] and f"tensorfarm.workers.portable.{other}" not in found["stand_ins"]

    run(tmp_path, work)


def test_every_module_that_such_a_worker_uses_can_be_imported(foreign: Path) -> None:
    command = [str(foreign / "bin" / "python"), bootstrap.__file__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--lifeline" in done.stdout, done.stderr
