"""Scripts of model control: steps that change files or send a request, run on both servers at the same time and compared one by one.

Each server has a repository of its own. After a request the repository index is compared as well, once no model of the script is
on its way any more.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..servers import Server, metric, wait_until
from ..wire import Reply, compact, exchange

CONFIG = """\
name: "{name}"
backend: "{backend}"
max_batch_size: 0
input [ {{ name: "X", data_type: {datatype}, dims: [ 1 ] }} ]
output [ {{ name: "Y", data_type: TYPE_INT32, dims: [ 3 ] }} ]
instance_group [ {{ count: {count}, kind: KIND_CPU }} ]
{extra}"""

SOURCE = """\
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
        self.version = int(args["model_version"]) % 100000
        self.calls = 0
        {initialize}

    def execute(self, requests):
        responses = []
        for request in requests:
            self.calls += 1
            {execute}
            answer = np.array([{code}, self.calls, self.version], np.int32)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("Y", answer)]))
        return responses
"""
"""Answers its code, how often this instance was asked since it began, and its version."""

NO_CACHE = "__pycache__"
"""An empty file of this name keeps Python from writing there: that would change the files after the server has looked at them."""

SETTLE_S = 15.0
SENT = re.compile(rf"{tempfile.gettempdir()}/(folder\w{{6}}|tf-[^/]+/[^/]+/[^/]+/model)")
"""Where the files of a load request lie, at the one and at the other."""

NEWER = ',"max_inflight_requests":0'
"""A member of ensembles' configurations that release 24.10 does not have yet."""

FRAMES = re.compile(r"  (<frozen importlib\S*>|\S*/triton_python_backend_utils\.py)\(\d+\): \w+\n")
"""Frames that differ from one Python to the next."""


@dataclass(frozen=True)
class Differs:
    """What the two servers show differently at a step, and why that is right. Replies are given as status and error text."""

    why: str
    theirs: Any
    ours: Any


@dataclass(frozen=True)
class Seen:
    """One thing that a step has shown. ``listed`` are the models whose index entries differ at this step."""

    step: str
    content: Any
    differs: Differs | None = None
    listed: Mapping[str, Differs] = field(default_factory=dict)


