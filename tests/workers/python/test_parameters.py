from __future__ import annotations

import pytest

from tensorfarm.workers.python.errors import TritonModelException
from tensorfarm.workers.python.parameters import checked


def test_a_copy() -> None:
    given = {"a": True, "b": -(2**63), "c": ""}
    assert checked(given) == given and checked(given) is not given
    assert checked(None) == {} == checked({})


@pytest.mark.parametrize("given", ['{"a":1}', [("a", 1)], {1: 1}, {"a": 1.5}, {"a": None}, {"a": [1]}, {"a": 2**63}])
def test_what_parameters_cannot_be(given: object) -> None:
    with pytest.raises(TritonModelException, match=r"^Expect "):
        checked(given)
