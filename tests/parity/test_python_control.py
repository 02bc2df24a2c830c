"""Python models that load and unload other models, in explicit mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..broken_python import SOURCES, write_model
from ..servers import Server, metric, wait_until
from ..wire import exchange
from .case import check, infer, tensor, verb
from .conftest import controlled
from .control_script import Pair
from .model_copies import copy_model


def prepare(repository: Path) -> None:
    """The model that loads others, and those."""
    repository.mkdir()
    copy_model("loader", repository / "loader")
    copy_model("adder", repository / "adder")
    write_model(repository, "broken", SOURCES["class_is_a_number"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both servers with a model that loads others."""
    flags = ("--model-control-mode=explicit", "--load-model=loader")
    with controlled(tmp_path_factory.mktemp("control"), *flags, prepare=prepare) as running:
        yield running


STEPS = (
    *("ready", "add", "load", "ready", "add", "load by name", "add", "unload", "ready", "add", "unload", "unload unknown"),
    *("load with a number for files", "load a number", "load with files", "ready sent", "unload sent", "ready sent"),
    *("load", "add", "unload with dependents", "ready"),
)
"""What one model does to others, in this order."""

UNREAD = "failed to load 'adder', failed to poll from model repository"
TOLD = {
    "load unknown": "failed to load 'nosuch', failed to poll from model repository: model not found in any model repository",
    "load with files alone": f"{UNREAD}: Load parameter 'config' must be specified for model file override",
    "load with bad config": f"{UNREAD}: ",
    "load broken": "load failed for model 'broken': version 1 is at UNAVAILABLE state: Internal: ",
}
"""Loads that fail, and why. The real server, which keeps some of the reasons to its log, may die some time after such a call."""


def test_models_that_load_models(pair: Pair) -> None:
    ports = (pair.theirs.http_port, pair.ours.http_port)
    for number, step in enumerate(STEPS):
        check(verb("loader", step, f"{number}: {step}"), *ports, {})
        if step.startswith("unload"):
            # The real server may die where a model is asked, or asked about, that is on its way out.
            name = "sent" if step == "unload sent" else "adder"
            wait_until(lambda name=name: not any(_counted(server, name) for server in (pair.theirs, pair.ours)), f"{name} to be gone")  # type: ignore[misc]
        if step == "load with files":
            check(infer("sent", "sent", {"inputs": [tensor("X", "INT32", [1, 1], [1])]}), *ports, {})


@pytest.mark.parametrize("step", TOLD)
def test_why_a_load_fails(step: str, pair: Pair) -> None:
    """What the model's exception says."""
    reply = verb("loader", step).send(pair.ours.http_port)
    said = f"TritonModelException: Failed to load model: Failed to process the request for model 'loader_0_0', message: {TOLD[step]}"
    assert reply.status == 200 and reply.json["outputs"][0]["data"][0].startswith(said), reply.body


def _counted(server: Server, name: str) -> bool:
    """Whether there is anything of a model still: it has series until its unload is complete."""
    return metric(exchange(server.metrics_port, "GET", "/metrics").body.decode(), "nv_inference_count", model=name) is not None
