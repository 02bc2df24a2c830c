"""Scripts of requests to recorders, models that write down what each execution is given: run on both servers and compared step by step.

Requests arrive one after the other: each is sent once the one before it waits, runs or is answered. Nobody's clock is compared; the real
server looks at its queues every 500 ms at times, so its answers are waited for with patience.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import oracle as real
from ..servers import Server, metric, start_tensorfarm, stopping, wait_until
from ..wire import Connection, compact, exchange, request_bytes
from .control_script import Differs, Seen, compare

MODEL = Path(__file__).resolve().parent.parent / "python_models" / "recorder"

INPUT = 'input [ { name: "X", data_type: TYPE_INT32, dims: [ 1 ] } ]'
VARIABLE = 'input [ { name: "X", data_type: TYPE_INT32, dims: [ -1 ] } ]'
PATIENCE_S = 15.0
SETTLE_S = 5.0

FLAGS = ("--disable-auto-complete-config", "--metrics-interval-ms=100")
OURS = re.compile(rb',"max_inflight_requests":0')
"""What of a configuration release 24.10 does not have yet."""


def recorder(text: str, max_batch_size: int = 4, instances: int = 1, inputs: str = INPUT) -> str:
    """A recorder's configuration; ``text`` says how its requests are scheduled."""
    group = f"instance_group [ {{ count: {instances}, kind: KIND_CPU }} ]"
    return f"max_batch_size: {max_batch_size}\n{inputs}\n{group}\n{text}"


