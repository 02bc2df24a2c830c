"""Requests that their clients give up while they wait, by cancelling or by a deadline: which of them models are given all the same, and what is counted.

Each script has a recorder to itself: the model writes down the requests of every execution, and holds those that are called "hold…" until
they are released.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from ..servers import metric, wait_until
from ..wire import exchange
from .grpc_case import HEALTH, SERVICE, Answer, Call, Pair, Side, encoded, failure, request, send, tensor
from .grpc_servers import Started, connected, grpc_pair
from .grpc_stream import same, streaming
from .model_copies import copy_model
from .recorder_script import recorder, write

PATIENCE_S = 15.0
DEADLINE_S = 1.0
QUEUES = "default_queue_policy { max_queue_size: 100 }"
SEQUENCES = "max_sequence_idle_microseconds: 60000000"
MODELS = {
    "bare": recorder("", 0),
    "bare_late": recorder("", 0),
    "batches": recorder(f"dynamic_batching {{ {QUEUES} }}"),
    "batches_late": recorder(f"dynamic_batching {{ {QUEUES} }}"),
    "streamed": recorder(f"dynamic_batching {{ {QUEUES} }}"),
    "streamed_late": recorder(f"dynamic_batching {{ {QUEUES} }}"),
    "direct": recorder(f"sequence_batching {{ direct {{}} {SEQUENCES} }}", 1),
    "direct_late": recorder(f"sequence_batching {{ direct {{}} {SEQUENCES} }}", 1),
    "ending": recorder("", 0),
    "oldest": recorder(f"sequence_batching {{ oldest {{ max_candidate_sequences: 1 }} {SEQUENCES} }}", 1),
}


class Calls:
    """Requests to one recorder of one server."""

    def __init__(self, side: Side, model: str) -> None:
        self.side = side
        self.model = model
        self.open: dict[str, Any] = {}

    def message(self, id: str, **parameters: object) -> Any:
        """A request."""
        shape = [1] if self.model in ("bare", "bare_late", "ending") else [1, 1]
        return request(self.model, tensor("X", "INT32", shape, int=[1]), id=id, parameters=parameters)

    def send(self, id: str, timeout_s: float = 20.0, /, **parameters: object) -> None:
        """Send a request and wait for nothing."""
        method = self.side.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        self.open[id] = method.future(encoded(self.message(id, **parameters)), timeout=timeout_s)

    def hold(self, id: str, **parameters: object) -> None:
        """Send a request that runs until it is released."""
        self.send(id, **parameters)
        wait_until(lambda: id in str(self.executions()), f"{id} to run", PATIENCE_S)

    def queue(self, id: str, timeout_s: float = 20.0, /, **parameters: object) -> None:
        """Send a request that has to wait."""
        before = self.pending()
        self.send(id, timeout_s, **parameters)
        self.wait_pending(before + 1)

    def wait_pending(self, count: float) -> None:
        """Wait until so many requests wait, as the metrics say."""
        wait_until(lambda: self.pending() == count, f"{count} requests to wait", PATIENCE_S)

    def pending(self) -> float:
        """How many requests wait, as the metrics say."""
        text = exchange(self.side.server.metrics_port, "GET", "/metrics").body.decode()
        return metric(text, "nv_inference_pending_request_count", model=self.model) or 0

    def release(self, *ids: str) -> None:
        """Let held requests go on."""
        for id in ids:
            (self.side.notes / f"{self.model} {id}").touch()

    def end(self, id: str) -> str:
        """How a request has ended for its client."""
        call = self.open.pop(id)
        with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
            call.result(timeout=20)
            return "OK"
        answer: Answer = failure(self.side, call)
        return f"{answer.code} {answer.details}"

    def executions(self) -> list[list[str]]:
        """The ids of the requests of each execution."""
        file = self.side.notes / self.model
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        return [[one["id"] for one in json.loads(line)["requests"]] for line in lines if line.endswith(b"\n")]

    def counts(self) -> dict[str, int]:
        """What succeeded and what failed, by reason."""
        text = exchange(self.side.server.metrics_port, "GET", "/metrics").body.decode()
        found = {"success": int(metric(text, "nv_inference_request_success", model=self.model) or 0)}
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER"):
            found[reason] = int(metric(text, "nv_inference_request_failure", model=self.model, reason=reason) or 0)
        return found


Play = Callable[[Calls], Any]


def without_batching(calls: Calls) -> Any:
    """A request behind one that runs, given up."""
    calls.hold("hold")
    calls.queue("r1")
    calls.queue("r2")
    calls.open["r1"].cancel()
    ended = [calls.end("r1")]
    calls.release("hold")
    return [*ended, calls.end("hold"), calls.end("r2")]


def without_batching_late(calls: Calls) -> Any:
    calls.hold("hold")
    calls.queue("r1", DEADLINE_S)
    calls.queue("r2")
    ended = [calls.end("r1")]
    calls.release("hold")
    return [*ended, calls.end("hold"), calls.end("r2")]


def batching(calls: Calls) -> Any:
    calls.hold("hold")
    for id in ("r1", "r2", "r3"):
        calls.queue(id)
    calls.open["r2"].cancel()
    ended = [calls.end("r2")]
    calls.release("hold")
    return [*ended, *map(calls.end, ("hold", "r1", "r3"))]


def batching_late(calls: Calls) -> Any:
    calls.hold("hold")
    for id, timeout_s in (("r1", 20.0), ("r2", DEADLINE_S), ("r3", 20.0)):
        calls.queue(id, timeout_s)
    ended = [calls.end("r2")]
    calls.release("hold")
    return [*ended, *map(calls.end, ("hold", "r1", "r3"))]


def _streamed(calls: Calls, timeout_s: float) -> Any:
    calls.hold("hold")
    calls.queue("r1")
    with streaming(calls.side, timeout_s=timeout_s) as stream:
        stream.send(calls.message("s1"), calls.message("s2"))
        if timeout_s > DEADLINE_S:
            calls.wait_pending(3)
            stream.cancel()
        ended = [one.code for one in stream.rest()]
    calls.release("hold")
    return [*ended, calls.end("hold"), calls.end("r1")]


def stream(calls: Calls) -> Any:
    """A stream with requests that wait, given up."""
    return _streamed(calls, 20.0)


def stream_late(calls: Calls) -> Any:
    return _streamed(calls, DEADLINE_S)


def sequence(calls: Calls, timeout_s: float = 20.0) -> Any:
    """The second request of a sequence, while the first one runs, and a sequence that waits for its place."""
    calls.hold("hold", sequence_id=1, sequence_start=True)
    calls.queue("second", timeout_s, sequence_id=1)
    calls.queue("other", timeout_s, sequence_id=2, sequence_start=True)
    calls.queue("other's second", sequence_id=2, sequence_end=True)
    if timeout_s > DEADLINE_S:
        calls.open["second"].cancel()
        calls.open["other"].cancel()
    ended = [calls.end("second"), calls.end("other")]
    calls.release("hold")
    # Once the other sequence has had the place, the first one has lost it: the real server frees it a moment after it has answered.
    ended += [calls.end("hold"), calls.end("other's second")]
    calls.send("last", sequence_id=1, sequence_end=True)
    return [*ended, calls.end("last")]


def sequence_late(calls: Calls) -> Any:
    return sequence(calls, DEADLINE_S)


SCRIPTS: dict[str, Play] = {
    "bare": without_batching,
    "bare_late": without_batching_late,
    "batches": batching,
    "batches_late": batching_late,
    "streamed": stream,
    "streamed_late": stream_late,
    "direct": sequence,
    "direct_late": sequence_late,
    "oldest": sequence,
}


NOT_RUN = {"bare": "what nobody waits for any more is not run, batches or not", "bare_late": "the same"}
"""Models whose request that was given up is run by the real server all the same, and counted as a success."""


def _prepare(home: Path) -> None:
    (home / "notes").mkdir()
    write(home / "models", home / "notes", MODELS)
    copy_model("system_gate", home / "models" / "gate")
    config = home / "models" / "gate" / "config.pbtxt"
    folder = f'parameters {{ key: "FOLDER" value {{ string_value: "{home / "notes"}" }} }}'
    config.write_text("\n".join([config.read_text(), "model_transaction_policy { decoupled: true }", folder]))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Both servers with these models."""
    with grpc_pair(tmp_path_factory.mktemp("cancellation"), "--metrics-interval-ms=100", prepare=_prepare) as both:
        yield both


