"""Parameters of requests and responses, as models give them."""

from __future__ import annotations

from ..contract.messages import Parameters
from .errors import TritonModelException

_INT64 = range(-(2**63), 2**63)


def _is_text(value: str) -> bool:
    """Has it nothing but characters? Surrogates are none."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked(parameters: object) -> Parameters:
    """A copy of what a model gave as parameters; none is an empty dict.

    Raises TritonModelException unless it is a dict of str keys and bool, int (64 bits) and str values.
    """
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        # a name of the original's compiler, which is what clients see of it
        raise TritonModelException(f"Expect N8pybind114dictE, got {type(parameters)}")
    for key, value in parameters.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        if not isinstance(value, (bool, int, str)):
            raise TritonModelException(f"Expect parameters values to have type bool/int/str, found type {type(value)}")
        if isinstance(value, int) and value not in _INT64:
            raise TritonModelException(f"Expect parameters values of type int to have 64 bits, found {value}")
        if not _is_text(key) or isinstance(value, str) and not _is_text(value):
            raise TritonModelException("Expect parameters to be valid UTF-8")
    return dict(parameters)
