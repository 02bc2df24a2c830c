"""What a check has to say."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from .config_lines import Position


class Severity(enum.StrEnum):
    """How bad it is: an error keeps a model from loading as it should, a note is only worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found. ``hint`` says what to do about it, "" where that cannot be said.

    ``line`` and ``column`` count from 1; None where the finding is about a file or folder as a whole. ``model`` is "" where
    it is about none.
    """

    severity: Severity
    path: str
    message: str
    model: str = ""
    line: int | None = None
    column: int | None = None
    hint: str = ""


class Findings:
    """The findings about one model, or about a repository (``model`` is "")."""

    def __init__(self, model: str = "") -> None:
        self.model = model
        self.all: list[Finding] = []

    def add(self, severity: Severity, path: Path | str, message: str, at: Position | None = None, hint: str = "") -> None:
        """Note something; the same thing at the same place is noted once."""
        line, column = (None, None) if at is None else (at.line, at.column)
        found = Finding(severity, str(path), message, self.model, line, column, hint)
        if found not in self.all:
            self.all.append(found)

    def error(self, path: Path | str, message: str, at: Position | None = None, hint: str = "") -> None:
        """Something keeps a model from loading, or from being what it should."""
        self.add(Severity.ERROR, path, message, at, hint)

    def warning(self, path: Path | str, message: str, at: Position | None = None, hint: str = "") -> None:
        """Something that is probably not meant."""
        self.add(Severity.WARNING, path, message, at, hint)

    def note(self, path: Path | str, message: str, at: Position | None = None, hint: str = "") -> None:
        """Something worth knowing."""
        self.add(Severity.NOTE, path, message, at, hint)

    @property
    def failed(self) -> bool:
        """Is there an error among them?"""
        return any(finding.severity is Severity.ERROR for finding in self.all)
