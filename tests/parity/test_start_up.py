"""Starts that fail, and starts that go on with models that failed: messages, exit codes, the index, readiness."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .. import oracle as real
from ..broken_repository import write_broken, write_hanging
from ..model_repository import PLAIN, Flavour, write_model
from ..servers import Finished, Server, run_tensorfarm, start_tensorfarm, stopping, tensorfarm, wait_until
from ..wire import Reply

REASONS = {
    "fails": "Internal: ",
    "one_good_one_bad": "Internal: ",
}
"""Models whose own files are bad: what the backend says of them is its own, only the beginning is the same."""

DIFFERENCES = {
    "labels_outside": "newer releases refuse a labels file outside the model's folder; 24.10 reads it",
    **dict.fromkeys(("leading_zero", "no_versions", "policy_empty"), "24.10 leaves a model without any version out of its index"),
}
"""Models that tensorfarm lists without a version, unlike release 24.10, and why."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Both servers, each with the broken models, told to start all the same."""
    real.require()
    root = tmp_path_factory.mktemp("broken")
    for flavour in Flavour:
        write_broken(root / flavour.value, flavour)
    started = [
        real.start(root / Flavour.PYTHON.value, "--exit-on-error=false", folder=root / "oracle"),
        start_tensorfarm(root / Flavour.ONNX.value, "--exit-on-error=false", folder=root / "farm", wait=False),
    ]
    with stopping(*started) as (theirs, ours):
        # A version that has loaded leaves again where another one of its model could not be.
        wait_until(
            lambda: all("UNLOADING" not in server.ask("POST", "/v2/repository/index").body.decode() for server in started), "the end"
        )
        yield theirs, ours


def _entries(server: Server) -> list[dict[str, str]]:
    """The index, without the repository's path, which tensorfarm does not tell its clients."""
    content: list[dict[str, str]] = server.ask("POST", "/v2/repository/index").json
    for entry in content:
        if "reason" in entry:
            entry["reason"] = entry["reason"].replace(f"{server.folder.parent / Flavour.PYTHON.value}/", "")
            prefix = REASONS.get(entry["name"])
            if prefix and entry["reason"].startswith(prefix):
                entry["reason"] = prefix
    return content


def test_index_of_broken_models(broken: tuple[Server, Server]) -> None:
    expected, got = map(_entries, broken)
    for name in DIFFERENCES:
        theirs, ours = ([entry for entry in entries if entry["name"] == name] for entries in (expected, got))
        assert theirs != ours, f"the servers agree on {name}: take it off the list of differences"
        (entry,) = ours
        assert (entry.pop("state"), bool(entry.pop("reason")), entry) == ("UNAVAILABLE", True, {"name": name})
    kept = [[entry for entry in entries if entry["name"] not in DIFFERENCES] for entries in (expected, got)]
    for entry in kept[1]:
        if "version" not in entry:
            # The original says nothing about a model that it could not even look at.
            assert (entry.pop("state"), bool(entry.pop("reason"))) == ("UNAVAILABLE", True)
    assert kept[1] == kept[0]


def _same(replies: list[Reply]) -> None:
    assert (replies[1].status, replies[1].body) == (replies[0].status, replies[0].body)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/plain/ready",
        *(
            f"/v2/models/{name}{end}"
            for name in ("fails", "bad_syntax", "no_versions", "one_good_one_bad")
            for end in ("", "/config", "/stats")
        ),
    ],
)
def test_answers_about_broken_models(path: str, broken: tuple[Server, Server]) -> None:
    replies = [server.ask("GET", path) for server in broken]
    if path.endswith("/stats"):
        assert [reply.status for reply in replies] == [400, 400]
        _same(replies)
    elif replies[0].status != 200:
        _same(replies)
    else:
        assert replies[1].status == 200


def test_infer_of_a_broken_model(broken: tuple[Server, Server]) -> None:
    _same([server.ask("POST", "/v2/models/fails/infer", b"{}") for server in broken])


def _table(text: str, title: str) -> list[list[str]]:
    """The rows of a start-up table, given its first column's title: one list of cells for each, only whole rows."""
    rows: list[list[str]] = []
    for line in text[text.index(f"| {title} ") :].splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif not line.startswith("+"):
            break
    return rows[1:]


def test_table_of_models(broken: tuple[Server, Server]) -> None:
    """Model and version of every row, and the status where it is a single line that no backend worded."""
    tables = []
    for server in broken:
        rows = [row for row in _table(server.stdout + server.stderr, "Model") if row[0] and row[0] not in DIFFERENCES]
        tables.append([(row[0], row[1], row[2] if row[0] not in (*REASONS, "no_labels") else "") for row in rows])
    assert tables[1] == tables[0]


