"""Structs: immutable records that travel as msgpack arrays, in plain Python.

What this product uses of ``msgspec.Struct``: frozen, array-like, with or without an integer tag, with defaults; the
generated methods behave and fail as the original's do.
"""

from __future__ import annotations

import operator
import typing
from collections.abc import Callable, Sequence
from typing import Any

REQUIRED: Any = type("Required", (), {"__slots__": (), "__repr__": lambda self: "required"})()
"""Stands where a field has no default."""


class StructType(type):
    """The metaclass: turns a class's annotations into slots and remembers its layout.

    ``__struct_fields__`` are the names, ``struct_defaults`` has a default or REQUIRED for each, ``struct_tag`` the tag or
    None, ``struct_setters`` sets the slots of a new object and ``struct_values`` gets all of them.
    """

    __struct_fields__: tuple[str, ...]
    struct_defaults: tuple[Any, ...]
    struct_tag: int | None
    struct_setters: tuple[Callable[[Any, Any], None], ...]
    struct_values: Callable[[Any], tuple[Any, ...]]

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        frozen: bool = False,
        array_like: bool = False,
        tag: int | None = None,
        gc: bool = True,
    ) -> StructType:
        """Make a struct class. ``gc`` has no meaning here. Raises TypeError for what this stand-in does not do."""
        fields = tuple(namespace.get("__annotations__", ()))
        if bases:
            if not (frozen and array_like) or bases != (Struct,):
                raise TypeError(f"{name}: only frozen, array-like structs without a parent are possible here")
            if tag is not None and type(tag) is not int:
                raise TypeError(f"{name}: only integers are tags here")
        defaults = tuple(namespace.pop(field, REQUIRED) for field in fields)
        if any(type(default) in (list, dict, set) and default for default in defaults):
            raise TypeError(f"{name}: a default that can be changed must be empty")
        namespace["__slots__"] = fields
        namespace["__match_args__"] = fields
        made = super().__new__(mcs, name, bases, namespace)
        made.__struct_fields__ = fields
        made.struct_defaults = defaults
        made.struct_tag = tag
        made.struct_setters = tuple(vars(made)[field].__set__ for field in fields)
        made.struct_values = _getter(fields)
        return made

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> None:
        super().__init__(name, bases, namespace)


def _getter(fields: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(fields) > 1:
        return operator.attrgetter(*fields)
    if fields:
        get = operator.attrgetter(fields[0])
        return lambda struct: (get(struct),)
    return lambda struct: ()


class Struct(metaclass=StructType):
    """The base of all structs."""

    def __init__(self, *given: Any, **named: Any) -> None:
        values: Sequence[Any] = given
        setters = type(self).struct_setters
        if named or len(given) != len(setters):
            values = _completed(type(self), given, named)
        for set_field, value in zip(setters, values):  # noqa: B905 - as many as there are setters, and this is the hot line
            set_field(self, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"immutable type: '{type(self).__name__}'")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"immutable type: '{type(self).__name__}'")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        values = type(self).struct_values
        return values(self) == values(other)

    def __hash__(self) -> int:
        return hash((type(self), type(self).struct_values(self)))

    def __repr__(self) -> str:
        kind = type(self)
        pairs = zip(kind.__struct_fields__, kind.struct_values(self), strict=True)
        return f"{kind.__name__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"


def _completed(kind: StructType, values: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    """All fields of a new object, in order. Raises TypeError where they are too many or too few."""
    fields = kind.__struct_fields__
    if len(values) > len(fields):
        raise TypeError("Extra positional arguments provided")
    found = list(values)
    for field, default in zip(fields[len(values) :], kind.struct_defaults[len(values) :], strict=True):
        if field in named:
            found.append(named.pop(field))
        elif default is REQUIRED:
            raise TypeError(f"Missing required argument '{field}'")
        else:
            found.append(fresh(default))
    for name in named:
        if name in fields:
            raise TypeError(f"Argument '{name}' given by name and position")
        raise TypeError(f"Unexpected keyword argument '{name}'")
    return found


def fresh(default: Any) -> Any:
    """A default for one object: an empty list is a new one each time."""
    kind = type(default)
    return kind() if kind in (list, dict, set) else default


def field_types(kind: StructType) -> list[Any]:
    """The types of a struct's fields, in order."""
    hints = typing.get_type_hints(kind)
    return [hints[field] for field in kind.__struct_fields__]


def replace(struct: Any, /, **changes: Any) -> Any:
    """A copy of a struct with some fields changed. Raises TypeError for a field that it does not have."""
    kind = type(struct)
    values = dict(zip(kind.__struct_fields__, kind.struct_values(struct), strict=True))
    for name, value in changes.items():
        if name not in values:
            raise TypeError(f"`{kind.__name__}` has no field '{name}'")
        values[name] = value
    return kind(*values.values())