@pytest.fixture(scope="module")
def grpc_ends(started: Started) -> Iterator[Pair]:
    """The same, with channels."""
    with connected(started) as both:
        yield both


@pytest.mark.parametrize("model", SCRIPTS)
def test_given_up(model: str, grpc_ends: Pair) -> None:
    calls: list[Calls] = []

    def play(side: Side) -> Any:
        made = Calls(side, model)
        calls.append(made)
        try:
            return SCRIPTS[model](made)
        finally:
            made.release("hold")
            for call in made.open.values():
                call.cancel()

    theirs, ours = grpc_ends.both(play)
    real, own = sorted(calls, key=lambda one: one.side.ours)

    def seen(of: Calls) -> list[Any]:
        executions, counts = of.executions(), of.counts()
        if of is real and model in NOT_RUN:
            executions.remove(["r1"])
            counts["success"] -= 1
            counts["CANCELED"] += 1
        return [executions, counts]

    def alike() -> bool:
        with contextlib.suppress(ValueError):
            return seen(real) == seen(own)
        return False

    with contextlib.suppress(AssertionError):
        wait_until(alike, "the same executions and counters", 2.0, 0.05)
    same([theirs, *map(str, seen(real))], [ours, *map(str, seen(own))])


@pytest.mark.parametrize("id", ["held by cancel", "held by deadline"])
def test_running_stream(id: str, grpc_ends: Pair) -> None:
    """A decoupled model that runs is told that its client has gone."""

    def play(side: Side) -> Any:
        message = request("gate", tensor("X", "FP32", [1], fp32=[1.0]), id=id)
        notes = side.notes / "gate.notes"
        with streaming(side, timeout_s=DEADLINE_S if "deadline" in id else 20.0) as stream:
            stream.send(message)
            came = [str(stream.receive())]
            if "cancel" in id:
                stream.cancel()
            came.append(str(stream.rest()))
        wait_until(lambda: f"{id} ended" in notes.read_text(), "the model to be told", PATIENCE_S)
        return came, [line for line in notes.read_text().splitlines() if line.startswith(id)]

    same(*grpc_ends.both(play))


