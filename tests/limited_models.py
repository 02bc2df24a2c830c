"""Models that share resources and run for as long as they are told to, and how they are driven."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable
from pathlib import Path

from .servers import Server, metric, wait_until
from .wire import Connection, Reply, compact, exchange, request_bytes

SOURCE = Path(__file__).resolve().parent / "python_models" / "system_gate"


def resource(name: str, count: int, everywhere: bool = False) -> str:
    """A resource in a configuration."""
    return f'resources {{ name: "{name}" count: {count} {"global: true " if everywhere else ""}}}'


def put(repository: Path, folder: Path, name: str, limits: str, instances: int = 1, calls: str = "") -> None:
    """Write a model whose instances need what ``limits`` says; it writes down what it does in ``folder``."""
    shutil.copytree(SOURCE, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
    config = repository / name / "config.pbtxt"
    parameters = {"FOLDER": str(folder), **({"NEXT": calls} if calls else {})}
    lines = [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()]
    group = f"instance_group [ {{ count: {instances}, kind: KIND_CPU, rate_limiter {{ {limits} }} }} ]"
    text = config.read_text().replace('"system_gate"', f'"{name}"').replace("instance_group [ { count: 1, kind: KIND_CPU } ]", group)
    assert group in text
    config.write_text("\n".join([text, *lines]))


class Gates:
    """A running server and the folder of its models' notes. A request is answered when it is let go."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self._numbers = itertools.count()
        self._models: dict[str, str] = {}
        self._open: dict[str, Connection] = {}

    def ask(self, model: str, kind: str = "deaf") -> str:
        """Send a request; returns its id."""
        name = f"{kind}{next(self._numbers):03}"
        content = {"id": name, "inputs": [{"name": "X", "datatype": "FP32", "shape": [1], "data": [1.0]}]}
        self._models[name], self._open[name] = model, Connection(self.server.http_port)
        self._open[name].send(request_bytes("POST", f"/v2/models/{model}/infer", compact(content)))
        return name

    def queue(self, models: Iterable[str]) -> None:
        """Send requests that have to wait, one after another."""
        for model in models:
            before = self.pending(model)
            self.ask(model)
            wait_until(lambda model=model, before=before: self.pending(model) == before + 1, f"{model} to have another waiting")

    def pending(self, model: str) -> float:
        """How many requests of a model wait."""
        found = metric(
            exchange(self.server.metrics_port, "GET", "/metrics").body.decode(), "nv_inference_pending_request_count", model=model
        )
        assert found is not None
        return found

    def running(self) -> list[str]:
        """The ids of the requests that run."""
        notes = [line.split() for path in self.folder.glob("*.notes") for line in path.read_text().splitlines()]
        ended = {name for name, what, *_ in notes if what.startswith("ended")}
        return [name for name, what, *_ in notes if what.startswith("begun") and name not in ended and name in self._open]

    def models(self) -> str:
        """The models that run, sorted."""
        return " ".join(sorted(self._models[name] for name in self.running()))

    def wait_running(self, *models: str) -> None:
        """Wait until these models run and no others."""
        wait_until(lambda: self.models() == " ".join(sorted(models)), f"{models} to run")

    def end(self, name: str) -> Reply:
        """Let a request go; returns its reply."""
        (self.folder / name).touch()
        with self._open.pop(name) as connection:
            return connection.receive()

    def end_any(self, model: str = "") -> str:
        """Let a request go that runs; returns its model."""
        name = next(name for name in self.running() if model in ("", self._models[name]))
        assert self.end(name).status == 200
        return self._models[name]

    def lost(self, name: str) -> Reply:
        """The reply to a request whose model has gone."""
        with self._open.pop(name) as connection:
            return connection.receive()

    def one_by_one(self, count: int) -> list[str]:
        """The models in the order in which they run, where it is only one at a time."""
        order = []
        for _ in range(count):
            wait_until(self.running, "one to run")
            assert len(self.running()) == 1
            order.append(self.end_any())
        return order

    def finish(self) -> None:
        """Let all go."""
        for name in list(self._open):
            (self.folder / name).touch()
        for name in list(self._open):
            assert self.lost(name).status == 200


def shares(gates: Gates, first: str, second: str) -> tuple[int, int]:
    """How nine executions are divided between two models that always have work and share a resource."""
    gates.ask(first)
    gates.wait_running(first)
    gates.queue([first, second] * 5 + [first])
    order = gates.one_by_one(9)
    gates.finish()
    return order.count(first), order.count(second)