class Script:
    """One server under a script. What it shows is collected in ``seen``."""

    def __init__(self, whose: str, server: Server, repository: Path, executor: ThreadPoolExecutor) -> None:
        self.whose = whose
        self.server = server
        self.repository = repository
        self.seen: list[Seen] = []
        self.problem: AssertionError | None = None
        self._gates: set[Path] = set()
        self._executor = executor
        self._names: set[str] = set()
        self._listed: dict[str, Differs] = {}

    def play(self, script: Play) -> None:
        """Run a script; a failure is kept as ``problem``, says on whose side, and leaves no model waiting."""
        try:
            script(self)
        except Exception as error:  # noqa: BLE001 # told by whoever compares
            step = self.seen[-1].step if self.seen else "the start"
            self.problem = AssertionError(f"{self.whose} after {step:.300}: {type(error).__name__}: {error}")
        finally:
            for gate in self._gates:
                gate.touch()

    def names(self, *names: str) -> None:
        """More models whose index entries are compared: those that the script writes or loads are."""
        self._names.update(names)

    # files

    def config(self, name: str, extra: str = "", count: int = 1, datatype: str = "TYPE_INT32", backend: str = "python") -> None:
        """Write a model's configuration."""
        self._names.add(name)
        write_config(self.repository, name, extra, count, datatype, backend)

    def source(self, name: str, code: int = 1, version: int = 1, initialize: str = "pass", execute: str = "pass") -> None:
        """Write a version's file."""
        self._names.add(name)
        write_source(self.repository, name, version, source(code, initialize, execute))

    def model(self, name: str, code: int = 1, versions: Sequence[int] = (1,), initialize: str = "pass", **config: Any) -> None:
        """Write a whole model."""
        self.config(name, **config)
        for version in versions:
            self.source(name, code, version, initialize)

    def write(self, path: str, text: str) -> None:
        """Write any file of the repository."""
        self._names.add(path.partition("/")[0])
        file = self.repository / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def touch(self, path: str) -> None:
        """Give a file a new time."""
        now_ns = time.time_ns()
        os.utime(self.repository / path, ns=(now_ns, now_ns))

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it."""
        file = self.repository / path
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()

    def gate(self, name: str) -> str:
        """Python code that waits for ``open_gate``."""
        return f"wait_for({str(self._gate(name))!r})"

    def wait_gate(self, name: str) -> None:
        """Wait until somebody waits for ``open_gate``.

        Requests that follow one that takes long begin here: the real server may put them behind it where both come at once.
        """
        reached = Path(f"{self._gate(name)}-reached")
        wait_until(reached.exists, f"the gate {name} to be reached", SETTLE_S)

    def open_gate(self, name: str) -> None:
        """Let those who wait go on."""
        self._gate(name).touch()

    def _gate(self, name: str) -> Path:
        gate = self.repository.parent / f"gate-{name}"
        self._gates.add(gate)
        return gate

    # requests

    def ask(
        self, method: str, path: str, body: Any = b"", differs: Differs | None = None, alike: Callable[[str], str] | None = None
    ) -> Reply:
        """Send a request and note the reply. ``alike`` takes from its body what is not to be compared."""
        content = body if isinstance(body, bytes) else compact(body)
        reply = exchange(self.server.http_port, method, path, content)
        seen = self._reply(reply)
        if alike is not None:
            seen["body"] = alike(seen["body"])
        self._note(f"{method} {path} {content[:200]!r}", seen, differs)
        return reply

    def load(self, name: str, body: Any = b"", differs: Differs | None = None, alike: Callable[[str], str] | None = None) -> None:
        """Load a model, then look at the index."""
        self._names.add(name)
        self.ask("POST", f"/v2/repository/models/{name}/load", body, differs, alike)
        self.index()

    def unload(self, name: str, body: Any = b"", differs: Differs | None = None) -> None:
        """Unload a model, then look at the index."""
        self._names.add(name)
        self.ask("POST", f"/v2/repository/models/{name}/unload", body, differs)
        self.index()

    def begin(self, method: str, path: str, body: Any = b"") -> Future[Reply]:
        """Send a request whose reply ``end`` waits for."""
        content = body if isinstance(body, bytes) else compact(body)
        return self._executor.submit(exchange, self.server.http_port, method, path, content)

    def end(self, request: Future[Reply], what: str) -> None:
        """Wait for a reply and note it."""
        self._note(what, self._reply(request.result(SETTLE_S)), None)

    def infer(self, name: str, version: int | str = "", datatype: str = "INT32", differs: Differs | None = None) -> None:
        """Ask a model or one version of it."""
        self.ask("POST", infer_path(name, version), infer_body(datatype), differs, _sorted_outputs)

    def answer(self, name: str, differs: Differs) -> None:
        """Ask a model that answers otherwise than the real server's: given are status and outputs."""
        reply = exchange(self.server.http_port, "POST", infer_path(name), compact(infer_body()))
        self._note(f"answer of {name}", (reply.status, reply.json["outputs"][0]["data"]), differs)

    def look(self, name: str, version: int | str = "", inference: bool = True, configuration: bool = True) -> None:
        """All that can be asked about a model, or a version of it."""
        path = f"/v2/models/{name}/versions/{version}" if version else f"/v2/models/{name}"
        self.ask("GET", f"{path}/ready")
        self.ask("GET", path)
        if configuration:
            self.ask("GET", f"{path}/config")
        if inference:
            self.infer(name, version)

    def statistics(self, name: str, executions: int = 0, version: int | str = "", differs: Differs | None = None) -> None:
        """A model's counts, once there are so many executions in all of its versions: they may come after the replies."""
        path = f"/v2/models/{name}/versions/{version}/stats" if version else f"/v2/models/{name}/stats"

        def ask() -> Reply:
            return exchange(self.server.http_port, "GET", path)

        wait_until(lambda: ask().status != 200 or sum(map(_executions, ask().json["model_stats"])) >= executions, f"{path} {executions}")
        reply = ask()
        content = [_counts(entry) for entry in reply.json["model_stats"]] if reply.status == 200 else self._reply(reply)
        self._note(f"statistics of {name} {version}", content, differs)

    def counted(self, name: str, **versions: int | None) -> None:
        """Wait until nv_inference_count of each version, written as ``v1``, is so much; None: there is no such series."""

        def counts() -> Mapping[str, float | None]:
            text = exchange(self.server.metrics_port, "GET", "/metrics").body.decode()
            return {version: metric(text, "nv_inference_count", model=name, version=version[1:]) for version in versions}

        wait_until(lambda: counts() == versions, f"the counters of {name} to be {versions}", SETTLE_S)

    def wait_taken(self, name: str, count: int) -> None:
        """Wait until so many requests of version 1 of a model, the first of which is at a gate, have been taken.

        No instance of it has run anything before: it is given one request.
        """
        labels = {"model": name, "version": "1"}

        def pending() -> bool:
            text = exchange(self.server.metrics_port, "GET", "/metrics").body.decode()
            return metric(text, "nv_inference_pending_request_count", **labels) == count - 1

        wait_until(pending, f"{count} requests of {name} to be taken", SETTLE_S)

    def answers(self, what: str, requests: Sequence[Future[Reply]]) -> None:
        """Wait for replies and note them, in any order."""
        replies = [self._reply(request.result(SETTLE_S)) for request in requests]
        self._note(what, sorted(replies, key=str), None)

    def health(self, differs: Differs | None = None) -> None:
        """Is the server as a whole ready?"""
        self.ask("GET", "/v2/health/ready", differs=differs)

    def wait_index(self, name: str, *states: str) -> None:
        """Wait until a model has entries with these states, by version."""

        def found() -> list[str]:
            return [entry.get("state", "") for entry in self._entries() if entry["name"] == name]

        try:
            wait_until(lambda: found() == list(states), "", SETTLE_S)
        except AssertionError:
            raise AssertionError(f"{name} is {found()} and not {states}\n{self.server.log[-3000:]}") from None

    def wait_answer(self, name: str, *answer: int, version: int | str = "") -> None:
        """Wait until a model answers so, and nothing else than what it answered before or an error."""

        def answered() -> Any:
            reply = exchange(self.server.http_port, "POST", infer_path(name, version), compact(infer_body()))
            return reply.json["outputs"][0]["data"][: len(answer)] if reply.status == 200 else None

        wait_until(lambda: answered() == list(answer), f"{name} to answer {answer}", SETTLE_S, 0.05)

    def index(self, settled: bool = True, body: Any = b"") -> None:
        """The entries of the script's models, once none of them is on its way; ``settled=False``: as they are."""
        if settled:
            try:
                wait_until(lambda: not any(entry.get("state", "").endswith("ING") for entry in self._entries()), "", SETTLE_S)
            except AssertionError:
                raise AssertionError(f"models do not settle: {self._entries()}") from None
        self.seen.append(Seen("index", self._entries(body), None, dict(self._listed)))

    def listed(self, name: str, why: str = "", theirs: Sequence[Mapping[str, str]] = (), ours: Sequence[Mapping[str, str]] = ()) -> None:
        """From here on a model's index entries differ so, without their names; without a reason: they are the same again."""
        if why:
            self._listed[name] = Differs(why, [{"name": name, **one} for one in theirs], [{"name": name, **one} for one in ours])
        else:
            self._listed.pop(name, None)

    def _entries(self, body: Any = b"") -> list[dict[str, str]]:
        reply = exchange(self.server.http_port, "POST", "/v2/repository/index", body if isinstance(body, bytes) else compact(body))
        assert reply.status == 200, reply.body
        return [entry for entry in json.loads(self._plain(reply.body)) if entry["name"] in self._names]

    def _plain(self, content: bytes) -> str:
        text = content.decode().replace(str(self.repository), "ROOT").replace(NEWER, "")
        return FRAMES.sub("", SENT.sub("SENT", text))

    def _reply(self, reply: Reply) -> dict[str, Any]:
        return {"status": reply.status, "type": reply.header("content-type"), "body": self._plain(reply.body)}

    def _note(self, step: str, content: Any, differs: Differs | None) -> None:
        self.seen.append(Seen(step, content, differs))


