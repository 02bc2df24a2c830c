"""The files of an ONNX model: all of them below the folder they belong to."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

from ..contract.status import StatusError, internal, invalid, unavailable
from .backend import ModelSource

DEFAULT_MODEL_FILENAME = "model.onnx"

_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "external": {1: "key", 2: "value"},
}
"""Field numbers of onnx.proto that lead to tensors, by the message they are in."""

_LENGTH_DELIMITED = 2


def model_file(source: ModelSource) -> str:
    """The real path of a version's model file.

    Raises UNAVAILABLE where there is none, INVALID_ARG where its name leads out of the version's folder.
    """
    name = source.config.default_model_filename or DEFAULT_MODEL_FILENAME
    folder = version_folder(source)
    path = below(folder, name)
    if path is not None and os.path.isdir(path):
        name = os.path.join(name, DEFAULT_MODEL_FILENAME)
        path = below(folder, name)
    if path is None:
        raise invalid(f"model file '{name}' leaves the folder of version {source.version} of model '{source.config.name}'")
    if not os.path.isfile(path):
        shown = os.path.join(os.path.basename(os.path.normpath(source.directory)), str(source.version), name)
        raise unavailable(f"unable to find '{shown}' for model instance '{source.config.name}'")
    return path


def version_folder(source: ModelSource) -> str:
    """The real path of a version's folder."""
    return os.path.realpath(os.path.join(source.directory, str(source.version)))


def operator_libraries(source: ModelSource) -> list[str]:
    """Real paths of the libraries of custom operators; their names count from the model's folder.

    Raises INVALID_ARG where one leads out of it, UNAVAILABLE where one is not there.
    """
    folder = os.path.realpath(source.directory)
    paths = []
    for name in source.config.model_operations.op_library_filename:
        path = below(folder, name)
        if path is None:
            raise invalid(f"operator library '{name}' leaves the folder of model '{source.config.name}'")
        if not os.path.isfile(path):
            raise unavailable(f"unable to find operator library '{name}' of model '{source.config.name}'")
        paths.append(path)
    return paths


def check_external_data(path: str, source: ModelSource) -> None:
    """Refuse a model some of whose weights would be read from outside its version's folder.

    ONNX Runtime opens whatever file a model names. Raises INVALID_ARG with the location, INTERNAL
    where the file is no ONNX model.
    """
    folder = version_folder(source)
    base = os.path.dirname(path)
    try:
        locations = _external_locations(path)
    except ValueError as error:
        raise not_a_model() from error
    for location in sorted(locations):
        try:
            text = location.decode()
            # An absolute name, or ONNX Runtime's own mark of an address in memory, is no file of the model's.
            real = None if os.path.isabs(text) or text.startswith("*/") else below(folder, os.path.join(base, text))
        except ValueError:
            text, real = repr(location[:200]), None
        if real is None:
            raise invalid(
                f"model '{source.config.name}' keeps weights at '{text[:200]}', which leaves the folder of its version {source.version}"
            )


def not_a_model() -> StatusError:
    """What ONNX Runtime says of a file that it cannot read."""
    return internal("onnx runtime error 7: Failed to load model because protobuf parsing failed.")


def below(folder: str, name: str, root: str = "") -> str | None:
    """The real path of ``name`` in ``folder``, or None where that is not below ``root``, or the folder itself; both are real paths."""
    if "\0" in name:
        return None
    real = os.path.realpath(os.path.join(folder, name))
    return real if real.startswith(os.path.join(root or folder, "")) else None


def _external_locations(path: str) -> set[bytes]:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return set()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            return _locations(view)


def _locations(view: memoryview) -> set[bytes]:
    locations: set[bytes] = set()
    stack: list[tuple[str, int, int]] = [("model", 0, len(view))]
    while stack:
        message, start, end = stack.pop()
        fields = _MESSAGES[message]
        key = value = b""
        for number, field_start, field_end in _length_delimited(view, start, end):
            inner = fields.get(number)
            if inner is None:
                continue
            if inner == "key":
                key = bytes(view[field_start:field_end])
            elif inner == "value":
                value = bytes(view[field_start:field_end])
            else:
                stack.append((inner, field_start, field_end))
        if message == "external" and key == b"location":
            locations.add(value)
    return locations


def _length_delimited(view: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number and bounds of each length-delimited field of a protobuf message. Raises ValueError where it is malformed."""
    while at < end:
        tag, at = _varint(view, at, end)
        if not tag:
            raise ValueError("a field without a number")
        wire_type = tag & 7
        if wire_type == _LENGTH_DELIMITED:
            length, at = _varint(view, at, end)
            if length > end - at:
                raise ValueError("a field is longer than its message")
            # Like protobuf's own reader, which keeps 32 bits of a tag.
            yield (tag & 0xFFFFFFFF) >> 3, at, at + length
            at += length
        elif wire_type == 0:
            _, at = _varint(view, at, end)
        elif wire_type in (1, 5):
            at += 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type}")
    if at > end:
        raise ValueError("a field is longer than its message")


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a varint without end")
