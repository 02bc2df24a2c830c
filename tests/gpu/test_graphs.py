"""CUDA graphs: what was captured once is replayed with other inputs, for each shape by itself."""

from __future__ import annotations

import numpy as np
import pytest

from .doors import Door, Given
from .models import DENSE_WIDTH
from .regions import CudaRegion, Part

pytestmark = pytest.mark.gpu

RTOL, ATOL = 2e-3, 1e-5
"""Matrix products of FP32 may be done with ten bits of mantissa."""


@pytest.mark.parametrize("where", ["regions", "message"])
@pytest.mark.parametrize("model", ["dense", "dense_graphs"])
def test_changing_inputs_and_batch_sizes(model: str, where: str, door: Door) -> None:
    """The first request of a shape captures, those after it replay; shapes take turns."""
    random = np.random.default_rng(9)
    with CudaRegion("in", 1 << 14) as source, CudaRegion("out", 1 << 12) as target, door.registered(source, target):
        for turn in range(12):
            x = random.standard_normal((2 + 5 * (turn % 2), DENSE_WIDTH)).astype(np.float32)
            given = Given(x, Part(source) if where == "regions" else None)
            got = door.ask(model, {"X": given}, {"Y": Part(target) if where == "regions" else None})["Y"]
            expected = door.ask("dense_cpu", {"X": x})["Y"]
            np.testing.assert_allclose(got, expected, rtol=RTOL, atol=ATOL)
            np.testing.assert_allclose(got.sum(axis=1), 1, rtol=1e-3)


def test_region_that_moves(door: Door) -> None:
    """A graph knows addresses: a request whose tensors lie elsewhere than those of the one before is answered from there."""
    x = np.random.default_rng(10).standard_normal((3, 4, DENSE_WIDTH)).astype(np.float32)
    with CudaRegion("a", 1 << 14) as first, CudaRegion("b", 1 << 14) as second, door.registered(first, second):
        for turn in range(9):
            region = (first, second, first)[turn % 3]
            rows, at = x[turn % 3], 4096 * (turn % 3)
            got = door.ask("dense_graphs", {"X": Given(rows, Part(region, at))}, {"Y": Part(region, 12_288 + 256 * (turn % 3), 160)})["Y"]
            np.testing.assert_allclose(got, door.ask("dense_cpu", {"X": rows})["Y"], rtol=RTOL, atol=ATOL)
