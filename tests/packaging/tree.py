"""The source tree as a packager sees it."""

from __future__ import annotations

import configparser
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COULD_NOT_DOWNLOAD = 75
"""Exit status of scripts that could not fetch the example models."""

Import = Callable[[str], Any]
ROOMS = ("server", "shm", "workers")


def product_files() -> list[Path]:
    """Every Python file of the product, relative to the checkout."""
    return sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def setup_cfg() -> configparser.ConfigParser:
    """setup.cfg, parsed."""
    parser = configparser.ConfigParser(inline_comment_prefixes=("#",))
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(section: str, option: str) -> list[str]:
    """A list value of setup.cfg, one entry a line."""
    return [line.strip() for line in setup_cfg()[section][option].splitlines() if line.strip()]


def distribution(requirement: str) -> str:
    """The normalised name of the distribution that a requirement asks for."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found.group()).lower()
