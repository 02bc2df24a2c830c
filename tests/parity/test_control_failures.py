"""Explicit mode: loads that fail, at first and while something serves; what then serves, and what the index says."""

from __future__ import annotations

import pytest

from .control_script import Outcomes, Play, Script, not_polled

IN_INDEX = "the index tells why a model could not be loaded"
KEPT = "the index tells why what serves could not be replaced"
READY_1 = {"version": "1", "state": "READY"}


NO_BACKEND = "Invalid argument: unable to find backend library for backend 'nosuch', try specifying runtime on the model configuration."
FORGOTTEN = "a version that never served and is not wanted any more is forgotten"


def raised(name: str, what: str, version: int = 1) -> str:
    """The reason of a model whose initialize() has raised something."""
    return f"Internal: {what}\n\nAt:\n  ROOT/{name}/{version}/model.py(18): initialize\n"


def unparsable(name: str, where: str) -> str:
    """The reason of a model whose configuration is not one."""
    return f"failed to read text proto from {name}/config.pbtxt (Error parsing text-format inference.ModelConfig: {where})"


def refused(reason: str) -> dict[str, str]:
    """The index entry of a model of which nothing could be loaded."""
    return {"state": "UNAVAILABLE", "reason": reason}


def no_configuration_to_be_had(run: Script) -> None:
    cases = {
        "cut": (
            'name: "cut" backend: "pyth',
            unparsable("cut", """1:22: 'name: "cut" backend: "pyth': String missing ending quote: '"pyth'"""),
        ),
        "enum": (
            'name: "enum" backend: "python" input { name: "X" data_type: TYPE_BOO dims: 1 }',
            unparsable(
                "enum",
                """1:61: 'name: "enum" backend: "python" input { name: "X" data_type: TYPE_BOO dims: 1 }': """
                + 'Enum type "inference.DataType" has no value named TYPE_BOO.',
            ),
        ),
        "field": (
            'name: "field" colour: "red"',
            unparsable("field", '1:15: Message type "inference.ModelConfig" has no field named "colour".'),
        ),
        "other": (
            'name: "else" backend: "python"',
            "unexpected directory name 'other' for model 'else', directory name must equal model name",
        ),
    }
    for name, (text, why) in cases.items():
        run.write(f"{name}/config.pbtxt", text)
        run.write(f"{name}/1/model.py", "")
        run.index()
        run.listed(name, IN_INDEX, [{}], [refused(why)])
        run.load(name, differs=not_polled(name, why))
        run.look(name)
        run.statistics(name)
        run.listed(name)  # an unload ends a failure
        run.unload(name)
        run.look(name)
    run.remove("cut")
    run.model("cut")
    run.load("cut")
    run.look("cut")


def first_load_fails(run: Script) -> None:
    run.model("fails", initialize="raise ValueError('no')")
    for _ in range(2):
        run.load("fails")
        run.look("fails")
        run.look("fails", 1)
        run.statistics("fails")
    run.unload("fails")
    run.look("fails")
    run.source("fails")
    run.load("fails")
    run.look("fails")
    run.unload("fails")
    run.source("fails", initialize="raise KeyError('again')")
    run.load("fails")
    run.unload("fails")
    run.config("unknown", backend="nosuch")
    run.source("unknown")
    run.load("unknown")
    run.look("unknown")
    run.config("unknown")
    run.load("unknown")
    run.look("unknown")


def no_version(run: Script) -> None:
    for name, extra in (
        ("none", ""),
        ("other_version", "version_policy { specific { versions: 5 } }"),
        ("zero", "version_policy { latest { num_versions: 0 } }"),
    ):
        run.config(name, extra=extra)
        if name != "none":
            run.source(name)
        why = f"at least one version must be available under the version policy of model '{name}'"
        run.listed(name, IN_INDEX, [], [refused(why)])
        run.load(name)
        run.look(name)
        run.statistics(name)
        run.listed(name, "an unload ends a failure, and the model is in its repository", [], [{}])
        run.unload(name)
        run.look(name)
    run.listed("none")
    run.source("none")
    run.load("none")
    run.look("none")


