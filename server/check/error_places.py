"""Which field of a configuration an error is about: the rules say it in words, this finds the place in the text.

The rules themselves are not repeated here. A text that nothing here knows is placed by the names that it quotes.
"""

from __future__ import annotations

import re
from typing import Any

from .config_lines import ConfigLines, Position

_TENSOR = re.compile(r"\b(input|output|tensor|state|control|state input|control tensor)(?: name)? '([^']*)'")
_MEMBERS = (
    (re.compile("reshape"), "reshape"),
    (re.compile("data_?type|data-type|data type"), "data_type"),
    (re.compile("^unexpected inference|unknown (?:source|target)"), "name"),
    (re.compile("allow_ragged_batch|ragged"), "allow_ragged_batch"),
    (re.compile("optional input"), "optional"),
    (re.compile("dim|shape"), "dims"),
)
"""What is wrong with a tensor, by the words of the text; the first that fits."""

_QUOTED = re.compile(r"'([^']*)'")
_GROUP = re.compile(r"^instance group (.*) of model ")
_STEP = re.compile(r"\bstep (\d+)\b")
_ENSEMBLE_TENSOR = re.compile(r"\bensemble tensor '?([^\s':]+)")
_UNMAPPED = re.compile(r"\bin model (\S+) is not mapped")
_MEMBER = re.compile(
    r"not available or ambiguous: (.*)$|\bdepends on '([^']*)'|it contains model (\S+) which|circular dependency .*-> (\S+) -> "
)

_CONTROL = re.compile(r"CONTROL_SEQUENCE_\w+")
_STATE_FILE = re.compile(r"/initial_state/(.+): No such file")

_WARMUP = re.compile("warmup|input_data_file|for model '|^expected ")
_WARMUP_FILE = re.compile(r"provided from (.+)only has|input_data_file '([^']+)'|/warmup/(.+): ")

_FIELDS = (
    ("^unexpected directory name", "name"),
    ("unable to find backend library|^unexpected backend name|^Ensemble model", "backend"),
    ("^unexpected platform type|'platform' and 'backend' pair", "platform"),
    ("'max_batch_size'|non-zero max_batch_size|allows maximum batch size", "max_batch_size"),
    ("version policy|^version -?\\d+ is specified", "version_policy"),
    ("^dynamic batching preferred", "dynamic_batching.preferred_batch_size"),
    ("^default priority level", "dynamic_batching.default_priority_level"),
    ("^priority queue policy", "dynamic_batching.priority_queue_policy"),
    ("^Only one priority level", "dynamic_batching.priority_levels"),
    ("^Queue policy can not have DELAY", "dynamic_batching.default_queue_policy"),
    ("^sequence batching preferred", "sequence_batching.oldest.preferred_batch_size"),
    ("minimum slot utilization", "sequence_batching.direct.minimum_slot_utilization"),
    ("^sequence batching (?:must|specif|control)|CONTROL_SEQUENCE", "sequence_batching.control_input"),
    ("initial_state|use_growable_memory|^State input", "sequence_batching.state"),
    ("^Response Cache", "response_cache"),
    ("^ensemble scheduling cannot|must specify 'step'", "ensemble_scheduling"),
    ("^ensemble scheduling must be set", "platform"),
    ("^instance group should not|'instance group's", "instance_group"),
    ("^optimization should not", "optimization"),
    ("^model_warmup can not|^warmup setting|warmup sample", "model_warmup"),
    ("^metric (?:control|identifier)|^histogram options", "model_metrics.metric_control"),
    ("^batch input", "batch_input"),
    ("^batch output", "batch_output"),
    ("configuration expects \\d+ inputs", "input"),
    ("^Cannot update scheduling choice", "dynamic_batching"),
)
"""Texts that are about one field, whatever else they name."""


def place_of(message: str, config: Any, lines: ConfigLines) -> Position | None:
    """Where in the text of a configuration the cause of an error's message stands; None where it is not about a field."""
    for path in _paths(message, config, lines):
        found = lines.find(path)
        if found is not None:
            return found
    return _quoted_value(message, config, lines)


def _paths(message: str, config: Any, lines: ConfigLines) -> list[str]:
    """The fields that the message may be about, the likeliest first."""
    for find in (_warmup, _parameter, _instance_group, _control, _state_file, _nameless, _ensemble, _tensor):
        paths = find(message, config, lines)
        if paths:
            return paths
    return [path for pattern, path in _FIELDS if re.search(pattern, message)]


def _warmup(message: str, config: Any, lines: ConfigLines) -> list[str]:
    """Texts about the samples of a warm-up, which name an input or a file."""
    if not config.model_warmup or not _WARMUP.search(message):
        return []
    file = _WARMUP_FILE.search(message)
    if file:
        name = next(group for group in file.groups() if group)
        return [entry.path for entry in lines.with_value(name) if entry.path.startswith("model_warmup")]
    tensor = _TENSOR.search(message)
    for number in range(len(config.model_warmup)) if tensor else ():
        path = lines.in_map(f"model_warmup[{number}].inputs", tensor[2] if tensor else "")
        if path.endswith("]"):
            return [f"{path}.value.dims" if lines.has(f"{path}.value.dims") else path]
    return ["model_warmup"]


