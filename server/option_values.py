"""How the text given to a flag becomes a value, with the number rules of C++ ``std::sto*`` and tritonserver's error texts.

A reader is a function ``(text, current) -> value``: ``current`` is the flag's value so far (its default at the first
use), so that a repeatable flag can add to it. Readers never change ``current``. They raise `BadValue`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Reader = Callable[[str, Any], Any]

RESTRICTABLE_APIS = (
    "health",
    "metadata",
    "inference",
    "shared-memory",
    "model-config",
    "model-repository",
    "statistics",
    "trace",
    "logging",
)
TRACE_MODES = ("triton", "opentelemetry")
EVERY_DEVICE = -1
"""Device number of a rate limiter resource that was given without one."""


class BadValue(Exception):
    """A flag's value that cannot be used; ``str()`` is the explanation printed under ``Bad option: "--flag".``"""


class Setting(NamedTuple):
    """One ``[scope,]name=value`` of a flag that may be repeated. ``scope`` is "" where none was given."""

    scope: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Resource:
    """How many of a rate limiter resource a device has. ``device`` is `EVERY_DEVICE` where none was given."""

    name: str
    count: int
    device: int


_SPACE = "[ \\t\\n\\v\\f\\r]*"
_INTEGER = re.compile(_SPACE + "([+-]?[0-9]+)")
_REAL = re.compile(
    _SPACE
    + r"""(?:
        (?P<special>[+-]?(?:infinity|inf|nan))
      | (?P<hexadecimal>[+-]?0x(?:[0-9a-f]+\.?[0-9a-f]*|\.[0-9a-f]+)(?:p[+-]?[0-9]+)?)
      | (?P<decimal>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def _no_number(text: str) -> BadValue:
    return BadValue(f"Invalid option value. Got {text}\n")


def _out_of_bound(text: str) -> BadValue:
    return BadValue(f"Provided option value is out of bound. Got {text}\n")


def to_integer(text: str, bits: int = 32) -> int:
    """The leading decimal integer of ``text``, as ``stoi`` (32 bits) and ``stoll`` (64 bits) read it."""
    found = _INTEGER.match(text)
    if found is None:
        raise _no_number(text)
    value = _decimal(found[1], text)
    if not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        raise _out_of_bound(text)
    return value


def to_unsigned(text: str) -> int:
    """The leading unsigned 64-bit integer of ``text``, as ``stoull`` reads it: a minus sign wraps around."""
    found = _INTEGER.match(text)
    if found is None:
        raise _no_number(text)
    value = _decimal(found[1], text)
    if abs(value) >= 1 << 64:
        raise _out_of_bound(text)
    return value % (1 << 64)


def _decimal(digits: str, text: str) -> int:
    if len(digits) > 4000:  # int() itself refuses very long digit strings, with a ValueError
        raise _out_of_bound(text)
    return int(digits)


def to_real(text: str) -> float:
    """The leading floating point number of ``text``, as ``stod`` reads it: decimal, hexadecimal, inf or nan."""
    found = _REAL.match(text)
    if found is None:
        raise _no_number(text)
    if found["special"]:
        return float(found["special"])
    try:
        value = float.fromhex(found["hexadecimal"]) if found["hexadecimal"] else float(found["decimal"])
    except OverflowError:
        raise _out_of_bound(text) from None
    mantissa = re.split("[pP]" if found["hexadecimal"] else "[eE]", found["hexadecimal"] or found["decimal"])[0]
    underflow = abs(value) < sys.float_info.min and re.search("[1-9a-fA-F]", mantissa) is not None
    if abs(value) == float("inf") or underflow:
        raise _out_of_bound(text)
    return value


def boolean(text: str, current: Any) -> bool:
    """true/on/1 or false/off/0, in any case."""
    lowered = text.lower()
    if lowered in ("true", "on", "1"):
        return True
    if lowered in ("false", "off", "0"):
        return False
    raise BadValue(f"invalid value for bool option: {text}")


def integer(text: str, current: Any) -> int:
    """32 bits, signed."""
    return to_integer(text)


def wide_integer(text: str, current: Any) -> int:
    """64 bits, signed."""
    return to_integer(text, 64)


def real(text: str, current: Any) -> float:
    """A floating point number."""
    return to_real(text)


def string(text: str, current: Any) -> str:
    """The text as it is."""
    return text


def switch(text: str, current: Any) -> bool:
    """A flag that takes no value and stands for true."""
    return True


def verbosity(text: str, current: Any) -> int:
    """A level, or true/false for 1/0."""
    if text.lower() in ("true", "false"):
        return int(text.lower() == "true")
    return to_integer(text)


def at_least(least: int, read: Reader) -> Reader:
    """Numbers below ``least`` count as ``least``."""

    def bounded(text: str, current: Any) -> int:
        return max(least, int(read(text, current)))

    return bounded


def positive(flag: str, read: Reader) -> Reader:
    """Zero and below are refused."""

    def checked(text: str, current: Any) -> int:
        value = int(read(text, current))
        if value <= 0:
            raise BadValue(f"Error: --{flag} must be greater than 0.")
        return value

    return checked


def between(least: int, most: int, complaint: str) -> Reader:
    """Integers out of these bounds are refused with ``complaint``."""

    def checked(text: str, current: Any) -> int:
        value = to_integer(text)
        if not least <= value <= most:
            raise BadValue(complaint)
        return value

    return checked


def choice(values: tuple[str, ...], complaint: str, *, any_case: bool = True) -> Reader:
    """One of ``values``; in any case of letters and kept in lower case unless ``any_case`` is false."""

    def chosen(text: str, current: Any) -> str:
        value = text.lower() if any_case else text
        if value not in values:
            raise BadValue(complaint)
        return value

    return chosen


def filled(flag: str) -> Reader:
    """Any text but the empty one."""

    def checked(text: str, current: Any) -> str:
        if not text:
            raise BadValue(f"Error: empty argument for --{flag}")
        return text

    return checked


def names(text: str, current: tuple[str, ...]) -> tuple[str, ...]:
    """A sorted set of texts, one added at each use."""
    return tuple(sorted({*current, text}))


def _pair(text: str, delimiter: str) -> tuple[str, str]:
    first, found, second = text.partition(delimiter)
    if not found:
        raise BadValue(
            "Cannot parse pair option due to incorrect number of inputs."
            f"--<pair option> argument requires format <first>{delimiter}<second>. Found: {text}\n"
        )
    return first, second


def device_sizes(text: str, current: Mapping[int, int]) -> dict[int, int]:
    """``device:bytes``; a later use for the same device replaces the earlier one."""
    device, size = _pair(text, ":")
    return {**current, to_integer(device): to_unsigned(size)}


def device_fractions(text: str, current: Mapping[int, float]) -> dict[int, float]:
    """``device:fraction``."""
    device, fraction = _pair(text, ":")
    return {**current, to_integer(device): to_real(fraction)}


def model_limit(text: str, current: Mapping[str, int]) -> dict[str, int]:
    """``model:count`` or, for every model that is not named (kept under ""), ``count``. Zero and above."""
    model, _, count = text.rpartition(":")
    limit = to_integer(count)
    if limit < 0:
        raise BadValue(f"a limit cannot be negative. Got {text}")
    return {**current, model: limit}


def port_range(text: str, current: Any) -> tuple[int, int]:
    """``first-last``."""
    first, last = _pair(text, "-")
    return to_integer(first), to_integer(last)


def _scoped(text: str, flag: str, scope_name: str, delimiter: str) -> Setting:
    """``scope<delimiter>name=value``, all three filled."""
    scope, found, rest = text.partition(delimiter)
    name, equals, value = rest.partition("=")
    if not (found and scope and equals and name and value):
        raise BadValue(f"--{flag} option format is '<{scope_name}>{delimiter}<setting>=<value>'. Got {text}\n")
    return Setting(scope, name, value)


def _scoped_or_global(text: str, flag: str, scope_name: str, missing: str) -> Setting:
    """``scope,name=value`` or ``name=value``."""
    scope, comma, rest = text.partition(",")
    if comma and not scope:
        raise BadValue(f"{missing} --{flag} option format is <{scope_name}>,<setting>=<value> or <setting>=<value>. Got {text}\n")
    name, equals, value = (rest if comma else text).partition("=")
    if not (equals and name and value):
        raise BadValue(f"--{flag} option format is '<{scope_name}>,<setting>=<value>'. Got {text}\n")
    return Setting(scope if comma else "", name, value)


def _with(settings: Mapping[str, Mapping[str, str]], new: Setting) -> dict[str, dict[str, str]]:
    result = {scope: dict(values) for scope, values in settings.items()}
    result.setdefault(new.scope, {})[new.name] = new.value
    return result


def backend_setting(text: str, current: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """``backend,setting=value`` or, for all backends (kept under ""), ``setting=value``."""
    return _with(current, _scoped_or_global(text, "backend-config", "backend name", "No backend specified."))


def cache_setting(text: str, current: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """``cache,setting=value``."""
    cache, comma, _ = text.partition(",")
    if not (cache and comma):
        raise BadValue(f"No cache specified. --cache-config option format is <cache name>,<setting>=<value>. Got {text}\n")
    return _with(current, _scoped(text, "cache-config", "cache name", ","))


def host_policy(text: str, current: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """``policy,setting=value``; which settings exist is checked after all flags have been read."""
    return _with(current, _scoped(text, "host-policy", "policy name", ","))


def metrics_setting(text: str, current: Mapping[str, str]) -> dict[str, str]:
    """``setting=value``."""
    name, equals, value = text.partition("=")
    if not (equals and name and value) or "," in name:
        raise BadValue(f"--metrics-config option format is <setting>=<value>. Got {text}\n")
    return {**current, name: value}


def trace_setting(text: str, current: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """``mode,setting=value`` or ``setting=value``; the values are checked after all flags have been read."""
    mode, comma, _ = text.partition(",")
    scope = trace_mode(mode) if comma and mode else ""
    setting = _scoped_or_global(text, "trace-config", "trace mode", "No trace mode specified.")
    return (*current, setting._replace(scope=scope))


def trace_mode(text: str) -> str:
    """triton or opentelemetry, in any case; kept in lower case."""
    if text.lower() not in TRACE_MODES:
        raise BadValue(f'invalid value for trace mode option: {text}. Available options are "triton" and "opentelemetry"')
    return text.lower()


def trace_level(text: str) -> str:
    """OFF, TIMESTAMPS or TENSORS."""
    lowered = text.lower()
    if lowered in ("off", "false"):
        return "OFF"
    if lowered in ("on", "true", "min", "max", "timestamps"):
        return "TIMESTAMPS"
    if lowered == "tensors":
        return "TENSORS"
    raise BadValue(f"invalid value for trace level option: {lowered}")


def old_trace_setting(scope: str, name: str) -> Reader:
    """A trace flag from before --trace-config, kept as the setting it stands for."""

    def renamed(text: str, current: tuple[Setting, ...]) -> tuple[Setting, ...]:
        if name == "level":
            value = trace_level(text)
        elif name == "file":
            value = text
        else:
            value = str(to_integer(text))
        return (*current, Setting(scope, name, value))

    return renamed


def old_cache_size(text: str, current: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """A byte size, kept as the size of the cache named local."""
    return _with(current, Setting("local", "size", str(to_integer(text, 64))))


def rate_limit_resource(text: str, current: tuple[Resource, ...]) -> tuple[Resource, ...]:
    """``name:count`` or ``name:count:device``; of several for the same name and device the least counts, and below 0 is no limit."""
    parts = text.split(":")
    if len(parts) not in (2, 3):
        raise BadValue(
            f"--rate-limit-resource option format is '<resource_name>:<count>:<device>' or '<resource_name>:<count>'. Got {text}"
        )
    new = Resource(parts[0], to_integer(parts[1]), to_integer(parts[2]) if len(parts) == 3 else EVERY_DEVICE)
    counts = {(resource.name, resource.device): resource.count for resource in current}
    here = (new.name, new.device)
    # As in the original, where a count is unsigned.
    counts[here] = min(new.count, counts.get(here, new.count), key=lambda count: count % (1 << 64))
    return tuple(Resource(name, count, device) for (name, device), count in sorted(counts.items()))


def restricted(flag: str, noun: str) -> Reader:
    """``api[,api…]:key=value``, kept as a map from each API category to the (header key, value) it asks for."""

    def grouped(text: str, current: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
        setting = _scoped(text, flag, "config name", ":")
        result = dict(current)
        for category in setting.scope.split(","):
            if category not in RESTRICTABLE_APIS:
                raise BadValue(f"unknown restricted {noun} '{category}' \n")
            if category in result:
                raise BadValue(f"restricted {noun} '{category}' can not be specified in multiple config groups\n")
            result[category] = (setting.name, setting.value)
        return result

    return grouped
