"""Importing a model's own files as they are now.

Python remembers compiled files by their size and the second of their last change. A model that is edited and loaded again within that
second, at the same size, would run as it was; so what lies in a model's folder is compiled anew, and no cache is left there.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from types import CodeType


class FreshSource(SourceFileLoader):
    """Compiles a source file whatever is remembered of it."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of a module."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def import_anew(directory: str) -> None:
    """Have everything below ``directory`` imported from its sources, in this process."""
    root = os.path.join(os.path.abspath(directory), "")

    def finder(path: str) -> FileFinder:
        if not os.path.join(os.path.abspath(path), "").startswith(root):
            raise ImportError("not a model's")
        return FileFinder(
            path, (ExtensionFileLoader, EXTENSION_SUFFIXES), (FreshSource, SOURCE_SUFFIXES), (SourcelessFileLoader, BYTECODE_SUFFIXES)
        )

    sys.path_hooks.insert(0, finder)
