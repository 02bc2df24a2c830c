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
from .control_script import NEWER, Differs, Seen, compare

MODEL = Path(__file__).resolve().parent.parent / "python_models" / "recorder"

INPUT = 'input [ { name: "X", data_type: TYPE_INT32, dims: [ 1 ] } ]'
VARIABLE = 'input [ { name: "X", data_type: TYPE_INT32, dims: [ -1 ] } ]'
PATIENCE_S = 15.0
FREED_S = 0.1
"""The real server has freed a sequence's place a moment after it has answered, not before."""

SETTLE_S = 5.0

FLAGS = ("--disable-auto-complete-config", "--metrics-interval-ms=100")


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


Play = Callable[["Run"], None]
"""A script: it is run once for each server."""


@dataclass
class Run:
    """One server under a script. ``models`` are those that the script asks, with their counters before; these are compared at its end.

    ``ours``: this is tensorfarm, for steps that the real server does not come through. ``counted`` are counters that the two do not
    count alike, by model and name, and by how much this one's are to grow.
    """

    server: Server
    folder: Path
    ours: bool
    seen: list[Seen] = field(default_factory=list)
    models: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    counted: dict[tuple[str, str], int] = field(default_factory=dict)
    uncounted: set[str] = field(default_factory=set)
    problem: str = ""
    _open: dict[str, tuple[str, Connection]] = field(default_factory=dict)
    _skipped: dict[str, int] = field(default_factory=dict)

    @property
    def whose(self) -> str:
        """Which server this is."""
        return "tensorfarm" if self.ours else "the real server"

    def play(self, script: Play) -> None:
        """Run a script; a failure is kept as ``problem``, says on whose side, and leaves no request waiting."""
        try:
            script(self)
        except Exception as error:  # noqa: BLE001 # told by whoever compares
            step = self.seen[-1].step if self.seen else "the start"
            self.problem = f"{self.whose} after {step}: {type(error).__name__}: {error}"
        finally:
            self._finish()

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
        connection = Connection(self.server.http_port)
        self._open[id] = model, connection
        connection.send(request_bytes("POST", f"/v2/models/{model}/{path}", compact(content)))

    def _shape(self, model: str) -> Sequence[int]:
        return (1, 1) if self.configuration(model)["max_batch_size"] else (1,)

    def configuration(self, model: str) -> Any:
        """A model's configuration, as the server has it."""
        return exchange(self.server.http_port, "GET", f"/v2/models/{model}/config").json

    def ask(self, model: str, id: str, why: str = "", theirs: Any = None, ours: Any = None, fatal: bool = False, **more: Any) -> None:
        """Send a request and note its reply. ``fatal``: the real server never answers it, so it is not asked."""
        if fatal and not self.ours:
            self.note(f"the reply to {id}", theirs, why, theirs, ours)
            return
        self.send(model, id, **more)
        self.note(f"the reply to {id}", self._receive(id), why, theirs, ours)
        if more.get("sequence_end"):
            self.let_pass(FREED_S)

    def _receive(self, id: str) -> dict[str, Any]:
        model, connection = self._open.pop(id)
        with connection:
            reply = connection.receive()
        self._gate(model, id).unlink(missing_ok=True)
        body = reply.body.decode().replace(str(self.folder.parent), "ROOT")
        return {"status": reply.status, "type": reply.header("content-type"), "body": body}

    def queue(self, model: str, id: str, member: str = "", **more: Any) -> None:
        """Send a request that has to wait; where the model is an ensemble, at a ``member``."""
        self._meet(model)
        waits_at = member or model
        before = self._pending(waits_at)
        self.send(model, id, **more)
        wait_until(lambda: self._pending(waits_at) == before + 1, f"{id} to wait", PATIENCE_S)

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
            model, _ = self._open[id]
            self._gate(model, id).touch()

    def _gate(self, model: str, id: str) -> Path:
        return self.folder / f"{model} {id}"

    def let_pass(self, duration_s: float) -> None:
        """Let a time limit of a model run out."""
        time.sleep(duration_s)

    def answered(self) -> None:
        """Note whose reply has come, of those that have not been taken."""
        came, _, _ = select.select([connection for _, connection in self._open.values()], [], [], 0)
        self.note("who has been answered", sorted(id for id, (_, connection) in self._open.items() if connection in came))

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

    def counts_otherwise(self, model: str, name: str, why: str, theirs: int, ours: int) -> None:
        """A counter that is to grow by ``theirs`` at the real server, by ``ours`` at tensorfarm."""
        assert why and theirs != ours
        self.counted[model, name] = ours if self.ours else theirs

    def fails_otherwise(self, model: str, reason: str, why: str, theirs: int, ours: int, besides: int = 0) -> None:
        """The same of what failed for a reason; ``besides`` are the failures for others."""
        self.counts_otherwise(model, "fail", why, theirs + besides, ours + besides)
        self.counts_otherwise(model, f'nv_inference_request_failure reason="{reason}",version="1"', why, theirs, ours)

    def leave_counters(self, model: str, why: str) -> None:
        """A model's counters are not compared."""
        assert why
        self.uncounted.add(model)

    def moved(self, model: str) -> dict[str, int]:
        """By how much each counter has grown since the script began to ask a model."""
        before = self.models[model]
        after = self.counts(model)
        return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}

    def _finish(self) -> None:
        """Let all go that a failure has left."""
        self.release(*self._open)
        for id in list(self._open):
            with contextlib.suppress(OSError):
                self._receive(id)


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


