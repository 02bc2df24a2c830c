"""A model's memory comes back from the worker that it shared with others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tensorfarm.workers.contract.configuration import document, parse_text

from ..workers.onnx_source import model, value
from .harness import PATIENCE_S, House, run

ROWS = 2048
WEIGHT_BYTE_SIZE = 4 * ROWS * ROWS * 3

CONFIG = f"""
name: "m" backend: "onnxruntime"
input [ {{ name: "IN0" data_type: TYPE_INT32 dims: [1, -1] }}, {{ name: "IN1" data_type: TYPE_INT32 dims: [1, -1] }} ]
output [ {{ name: "SUM" data_type: TYPE_FP32 dims: [{ROWS}, {ROWS}] }} ]
model_warmup {{ batch_size: 1
  inputs {{ key: "IN0" value {{ data_type: TYPE_INT32 dims: [1, 9] zero_data: true }} }}
  inputs {{ key: "IN1" value {{ data_type: TYPE_INT32 dims: [1, 9] zero_data: true }} }} }}
"""


def heavy() -> bytes:
    """Adds its weights to the sum of its inputs' elements: its intermediate results are as large as they are."""
    random = np.random.default_rng(1)
    weights = [numpy_helper.from_array(random.random((ROWS, ROWS), np.float32), name) for name in ("W0", "W1", "W2")]
    nodes = [
        helper.make_node("Add", ["IN0", "IN1"], ["both"]),
        helper.make_node("ReduceSum", ["both"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["one"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["W0", "one"], ["first"]),
        helper.make_node("Mul", ["W1", "first"], ["second"]),
        helper.make_node("Add", ["W2", "second"], ["SUM"]),
    ]
    inputs = [value(name, "INT32", [1, "width"]) for name in ("IN0", "IN1")]
    return model(nodes, inputs, [value("SUM", "FP32", [ROWS, ROWS])], weights).SerializeToString()


def resident_byte_size(house: House) -> int:
    return int(Path(f"/proc/{house.process().pid}/statm").read_text().split()[1]) * 4096


def test_large_models_come_and_go(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        keeper = await house.load()
        await house.check(keeper)
        before = resident_byte_size(house)
        content = heavy()
        for _ in range(3):
            served = house.model()
            Path(served.load.directory, "1", "model.onnx").write_bytes(content)
            served.load = msgspec.structs.replace(served.load, config=document(parse_text(CONFIG, "config.pbtxt")))
            await asyncio.wait_for(house.farm.load("cpu", served.load), PATIENCE_S)
            assert resident_byte_size(house) - before > WEIGHT_BYTE_SIZE
            await asyncio.wait_for(house.farm.unload("cpu", served.load.model), PATIENCE_S)
            # What is left is the allocator's, of which each of the threads that have just run may keep some.
            assert resident_byte_size(house) - before < WEIGHT_BYTE_SIZE // 2
        await house.check(keeper)

    run(tmp_path, work)
