"""The tables the server prints at start: which backends, models, repository agents and options it came up with.

Pure functions from texts to text; a table ends in a newline and is meant for `Log.table`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence

from .options import Options

UNBOUNDED_COLUMNS = 500
"""How wide a table may grow where stdout is no terminal."""

_CONTROL = {code: f"\\u{code:04X}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029) if code != ord("\n")}


def terminal_columns() -> int:
    """The width of the terminal on stdout, or `UNBOUNDED_COLUMNS`."""
    try:
        return os.get_terminal_size(1).columns or UNBOUNDED_COLUMNS
    except OSError:
        return UNBOUNDED_COLUMNS


def grid(header: Sequence[str], rows: Iterable[Sequence[str]], columns: int = UNBOUNDED_COLUMNS) -> str:
    """An ASCII table no wider than ``columns`` characters, if at all possible.

    Cells are wrapped at their column's width and at newlines; control characters in them are shown as ``\\uXXXX``, so
    that a model's name or a reason cannot play with the terminal.
    """
    cells = [[cell.translate(_CONTROL).split("\n") for cell in row] for row in (header, *rows)]
    wanted = [max(len(line) for row in cells for line in row[column]) for column in range(len(header))]
    widths = _fair_widths(wanted, columns - 1 - 3 * len(header))
    rule = "+" + "".join("-" * (width + 2) + "+" for width in widths)
    first, *others = (_row(row, widths) for row in cells)
    return "\n".join([rule, *first, rule, *(line for row in others for line in row), rule, ""])


def _fair_widths(wanted: Sequence[int], budget: int) -> list[int]:
    """Every column gets an equal share; what narrow ones leave of theirs goes to the wide ones, again in equal shares."""
    if sum(wanted) <= budget:
        return list(wanted)
    widths = list(wanted)
    share = float(max(1, budget // len(wanted)))
    by_width = sorted(range(len(wanted)), key=lambda column: wanted[column])
    for place, column in enumerate(by_width):
        if wanted[column] <= share:
            if place + 1 < len(by_width):
                share += (share - wanted[column]) / (len(by_width) - place - 1)
        else:
            widths[column] = int(share)
    return widths


def _row(cells: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    wrapped = [
        [line[start : start + width] for line in lines for start in range(0, max(1, len(line)), width)] if width else [""]
        for lines, width in zip(cells, widths, strict=True)
    ]
    height = max(len(lines) for lines in wrapped)
    for lines in wrapped:
        lines.extend([""] * (height - len(lines)))
    return ["|" + "".join(f" {line:<{width}} |" for line, width in zip(row, widths, strict=True)) for row in zip(*wrapped, strict=True)]


def agent_table(agents: Iterable[tuple[str, str]], columns: int = UNBOUNDED_COLUMNS) -> str:
    """Repository agents: name and path."""
    return grid(("Repository Agent", "Path"), agents, columns)


def backend_table(backends: Iterable[tuple[str, str, Mapping[str, str]]], columns: int = UNBOUNDED_COLUMNS) -> str:
    """Backends: name, path and settings (as `options.backend_settings` gives them)."""
    rows = [(name, path, backend_configuration(settings)) for name, path, settings in backends]
    return grid(("Backend", "Path", "Config"), rows, columns)


def backend_configuration(settings: Mapping[str, str]) -> str:
    """A backend's settings as the JSON text of the backend table: ``{}`` or ``{"cmdline":{…}}``."""
    if not settings:
        return "{}"
    return json.dumps({"cmdline": dict(settings)}, separators=(",", ":"), ensure_ascii=False)


def model_table(models: Iterable[tuple[str, str, str]], columns: int = UNBOUNDED_COLUMNS) -> str:
    """Models: name, version and status.

    The status is ``READY``, ``UNAVAILABLE: <reason>`` …; a model without any version has "" for its version here, and
    the table says so in the status.
    """
    rows = [(name, version or "-", status if version else "Not loaded: No model version was found") for name, version, status in models]
    return grid(("Model", "Version", "Status"), rows, columns)


def option_table(rows: Iterable[tuple[str, str]], columns: int = UNBOUNDED_COLUMNS) -> str:
    """Options: name and value, as `option_rows` gives them."""
    return grid(("Option", "Value"), rows, columns)


def option_rows(options: Options, version: str, extensions: Sequence[str]) -> list[tuple[str, str]]:
    """The rows of the option table for a server of this version and these protocol extensions."""
    rows = [("server_id", options.id), ("server_version", version), ("server_extensions", " ".join(extensions))]
    rows += [(f"model_repository_path[{index}]", path) for index, path in enumerate(options.model_repository)]
    rows.append(("model_control_mode", f"MODE_{options.model_control_mode.upper()}"))
    rows += [(f"startup_models_{index}", name) for index, name in enumerate(options.load_model)]
    rows += [
        ("strict_model_config", _digit(options.disable_auto_complete_config)),
        ("model_config_name", options.model_config_name),
        ("rate_limit", {"off": "OFF", "execution_count": "EXEC_COUNT"}[options.rate_limit]),
    ]
    # The missing comma before "device" is tritonserver's.
    rows += [
        (f"rate_limit_resource[{index}]", f'{{"name":"{resource.name}", "count":{resource.count} "device":{resource.device}}}')
        for index, resource in enumerate(options.rate_limit_resource)
    ]
    rows.append(("pinned_memory_pool_byte_size", str(options.pinned_memory_pool_byte_size)))
    rows += [(f"cuda_memory_pool_byte_size{{{device}}}", str(size)) for device, size in sorted(options.cuda_memory_pool_byte_size.items())]
    rows += [
        ("min_supported_compute_capability", f"{options.min_supported_compute_capability:.1f}"),
        ("strict_readiness", _digit(options.strict_readiness)),
        ("exit_timeout", str(options.exit_timeout_secs)),
        ("cache_enabled", _digit(bool(options.cache_config))),
    ]
    return rows


def _digit(value: bool) -> str:
    return "1" if value else "0"
