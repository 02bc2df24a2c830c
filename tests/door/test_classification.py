"""Classified outputs. Texts were asked of release 24.10."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.door.classification import classify
from tensorfarm.shm.datatypes import DATATYPES, iter_bytes
from tensorfarm.workers.contract.status import Code, StatusError

LABELS = ["cat", "dog", "", "bird"]


def classes(
    values: Any, datatype: str, count: int, batching: bool = False, labels: list[str] | None = None
) -> tuple[list[str], tuple[int, ...]]:
    array = np.array(values, DATATYPES[datatype].dtype)
    content, shape = classify(memoryview(array.tobytes()), datatype, array.shape, batching, count, labels or [])
    return [text.decode() for text in iter_bytes(content)], shape


CASES: list[tuple[Any, str, int, bool, list[str], tuple[int, ...]]] = [
    ([[1, 3, 2, 9]], "FP32", 2, True, ["9.000000:3:bird", "3.000000:1:dog"], (1, 2)),
    ([[1, 3, 2, 9]], "FP32", 10, True, ["9.000000:3:bird", "3.000000:1:dog", "2.000000:2", "1.000000:0:cat"], (1, 4)),
    ([[1, 3], [5, 4]], "FP32", 1, True, ["3.000000:1:dog", "5.000000:0:cat"], (2, 1)),
    ([[1, 3], [2, 9]], "FP32", 3, False, ["9.000000:3:bird", "3.000000:1:dog", "2.000000:2"], (3,)),
    ([5, 5, 5, 5], "FP32", 3, False, ["5.000000:0:cat", "5.000000:1:dog", "5.000000:2"], (3,)),
    (
        [1e20, -1e20, 1e-9, -1e-9],
        "FP32",
        4,
        False,
        ["100000002004087734272.000000:0:cat", "0.000000:2", "-0.000000:3:bird", "-100000002004087734272.000000:1:dog"],
        (4,),
    ),
    ([0.9123004555, 123456.7891234], "FP32", 2, False, ["123456.789062:1:dog", "0.912300:0:cat"], (2,)),
    ([1, float("nan"), float("inf"), 2], "FP64", 4, False, ["inf:2", "2.000000:3:bird", "1.000000:0:cat", "nan:1:dog"], (4,)),
    ([-128, 127, 0], "INT8", 3, False, ["127:1:dog", "0:2", "-128:0:cat"], (3,)),
    ([2**63, 2**64 - 1], "UINT64", 2, False, ["18446744073709551615:1:dog", "9223372036854775808:0:cat"], (2,)),
    ([1, 2, 3, 4, 5], "INT32", 1, False, ["5:4"], (1,)),
    ([], "INT32", 2, False, [], (0,)),
    (np.zeros((1, 0)), "FP32", 2, True, [], (1, 0)),
    (np.zeros((0, 4)), "FP32", 2, True, [], (0, 0)),
]


@pytest.mark.parametrize(("values", "datatype", "count", "batching", "texts", "shape"), CASES)
def test_classes(values: Any, datatype: str, count: int, batching: bool, texts: list[str], shape: tuple[int, ...]) -> None:
    assert classes(values, datatype, count, batching, LABELS) == (texts, shape)


@pytest.mark.parametrize("datatype", ["BOOL", "FP16", "BF16", "BYTES"])
def test_unsortable(datatype: str) -> None:
    with pytest.raises(StatusError) as caught:
        classify(memoryview(b""), datatype, (0,), False, 1, [])
    assert caught.value.message == f"class result not available for output due to unsupported type '{datatype}'"
    assert caught.value.code is Code.INVALID_ARG


def test_too_large() -> None:
    classify(memoryview(bytes(1_000_000)), "INT8", (1_000_000,), False, 1, [])
    with pytest.raises(StatusError, match="classification output tensor too large"):
        classify(memoryview(bytes(1_000_001)), "INT8", (1_000_001,), False, 1, [])


@given(st.integers(0, 2**32 - 1), st.sampled_from([10, 5000]), st.integers(1, 20), st.sampled_from([2, 1000]))
def test_order_is_by_value_then_index(seed: int, size: int, count: int, kinds: int) -> None:
    values = np.random.default_rng(seed).integers(0, kinds, size)
    expected = sorted(range(size), key=lambda index: (-values[index], index))[:count]
    assert classes(values, "INT64", count)[0] == [f"{values[index]}:{index}" for index in expected]
