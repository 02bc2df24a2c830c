"""Repository agents: what a model's configuration asks to have done with its files before it is loaded. There is one: ``checksum``.

Source: Triton's checksum repository agent, for the parameters and the texts of its errors.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ...workers.contract.status import invalid, not_found, unsupported
from .layout import open_file, resolve_inside

CHECKSUM = "checksum"


def run_agents(config: Any, model_directory: Path, agent_directory: str) -> None:
    """Have every agent of a configuration look at a model's files. Raises StatusError where one refuses them, or is not known."""
    for agent in config.model_repository_agents.agents:
        if agent.name != CHECKSUM:
            library = f"libtritonrepoagent_{agent.name}.so"
            raise not_found(f"unable to find '{library}' for repo agent '{agent.name}', searched: {agent_directory}")
        for key, value in sorted(agent.parameters.items()):
            _check_sum(model_directory, key, value)


def _check_sum(model_directory: Path, key: str, expected: str) -> None:
    """Check one file; ``key`` is ``MD5:<path in the model's folder>``, ``expected`` the digest in hexadecimal digits."""
    algorithm, colon, path = key.partition(":")
    if not colon:
        raise invalid(f"failed to parse key: {key}")
    if algorithm.upper() != "MD5":
        raise unsupported(f"Unsupported checksum algorithm: {algorithm}")
    file = resolve_inside(model_directory, path, "checksum of file")
    try:
        with open_file(file) as content:
            digest = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise invalid(f"failed to open text file for read {path}: {error.strerror}") from error
    if digest != expected.lower():
        raise invalid(f"Mismatched MD5 hash for file {path}, expect: {expected}, got: {digest}")
