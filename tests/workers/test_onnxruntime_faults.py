"""ONNX Runtime's exceptions as clients see them."""

from __future__ import annotations

import pytest

from tensorfarm.workers.backends.onnxruntime_faults import runtime_fault
from tensorfarm.workers.contract.status import Code

HIDDEN = {"/models/store/m/1": "m/1", "/models/store/m": "m"}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Invalid rank for input: A"),
            "onnx runtime error 2: Invalid rank for input: A",
        ),
        (
            RuntimeError("Error in execution: Non-zero status code returned while running Add node."),
            "onnx runtime error 1: Non-zero status code returned while running Add node.",
        ),
        (
            RuntimeError("Error in execution: Got invalid dimensions for input: A\n index: 1 "),
            "onnx runtime error 2: Got invalid dimensions for input: A\n index: 1",
        ),
        (
            RuntimeError("Name:'/block/conv.h:1/Conv' Status Message: /onnxruntime_src/core/c++/op_kernel.cc:87 virtual"),
            "onnx runtime error 1: Name:'/block/conv.h:1/Conv' Status Message: op_kernel.cc:87 virtual",
        ),
        (
            RuntimeError("[ONNXRuntimeError] : 3 : NO_SUCHFILE : Load model from /models/store/m/1/model.onnx failed: /models/store/m/x"),
            "onnx runtime error 3: Load model from m/1/model.onnx failed: m/x",
        ),
        (MemoryError(), "onnx runtime error 1: MemoryError"),
    ],
)
def test_runtime_fault(error: Exception, message: str) -> None:
    fault = runtime_fault(error, HIDDEN)
    assert (fault.code, fault.message) == (Code.INTERNAL, message)
