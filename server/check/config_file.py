"""A model's configuration file: found, read, and what protobuf says of its text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...workers.contract.configuration import ConfigurationError, ModelConfig, parse_text
from ...workers.contract.status import StatusError
from ..repository.layout import find_config
from .config_lines import ConfigLines, Position, scan
from .error_places import place_of
from .files import Unreadable, present, read
from .findings import Findings
from .hints import hint_for

START = Position(1, 1)

_AT = re.compile(r"^(\d+):(\d+): (.*)$", re.DOTALL)
_QUOTED_LINE = re.compile(r"^'.*': (.+)$", re.DOTALL)
_NO_NAME = re.compile(r"^[\w.]*\.(\w+) has no value (-?\d+)$")
_PREFIX = re.compile(r"^Error parsing (?:text-format )?inference\.ModelConfig: ")


@dataclass(slots=True)
class ConfigFile:
    """The text of a configuration. ``path`` is None where the model has none: all of it is completed."""

    path: Path | None
    message: Any
    lines: ConfigLines

    def place(self, error: str, config: Any) -> Position | None:
        """Where the cause of an error's text stands; None where it is about no field of this text."""
        return None if self.path is None else place_of(error, config, self.lines)


def read_config_file(directory: Path, config_name: str, findings: Findings) -> ConfigFile | None:
    """Read the configuration of the model in ``directory``; None, and a finding, where it cannot be read."""
    path = find_config(directory, config_name)
    if path is None:
        path = directory / "config.pbtxt"
        if not present(path):
            return ConfigFile(None, ModelConfig(), ConfigLines([]))
    try:
        content = read(path)
    except Unreadable as error:
        findings.error(path, str(error))
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = len(content[content.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8", "replace")) + 1
        findings.error(path, f"not UTF-8: byte 0x{content[error.start]:02x}", Position(line, column), "save the file as UTF-8")
        return None
    try:
        message = parse_text(text, str(path))
    except ConfigurationError as error:
        _syntax_error(error, path, text, findings)
        return None
    return ConfigFile(path, message, scan(text))


def _syntax_error(error: ConfigurationError, path: Path, text: str, findings: Findings) -> None:
    said = _PREFIX.sub("", error.detail)
    at = _AT.match(said)
    if at:
        line = _QUOTED_LINE.match(at[3])
        message = line[1] if line else at[3]
        findings.error(path, message, Position(int(at[1]), int(at[2])), hint_for(message) or _syntax_hint(message))
        return
    place = START
    unnamed = _NO_NAME.match(said)
    if unnamed:
        entries = [entry for entry in scan(text).entries if entry.path.endswith(f"{unnamed[1]}[0]") and entry.value == unnamed[2]]
        place = entries[0].position if entries else START
    findings.error(path, said, place)


def _syntax_hint(message: str) -> str:
    if message.startswith("Expected identifier or number"):
        return "is a bracket not closed, or a field's name missing?"
    if "Expected string" in message:
        return "texts stand in quotes"
    return ""


def report_error(error: StatusError, config: Any, file: ConfigFile, findings: Findings, otherwise: Path) -> None:
    """Note an error of a rule at its field's place; ``otherwise`` is the file that it is about where it is about no field."""
    place = file.place(error.message, config)
    hint = hint_for(error.message)
    if place is not None and file.path is not None:
        findings.error(file.path, error.message, place, hint)
    elif file.path is not None and otherwise == file.path:
        findings.error(file.path, error.message, START, hint)
    else:
        findings.error(otherwise, error.message, hint=hint)
