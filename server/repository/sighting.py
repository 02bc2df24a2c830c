"""Looking at a model in its repositories: everything here reads files, so it runs in threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...workers.contract.configuration import ConfigurationError, parse_json
from ...workers.contract.status import Code, StatusError, invalid
from ..options import Options
from .agents import run_agents
from .layout import NoVersion, chosen_versions, present_versions
from .override import Override
from .preparation import prepare_config, read_config
from .source import Copy, Source, Stamps

DUPLICATE = "model appears in two or more repositories"
"""What is told of a model that two repositories have."""

NOT_FOUND = "model not found in any model repository"

_LONGEST_NAME = 255
"""In bytes: no folder has a longer one."""


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """A model as it was found. ``warnings`` and ``errors`` are for the log; the rest is as an ``Edition`` has it."""

    name: str
    config: Any
    versions: tuple[int, ...]
    stamps: Stamps
    copy: Copy
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    overridden: bool = False
    namespace: str = ""


class Unreadable(StatusError):
    """A model's configuration cannot be had: nothing is known of it. The message says why, without the server's directories.

    ``log`` is what the log should have, ``stamps`` are the files that were looked at.
    """

    def __init__(self, message: str, log: str, stamps: Stamps | None = None) -> None:
        super().__init__(Code.INTERNAL, message)
        self.log = log
        self.stamps = stamps


class NotFound(Unreadable):
    """No repository has the model, or several have it."""


class NoVersions(StatusError):
    """A model has no version to load; ``stamps`` are its files, ``errors`` are for the log."""

    def __init__(self, error: StatusError, stamps: Stamps, errors: tuple[str, ...]) -> None:
        super().__init__(error.code, error.message)
        self.stamps = stamps
        self.errors = errors


def check_name(name: str) -> None:
    """Refuse what can be no model's name. Raises StatusError INVALID_ARG.

    Source: Triton's rule for load requests; NUL bytes and names longer than a folder's beside it.
    """
    trimmed = name.strip(" \t\n\v\f\r")
    if not trimmed:
        raise invalid("Model name cannot be empty. Please enter a valid name to deploy.")
    if trimmed == ".." or "/" in trimmed:
        raise invalid(f"invalid model name '{name}', model name must not contain path traversal characters")


def could_be_folder(name: str) -> bool:
    """Can a folder with a model have this name?"""
    return not name.startswith(".") and "\0" not in name and len(name.encode("utf-8", "surrogateescape")) <= _LONGEST_NAME


def look(name: str, sources: Sequence[Source], options: Options, override: Override | None = None, namespace: str = "") -> Sighting:
    """A model as its repository has it now, or as ``override`` wants it. Raises Unreadable, or NoVersions."""
    stamps: Stamps
    copy: Copy
    try:
        if override is not None and override.files:
            stamps, copy = override.stamps(), override.copy(name)
        else:
            stamps, copy = _find(name, sources)
    except NotFound:
        raise
    except StatusError as error:
        raise _unreadable(name, error) from error
    try:
        return _sighting(name, stamps, copy, options, override, namespace)
    except BaseException:
        copy.release()
        raise


def _find(name: str, sources: Sequence[Source]) -> tuple[Stamps, Copy]:
    if could_be_folder(name):
        found = [(source, stamps) for source in sources if (stamps := source.stamps(name)) is not None]
    else:
        found = []
    if len(found) != 1:
        why = NOT_FOUND if not found else DUPLICATE
        raise NotFound(why, f"failed to poll model '{name}': {why}.")
    source, stamps = found[0]
    return stamps, source.copy(name, stamps)


def _sighting(name: str, stamps: Stamps, copy: Copy, options: Options, override: Override | None, namespace: str) -> Sighting:
    complete = not options.disable_auto_complete_config
    directory = copy.directory
    try:
        if override is None:
            config = read_config(directory, name, config_name=options.model_config_name, auto_complete=complete)
        else:
            config = parse_json(override.config)
            prepare_config(config, directory, name, auto_complete=complete)
        present = present_versions(directory)
    except StatusError as error:
        raise _unreadable(name, error, stamps, str(directory)) from error
    try:
        chosen = chosen_versions(config, present.numbers)
    except NoVersion as error:
        raise NoVersions(error, stamps, error.notes) from error
    if config.HasField("model_repository_agents"):
        try:
            copy.fill(chosen.numbers)
            run_agents(config, directory, options.repoagent_directory)
        except StatusError as error:
            raise _unreadable(name, error, stamps, str(directory)) from error
    overridden = override is not None and not override.files
    return Sighting(name, config, chosen.numbers, stamps, copy, present.notes, chosen.notes, overridden, namespace)


def _unreadable(name: str, error: StatusError, stamps: Stamps | None = None, directory: str = "") -> Unreadable:
    detail = f" ({error.detail})" if isinstance(error, ConfigurationError) and error.detail not in error.message else ""
    said = error.message + detail
    shown = said.replace(directory, name) if directory else said
    return Unreadable(shown, f"Poll failed for model directory '{name}': {said}", stamps)
