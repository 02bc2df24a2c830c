"""Explicit mode: load and unload, and what index, readiness, metadata, statistics and inference say after each step."""

from __future__ import annotations

import pytest

from .control_script import Outcomes, Play, Script, not_polled


def load_and_unload(run: Script) -> None:
    run.model("once")
    run.model("never")
    run.index()
    run.look("once")
    run.statistics("once")
    run.unload("once")
    run.load("once")
    run.index(body={"ready": True})
    run.look("once")
    run.look("once", 1)
    run.look("once", 9)
    run.statistics("once", 2)
    run.counted("once", v1=2)
    run.load("once")
    run.infer("once")
    run.statistics("once", 3)
    run.unload("once")
    run.counted("once", v1=None)
    run.index(body={"ready": True})
    run.look("once")
    run.look("once", 1)
    run.look("once", 9)
    run.statistics("once")
    run.statistics("once", version=1)
    run.unload("once")
    run.load("once")
    run.statistics("once")
    run.counted("once", v1=0)
    run.infer("once")
    run.statistics("once", 1)


def reload(run: Script) -> None:
    run.model("reload")
    run.load("reload")
    run.infer("reload")
    run.infer("reload")
    run.touch("reload/1/model.py")
    run.load("reload")
    run.statistics("reload")
    run.infer("reload")
    run.statistics("reload", 1)
    run.counted("reload", v1=3)
    run.touch("reload/config.pbtxt")
    run.load("reload")
    run.infer("reload")
    run.config("reload", extra="# nothing")
    run.load("reload")
    run.infer("reload")
    run.statistics("reload", 3)
    run.source("reload", 2)
    run.load("reload")
    run.infer("reload")
    run.config("reload", extra='parameters { key: "k" value { string_value: "v" } }')
    run.load("reload")
    run.look("reload")
    run.write("reload/README", "text")
    run.load("reload")
    run.infer("reload")
    run.statistics("reload", 1)


def instances_in_place(run: Script) -> None:
    run.model("group")
    run.load("group")
    run.infer("group")
    run.config("group", count=3)
    run.load("group")
    run.statistics("group", 1)
    run.ask("GET", "/v2/models/group/config")
    run.config("group", count=2)
    run.load("group")
    run.statistics("group", 1)
    run.ask("GET", "/v2/models/group/config")
    run.config("group", count=1, extra='parameters { key: "k" value { string_value: "v" } }')
    run.load("group")
    run.statistics("group")
    run.infer("group")
    run.counted("group", v1=2)


def version_policy_in_place(run: Script) -> None:
    run.model("policy", versions=(1, 2, 3))
    run.load("policy")
    run.look("policy")
    for policy in ("all {}", "specific { versions: [1] }", "specific { versions: [1, 3, 7] }", "latest { num_versions: 2 }", "all {}"):
        run.config("policy", extra=f"version_policy {{ {policy} }}")
        run.load("policy")
        run.look("policy")
        for version in (1, 2, 3):
            run.look("policy", version)
    run.statistics("policy", 9)


def versions_come_and_go(run: Script) -> None:
    run.model("versions")
    run.load("versions")
    run.source("versions", 2, version=2)
    run.load("versions")
    run.counted("versions", v1=None, v2=0)
    run.look("versions")
    run.look("versions", 1)
    run.statistics("versions", version=1)
    run.statistics("versions", version=9)
    run.config("versions", extra="version_policy { all {} }")
    run.source("versions", 3, version=3)
    run.load("versions")
    for version in (1, 2, 3):
        run.infer("versions", version)
    run.touch("versions/1/model.py")
    run.load("versions")
    run.statistics("versions", 2)
    run.remove("versions/3")
    run.load("versions")
    run.look("versions")
    run.look("versions", 3)
    for version in (1, 2):
        run.remove(f"versions/{version}")
    none = "at least one version must be available under the version policy of model 'versions'"
    run.listed(
        "versions",
        "the index tells why the versions that serve could not be replaced",
        [{"version": "1", "state": "READY"}, {"version": "2", "state": "READY"}, UNLOADED_3],
        [{"version": "1", "state": "READY", "reason": none}, {"version": "2", "state": "READY", "reason": none}, UNLOADED_3],
    )
    run.load("versions")
    run.look("versions")
    run.listed("versions")
    run.source("versions", 4, version=4)
    run.load("versions")
    run.look("versions")


