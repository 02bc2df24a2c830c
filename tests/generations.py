"""Models that answer which generation of theirs they are, in several outputs, and clients that ask them without a pause."""

from __future__ import annotations

import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from .wire import Connection, Reply, compact, request_bytes

NUMBERS = tuple(f"OUT{index}" for index in range(4))
"""Outputs that have the generation's number as often as ``length`` says."""

TEXT = "TEXT"
"""The output that has it as text."""

BODY = compact({"inputs": [{"name": "X", "datatype": "INT32", "shape": [1], "data": [7]}]})

CONFIG = """\
name: "{name}"
backend: "{backend}"
max_batch_size: 0
input [ {{ name: "X", data_type: TYPE_INT32, dims: [ 1 ] }} ]
output [ {outputs} ]
instance_group [ {{ count: {count}, kind: KIND_CPU }} ]
{extra}
"""

PYTHON = """\
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


def wait_for(path):
    open(path + "-reached", "w").close()
    while not os.path.exists(path):
        time.sleep(0.005)


class TritonPythonModel:
    def initialize(self, args):
        {initialize}

    def execute(self, requests):
        {execute}
        outputs = [pb_utils.Tensor(f"OUT{{at}}", np.full({length}, {generation}, np.int32)) for at in range(4)]
        outputs.append(pb_utils.Tensor("TEXT", np.array([b"{generation}"], np.object_)))
        return [pb_utils.InferenceResponse(outputs) for _ in requests]
"""


def length(generation: int) -> int:
    """How many elements the numbers of a generation have: it changes from one to the next."""
    return 1 + generation % 3


def config_text(name: str, generation: int, backend: str, count: int = 1, extra: str = "") -> str:
    """A generation's configuration."""
    numbers = [f'{{ name: "{output}", data_type: TYPE_INT32, dims: [ {length(generation)} ] }}' for output in NUMBERS]
    outputs = ", ".join([*numbers, f'{{ name: "{TEXT}", data_type: TYPE_STRING, dims: [ 1 ] }}'])
    return CONFIG.format(name=name, backend=backend, outputs=outputs, count=count, extra=extra)


def python_source(generation: int, initialize: str = "pass", execute: str = "pass") -> str:
    """A generation's file."""
    return PYTHON.format(generation=generation, length=length(generation), initialize=initialize, execute=execute)


def onnx_model(generation: int) -> bytes:
    """A generation's graph."""
    values = onnx.numpy_helper.from_array(np.full(length(generation), generation, np.int32), "values")
    texts = helper.make_tensor("texts", TensorProto.STRING, [1], [str(generation).encode()])
    nought = onnx.numpy_helper.from_array(np.array([0], np.int32), "nought")
    nodes = [helper.make_node("Mul", ["X", "nought"], ["zero"])]
    nodes += [helper.make_node("Add", ["values", "zero"], [output]) for output in NUMBERS]
    nodes.append(helper.make_node("Identity", ["texts"], [TEXT]))
    outputs = [helper.make_tensor_value_info(output, TensorProto.INT32, [length(generation)]) for output in NUMBERS]
    outputs.append(helper.make_tensor_value_info(TEXT, TensorProto.STRING, [1]))
    inputs = [helper.make_tensor_value_info("X", TensorProto.INT32, [1])]
    graph = helper.make_graph(nodes, "generation", inputs, outputs, [values, texts, nought])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def replace(file: Path, content: bytes) -> None:
    """Write a file at once: it is the old one or the new one, never a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.{threading.get_ident()}")
    new.write_bytes(content)
    os.replace(new, file)


def write_generation(repository: Path, name: str, generation: int, backend: str, count: int = 1, extra: str = "", **python: str) -> None:
    """Write a generation of a model of one of the backends."""
    folder = repository / name
    if backend == "python":
        replace(folder / "1" / "model.py", python_source(generation, **python).encode())
    else:
        replace(folder / "1" / "model.onnx", onnx_model(generation))
    replace(folder / "config.pbtxt", config_text(name, generation, backend, count, extra).encode())


def write_ensemble(repository: Path, name: str, member: str, generation: int) -> None:
    """Write an ensemble that answers what its member says, as a configuration that fits a generation of it."""
    names = (*NUMBERS, TEXT)
    maps = " ".join(f'output_map {{ key: "{output}" value: "{output}" }}' for output in names)
    step = f'step [ {{ model_name: "{member}" model_version: -1 input_map {{ key: "X" value: "X" }} {maps} }} ]'
    text = config_text(name, generation, "", extra=f'platform: "ensemble"\nensemble_scheduling {{ {step} }}')
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("backend", "instance_group")))
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    replace(repository / name / "config.pbtxt", text.encode())


def generation_of(reply: Reply) -> int:
    """The generation that an answer is of; fails where it is not of one as a whole."""
    assert reply.status == 200, (reply.status, reply.body[:300])
    outputs = {output["name"]: output for output in reply.json["outputs"]}
    assert set(outputs) == {*NUMBERS, TEXT}
    generation = int(outputs[TEXT]["data"][0])
    for name in NUMBERS:
        assert outputs[name]["data"] == [generation] * length(generation), outputs
        assert outputs[name]["shape"] == [length(generation)], outputs
    return generation


@dataclass
class Askers:
    """Clients, each with a connection that it keeps, that ask a model without a pause.

    ``least`` is the generation that an answer must be of at least when it is asked for, ``most`` the newest one there may be.
    ``may_be_absent``: a model that is not there is no failure.
    """

    port: int
    model: str
    count: int = 16
    least: int = 1
    most: int = 1
    may_be_absent: bool = False
    answered: Counter[int] = field(default_factory=Counter)
    absent: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(self.count)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        message = request_bytes("POST", f"/v2/models/{self.model}/infer", BODY)
        try:
            with Connection(self.port) as connection:
                while not self._stop.is_set():
                    least = self.least
                    connection.send(message)
                    self._note(connection.receive(), least)
        except Exception as error:  # noqa: BLE001 # whatever it is, the test is to tell of it
            self.problems.append(f"{type(error).__name__}: {error}")

    def _note(self, reply: Reply, least: int) -> None:
        if self.may_be_absent and reply.status in (404, 503):
            with self._lock:
                self.absent[reply.status] += 1
            return
        generation = generation_of(reply)
        assert least <= generation <= self.most, f"generation {generation}, and it was to be {least} to {self.most}"
        with self._lock:
            self.answered[generation] += 1

    @property
    def total(self) -> int:
        """How many answers have come."""
        return sum(self.answered.values())

    def stop(self) -> None:
        """End them; fails where one of them had anything but right answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a client waits for ever"
        assert not self.problems, self.problems[:5]
