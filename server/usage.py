"""The text of --help."""

from __future__ import annotations

import textwrap
from itertools import groupby

from .flag import Flag
from .option_table import FLAGS

PROGRAM = "tensorfarm"
_WIDTH = 80


def usage_text() -> str:
    """The list of all flags under their headings, 80 columns wide, ending in a newline."""
    blocks = [f"Usage: {PROGRAM} [options]\n       {PROGRAM} check DIR [DIR...] [options]"]
    for title, flags in groupby(FLAGS, key=lambda flag: flag.group):
        entries = "\n".join(_entry(flag) for flag in flags)
        blocks.append(f"{title}:\n{entries}" if title else entries)
    return "\n\n".join(blocks) + "\n"


def _entry(flag: Flag) -> str:
    head = f"  --{flag.name} {flag.metavar}".rstrip() + _note(flag)
    text = flag.help + _default(flag)
    # Defaults and arguments are not torn apart at the line's end.
    text = text.replace("Default: ", "Default:\0")
    lines = textwrap.wrap(text, _WIDTH - 8, break_on_hyphens=False, break_long_words=False)
    return "\n".join([head, *(f"        {line}" for line in lines)]).replace("\0", " ")


def _note(flag: Flag) -> str:
    if flag.built:
        return ""
    if flag.quiet:
        return f"  (only {' and '.join(_shown(value) for value in flag.quiet)} so far)"
    return "  (no effect yet)"


def _default(flag: Flag) -> str:
    """The table's own default, where it is one that can be typed."""
    if not flag.takes_value or flag.default is None or not isinstance(flag.default, bool | int | float | str) or flag.default == "":
        return ""
    return f" Default: {_shown(flag.default)}."


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