def _result(server: Finished) -> tuple[int, str]:
    """Exit code and the last line that says why, without time stamps, process ids and file names of the program."""
    lines = [line for line in (server.stderr or server.stdout).splitlines() if line.strip()]
    return server.code, re.sub(r'^[EWI]\d{4} \S+ \d+ \S+\] "(.*)"$', r"\1", lines[-1])


def _both(folder: Path, *flags: str) -> tuple[tuple[int, str], tuple[int, str]]:
    """Run both servers with the same flags, to their ends."""
    theirs = real.run("--allow-metrics=false", "--allow-grpc=false", *flags, folder=folder / "oracle")
    ours = run_tensorfarm("--http-address=127.0.0.1", "--allow-metrics=false", "--allow-grpc=false", *flags, folder=folder / "farm")
    return _result(theirs), _result(ours)


@pytest.mark.parametrize("where", ["nowhere", "file"])
def test_repository_that_is_none(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    theirs, ours = _both(tmp_path, f"--model-repository={tmp_path / where}")
    assert ours == theirs
    assert theirs[0] == 1


def test_no_repository(tmp_path: Path) -> None:
    theirs, ours = _both(tmp_path)
    assert ours == theirs == (1, "error: creating server: Invalid argument - --model-repository must be specified")


def test_port_in_use(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        theirs, ours = _both(tmp_path, f"--model-repository={tmp_path / 'models'}", f"--http-port={port}")
    assert ours == theirs
    assert theirs[1] == f"failed to start HTTP service: Unavailable - Socket '127.0.0.1:{port}' already in use "


@pytest.mark.parametrize("kind", ["cannot be parsed", "cannot be loaded"])
def test_model_that_fails(kind: str, tmp_path: Path) -> None:
    """With --exit-on-error, which is the default."""
    outcomes = []
    for flavour in Flavour:
        root = tmp_path / flavour.value
        write_model(root, PLAIN, flavour)
        if kind == "cannot be parsed":
            (root / "plain" / "config.pbtxt").write_text("name: {")
        else:
            shutil.rmtree(root / "plain" / "1")
            (root / "plain" / "1").mkdir()
            (root / "plain" / "1" / ("model.py" if flavour is Flavour.PYTHON else "model.onnx")).write_text("no model")
    for flavour, run in ((Flavour.PYTHON, real.run), (Flavour.ONNX, run_tensorfarm)):
        repository = f"--model-repository={tmp_path / flavour.value}"
        outcomes.append(_result(run("--allow-metrics=false", "--allow-grpc=false", repository, folder=tmp_path / f"run-{flavour.value}")))
    assert outcomes[1] == outcomes[0] == (1, "error: creating server: Internal - failed to load all models")


def test_model_without_a_file(tmp_path: Path) -> None:
    """Release 24.10 never comes up with a Python model of this kind; tensorfarm says what is wrong and serves the rest."""
    with tensorfarm(write_hanging(tmp_path / "models"), "--exit-on-error=false", folder=tmp_path / "run") as server:
        entries = {entry["name"]: entry for entry in server.ask("POST", "/v2/repository/index").json}
        assert entries["plain"]["state"] == "READY"
        assert entries["no_model_file"]["state"] == "UNAVAILABLE"
        assert entries["no_model_file"]["reason"]
        assert not server.ready()
        assert server.model_ready("plain")


def test_two_repositories(tmp_path: Path) -> None:
    """Models of both are served; a model in both is listed as not available."""
    indexes: list[Any] = []
    for flavour in Flavour:
        for name in ("one", "two"):
            write_model(tmp_path / flavour.value / name, PLAIN, flavour)
        write_model(tmp_path / flavour.value / "two", type(PLAIN)(**{**vars(PLAIN), "name": "other"}), flavour)
    paths = {flavour: [tmp_path / flavour.value / name for name in ("one", "two")] for flavour in Flavour}
    second = f"--model-repository={paths[Flavour.PYTHON][1]}"
    with (
        real.tritonserver(paths[Flavour.PYTHON][0], second, "--exit-on-error=false", folder=tmp_path / "oracle") as theirs,
        tensorfarm(paths[Flavour.ONNX], "--exit-on-error=false", folder=tmp_path / "farm") as ours,
    ):
        for server in (theirs, ours):
            indexes.append([json.loads(server.ask("POST", "/v2/repository/index").body), server.ask("GET", "/v2/health/ready").status])
    assert indexes[1] == indexes[0]
