"""Ragged batches: what is made of the requests' shapes, and how a flat output is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensorfarm.workers.contract.status import Code, StatusError
from tensorfarm.workers.ragged import BatchInput, Ragged, ScatteredOutput, ragged_of

ONE = [(1, 3)]
SEVERAL = [(1, 3), (2, 2), (1, 5)]
DEEP = [(1, 3, 4), (2, 5, 6)]

MADE: dict[str, tuple[list[tuple[int, ...]], list[Any]]] = {
    "BATCH_ELEMENT_COUNT one": (ONE, [3]),
    "BATCH_ELEMENT_COUNT several": (SEVERAL, [3, 4, 5]),
    "BATCH_ELEMENT_COUNT deep": (DEEP, [12, 60]),
    "BATCH_ACCUMULATED_ELEMENT_COUNT one": (ONE, [3]),
    "BATCH_ACCUMULATED_ELEMENT_COUNT several": (SEVERAL, [3, 7, 12]),
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO one": (ONE, [0, 3]),
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO several": (SEVERAL, [0, 3, 7, 12]),
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE one": (ONE, [0, 0, 0]),
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE several": (SEVERAL, [0, 0, 0, 0, 0]),
    "BATCH_ITEM_SHAPE one": (ONE, [[3]]),
    "BATCH_ITEM_SHAPE several": (SEVERAL, [[3], [2], [2], [5]]),
    "BATCH_ITEM_SHAPE deep": (DEEP, [[3, 4], [5, 6], [5, 6]]),
    "BATCH_ITEM_SHAPE_FLATTEN one": (ONE, [3]),
    "BATCH_ITEM_SHAPE_FLATTEN deep": (DEEP, [3, 4, 5, 6, 5, 6]),
}


@pytest.mark.parametrize("datatype", ["int32", "float32"])
@pytest.mark.parametrize("case", MADE)
def test_batch_inputs(case: str, datatype: str) -> None:
    shapes, expected = MADE[case]
    made = BatchInput(case.split()[0], "X", np.dtype(datatype)).made(shapes)
    assert made.dtype == datatype and np.array_equal(made, np.array(expected, datatype)) and made.shape == np.array(expected).shape


def test_an_output_is_cut_by_the_shapes_of_an_input() -> None:
    flat = np.arange(3 * 2 + 2 * 5 * 2)
    parts = list(ScatteredOutput("X", (-1, -1, 2)).parts("Y", flat, [(1, 3), (2, 5)]))
    assert [shape for shape, _ in parts] == [(1, 3, 2), (2, 5, 2)]
    assert np.array_equal(np.concatenate([part for _, part in parts]), flat)


def test_an_output_that_is_too_small_is_an_error() -> None:
    with pytest.raises(StatusError) as caught:
        list(ScatteredOutput("X", (-1, -1)).parts("Y", np.zeros(4), [(1, 3), (1, 2)]))
    assert caught.value.code is Code.INTERNAL
    assert caught.value.message == "output 'Y' was made with 4 elements, too few to give each request one of its shape"


def config(**more: Any) -> dict[str, Any]:
    return {
        "max_batch_size": 4,
        "input": [{"name": "X", "dims": [-1], "allow_ragged_batch": True}, {"name": "N", "dims": [1], "allow_ragged_batch": False}],
        "output": [{"name": "Y", "dims": [-1, 2]}, {"name": "Z", "dims": [1, -1]}],
        **more,
    }


def test_of_a_configuration() -> None:
    batch_input = {"kind": "BATCH_ITEM_SHAPE", "target_name": ["A", "B"], "data_type": "TYPE_FP32", "source_input": ["X"]}
    batch_output = {"kind": "BATCH_SCATTER_WITH_INPUT_SHAPE", "target_name": ["Y"], "source_input": ["X"]}
    ragged = ragged_of(config(batch_input=[batch_input], batch_output=[batch_output]))
    made = BatchInput("BATCH_ITEM_SHAPE", "X", np.dtype("float32"))
    assert ragged == Ragged(frozenset({"X"}), {"A": made, "B": made}, {"Y": ScatteredOutput("X", (-1, -1, 2))})
    assert ragged and not ragged_of({"input": [{"name": "X", "dims": [1]}]})


def test_an_output_cannot_take_a_dim_that_its_source_has_not() -> None:
    with pytest.raises(StatusError) as caught:
        ragged_of(config(batch_output=[{"target_name": ["Z"], "source_input": ["X"]}]))
    assert caught.value.message == "batch output 'Z' has variable dimensions that its source input 'X' does not have"
