"""The repositories that the command line names."""

from __future__ import annotations

from collections.abc import Callable

from .cloud_address import is_cloud
from .folder import Folder
from .source import Source


def source_of(name: str, say: Callable[[str], None]) -> Source:
    """A repository by its name; ``say`` gets lines for the log, from any thread. Raises StatusError where the name makes no sense."""
    if not is_cloud(name):
        return Folder(name)
    # Hardly anybody has one, and its drivers take long to import.
    from .cloud import Cloud

    return Cloud(name, progress=say)
