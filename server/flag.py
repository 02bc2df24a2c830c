"""What is known of one command-line flag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .option_values import Reader

BOOLEAN, INTEGER, FLOAT, STRING = "<boolean>", "<integer>", "<float>", "<string>"
SCOPED = "<<string>,<string>=<string>>"
RESTRICTION = "<<string>:<string>=<string>>"
PER_DEVICE = "<<integer>:<integer>>"
"""What flags take, as the usage text shows it."""

NOTHING: Mapping[Any, Any] = MappingProxyType({})
"""The default of a flag whose value is a mapping."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of the command line.

    ``default`` is the value before any use (None: unset, or found out after all flags have been read).
    ``built`` says whether the flag's function is in this release; an unbuilt flag is accepted and warned about, except
    with one of the values in ``quiet``, which ask for what the server does anyway.
    ``target`` is the flag whose option this one sets (itself, unless it is another name or a deprecated form).
    ``warning`` is printed to stderr at each use of a deprecated flag; ``{}`` in it becomes the value.
    """

    name: str
    metavar: str
    read: Reader
    default: Any
    help: str
    group: str
    built: bool
    quiet: tuple[Any, ...]
    target: str
    warning: str

    @property
    def attribute(self) -> str:
        """The name of the `Options` attribute that holds the value."""
        return self.target.replace("-", "_")

    @property
    def takes_value(self) -> bool:
        """Is it followed by a value?"""
        return bool(self.metavar)

    @property
    def own_option(self) -> bool:
        """Has it an `Options` attribute of its own?"""
        return self.target == self.name and self.name != "help"


class Group:
    """Makes the flags of one heading of the usage text."""

    def __init__(self, title: str, *, built: bool) -> None:
        self.title = title
        self.built = built
        self.flags: list[Flag] = []

    def add(
        self,
        name: str,
        metavar: str,
        reader: Reader,
        default: Any,
        text: str,
        *,
        built: bool | None = None,
        quiet: tuple[Any, ...] = (),
        target: str = "",
        warning: str = "",
    ) -> None:
        """Declare a flag: as `Flag`, with the group's ``built`` where none is given."""
        works = self.built if built is None else built
        self.flags.append(Flag(name, metavar, reader, default, text, self.title, works, quiet, target or name, warning))
