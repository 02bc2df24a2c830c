"""What to do about an error, where that can be said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from ...workers.contract.configuration import ModelConfig

_NO_FIELD = re.compile(r'Message type "([\w.]+)" (?:has no field named|should not have multiple) "([^"]*)"')
_NO_VALUE = re.compile(r'Enum type "([\w.]+)" has no value (?:named|with number) "?([^"\s]*)"?')
_ALLOWED = re.compile(r"^unexpected inference \w+ '([^']*)', allowed \w+ are: (.*)$")
_EXPECTED_TYPE = re.compile(r"configuration expects datatype (\w+) for \S.* '.*', model provides (TYPE_\w+)")
_EXPECTED_SHAPE = re.compile(
    r"the model expects \d+ dimensions \(shape (\[[-\d,]*\])\).*specifies \d+ dimensions \((an initial batch dimension)?"
)
_MODEL_BATCHES = "the model's first dimension is fixed: set max_batch_size: 0, or export it with a variable first dimension"


def _renamed(match: re.Match[str]) -> str:
    return f"rename the folder to '{match[2]}', or write name: \"{match[1]}\""


def _state_file(match: re.Match[str]) -> str:
    return f"put the file into the model's folder initial_state as {match[1]}, or write zero_data: true"


_FIXED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    ("^unexpected directory name '(.*)' for model '(.*)', directory", _renamed),
    ("must specify 'data_type'", "e.g. data_type: TYPE_FP32"),
    ("must specify 'dims'", "e.g. dims: [ 3, -1 ], without the batch dimension where max_batch_size is above 0"),
    ("dimension must be integer >= 1", "a dimension of any size is -1"),
    ("at least one version must be available", "make a folder called 1 with the model file in it, or change version_policy"),
    ("unable to find backend library for backend '(tensorflow|pytorch|tensorrt|openvino)'", "export the model as ONNX"),
    ("unable to find backend library", "onnxruntime and python are built in; a backend written in Python needs its backend.py"),
    ("^Invalid model name: Could not determine backend", "put model.onnx or model.py into the version folder, or set backend"),
    ("^unexpected platform type", 'set backend: "onnxruntime" or backend: "python"'),
    ("model does not support batching while non-zero max_batch_size", _MODEL_BATCHES),
    ("for the model to support batching the shape should have", _MODEL_BATCHES),
    ("preferred (?:batch )?size must be <= max batch size", "raise max_batch_size, or leave the larger sizes out"),
    ("must stay within the model directory", "copy the file into the model's folder"),
    ("protobuf parsing failed", "the file is no ONNX model, or only part of one"),
    ("failed to open text file for read .*/initial_state/(.*): No such file", _state_file),
    ("failed to open text file for read .*: No such file", "write one, or leave --disable-auto-complete-config out"),
    ("unable to find '.*' for model instance", "copy the model file there, or name it with default_model_filename"),
    ("not available or ambiguous", "put the model into the repository, or mend the step's model_name"),
    ("model appears in two or more repositories", "rename one of them; --model-namespacing tells them apart"),
)


def hint_for(message: str) -> str:
    """A suggestion for an error's message; "" where there is none."""
    for find in (_field_hint, _value_hint, _tensor_hint, _type_hint, _shape_hint):
        hint = find(message)
        if hint:
            return hint
    for pattern, answer in _FIXED:
        match = re.search(pattern, message)
        if match:
            return answer if isinstance(answer, str) else answer(match)
    return ""


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    by_text = {candidate.lower().removeprefix("type_"): candidate for candidate in names}
    text = name.lower().removeprefix("type_")
    close = [by_text[found] for found in get_close_matches(text, by_text, 1 if text in by_text else 4, 0.6)]
    if not close:
        return ""
    *others, last = close
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"


def _described(full_name: str, kind: str) -> Any:
    pool = ModelConfig.DESCRIPTOR.file.pool
    try:
        return pool.FindEnumTypeByName(full_name) if kind == "enum" else pool.FindMessageTypeByName(full_name)
    except KeyError:
        return None


def _field_hint(message: str) -> str:
    match = _NO_FIELD.search(message)
    described = _described(match[1], "message") if match else None
    return _did_you_mean(match[2], [field.name for field in described.fields]) if match and described else ""


def _value_hint(message: str) -> str:
    match = _NO_VALUE.search(message)
    described = _described(match[1], "enum") if match else None
    if not match or not described:
        return ""
    return _did_you_mean(match[2], described.values_by_name) or f"it is one of {', '.join(described.values_by_name)}"


def _tensor_hint(message: str) -> str:
    match = _ALLOWED.search(message)
    return _did_you_mean(match[1], match[2].split(", ")) if match else ""


def _type_hint(message: str) -> str:
    match = _EXPECTED_TYPE.search(message)
    return f"write data_type: {match[2]}" if match else ""


def _shape_hint(message: str) -> str:
    match = _EXPECTED_SHAPE.search(message)
    if not match:
        return ""
    dims = [int(dim) for dim in re.findall(r"-?\d+", match[1])]
    if match[2]:
        dims = dims[1:]
        return f"write dims: {dims}: the batch dimension is left out, because max_batch_size is above 0" if dims else ""
    return f"write dims: {dims}: all dimensions, because max_batch_size is 0"
