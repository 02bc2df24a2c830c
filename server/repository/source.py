"""Where models lie: a folder, or a place in the cloud that is copied to one.

Everything here blocks, so it is called in threads.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

Stamps = Mapping[str, Hashable]
"""The path of each file of a model, relative to the model, and a mark that changes whenever the file does.

A folder is there too, as ``1/``, with None.
"""


class Copy(Protocol):
    """The files of a model at one moment, on this machine."""

    @property
    def directory(self) -> Path:
        """The model's folder, with its configuration and its version folders."""

    def fill(self, versions: Sequence[int]) -> None:
        """Make the contents of these versions complete: until then their folders may have nothing but names. Raises StatusError."""

    def changed(self, version: int) -> bool:
        """Are the files of a version others than they were when the copy was made?"""

    def release(self) -> None:
        """Nobody uses it any more."""


class Source(Protocol):
    """A model repository, as it is named on the command line."""

    @property
    def name(self) -> str:
        """The name that the command line has for it."""

    def check(self) -> None:
        """Raises StatusError where it is no repository, or none that can be read."""

    def model_names(self) -> list[str]:
        """Its models, sorted. Raises StatusError where it cannot be read."""

    def stamps(self, model: str) -> Stamps | None:
        """The files of one of its models; None where there is no such model. Raises StatusError where it cannot be read."""

    def copy(self, model: str, stamps: Stamps) -> Copy:
        """The model's files, as ``stamps`` has them. Raises StatusError."""

    def stop(self) -> None:
        """End what is under way, soon: the server ends. Does not block."""

    def close(self) -> None:
        """Stop what is under way and remove all copies: nobody uses them any more."""
