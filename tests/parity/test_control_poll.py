"""Poll mode: what changes in the repository is taken over by itself, and cannot be asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..servers import wait_until
from .conftest import controlled
from .control_script import Pair, Script, write_model
from .test_control_ensembles import ensemble_text
from .test_control_failures import KEPT, READY_1, raised, refused, unparsable

TICK = "tick"
"""An ensemble, which costs nothing to load. Its configuration has a number that tells which look at the repository has been taken."""


def write_tick(repository: Path, number: int) -> None:
    """Change the ensemble."""
    text = ensemble_text(TICK, "first") + f'parameters {{ key: "tick" value {{ string_value: "{number}" }} }}\n'
    folder = repository / TICK
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(text)


def prepare(repository: Path) -> None:
    """What there is from the start."""
    repository.mkdir()
    for name in ("first", "touched", "policy", "broken", "deleted", "blurred", "poll_member", "grown", "other"):
        write_model(repository, name)
    write_model(repository, "blank", extra="{")
    write_tick(repository, 0)
    folder = repository / "over"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(ensemble_text("over", "poll_member"))


@pytest.fixture(scope="module")
def poll(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both servers in poll mode."""
    with controlled(tmp_path_factory.mktemp("poll"), "--model-control-mode=poll", "--repository-poll-secs=1", prepare=prepare) as pair:
        yield pair


def wait_configuration(run: Script, name: str, right: Callable[[Any], bool]) -> None:
    """Wait until a model's configuration is right."""

    def taken() -> bool:
        reply = run.server.ask("GET", f"/v2/models/{name}/config")
        return reply.status == 200 and right(reply.json)

    wait_until(taken, f"the configuration of {name}", 15.0, 0.02)


class Looks:
    """Numbers of looks at the repository, counted for each server on its own."""

    def __init__(self) -> None:
        self._numbers: dict[str, itertools.count[int]] = {}

    def wait(self, run: Script) -> None:
        """Wait until everything that has been changed so far was looked at."""
        number = next(self._numbers.setdefault(run.whose, itertools.count(1)))
        write_tick(run.repository, number)
        wait_configuration(run, TICK, lambda config: bool(config["parameters"]["tick"]["string_value"] == str(number)))
        run.index()


LOOKS = Looks()


def test_start(poll: Pair) -> None:
    """What loaded and what did not; loads and unloads are refused, but for what is wrong with the request itself."""

    def script(run: Script) -> None:
        run.names("first", "blank", "other", "over")
        why = unparsable("blank", "7:1: '{': Expected identifier or number, got {.")
        run.listed("blank", "the index tells why a model could not be loaded", [{}], [refused(why)])
        run.index()
        run.look("first")
        run.look("blank")
        for name in ("first", "nosuch", "a%2Fb"):
            for verb in ("load", "unload"):
                run.ask("POST", f"/v2/repository/models/{name}/{verb}")
                run.ask("POST", f"/v2/repository/models/{name}/{verb}", {"parameters": {"config": "{}"}})
                run.ask("POST", f"/v2/repository/models/{name}/{verb}", b"{" if verb == "load" else b"{}")
        run.index()

    poll.play(script)


def test_files_change(poll: Pair) -> None:
    def script(run: Script) -> None:
        run.names("touched", "policy", "grown", "deleted")
        run.infer("touched")
        run.infer("policy")
        run.infer("grown")
        run.source("touched", 2)
        run.touch("policy/config.pbtxt")
        run.config("grown", count=2)
        LOOKS.wait(run)
        run.wait_answer("touched", 2)
        run.infer("policy")
        wait_configuration(run, "grown", lambda config: config["instance_group"][0]["count"] == 2)
        run.statistics("grown", 1)
        run.ask("GET", "/v2/models/grown/config")
        run.source("policy", 2, version=2)
        run.remove("deleted")
        run.model("added", 5)
        LOOKS.wait(run)
        run.wait_index("policy", "UNAVAILABLE", "READY")
        run.wait_index("added", "READY")
        for name in ("policy", "deleted", "added"):
            run.look(name)
            run.statistics(name)
        run.config("policy", extra="version_policy { all {} }")
        run.source("policy", 3, version=3)
        run.model("deleted", 6)
        LOOKS.wait(run)
        run.wait_index("policy", "READY", "READY", "READY")
        run.wait_index("deleted", "READY")
        for version in (1, 2, 3):
            run.infer("policy", version)
        run.infer("deleted")
        run.remove("policy/3")
        run.config("grown", extra='parameters { key: "k" value { string_value: "v" } }')
        LOOKS.wait(run)
        run.wait_index("policy", "READY", "READY", "UNAVAILABLE")
        run.look("policy")
        run.look("policy", 3)
        wait_configuration(run, "grown", lambda config: bool(config["parameters"]))
        run.look("grown")

    poll.play(script)


def test_failures(poll: Pair) -> None:
    """What serves goes on; what is wrong is tried again at each look, and what becomes right is taken."""

    def script(run: Script) -> None:
        run.names("broken", "blurred")
        run.infer("broken")
        run.infer("blurred")
        run.source("broken", 2, initialize="raise ValueError('no')")
        run.write("blurred/config.pbtxt", "{")
        run.model("hopeless", initialize="raise ValueError('no')")
        why = unparsable("blurred", "1:1: '{': Expected identifier or number, got {.")
        run.listed("broken", KEPT, [READY_1], [{**READY_1, "reason": raised("broken", "ValueError: no")}])
        run.listed("blurred", KEPT, [READY_1], [{**READY_1, "reason": why}])
        run.wait_index("hopeless", "UNAVAILABLE")
        LOOKS.wait(run)
        for name in ("broken", "blurred", "hopeless"):
            run.look(name)
        run.source("broken", 3)
        run.config("blurred")
        run.source("hopeless", 4)
        run.listed("broken")
        run.listed("blurred")
        run.wait_index("hopeless", "READY")
        run.wait_answer("broken", 3)
        LOOKS.wait(run)
        run.infer("blurred")
        for version in ("broken/1", "blurred/1"):
            run.remove(version)
        none = "at least one version must be available under the version policy of model '{}'"
        for name in ("broken", "blurred"):
            run.listed(name, KEPT, [READY_1], [{**READY_1, "reason": none.format(name)}])
        LOOKS.wait(run)
        run.look("broken", inference=False)

    poll.play(script)


def test_ensemble_follows(poll: Pair) -> None:
    def script(run: Script) -> None:
        run.names("over", "poll_member")
        run.infer("over")
        run.source("poll_member", 2)
        LOOKS.wait(run)
        run.wait_answer("over", 2)
        run.remove("poll_member")
        LOOKS.wait(run)
        run.wait_index("over", "UNAVAILABLE")
        run.index()
        run.look("over")
        run.model("poll_member", 3)
        LOOKS.wait(run)
        run.wait_index("over", "READY")
        run.wait_answer("over", 3)

    poll.play(script)