@dataclass(frozen=True)
class Outcomes:
    """Scripts that have been run on both servers."""

    runs: Mapping[Play, tuple[Run, Run]]

    def check(self, script: Play) -> None:
        """Compare step by step what a script has noted, then the counters of the models that it asked."""
        theirs, ours = self.runs[script]
        compare(theirs.seen, ours.seen)
        problems = [run.problem for run in (theirs, ours) if run.problem]
        assert not problems, problems
        assert len(theirs.seen) == len(ours.seen), "the script is not the same for both"
        for model in theirs.models.keys() - theirs.uncounted:
            _compare_counts(model, theirs, ours)


def _compare_counts(model: str, theirs: Run, ours: Run) -> None:
    """Counters are the same soon after the replies, but for those that are said to differ."""

    def split(run: Run) -> tuple[dict[str, int], dict[str, int]]:
        moved = run.moved(model)
        return {name: moved.pop(name, 0) for listed, name in run.counted if listed == model}, moved

    def agree() -> bool:
        said, rest = zip(split(theirs), split(ours), strict=True)
        return rest[0] == rest[1] and all(
            said[at][name] == run.counted[model, name] for at, run in enumerate((theirs, ours)) for name in said[at]
        )

    with contextlib.suppress(AssertionError):
        wait_until(agree, "", SETTLE_S)
    (their_said, their_rest), (our_said, our_rest) = split(theirs), split(ours)
    assert our_rest == their_rest, f"counters of {model}"
    for run, said in ((theirs, their_said), (ours, our_said)):
        assert said == {name: run.counted[model, name] for name in said}, f"counters of {model} at {run.whose}"


@dataclass(frozen=True)
class Pair:
    """Both servers with recorders, and the folders that these write to."""

    servers: tuple[Server, Server]
    folders: tuple[Path, Path]

    def play_all(self, scripts: Sequence[Play], together: int = 4) -> Outcomes:
        """Run scripts, ``together`` at the same time, each on both servers. Each has the models that it asks to itself."""
        with ThreadPoolExecutor(together) as executor:
            runs = dict(zip(scripts, executor.map(self._run, scripts), strict=True))
        asked = [model for run, _ in runs.values() for model in run.models]
        assert len(asked) == len(set(asked)), "two scripts ask the same model"
        return Outcomes(runs)

    def _run(self, script: Play) -> tuple[Run, Run]:
        theirs, ours = (Run(self.servers[at], self.folders[at], bool(at)) for at in (0, 1))
        with ThreadPoolExecutor(2) as executor:
            for one in [executor.submit(run.play, script) for run in (theirs, ours)]:
                one.result()
        return theirs, ours

    def compare_descriptions(self, model: str) -> None:
        """What the servers say a model is, and what its configuration is."""
        for what in ("", "/config"):
            texts = [exchange(server.http_port, "GET", f"/v2/models/{model}{what}").body.decode() for server in self.servers]
            texts = [text.replace(NEWER, "").replace(str(folder), "") for text, folder in zip(texts, self.folders, strict=True)]
            theirs, ours = map(json.loads, texts)  # the members of a map come in any order
            assert ours == theirs


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
        real.start(homes[0] / "models", *FLAGS, folder=homes[0] / "run", environment=environment),
        start_tensorfarm(homes[1] / "models", *FLAGS, folder=homes[1] / "run", environment=environment, wait=False),
    ]
    with stopping(*started) as (theirs, ours):
        for server in (theirs, ours):
            wait_until(server.ready, f"the models to be ready\n{server.log}", 60.0, 0.05)
        yield Pair((theirs, ours), folders)
