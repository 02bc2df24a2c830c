"""Model configurations: the ModelConfig message, reading it from text and JSON, and printing it as JSON.

This is the only importer of ``model_config_pb2``.
Source: Triton's ``model_config.proto``, as generated code in the tritonclient package.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor

from ...shm.arrays import np
from .status import Code, StatusError

MAX_BYTE_SIZE = 16 << 20
"""Largest configuration text that is read: the text parser is slow, and real ones are a few KiB."""

_GENERATED = "tritonclient.grpc.model_config_pb2"


def generated_spec(name: str) -> importlib.machinery.ModuleSpec:
    """Where a generated module of the tritonclient package lies. Raises ModuleNotFoundError."""
    client = importlib.util.find_spec("tritonclient")
    folders = [f"{folder}/grpc" for folder in (client.submodule_search_locations or ())] if client else []
    spec = importlib.machinery.PathFinder.find_spec(name, folders)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return spec


def _generated_module() -> Any:
    """Load the generated module without running its package.

    ``tritonclient.grpc.__init__`` imports grpcio and the whole client (0.3 s and 20 MiB, in every
    worker); the generated file itself needs only protobuf. The module is kept out of ``sys.modules``:
    a sub-module there without its package would break ``import tritonclient.grpc.model_config_pb2``.
    Whoever imports the package later runs the file again, which protobuf expects: one descriptor pool,
    and for each descriptor in it one class, so that messages of both are the same.
    """
    if _GENERATED in sys.modules:
        return sys.modules[_GENERATED]
    spec = generated_spec(_GENERATED)
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


model_config = _generated_module()
"""The generated module: enums such as ``TYPE_FP32`` and every message class."""

ModelConfig: Any = model_config.ModelConfig
"""The ModelConfig message class."""


class ConfigurationError(StatusError):
    """A configuration that cannot be read.

    ``detail`` says what is wrong and where (``line:column: text``); it is for the log.
    """

    def __init__(self, code: Code, message: str, detail: str) -> None:
        super().__init__(code, message)
        self.detail = detail


def parse_text(text: str | bytes, source: str) -> Any:
    """Read a ``config.pbtxt``; ``source`` is the name of the file in messages.

    Raises ConfigurationError ``failed to read text proto from <source>`` whatever is wrong with the text.
    """
    config = ModelConfig()
    try:
        if len(text) > MAX_BYTE_SIZE:
            raise ValueError(f"longer than {MAX_BYTE_SIZE} bytes")
        text_format.Parse(text.decode() if isinstance(text, bytes) else text, config)
        _check_enums(config)
    # The parser reports syntax as ParseError, but lets what the conversions raise through.
    except (text_format.ParseError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigurationError(Code.INTERNAL, f"failed to read text proto from {source}", _detail(error)) from error
    return config


def parse_json(text: str | bytes) -> Any:
    """Read a configuration given as protobuf JSON (field names as in the proto file or in camelCase).

    Raises ConfigurationError ``Invalid config override: …``.
    """
    return _parsed_json(text, "Invalid config override")


def copied(config: Any) -> Any:
    """A configuration of its own with the same content."""
    copy = ModelConfig()
    copy.CopyFrom(config)
    return copy


def document(config: Any) -> bytes:
    """A configuration as it travels between the server and its workers: the JSON of ``config_json``."""
    return msgspec.json.encode(config_json(config))


def parse_document(text: bytes) -> Any:
    """Read what ``document`` has written, or a model has completed. Raises ConfigurationError."""
    return _parsed_json(text, "failed to parse the model configuration")


def _parsed_json(text: str | bytes, complaint: str) -> Any:
    from google.protobuf import json_format

    config = ModelConfig()
    try:
        if len(text) > MAX_BYTE_SIZE:
            raise ValueError(f"longer than {MAX_BYTE_SIZE} bytes")
        if not (text.lstrip().startswith(b"{") if isinstance(text, bytes) else text.lstrip().startswith("{")):
            raise ValueError("a configuration is a JSON object")
        json_format.Parse(text, config, max_recursion_depth=50)
        _check_enums(config)
    except (json_format.ParseError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigurationError(Code.INVALID_ARG, _cut(f"{complaint}: {error}"), _detail(error)) from error
    return config


def config_json(config: Any) -> dict[str, Any]:
    """A configuration as ``GET …/config`` prints it, as objects for a JSON encoder.

    Members have their names and order of the proto file, scalars of a oneof come last; unset scalars
    and lists are printed with their defaults, unset messages are left out. 64-bit integers are
    strings but for the fields in ``_NUMBERS``. Maps are sorted by key.
    """
    members: dict[str, Any] = {}
    late: dict[str, Any] = {}
    for field in config.DESCRIPTOR.fields:
        # A scalar has presence only inside a oneof here: proto3 without optional fields.
        if field.has_presence:
            if config.HasField(field.name):
                message = field.message_type is not None
                (members if message else late)[field.name] = _json_value(field, getattr(config, field.name))
        elif field.is_repeated:
            members[field.name] = _json_repeated(field, getattr(config, field.name))
        else:
            members[field.name] = _json_value(field, getattr(config, field.name))
    return members | late


_NUMBERS = frozenset(
    f"inference.{name}"
    for name in (
        "ModelInput.dims",
        "ModelOutput.dims",
        "ModelTensorReshape.shape",
        "ModelVersionPolicy.Specific.versions",
        "ModelDynamicBatching.max_queue_delay_microseconds",
        "ModelDynamicBatching.priority_levels",
        "ModelDynamicBatching.default_priority_level",
        "ModelQueuePolicy.default_timeout_microseconds",
        "ModelSequenceBatching.max_sequence_idle_microseconds",
        "ModelSequenceBatching.StrategyDirect.max_queue_delay_microseconds",
        "ModelSequenceBatching.StrategyOldest.max_queue_delay_microseconds",
        "ModelSequenceBatching.State.dims",
        "ModelEnsembling.Step.model_version",
        "ModelWarmup.Input.dims",
    )
)
_WIDE = frozenset(
    (
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_SINT64,
        FieldDescriptor.TYPE_FIXED64,
        FieldDescriptor.TYPE_SFIXED64,
    )
)


def _json_repeated(field: Any, values: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value_field = field.message_type.fields_by_name["value"]
        return {str(key): _json_value(value_field, values[key]) for key in sorted(values)}
    return [_json_value(field, value) for value in values]


def _json_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return config_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    if field.type in _WIDE and field.full_name not in _NUMBERS:
        return str(value)
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return _json_float(value, 6, 9, np.float32)
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return _json_float(value, 15, 17, np.float64)
    return value


def _json_float(value: float, digits: int, most: int, dtype: type[np.floating[Any]]) -> Any:
    """The number that the shortest usual text of a float reads as: 0.1f is 0.1, and 1.0 is 1."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    text = f"{value:.{digits}g}"
    if dtype(text) != dtype(value):
        text = f"{value:.{most}g}"
    return float(text) if "." in text or "e" in text else int(text)


def _check_enums(message: Any) -> None:
    """Refuse enum values that have no name: proto3 lets any number through, the rest of the farm does not."""
    for field, value in message.ListFields():
        if field.enum_type is not None:
            for number in value if field.is_repeated else (value,):
                if number not in field.enum_type.values_by_number:
                    raise ValueError(f"{field.full_name} has no value {number}")
        for child in _children(field, value):
            _check_enums(child)


def _children(field: Any, value: Any) -> Iterator[Any]:
    if field.message_type is None:
        return
    if field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].message_type is not None:
            yield from value.values()
    elif field.is_repeated:
        yield from value
    else:
        yield value


def _detail(error: Exception) -> str:
    if isinstance(error, text_format.ParseError) and error.GetLine() is not None:
        line, column = error.GetLine(), error.GetColumn()
        text = str(error).removeprefix(f"{line}:{column} : ").removeprefix(f"{line} : ")
        return _cut(f"Error parsing text-format inference.ModelConfig: {line}:{column or 1}: {text}")
    return _cut(f"Error parsing inference.ModelConfig: {error}")


def _cut(text: str) -> str:
    """The parsers quote the offending line, however long it is."""
    return text if len(text) <= 400 else text[:400] + "…"