Play = Callable[[Script], None]
"""A script: it is run once for each server."""


def source(code: int = 1, initialize: str = "pass", execute: str = "pass") -> str:
    """The file of a model, see ``SOURCE``."""
    return SOURCE.format(code=code, initialize=initialize, execute=execute)


def write_source(repository: Path, name: str, version: int, text: str) -> None:
    """Write a version's file."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NO_CACHE).touch()
    (folder / "model.py").write_text(text)


def write_config(
    repository: Path, name: str, extra: str = "", count: int = 1, datatype: str = "TYPE_INT32", backend: str = "python"
) -> None:
    """Write a model's configuration."""
    folder = repository / name
    folder.mkdir(parents=True, exist_ok=True)
    text = CONFIG.format(name=name, extra=extra, count=count, datatype=datatype, backend=backend)
    (folder / "config.pbtxt").write_text(text)


def write_model(repository: Path, name: str, code: int = 1, initialize: str = "pass", extra: str = "") -> None:
    """Write a model with one version, before there is a script."""
    write_source(repository, name, 1, source(code, initialize))
    write_config(repository, name, extra)


def infer_path(name: str, version: int | str = "") -> str:
    """Where a model, or a version of it, is asked."""
    return f"/v2/models/{name}/versions/{version}/infer" if version else f"/v2/models/{name}/infer"


