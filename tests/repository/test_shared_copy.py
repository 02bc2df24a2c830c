"""A copy is given back once, when its last user has gone."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.repository.folder import Folder
from tensorfarm.server.repository.shared_copy import SharedCopy
from tensorfarm.server.repository.source import Copy


@given(st.lists(st.booleans(), max_size=40))
def test_the_last_user_gives_it_back(steps: list[bool]) -> None:
    released: list[Copy] = []
    files = Folder(".").copy("m", {})
    copy = SharedCopy(files, released.append)
    assert copy.directory == Path("m")
    users = 1
    for one_more in steps:
        if one_more:
            assert copy.take() is copy
            users += 1
        elif users > 1:
            copy.drop()
            users -= 1
        assert released == []
    for _ in range(users):
        assert released == []
        copy.drop()
    assert released == [files]
