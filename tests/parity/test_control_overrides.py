"""Loads that bring a configuration, or files as well, in place of the repository's."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from .control_script import Differs, Outcomes, Play, Script, not_polled, source

Parameters = dict[str, Any]


def config(name: str, **more: Any) -> Parameters:
    """The parameters of a load with a configuration."""
    document = {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [1]}],
        "output": [{"name": "Y", "data_type": "TYPE_INT32", "dims": [3]}],
        "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
    }
    return {"config": json.dumps({**document, **more})}


def file(code: int, path: str = "1/model.py", **how: str) -> Parameters:
    """A file of a load's parameters."""
    return {f"file:{path}": base64.b64encode(source(code, **how).encode()).decode()}


def no_cache(version: int = 1) -> Parameters:
    """What keeps Python from writing into a version's folder."""
    return {f"file:{version}/__pycache__": ""}


SET = {"parameters": {"k": {"string_value": "v"}}}
"""Some change of a configuration that takes a load."""


def configuration(run: Script) -> None:
    run.model("told")
    run.load("told", {"parameters": config("told", **SET)})
    run.look("told")
    run.load("told")
    run.look("told")
    run.statistics("told", 2)
    run.load("told", {"parameters": config("told", **SET)})
    run.statistics("told", 2)
    run.load("told", {"parameters": config("told", **SET, instance_group=[{"count": 2, "kind": "KIND_CPU"}])})
    run.ask("GET", "/v2/models/told/config")
    run.statistics("told", 2)
    run.load("told", {"parameters": config("told")})
    run.look("told")
    run.statistics("told", 1)
    run.load("told", {"parameters": config("told", **SET)})
    run.touch("told/config.pbtxt")
    run.load("told")
    run.look("told")
    run.load("told", {"parameters": config("told", **SET)})
    run.unload("told")
    run.load("told")
    run.ask("GET", "/v2/models/told/config")
    for policy in ({"all": {}}, {"specific": {"versions": ["1"]}}, {"latest": {"numVersions": 1}}):
        run.load("told", {"parameters": config("told", version_policy=policy)})
        run.infer("told")
    run.write("nothing/1/model.py", source(5))
    run.write("nothing/1/__pycache__", "")
    run.load("nothing", {"parameters": config("")})
    run.look("nothing")


TAKEN = (
    {"maxBatchSize": 0, "version_policy": None},
    {"instance_group": [{"kind": 2, "count": "1"}], "max_batch_size": "0"},
    {"input": [{"name": "X", "dataType": 8, "dims": ["1"]}]},
)
REFUSED = (
    {"colour": 1},
    {"input": [{"name": "X", "data_type": "TYPE_BOO", "dims": [1]}]},
    {"max_batch_size": "x"},
    {"max_batch_size": 1.5},
)


def forms_of_configuration(run: Script) -> None:
    run.model("forms")
    for number, more in enumerate(TAKEN):
        extra = {"parameters": {"n": {"string_value": str(number)}}}
        run.load("forms", {"parameters": config("forms", **more, **extra)})
        run.look("forms")
    for text in ("", "{", "[]", '"x"', "null", 'name: "forms"', *(config("forms", **more)["config"] for more in REFUSED)):
        reply = run.ask("POST", "/v2/repository/models/forms/load", {"parameters": {"config": text}}, alike=_poll_failure)
        assert reply.status == 500
    run.infer("forms")
    run.unload("forms")


def _poll_failure(text: str) -> str:
    """What is said beyond what the real server says."""
    return text.partition("poll from model repository")[1]


def files(run: Script) -> None:
    run.model("files")
    run.load("files")
    run.infer("files")
    run.load("files", {"parameters": config("files", **SET) | file(22) | no_cache()})
    run.look("files")
    run.load("files")
    run.look("files")
    run.load("files", {"parameters": file(33, "2/model.py") | config("files", **SET) | no_cache(2)})
    run.look("files")
    run.load("files")
    run.look("files")
    serving = [{"version": "1", "state": "READY"}, {"version": "2", "state": "UNAVAILABLE", "reason": "unloaded"}]
    why = "Internal: ValueError: no\n\nAt:\n  SENT/1/model.py(18): initialize\n"
    run.listed("files", "the index tells why what serves could not be replaced", serving, [{**serving[0], "reason": why}, serving[1]])
    run.load("files", {"parameters": config("files", **SET) | file(1, initialize="raise ValueError('no')")})
    run.infer("files")


def files_with_the_same_configuration(run: Script) -> None:
    """The real server passes over files that come with the configuration that the model has; tensorfarm takes them."""
    run.model("same")
    run.load("same")
    run.load("same", {"parameters": config("same") | file(2) | no_cache()})
    old, new = ((200, [code, 1, 1]) for code in (1, 2))
    run.answer("same", Differs("what was sent is taken", old, new))
    run.unload("same")


def what_files_cannot_be(run: Script) -> None:
    outside = {f"file:{path}" for path in ("../x", "1/../../x", "..")}
    run.model("wrong")
    run.load("wrong")
    run.load(
        "wrong", {"parameters": file(2)}, differs=not_polled("wrong", "Load parameter 'config' must be specified for model file override")
    )
    for path in sorted(outside):
        run.load("wrong", {"parameters": {**config("wrong", **SET), path: "AAAA"}}, alike=_poll_failure)
        run.infer("wrong")
    run.unload("wrong")


def model_in_no_repository(run: Script) -> None:
    run.load("ghost", {"parameters": config("ghost")}, differs=not_polled("ghost", "model not found in any model repository"))
    run.load("ghost", {"parameters": config("ghost") | file(7) | no_cache()})
    run.look("ghost")
    run.statistics("ghost", 1)
    run.load("ghost", differs=not_polled("ghost", "model not found in any model repository"))
    run.infer("ghost")
    run.load("ghost", {"parameters": config("ghost", **SET) | file(8, initialize="raise ValueError('no')")})
    run.infer("ghost")
    run.unload("ghost")
    run.look("ghost")
    run.load("ghost", {"parameters": config("ghost") | {"file:README": "AAAA"}})
    run.load(
        "ghost",
        {
            "parameters": config("ghost", version_policy={"all": {}})
            | file(3, "3/model.py")
            | file(4, "4/./model.py")
            | no_cache(3)
            | no_cache(4)
        },
    )
    run.look("ghost")
    run.look("ghost", 3)
    run.unload("ghost")


def forms_of_base64(run: Script) -> None:
    text = file(5)["file:1/model.py"]
    forms = (text.rstrip("="), text[:40] + "\n" + text[40:], text[:40] + " !*" + text[40:])
    for number, form in enumerate(forms):
        more = {"parameters": {"n": {"string_value": str(number)}}}
        run.load("coded", {"parameters": config("coded", **more) | {"file:1/model.py": form} | no_cache()})
        run.infer("coded")
    run.unload("coded")


SCRIPTS = (
    configuration,
    forms_of_configuration,
    files,
    files_with_the_same_configuration,
    what_files_cannot_be,
    model_in_no_repository,
    forms_of_base64,
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_script(script: Play, outcomes: Outcomes) -> None:
    outcomes.check(script)