def infer_body(datatype: str = "INT32") -> dict[str, Any]:
    """A request to any of these models."""
    return {"inputs": [{"name": "X", "datatype": datatype, "shape": [1], "data": [7]}]}


def not_polled(name: str, why: str) -> Differs:
    """A load that fails before anything is loaded."""
    text = f"failed to load '{name}', failed to poll from model repository"
    return Differs("the answer says what the original keeps to its log", (500, text), (500, f"{text}: {why}"))


def _sorted_outputs(body: str) -> str:
    """An answer's model and outputs: an ensemble's come in the order in which the real server happens to get them."""
    content = json.loads(body)
    if "outputs" not in content:
        return body
    return str((content["model_name"], content["model_version"], sorted(content["outputs"], key=str)))


def _executions(entry: Mapping[str, Any]) -> int:
    return int(entry["execution_count"])


def _counts(entry: Mapping[str, Any]) -> Any:
    """A version's statistics without times."""
    durations = {name: value["count"] for name, value in entry["inference_stats"].items()}
    return entry["version"], entry["inference_count"], entry["execution_count"], bool(entry["last_inference"]), durations


@dataclass(frozen=True)
class Pair:
    """Both servers, each with its repository."""

    theirs: Server
    ours: Server
    their_repository: Path
    our_repository: Path

    def play(self, script: Play) -> None:
        """Run a script on both at the same time, then compare step by step."""
        self.play_all((script,)).check(script)

    def play_all(self, scripts: Sequence[Play], together: int = 4) -> Outcomes:
        """Run scripts, ``together`` at the same time, each on both servers."""
        with ThreadPoolExecutor(together) as executor:
            return Outcomes(dict(zip(scripts, executor.map(self._run, scripts), strict=True)))

    def _run(self, script: Play) -> list[Script]:
        with ThreadPoolExecutor(16) as executor:
            runs = [
                Script("the real server", self.theirs, self.their_repository, executor),
                Script("tensorfarm", self.ours, self.our_repository, executor),
            ]
            for one in [executor.submit(run.play, script) for run in runs]:
                one.result()
        return runs


@dataclass(frozen=True)
class Outcomes:
    """Scripts that have been run on both servers."""

    runs: Mapping[Play, Sequence[Script]]

    def check(self, script: Play) -> None:
        """Compare what a script has shown, step by step."""
        theirs, ours = self.runs[script]
        compare(theirs.seen, ours.seen)
        for run in (theirs, ours):
            if run.problem is not None:
                raise run.problem
        assert len(theirs.seen) == len(ours.seen), "the script is not the same for both"


def compare(theirs: Sequence[Seen], ours: Sequence[Seen]) -> None:
    """Fail at the first step that shows something else, or does not differ as it is said to."""
    before: list[str] = []
    for real, own in zip(theirs, ours, strict=False):
        at = "\n".join([*before[-6:], f"AT {real.step[:300]}"])
        if real.differs is not None:
            _same(_short(real.content), real.differs.theirs, f"{at}\nthe real server's, and what it was to be")
            _same(_short(own.content), real.differs.ours, f"{at}\nthe answer, and what it was to be")
        elif real.step == "index":
            for name, differs in real.listed.items():
                for content, wanted, whose in ((real.content, differs.theirs, "real server's"), (own.content, differs.ours, "index's")):
                    _same(
                        [entry for entry in content if entry["name"] == name],
                        wanted,
                        f"{at}\nthe {whose} entries, and what they were to be",
                    )
            own_rest, real_rest = ([one for one in entries if one["name"] not in real.listed] for entries in (own.content, real.content))
            _same(own_rest, real_rest, f"{at}\nthe index, and the real server's")
        else:
            _same(own.content, real.content, f"{at}\nthe answer, and the real server's")
        before.append(f"after {real.step[:300]}: {str(real.content)[:300]}")


def _same(got: Any, wanted: Any, what: str) -> None:
    if got != wanted:
        raise AssertionError(f"{what}\n{got!s:.2500}\n{wanted!s:.2500}")


def _short(content: Any) -> Any:
    """A reply as its status and error text."""
    if isinstance(content, dict):
        return content["status"], json.loads(content["body"])["error"] if content["body"] and content["status"] != 200 else ""
    return content