UNLOADED_3 = {"version": "3", "state": "UNAVAILABLE", "reason": "unloaded"}


def which_folders_are_versions(run: Script) -> None:
    run.model("numbers", versions=(0, 7, 5000000000), extra="version_policy { all {} }")
    for odd in ("x", ".1", "007"):
        run.write(f"numbers/{odd}/model.py", "raise ValueError")
    run.write("numbers/9", "a file")
    (run.repository / "numbers" / "5").symlink_to("7")
    run.load("numbers")
    run.look("numbers")
    run.config("numbers", extra="version_policy { latest { num_versions: 2 } }")
    run.load("numbers")
    run.look("numbers")
    run.config("numbers", extra="version_policy { specific { versions: [ 7, 7, -1 ] } }")
    run.load("numbers")
    run.look("numbers")
    run.config("numbers", extra="version_policy { }")
    run.load("numbers")
    run.look("numbers")


def folder_is_deleted(run: Script) -> None:
    run.model("deleted")
    run.load("deleted")
    run.remove("deleted")
    run.index()
    run.look("deleted")
    run.load("deleted", differs=not_polled("deleted", ABSENT))
    run.look("deleted")
    run.unload("deleted")
    run.look("deleted")
    run.model("deleted", 2)
    run.load("deleted")
    run.look("deleted")


ABSENT = "model not found in any model repository"
NAMES = ("nope", "a%2Fb", "%2e%2e", "%20x", "a%5Cb", "a%00", "x" * 300, "...", "..my_model", "model..1", "$(id)", "-c")


def names_that_are_no_models(run: Script) -> None:
    for name in NAMES:
        run.load(name, differs=not_polled(name, ABSENT))
        run.unload(name)
    for path in ("models/a/", "models//load", "models/a/frob", "models/a", "models/a/load/x", ""):
        run.ask("POST", f"/v2/repository/{path}")
    run.ask("POST", "/v2/repository/here/models/a/load")
    run.ask("POST", "/v2/repository/here/models/a/unload")
    run.ask("GET", "/v2/repository/models/a/load")
    run.ask("PUT", "/v2/repository/models/a/unload")
    run.ask("GET", "/v2/repository/index")
    run.ask("POST", "/v2/repository/models//unload")


def bodies(run: Script) -> None:
    run.model("bodies")
    plain = (b"[]", b"null", b"1", b'"s"', b"{}", b'{"parameters":{}}', b'{"other":1}')
    wrong = (b"{", b"x", b" ", b"{}{}", b'{"parameters":null}', b'{"parameters":[]}', b'{"parameters":{"config":1}}')
    wrong += (b'{"parameters":{"x":"y"}}', b'{"parameters":{"file":"x"}}', b'{"parameters":{"FILE:x":"x"}}', b'{"parameters":{"x":{}}}')
    wrong += (b'{"parameters":{"unload_dependents":true}}', b'{"parameters":{"file:1/model.py":null}}', b'{"parameters":"x"}')
    for body in (*plain, *wrong):
        run.load("bodies", body)
    run.unload("bodies")
    for body in (*wrong, *plain):
        run.unload("bodies", body)
    for body in (b"{", b" ", b'{"ready":1}', b'{"ready":"x"}', b'{"ready":null}'):
        run.ask("POST", "/v2/repository/index", body)
    for body in (b"[]", b"null", b"1", b'{"x":1}', b'{"ready":false}', b'{"ready":true}'):
        run.index(body=body)


SCRIPTS = (
    load_and_unload,
    reload,
    instances_in_place,
    version_policy_in_place,
    versions_come_and_go,
    which_folders_are_versions,
    folder_is_deleted,
    names_that_are_no_models,
    bodies,
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_script(script: Play, outcomes: Outcomes) -> None:
    outcomes.check(script)