ENDING = (Call("ServerLive"), Call("ServerReady"), Call(f"/{HEALTH}/Check"), Call("ModelReady", pb.ModelReadyRequest(name="bare")))
GONE = "Request for unknown model: 'ending' has no available versions"
ENDS_THEIRS = (
    *(*["UNAVAILABLE Server exiting"] * 3, "UNAVAILABLE Server not ready", f"NOT_FOUND {GONE}"),
    *(GONE, "OK", "OK"),
)
ENDS_OURS = (*["UNAVAILABLE"] * 5, 'id: "s1"', "OK", "OK")
"""24.10 takes its models away first and its ports last. Here no new call is taken, and what is open is served until the last one has been."""


def test_while_the_server_ends(grpc_ends: Pair) -> None:
    """A request that runs is answered; who comes meanwhile is refused. The last test: it ends the servers."""

    def play(side: Side) -> Any:
        calls = Calls(side, "ending")
        calls.hold("hold")
        with streaming(side) as stream:
            stream.send(request("bare", tensor("X", "INT32", [1], int=[1]), id="before"))
            stream.receive()
            side.server.process.terminate()
            wait_until(lambda: send(side, Call("ServerLive")).code != "OK", "the server to end", PATIENCE_S)
            answers = [send(side, call) for call in (*ENDING, Call("ModelInfer", calls.message("r1")))]
            shown = [f"{answer.code} {answer.details}" for answer in answers]
            stream.send(calls.message("s1"))
            stream.close()
            calls.release("hold")
            shown += map(str, stream.rest())
        shown.append(calls.end("hold"))
        if side.ours:
            assert side.server.wait_exit() == 0
        return shown

    for shown, wanted in zip(grpc_ends.both(play), (ENDS_THEIRS, ENDS_OURS), strict=True):
        assert len(shown) == len(wanted), shown
        assert all(part in line.replace("\\", "") for part, line in zip(wanted, shown, strict=True)), shown
