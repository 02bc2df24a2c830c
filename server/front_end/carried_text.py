"""Text that need not be text on its way through messages: names of files, and secrets, may be any bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

T = TypeVar("T")


def carried(value: T) -> T:
    """The value with every string in it as one character for each of its bytes, so that any message can carry it; ``meant`` undoes it."""
    return cast(T, _each(value, lambda text: text.encode("utf-8", "surrogateescape").decode("latin-1")))


def meant(value: T) -> T:
    """What was carried."""
    return cast(T, _each(value, lambda text: text.encode("latin-1").decode("utf-8", "surrogateescape")))


def _each(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{one.name: _each(getattr(value, one.name), change) for one in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {_each(key, change): _each(one, change) for key, one in value.items()}
    if isinstance(value, tuple):
        changed = [_each(one, change) for one in value]
        return type(value)._make(changed) if hasattr(value, "_make") else tuple(changed)
    return value