def write(repository: Path, folder: Path, models: Mapping[str, str]) -> None:
    """Write models, by name; those that are no ensembles are recorders and write to ``folder``."""
    for name, text in models.items():
        if "ensemble_scheduling" in text:
            (repository / name / "1").mkdir(parents=True)
            (repository / name / "config.pbtxt").write_text(f'name: "{name}"\n{text}')
            continue
        shutil.copytree(MODEL, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
        config = repository / name / "config.pbtxt"
        parameter = f'parameters {{ key: "FOLDER" value {{ string_value: "{folder}" }} }}'
        config.write_text("\n".join([config.read_text().replace('"recorder"', f'"{name}"'), text, parameter]))


@dataclass
class Run:
    """One server under a script. ``models`` are those that the script asks, whose counts are compared at its end.

    ``ours``: this is tensorfarm, for scripts with steps that the real server does not come through.
    """

    server: Server
    folder: Path
    ours: bool
    seen: list[Seen] = field(default_factory=list)
    models: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    _open: dict[str, Connection] = field(default_factory=dict)
    _skipped: dict[str, int] = field(default_factory=dict)

    def note(self, step: str, content: Any, why: str = "", theirs: Any = None, ours: Any = None) -> None:
        """One thing that is compared. With ``why``, the two servers are to show ``theirs`` and ``ours``."""
        self.seen.append(Seen(step, content, Differs(why, theirs, ours) if why else None))

    # requests

    def _meet(self, model: str) -> None:
        if model not in self.models:
            self.models[model] = self.counts(model)
            self._skipped[model] = len(self._lines(model))

    def send(
        self,
        model: str,
        id: str,
        *,
        x: int = 1,
        shape: Sequence[int] | None = None,
        inputs: Mapping[str, Sequence[int]] | None = None,
        path: str = "infer",
        **parameters: Any,
    ) -> None:
        """Send a request and wait for nothing. ``x`` is every element of its input; ``inputs`` are shapes of several inputs, by name."""
        self._meet(model)
        if path == "infer":
            shapes = inputs or {"X": shape or self._shape(model)}
            tensors = [{"name": name, "datatype": "INT32", "shape": list(one), "data": [x] * _count(one)} for name, one in shapes.items()]
            content: dict[str, Any] = {"id": id, **({"parameters": parameters} if parameters else {}), "inputs": tensors}
        else:
            content = {"id": id, "X": x, **parameters}
        self._open[id] = Connection(self.server.http_port)
        self._open[id].send(request_bytes("POST", f"/v2/models/{model}/{path}", compact(content)))

    def _shape(self, model: str) -> Sequence[int]:
        return (1, 1) if self.configuration(model)["max_batch_size"] else (1,)

    def configuration(self, model: str) -> Any:
        """A model's configuration, as the server has it."""
        return exchange(self.server.http_port, "GET", f"/v2/models/{model}/config").json

    def ask(self, model: str, id: str, why: str = "", theirs: Any = None, ours: Any = None, **more: Any) -> None:
        """Send a request and note its reply."""
        self.send(model, id, **more)
        self.note(f"the reply to {id}", self._receive(id), why, theirs, ours)

    def _receive(self, id: str) -> dict[str, Any]:
        with self._open.pop(id) as connection:
            reply = connection.receive()
        (self.folder / id).unlink(missing_ok=True)
        return {"status": reply.status, "type": reply.header("content-type"), "body": reply.body.decode()}

    def queue(self, model: str, id: str, **more: Any) -> None:
        """Send a request that has to wait."""
        self._meet(model)
        before = self._pending(model)
        self.send(model, id, **more)
        wait_until(lambda: self._pending(model) == before + 1, f"{id} to wait", PATIENCE_S)

    def hold(self, model: str, id: str, **more: Any) -> None:
        """Send a request that runs until it is released."""
        self.send(model, id, **more)
        self.wait_running(model, id)

    def wait_running(self, model: str, id: str) -> None:
        """Wait until an execution has begun that a request is in."""
        wait_until(lambda: any(id in ids for ids in self._ids(model)), f"{id} to run, not only {self._ids(model)}", PATIENCE_S)

    def wait_executions(self, model: str, count: int) -> None:
        """Wait until so many have been counted since the script began to ask this model."""
        before = self.models[model]["execution_count"]
        wait_until(lambda: self.counts(model)["execution_count"] == before + count, f"{count} executions", PATIENCE_S)

    def release(self, *ids: str) -> None:
        """Let requests go on."""
        for id in ids:
            (self.folder / id).touch()

    def let_pass(self, duration_s: float) -> None:
        """Let a time limit of a model run out."""
        time.sleep(duration_s)

    def answered(self) -> None:
        """Note whose reply has come, of those that have not been taken."""
        came, _, _ = select.select(list(self._open.values()), [], [], 0)
        self.note("who has been answered", sorted(id for id, connection in self._open.items() if connection in came))

    def wait_answered(self, *ids: str) -> None:
        """Wait until these have a reply, and note it."""
        for id in ids:
            self.note(f"the reply to {id}", self._receive(id))

    def replies(self, why: str = "", theirs: Any = None, ours: Any = None) -> None:
        """Wait for all replies that have not been taken, and note them."""
        self.note("replies", {id: self._receive(id) for id in list(self._open)}, why, theirs, ours)

    # what the models saw

    def _lines(self, model: str) -> list[Any]:
        file = self.folder / model
        return [json.loads(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if file.exists() else []

    def executions(self, model: str) -> list[Any]:
        """What the executions since the script began to ask a model, or since the last ``shown``, were given."""
        return self._lines(model)[self._skipped[model] :]

    def _ids(self, model: str) -> list[list[str]]:
        return [[request["id"] for request in execution["requests"]] for execution in self.executions(model)]

    def batches(self, model: str, why: str = "", theirs: Any = None, ours: Any = None) -> None:
        """Note the ids of each execution since the last time; rows that stand for no request are ``-``."""
        self.note(f"batches of {model}", ["+".join(id or "-" for id in ids) for ids in self._ids(model)], why, theirs, ours)
        self._skipped[model] = len(self._lines(model))

    def shown(self, model: str, why: str = "", theirs: Any = None, ours: Any = None) -> None:
        """Note all that the executions since the last time were given, but for the content of rows that stand for no request.

        Instances are numbered as they come: which one is the first is not the same from load to load.
        """
        numbers: dict[int, int] = {}
        content = []
        for execution in self.executions(model):
            number = numbers.setdefault(execution["instance"], len(numbers))
            content.append((number, [_without_filling(request) for request in execution["requests"]]))
        self.note(f"what {model} was given", content, why, theirs, ours)
        self._skipped[model] = len(self._lines(model))

    # counters

    def _pending(self, model: str) -> float | None:
        return metric(self._metrics(), "nv_inference_pending_request_count", model=model)

    def _metrics(self) -> str:
        return exchange(self.server.metrics_port, "GET", "/metrics").body.decode()

    def counts(self, model: str) -> Mapping[str, Any]:
        """A model's statistics and metrics as numbers by name, times left out."""
        (entry,) = exchange(self.server.http_port, "GET", f"/v2/models/{model}/stats").json["model_stats"]
        found = {name: int(entry[name]) for name in ("inference_count", "execution_count")}
        found |= {name: int(value["count"]) for name, value in entry["inference_stats"].items()}
        for batch in entry["batch_stats"]:
            for name in ("compute_input", "compute_infer", "compute_output"):
                found[f"{name} of batches of {batch['batch_size']}"] = int(batch[name]["count"])
        for line in self._metrics().splitlines():
            match = re.fullmatch(rf'(nv_inference_\w+)\{{model="{model}",(\S+)\}} (\S+)', line)
            if match is not None and not match[1].endswith("_us"):
                found[f"{match[1]} {match[2]}"] = int(float(match[3]))
        return found

    def moved(self, model: str) -> dict[str, int]:
        """By how much each counter has grown since the script began to ask a model."""
        before = self.models[model]
        after = self.counts(model)
        return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}

    def finish(self) -> None:
        """After a failure: let all go."""
        self.release(*self._open)
        for connection in self._open.values():
            connection.close()


def _count(shape: Sequence[int]) -> int:
    count = 1
    for one in shape:
        count *= one
    return count


def _without_filling(request: Mapping[str, Any]) -> Any:
    """What is compared of a request: of a row that stands for none not the content of its tensors, which is what happens to lie there."""
    inputs = request["inputs"]
    if request["id"] == "":
        assert inputs["READY"][2] in ([0], [False]), "a row without a request says so"
        inputs = {name: value if name in CONTROL_NAMES else value[:2] for name, value in inputs.items()}
    return request["id"], request["correlation_id"], request["flags"], dict(sorted(inputs.items()))


CONTROL_NAMES = ("START", "END", "READY", "CORRID")

Play = Callable[[Run], None]
"""A script: it is run once for each server."""


@dataclass(frozen=True)
class Pair:
    """Both servers with recorders, and the folders that these write to."""

    servers: tuple[Server, Server]
    folders: tuple[Path, Path]

    def play(self, script: Play, moved: Mapping[str, Mapping[str, tuple[int, int]]] | None = None) -> None:
        """Run a script on both at the same time, then compare step by step what it has noted, and the counters.

        ``moved`` holds, by model, counters that do not grow by the same, and by how much they do: the real server's and ours.
        """
        runs = [Run(self.servers[at], self.folders[at], bool(at)) for at in (0, 1)]
        with ThreadPoolExecutor(2) as executor:
            played = [executor.submit(script, run) for run in runs]
        problems = []
        for run, one in zip(runs, played, strict=True):
            run.finish()
            error = one.exception()
            if error is not None:
                whose = "tensorfarm" if run.ours else "the real server"
                problems.append(f"{whose} after {run.seen[-1].step if run.seen else 'the start'}: {type(error).__name__}: {error}")
        theirs, ours = runs
        assert not problems or theirs.seen and ours.seen, problems
        compare(theirs.seen, ours.seen)
        assert not problems, problems
        assert len(theirs.seen) == len(ours.seen), "the script is not the same for both"
        for model in theirs.models:
            wanted = [dict.fromkeys((moved or {}).get(model, {}), 0)] * 2
            _compare_counts(model, theirs, ours, (moved or {}).get(model, {}))


def _compare_counts(model: str, theirs: Run, ours: Run, listed: Mapping[str, tuple[int, int]]) -> None:
    """Counters are the same soon after the replies, but for those that are ``listed``."""

    def split(run: Run, at: int) -> tuple[dict[str, int], dict[str, int]]:
        moved = run.moved(model)
        return {name: moved.pop(name, 0) for name in listed}, moved

    def agree() -> bool:
        (their_listed, their_rest), (our_listed, our_rest) = split(theirs, 0), split(ours, 1)
        named = [{name: pair[at] for name, pair in listed.items()} for at in (0, 1)]
        return their_rest == our_rest and [their_listed, our_listed] == named

    with contextlib.suppress(AssertionError):
        wait_until(agree, "", SETTLE_S)
    (their_listed, their_rest), (our_listed, our_rest) = split(theirs, 0), split(ours, 1)
    assert our_rest == their_rest, f"counters of {model}"
    for name, (their_growth, our_growth) in listed.items():
        assert (their_listed[name], our_listed[name]) == (their_growth, our_growth), f"{name} of {model}"


@contextlib.contextmanager
def recording(root: Path, models: Mapping[str, str], environment: Mapping[str, str] | None = None, *flags: str) -> Iterator[Pair]:
    """Both servers with recorders of their own."""
    real.require()
    homes = (root / "theirs", root / "ours")
    folders = (homes[0] / "notes", homes[1] / "notes")
    for home, folder in zip(homes, folders, strict=True):
        folder.mkdir(parents=True)
        write(home / "models", folder, models)
    started = [
        real.start(homes[0] / "models", *FLAGS, *flags, folder=homes[0] / "run", environment=environment),
        start_tensorfarm(homes[1] / "models", *FLAGS, *flags, folder=homes[1] / "run", environment=environment, wait=False),
    ]
    with stopping(*started) as (theirs, ours):
        for server in (theirs, ours):
            wait_until(server.ready, f"the models to be ready\n{server.log}", 60.0, 0.05)
        yield Pair((theirs, ours), folders)
        theirs.kill()  # its own stop takes long