def all_versions_or_none(run: Script) -> None:
    run.model("both", versions=(1, 2), extra="version_policy { all {} }")
    run.source("both", 1, 2, initialize="raise ValueError('no')")
    run.load("both")
    run.look("both")
    run.look("both", 1)
    run.look("both", 2)
    run.remove("both/2")
    run.listed("both", FORGOTTEN, [READY_1, {"version": "2", **refused(raised("both", "ValueError: no", 2))}], [READY_1])
    run.load("both")
    run.look("both")


def all_versions_or_the_old_ones(run: Script) -> None:
    run.model("three", versions=(1, 2), extra="version_policy { all {} }")
    run.load("three")
    run.source("three", 22)
    run.source("three", 22, 2, initialize="raise ValueError('no')")
    run.source("three", 22, 3)
    kept = {"version": "2", "state": "READY", "reason": raised("three", "ValueError: no", 2)}
    gone = {"version": "3", "state": "UNAVAILABLE", "reason": "unloaded"}
    run.listed("three", KEPT, [READY_1, {"version": "2", "state": "READY"}, gone], [READY_1, kept, gone])
    run.load("three")
    run.look("three")
    for version in (1, 2, 3):
        run.infer("three", version)
    run.listed("three")
    run.source("three", 33, 2)
    run.load("three")
    for version in (1, 2, 3):
        run.infer("three", version)


def reload_fails(run: Script) -> None:
    """The old one goes on with its statistics, as if nothing had been tried."""
    run.model("stays")
    run.load("stays")
    run.infer("stays")
    run.source("stays", 2, initialize="raise ValueError('no')")
    run.listed("stays", KEPT, [READY_1], [{**READY_1, "reason": raised("stays", "ValueError: no")}])
    run.load("stays")
    run.look("stays")
    run.statistics("stays", 2)
    run.load("stays")
    run.infer("stays")
    run.source("stays", 3, initialize="import no_such_module")
    run.listed("stays", KEPT, [READY_1], [{**READY_1, "reason": raised("stays", "ModuleNotFoundError: No module named 'no_such_module'")}])
    run.load("stays")
    run.infer("stays")
    run.source("stays", 4)
    run.config("stays", backend="nosuch")
    run.listed("stays", KEPT, [READY_1], [{**READY_1, "reason": NO_BACKEND}])
    run.load("stays")
    run.infer("stays")
    run.config("stays")
    run.listed("stays")
    run.load("stays")
    run.infer("stays")


def reload_cannot_be_read(run: Script) -> None:
    run.model("blurred")
    run.load("blurred")
    run.infer("blurred")
    why = unparsable("blurred", "1:1: '{': Expected identifier or number, got {.")
    run.write("blurred/config.pbtxt", "{")
    run.listed("blurred", KEPT, [READY_1], [{**READY_1, "reason": why}])
    run.load("blurred", differs=not_polled("blurred", why))
    run.look("blurred")
    run.statistics("blurred", 2)
    run.config("blurred")
    run.listed("blurred")
    run.load("blurred")
    run.infer("blurred")
    run.statistics("blurred", 3)
    run.unload("blurred")


def new_version_fails(run: Script) -> None:
    run.model("next")
    run.load("next")
    run.infer("next")
    run.source("next", 2, 2, initialize="raise ValueError('no')")
    run.load("next")
    run.look("next")
    run.look("next", 2)
    run.statistics("next", 2)
    run.source("next", 2, 2)
    run.load("next")
    run.look("next")
    run.look("next", 1)


def instance_fails(run: Script) -> None:
    """In place: the instances that serve stay, and the model keeps the configuration it had."""
    run.model("grows", initialize="assert args['model_instance_name'].endswith('_0'), 'only one'")
    run.load("grows")
    run.infer("grows")
    run.config("grows", count=2)
    run.load("grows")
    run.look("grows")
    run.statistics("grows", 2)
    run.config("grows")
    run.load("grows")
    run.infer("grows")
    run.unload("grows")


SCRIPTS = (
    no_configuration_to_be_had,
    first_load_fails,
    no_version,
    all_versions_or_none,
    all_versions_or_the_old_ones,
    reload_fails,
    reload_cannot_be_read,
    new_version_fails,
    instance_fails,
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_script(script: Play, outcomes: Outcomes) -> None:
    outcomes.check(script)
