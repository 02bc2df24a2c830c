"""A CUDA context that is lost: its worker ends or answers errors, comes back, and nobody else notices.

Only a Python model's own worker can be brought to that from outside. That the worker of native models ends with its reason and comes
back has no test on a device: the tests against the stand-in have it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from ..model_repository import SIMPLE, Flavour, write_repository
from ..servers import tensorfarm, wait_until
from .doors import Door, Given, open_door
from .models import PYTHON_MODELS, on_gpu, put_python
from .regions import CudaRegion, Part

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("real_gpu")]

PAIR = {name: np.arange(16, dtype=np.int32).reshape(1, 16) for name in ("INPUT0", "INPUT1")}
X = np.arange(1, 9, dtype=np.float32)


def _doubles(door: Door) -> bool:
    try:
        return bool(np.array_equal(door.ask("poison", {"X": X})["Y"], X * 2))
    except InferenceServerException:
        return False


def test_a_model_that_poisons_its_context(tmp_path: Path) -> None:
    """Its request fails; another model on the same GPU answers all the while, through a region too; after a reload it works."""
    repository = write_repository(tmp_path / "models", (on_gpu(SIMPLE),), Flavour.ONNX)
    put_python(repository, "poison", "KIND_GPU", PYTHON_MODELS)
    flags = ("--model-control-mode=explicit", "--load-model=*")
    with tensorfarm(repository, *flags, folder=tmp_path / "run") as server:
        with open_door("http", server) as door, CudaRegion("r", 4096) as region, door.registered(region):
            assert _doubles(door)
            with pytest.raises(InferenceServerException):
                door.ask("poison", {"X": np.array([-1, 0], np.float32)})
            for turn in range(5):
                given = {name: Given(array + turn, Part(region, at * 64)) for at, (name, array) in enumerate(PAIR.items())}
                got = door.ask("simple", given, {"OUTPUT0": Part(region, 1024, 64)})
                np.testing.assert_array_equal(got["OUTPUT0"], 2 * (PAIR["INPUT0"] + turn))
            if not _doubles(door):
                # A worker whose model answers with errors lives on: its owner reloads it.
                door.client.unload_model("poison")
                door.client.load_model("poison")
            wait_until(lambda: _doubles(door), "the model to work again", 60.0)
            assert server.ready()
