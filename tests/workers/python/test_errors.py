from __future__ import annotations

from typing import Any

import pytest

from tensorfarm.workers.contract.status import Code, internal
from tensorfarm.workers.python.errors import TritonError, TritonModelException, refused

from .fake_host import FakeHost


def test_an_error_has_a_code_of_the_protocol() -> None:
    assert TritonError("x").code() == TritonError.INTERNAL == Code.INTERNAL
    assert TritonError("x", TritonError.NOT_FOUND).code() is Code.NOT_FOUND
    assert TritonError(message="text", code=TritonError.CANCELLED).message() == "text"
    assert {name: getattr(TritonError, name) for name in dir(TritonError) if name.isupper()} == {code.name: code for code in Code}


@pytest.mark.parametrize("arguments", [(5,), ("x", 3), ("x", "y"), ("x", None)])
def test_other_types(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="incompatible"):
        TritonError(*arguments)


def test_an_exception_can_be_raised_and_an_error_not() -> None:
    with pytest.raises(TritonModelException, match=r"^boo$"):
        raise TritonModelException("boo")
    assert not issubclass(TritonError, BaseException)


def test_what_the_server_refuses_names_the_instance(fake_host: FakeHost) -> None:
    fake_host.instance_name = "probe_0_0"
    assert str(refused("Failed", internal("no"))) == "Failed: Failed to process the request for model 'probe_0_0', message: no"
