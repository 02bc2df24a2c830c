"""What a model's new state means for the versions of it that serve: which load, which change in place, which go.

Source: the rules are Triton's (in-place updates, per-version comparison); where it compares the newest time of a folder, we compare
every file, so a file that is replaced by an older one is seen too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ...workers.contract.configuration import copied
from .shared_copy import SharedCopy
from .source import Stamps

CONFIGS = "configs/"
"""Where a model has configurations beside its own."""


@dataclass(frozen=True, slots=True, eq=False)
class Edition:
    """A model as its files, or a load request, have it at one moment.

    ``config`` has been read and filled in, and nothing has been completed by a backend yet; ``versions`` are those that its policy
    chooses, ascending. ``overridden``: a load request brought the configuration, and the files are the repository's. ``namespace`` is
    the name space that the model is in, "" where there are none.
    """

    name: str
    config: Any
    versions: tuple[int, ...]
    stamps: Stamps
    copy: SharedCopy
    overridden: bool = False
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """Version numbers: those that load anew, whose instances change, that stay as they are, that leave."""

    load: tuple[int, ...] = ()
    resize: tuple[int, ...] = ()
    keep: tuple[int, ...] = ()
    retire: tuple[int, ...] = ()


def change_of(old: Edition | None, serving: Collection[int], new: Edition, down: Collection[int] = ()) -> Change:
    """From what serves now to what a new edition asks for. ``old`` is the edition that the serving versions are of.

    Those of them that are ``down``, of which no instance lives, are loaded anew whether they have changed or not.
    """
    retire = tuple(sorted(set(serving) - set(new.versions)))
    if old is None:
        return Change(load=new.versions, retire=retire)
    same = _without_placement(old.config) == _without_placement(new.config) and _shared(old.stamps) == _shared(new.stamps)
    up = set(serving) - set(down)
    unchanged = tuple(
        version for version in new.versions if version in up and same and _own(old.stamps, version) == _own(new.stamps, version)
    )
    load = tuple(version for version in new.versions if version not in unchanged)
    if list(old.config.instance_group) == list(new.config.instance_group):
        return Change(load, (), unchanged, retire)
    return Change(load, unchanged, (), retire)


def files_changed(old: Stamps, new: Stamps, version: int) -> bool:
    """Has a version other files, its own or those of the whole model? Configurations do not count."""
    return _shared(old) != _shared(new) or _own(old, version) != _own(new, version)


def _without_placement(config: Any) -> Any:
    """A configuration but for what can be changed without loading anything."""
    rest = copied(config)
    rest.ClearField("instance_group")
    rest.ClearField("version_policy")
    return rest


def _own(stamps: Stamps, version: int) -> Mapping[str, object]:
    """The files of one version."""
    prefix = f"{version}/"
    return {path: stamp for path, stamp in stamps.items() if path.startswith(prefix)}


def _shared(stamps: Stamps) -> Mapping[str, object]:
    """The files that belong to all versions: labels, warm-up inputs. Configurations are compared by what they say instead."""
    return {
        path: stamp
        for path, stamp in stamps.items()
        if path != "config.pbtxt" and not path.startswith(CONFIGS) and not path.partition("/")[0].isdigit()
    }
