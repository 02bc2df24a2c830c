"""Several requests in a row, sent first to one server and then to the other, with shared-memory objects between them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..wire import compact
from .case import Case, Difference, agree, seen

SHM = Path("/dev/shm")
KEYS = tuple(f"/tensorfarm-parity-{os.getpid()}-{letter}" for letter in "ab")
"""Keys of the two objects that every scenario finds, of ``OBJECT_BYTE_SIZE`` bytes each."""

OBJECT_BYTE_SIZE = 3 * 4096
CONTENT = bytes(range(256)) * (OBJECT_BYTE_SIZE // 256)
"""What both objects hold at the start of a scenario."""


@dataclass(frozen=True)
class Scenario:
    """Requests in order. After the last one the objects' contents are compared as well."""

    id: str
    steps: tuple[Case, ...]


def object_path(key: str) -> Path:
    """Where a key's object lies."""
    return SHM / key.lstrip("/")


def reset_objects() -> None:
    """Create both objects, or give them their first content back, in place."""
    for key in KEYS:
        descriptor = os.open(object_path(key), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, OBJECT_BYTE_SIZE)
            os.pwrite(descriptor, CONTENT, 0)
        finally:
            os.close(descriptor)


def remove_objects() -> None:
    """Unlink both objects."""
    for key in KEYS:
        object_path(key).unlink(missing_ok=True)


def system(verb: str, region: str | None = None, content: Any = None, method: str = "") -> Case:
    """A request to the system shared-memory endpoints."""
    return _memory("systemsharedmemory", verb, region, content, method)


def cuda(verb: str, region: str | None = None, content: Any = None, method: str = "") -> Case:
    """A request to the CUDA shared-memory endpoints."""
    return _memory("cudasharedmemory", verb, region, content, method)


def _memory(kind: str, verb: str, region: str | None, content: Any, method: str) -> Case:
    path = f"/v2/{kind}/{verb}" if region is None else f"/v2/{kind}/region/{region}/{verb}"
    body = b"" if content is None else content if isinstance(content, bytes) else compact(content)
    return Case(f"{verb} {region}", method or ("GET" if verb == "status" else "POST"), path, body)


def register(region: str, key: str = KEYS[0], offset: int = 0, byte_size: int = 4096) -> Case:
    """A well-formed registration, members as the stock client sends them."""
    return system("register", region, {"key": key, "offset": offset, "byte_size": byte_size})


def run(scenario: Scenario, port: int) -> list[Any]:
    """Run a scenario against the server at ``port``, clean its regions up and return all that is compared."""
    reset_objects()
    try:
        results: list[Any] = [seen(step, step.send(port)) for step in scenario.steps]
        return [*results, {key: object_path(key).read_bytes() for key in KEYS}]
    finally:
        assert system("unregister").send(port).status == 200
        assert cuda("unregister").send(port).status == 200


def check_scenario(scenario: Scenario, oracle: int, farm: int, differences: Mapping[str, Sequence[Difference]]) -> None:
    """Run a scenario against both servers and compare; listed differences are those of its last steps that differ, in order."""
    expected, got = run(scenario, oracle), run(scenario, farm)
    listed = list(differences.get(scenario.id, ()))
    for step, theirs, ours in zip(scenario.steps, expected, got, strict=False):
        if theirs != ours and listed:
            agree(step, ours, listed.pop(0))
        else:
            assert ours == theirs, f"at {step.method} {step.path}"
    assert not listed, f"the servers agree on {scenario.id}: take it off the list of differences"
    if scenario.id not in differences:
        assert got[-1] == expected[-1], "the objects' contents differ"
