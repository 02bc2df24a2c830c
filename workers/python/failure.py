"""How an exception of a model reads in errors and in the log: as the original's, which its users know."""

from __future__ import annotations

import concurrent.futures
import traceback
from itertools import dropwhile
from pathlib import Path

_OURS = str(Path(__file__).parent)
_IMPORTING = "<frozen importlib"
_WAITING = str(Path(concurrent.futures.__file__).parent)
"""Frames that wait for a coroutine's end, before those of a model begin."""


def failure_text(error: BaseException) -> str:
    """``<type>: <text>``, then file, line and function of each of the model's frames, the innermost first."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith((_OURS, _IMPORTING))]
    frames = list(dropwhile(lambda frame: frame.filename.startswith(_WAITING), frames))
    at = "".join([f"  {frame.filename}({frame.lineno}): {frame.name}\n" for frame in reversed(frames)])
    return sayable(f"{type(error).__name__}: {_text(error) or '<EMPTY MESSAGE>'}" + (f"\n\nAt:\n{at}" if at else ""))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001
        # An exception of a model's own class.
        return f"<its text cannot be made: {type(failure).__name__}>"


def sayable(text: str) -> str:
    """A text with escapes for what is no character, such as the bytes of a file's name that is not UTF-8."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()
