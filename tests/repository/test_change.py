"""From what serves and what was found to what is loaded, changed, kept and retired."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.repository.change import Change, Edition, change_of
from tensorfarm.server.repository.folder import Folder
from tensorfarm.server.repository.shared_copy import SharedCopy
from tensorfarm.workers.contract.configuration import parse_text

FILES = {"config.pbtxt": 1, "labels.txt": 2, "1/": None, "1/model.py": 3, "2/": None, "2/model.py": 4, "2/data/": None, "2/data/x": 5}


def edition(config: str = "", versions: tuple[int, ...] = (1, 2), **stamps: Any) -> Edition:
    return Edition(
        "m", parse_text(f'name: "m" {config}', "x"), versions, FILES | stamps, SharedCopy(Folder(".").copy("m", {}), lambda copy: None)
    )


OLD = edition("instance_group { count: 1 }")


@pytest.mark.parametrize(
    ("new", "change"),
    [
        (edition("instance_group { count: 1 }"), Change(keep=(1, 2))),
        (edition("instance_group { count: 1 }", **{"config.pbtxt": 9, "configs/": None, "configs/x.pbtxt": 1}), Change(keep=(1, 2))),
        (edition("instance_group { count: 2 }"), Change(resize=(1, 2))),
        (edition(""), Change(resize=(1, 2))),
        (edition("instance_group { count: 1 } version_policy { all { } }"), Change(keep=(1, 2))),
        (edition("instance_group { count: 1 } max_batch_size: 4"), Change(load=(1, 2))),
        (edition("instance_group { count: 2 } max_batch_size: 4"), Change(load=(1, 2))),
        (edition("instance_group { count: 1 }", **{"labels.txt": 9}), Change(load=(1, 2))),
        (edition("instance_group { count: 1 }", **{"new": 1}), Change(load=(1, 2))),
        (edition("instance_group { count: 1 }", **{"2/data/x": 9}), Change(load=(2,), keep=(1,))),
        (edition("instance_group { count: 2 }", **{"2/data/x": 9}), Change(load=(2,), resize=(1,))),
        (edition("instance_group { count: 1 }", **{"22/model.py": 9}), Change(keep=(1, 2))),
        (edition("instance_group { count: 1 }", (2, 3)), Change(load=(3,), keep=(2,), retire=(1,))),
        (edition("max_batch_size: 1", (3,)), Change(load=(3,), retire=(1, 2))),
    ],
)
def test_what_becomes_of_two_versions_that_serve(new: Edition, change: Change) -> None:
    assert change_of(OLD, (1, 2), new) == change


def test_at_first_all_is_new() -> None:
    assert change_of(None, (), OLD) == Change(load=(1, 2))
    assert change_of(OLD, (), OLD) == Change(load=(1, 2))


def test_again_means_all_of_it() -> None:
    assert change_of(None, (1, 2, 3), OLD) == Change(load=(1, 2), retire=(3,))


def test_what_is_down_is_loaded_or_leaves() -> None:
    assert change_of(OLD, (1, 2), OLD, down=(2,)) == Change(load=(2,), keep=(1,))
    assert change_of(OLD, (1, 2, 3), OLD, down=(3,)) == Change(keep=(1, 2), retire=(3,))


@given(st.sets(st.integers(1, 4)), st.sets(st.integers(1, 4), min_size=1), st.sets(st.integers(1, 4)), st.integers(0, 2), st.booleans())
def test_every_version_has_one_fate(serving: set[int], wanted: set[int], down: set[int], count: int, touched: bool) -> None:
    new = edition(f"instance_group {{ count: {count} }}", tuple(sorted(wanted)), **({"1/model.py": 9} if touched else {}))
    change = change_of(OLD, serving, new, down & serving)
    fates = (*change.load, *change.resize, *change.keep, *change.retire)
    assert sorted(fates) == sorted(serving | wanted)
    assert set(change.retire) == serving - wanted
    assert (down & serving & wanted) <= set(change.load) and (wanted - serving) <= set(change.load)
    assert not (change.resize and change.keep)