def _parameter(message: str, config: Any, lines: ConfigLines) -> list[str]:
    # The longest first: a short one may be in the message by chance.
    names = sorted([name for name in config.parameters if name and name in message], key=len, reverse=True)
    if not names and re.search("EXECUTION_ENV_PATH|Python environment|^the Python of|canonical path|/bin/activate", message):
        names = ["EXECUTION_ENV_PATH"]
    return [lines.in_map("parameters", name) for name in names]


def _instance_group(message: str, config: Any, lines: ConfigLines) -> list[str]:
    match = _GROUP.search(message)
    for number, group in enumerate(config.instance_group):
        if match and group.name == match[1]:
            path = f"instance_group[{number}]"
            member = "profile" if "profile" in message else "gpus" if "GPU" in message and lines.has(f"{path}.gpus") else "kind"
            return [f"{path}.{member}"]
    return []


def _control(message: str, config: Any, lines: ConfigLines) -> list[str]:
    """Texts about the controls of a kind: the first that has it, or the last where there must not be several."""
    match = _CONTROL.search(message)
    kind = match[0] if match else ""
    paths = [
        f"sequence_batching.control_input[{number}]"
        for number, tensor in enumerate(config.sequence_batching.control_input)
        if any(type(control).Kind.Name(control.kind) == kind for control in tensor.control)
    ]
    return paths[-1:] if " multiple " in message else paths


def _state_file(message: str, config: Any, lines: ConfigLines) -> list[str]:
    """Texts about a file that an initial state is to come from."""
    match = _STATE_FILE.search(message)
    return [entry.path for entry in lines.with_value(match[1]) if ".initial_state" in entry.path] if match else []


def _nameless(message: str, config: Any, lines: ConfigLines) -> list[str]:
    """Messages about a tensor that do not say which."""
    tests = (
        ("^model (input|output) must specify 'name'", lambda tensor: not tensor.name, ""),
        ("NHWC/NCHW require", lambda tensor: bool(getattr(tensor, "format", 0)) and len(tensor.dims) != 3, ".format"),
        ("^shape tensors are only", lambda tensor: tensor.is_shape_tensor, ".is_shape_tensor"),
        ("^Non-linear IO", lambda tensor: tensor.is_non_linear_format_io, ".is_non_linear_format_io"),
    )
    for pattern, suspect, member in tests:
        match = re.search(pattern, message)
        if match:
            sections = match.groups() or ("input", "output")
            return [
                f"{section}[{number}]{member}"
                for section in sections
                for number, tensor in enumerate(getattr(config, section))
                if suspect(tensor)
            ]
    return []


def _ensemble(message: str, config: Any, lines: ConfigLines) -> list[str]:
    steps = config.ensemble_scheduling.step
    if not steps:
        return []
    at_step = _STEP.search(message)
    if at_step and int(at_step[1]) < len(steps):
        return [f"ensemble_scheduling.step[{int(at_step[1])}]"]
    unmapped = _UNMAPPED.search(message)
    member = _MEMBER.search(message)
    name = unmapped[1] if unmapped else next((group for group in member.groups() if group), "") if member else ""
    if name:
        paths = [f"ensemble_scheduling.step[{number}].model_name" for number, step in enumerate(steps) if step.model_name == name]
        if paths:
            return paths
    tensor = _ENSEMBLE_TENSOR.search(message)
    if tensor:
        # In the maps of the steps: that is where it meets the members' tensors, whose names are the keys.
        entries = [entry for entry in lines.with_value(tensor[1]) if re.search(r"_map\[\d+\]\.value", entry.path)]
        # Where it does not fit what is known of it, the last of them is what was looked at.
        if "inconsistent" in message:
            entries.reverse()
        return [entry.path for entry in entries[:1]]
    return []


def _tensor(message: str, config: Any, lines: ConfigLines) -> list[str]:
    match = _TENSOR.search(message)
    if match is None:
        return []
    path = _tensor_path(match[1], match[2], config)
    if not path:
        return []
    for pattern, member in _MEMBERS:
        if pattern.search(message.replace(match[0], "")) and lines.has(f"{path}.{member}"):
            return [f"{path}.{member}"]
    return [path]


def _tensor_path(what: str, name: str, config: Any) -> str:
    batching = config.sequence_batching
    states = [
        ("sequence_batching.state", batching.state, "input_name"),
        ("sequence_batching.control_input", batching.control_input, "name"),
    ]
    tensors = [("input", config.input, "name"), ("output", config.output, "name")]
    if what == "output":
        tensors.reverse()
    for section, entries, attribute in [*states, *tensors] if "state" in what or "control" in what else [*tensors, *states]:
        for number, tensor in enumerate(entries):
            if getattr(tensor, attribute) == name:
                return f"{section}[{number}]"
    return ""


def _quoted_value(message: str, config: Any, lines: ConfigLines) -> Position | None:
    """Where a name that the message quotes stands as a value."""
    for name in _QUOTED.findall(message):
        if name and name != config.name:
            for entry in lines.with_value(name):
                return entry.position
    return None
