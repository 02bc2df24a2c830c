"""What every one of these programs is told, and the one thing they share: the model's session."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

LENGTH = 16
"""INT32 elements of each of the two inputs."""

BATCH = 8
"""Requests that may go through the model at once, where the server can batch."""

Tensor = NDArray[np.int32]


def arguments() -> argparse.Namespace:
    """``model`` (path of the .onnx), ``port``, ``variant``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--variant", required=True)
    return parser.parse_args()


def session(model: str) -> Any:
    """The model in ONNX Runtime, on one thread: it has nothing that a second could help with."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def add_sub(model: Any, pairs: Tensor) -> Tensor:
    """Run INT32 [N,2,LENGTH], the two inputs of N requests; returns the same shape, sum and difference of each."""
    total, difference = model.run(["OUTPUT0", "OUTPUT1"], {"INPUT0": pairs[:, 0], "INPUT1": pairs[:, 1]})
    return np.stack((total, difference), axis=1)
