"""Models that share resources: which loads, who runs beside whom and how turns are divided, on both servers.

Not compared: whose turn it is where two have run as much, and whether those wait that share nothing with the ones that run. They do in
the original, once one before them waits.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .. import oracle as real
from ..limited_models import Gates, put, resource, shares
from ..servers import start_tensorfarm, stopping, wait_until

FLAGS = (
    *("--rate-limit-resource=R:1", "--rate-limit-resource=W:5:0", "--rate-limit-resource=W:4:0", "--rate-limit-resource=G:6:7"),
    *("--rate-limit-resource=E:1:1", "--rate-limit-resource=U:-1", "--rate-limit-resource=T:6", "--rate-limit-resource=T:1:0"),
)

MODELS = {
    "first": f"{resource('R', 1)} priority: 1",
    "second": f"{resource('R', 1)} priority: 2",
    "many": " ".join(
        [resource("W", 2), resource("G", 2, everywhere=True), resource("U", 1000), resource("T", 9), resource("T", 2), resource("N", 0)]
    ),
    "needs_more": resource("R", 2),
    "least_counts": resource("W", 5),
    "elsewhere": resource("E", 1),
    "unlisted": resource("N", 1),
    "global_more": resource("G", 7, everywhere=True),
    "last_counts": f"{resource('T', 2)} {resource('T', 7)}",
    "both": f"{resource('R', 1)} {resource('R', 1, everywhere=True)}",
    "both_and_more": f"{resource('R', 2)} {resource('R', 2, everywhere=True)}",
    "order": f"{resource('Z', 2)} {resource('A', 2)} {resource('M', 2, everywhere=True)}",
}
"""What the instances of each model need; ``many`` has three."""

LOADED = ("first", "second", "many")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gates, Gates]]:
    """The real server and tensorfarm, with models of their own each."""
    real.require()
    root = tmp_path_factory.mktemp("limited")
    homes = [root / "theirs", root / "ours"]
    for home in homes:
        for model, limits in MODELS.items():
            put(home / "models", home, model, limits, instances=3 if model == "many" else 1)
    flags = ("--rate-limit=execution_count", "--disable-auto-complete-config", "--exit-on-error=false", *FLAGS)
    started = [
        real.start(homes[0] / "models", *flags, folder=homes[0] / "run"),
        start_tensorfarm(homes[1] / "models", *flags, folder=homes[1] / "run", wait=False),
    ]
    with stopping(*started) as servers:
        both = [Gates(server, home) for server, home in zip(servers, homes, strict=True)]
        yield both[0], both[1]
        for gates in both:
            gates.finish()


def _index(gates: Gates) -> list[dict[str, str]]:
    return sorted(gates.server.ask("POST", "/v2/repository/index").json, key=lambda entry: str(entry["name"]))


def test_what_loads_and_why_the_others_do_not(pair: tuple[Gates, Gates]) -> None:
    theirs, ours = map(_index, pair)
    assert ours == theirs
    assert [entry["name"] for entry in theirs if entry["state"] == "READY"] == sorted(LOADED)


def test_the_configuration_shows_the_limits(pair: tuple[Gates, Gates]) -> None:
    for model in LOADED:
        theirs, ours = (gates.server.ask("GET", f"/v2/models/{model}/config").json["instance_group"] for gates in pair)
        assert ours == theirs


def test_turns(pair: tuple[Gates, Gates]) -> None:
    assert [shares(gates, "first", "second") for gates in pair] == [(6, 3), (6, 3)]


def _together(gates: Gates) -> list[int]:
    """How many instances run while one request after another is let go."""
    for _ in range(4):
        gates.ask("many")
    counts = []
    for left in (4, 3, 2, 1):
        wait_until(lambda left=left: len(gates.running()) >= min(2, left), "those to run that can")
        counts.append(len(gates.running()))
        gates.end_any()
    return counts


def test_as_many_run_as_there_are_resources_for(pair: tuple[Gates, Gates]) -> None:
    assert [_together(gates) for gates in pair] == [[2, 2, 2, 1]] * 2
