"""The models run in this process: what the server's answers are held against."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from .sound import RATE_HZ, Sound, windows

# ONNX Runtime's wheels report to their maker unless this is set before the first import
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime  # noqa: E402


def session(repository: Path, model: str) -> Any:
    """An ONNX Runtime session of a model of the repository, version 1."""
    options = onnxruntime.SessionOptions()
    # one thread: more of them would go on spinning beside the server that is being timed
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(repository / model / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"])


def chances_of_speech(detector: Any, sound: Sound) -> list[float]:
    """What the voice detector says of each full piece of a sound."""
    state, chances = np.zeros((2, 1, 128), np.float32), []
    for piece in windows(sound):
        chance, state = detector.run(["output", "stateN"], {"input": piece, "state": state, "sr": np.array(RATE_HZ, np.int64)})
        chances.append(chance.item())
    return chances
