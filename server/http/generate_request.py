"""Reads a request of the generate extension: a JSON object whose members are the model's inputs, or else parameters.

Source of the rules, their order and their texts: release 24.10 of the protocol's own server, asked case by case (tests/parity).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ...shm.arrays import np
from ...shm.datatypes import DATATYPES
from ...shm.placement import Inline
from ...workers.contract.json_writing import quote
from ...workers.contract.messages import Parameters, RequestBody, Tensor
from ...workers.contract.signature import Signature, TensorSpec
from ...workers.contract.status import StatusError, internal, invalid, label
from ..door.scratch import Scratch
from .infer_request import UNDECODABLE, check_datatype, clean, custom_parameter, numbers_byte_size, too_large
from .json_cutting import KEPT_BYTE_SIZE, measured
from .json_elements import Elements, read_elements
from .json_tensor import flat_numbers, flat_strings, misfit_of, string_content, string_tensor_bytes, tensor_bytes, wide_array
from .json_text import MAX_DEPTH, check_containers, no_member, parse, wrong_type
from .long_request import LONG_BYTE_SIZE, REST_BYTE_SIZE
from .turns import Steps

_NESTED = "parameters"
_OWN_DEPTH = 2
"""Levels that a request has around a tensor's data."""

_NOTHING = memoryview(b"")
_ABSENT: Any = object()
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_STRING = msgspec.json.Decoder(str)


@dataclass(slots=True)
class GenerateCall:
    """A request that has been read; ``id_text`` is its id as JSON, empty where it has none."""

    body: RequestBody
    id_text: bytes


def read_generate(text: bytes, signature: Signature, scratch: Scratch, max_input_size: int) -> GenerateCall:
    """Read a request; tensors too large to ride inside messages lie in ``scratch``. Raises StatusError."""
    if len(text) > max_input_size:
        raise too_large("request JSON size", len(text), max_input_size)
    check_containers(text)
    document = parse(text, MAX_DEPTH + _OWN_DEPTH)
    reading = _Reading(signature, scratch, max_input_size)
    if type(document) is not dict:
        raise internal("attempt to get members for non-object")
    reading.take_id(document.get("id", _ABSENT))
    names, nested_names = _names_given_twice(document, text, signature)
    for name, value in _members(document, names):
        if name == _NESTED:
            reading.take_nested(value, nested_names)
        else:
            reading.take(name, value)
    return reading.finished()


def read_long_generate(text: bytes, signature: Signature, scratch: Scratch, max_input_size: int) -> Steps[GenerateCall]:
    """Do what ``read_generate`` does, in steps. Documents of an unusual form are read in one, and must not be too long for that.

    Raises StatusError; of several faults perhaps another one, because each member is read for itself.
    """
    if len(text) > max_input_size:
        raise too_large("request JSON size", len(text), max_input_size)
    members = _raw_members(text)
    if members is None:
        _check_rest(len(text))
        return read_generate(text, signature, scratch, max_input_size)
    yield
    reading = _Reading(signature, scratch, max_input_size)
    reading.take_id(_parsed(members["id"]) if "id" in members else _ABSENT)
    for name, raw in members.items():
        if name != _NESTED:
            yield from _take_raw(reading, name, raw)
            continue
        nested = _raw_members(bytes(raw)) if len(memoryview(raw)) > LONG_BYTE_SIZE and _NESTED not in signature.inputs else None
        if nested is None:
            reading.take_nested(_parsed(raw))
            continue
        with _converting():
            for inner_name, inner in nested.items():
                yield from _take_raw(reading, inner_name, inner)
    return reading.finished()


def _take_raw(reading: _Reading, name: str, raw: msgspec.Raw) -> Steps[None]:
    """Read one member of a long document."""
    spec = reading.signature.inputs.get(name)
    view = memoryview(raw)
    if spec is not None and len(view) > LONG_BYTE_SIZE and view[0] == ord("[") and spec.datatype.name not in ("FP16", "BF16"):
        array = yield from measured(view, len(view), 0)
        if array is not None and array.brackets == 2:
            elements = _Gathered(name, spec.datatype.name, reading)
            yield from read_elements(view, array, elements)
            if elements.fault is not None:
                raise elements.fault
            reading.place(spec, elements.count, b"".join(elements.parts))
            return
    reading.take(name, _parsed(raw))
    yield


def _parsed(raw: msgspec.Raw) -> Any:
    text = bytes(raw)
    if len(text) > LONG_BYTE_SIZE:
        if text[:1] == b'"':
            with contextlib.suppress(*UNDECODABLE):
                return _STRING.decode(text)
        _check_rest(len(text))
        check_containers(text)
    return parse(text, MAX_DEPTH + _OWN_DEPTH)


def _check_rest(byte_size: int) -> None:
    if byte_size > REST_BYTE_SIZE:
        raise invalid(f"request JSON apart from the data of its tensors exceeds the maximum allowed size of {REST_BYTE_SIZE} bytes")


def _raw_members(text: bytes) -> dict[str, msgspec.Raw] | None:
    """An object's members as they are written; None where it is none, or may hold more than these: members given twice."""
    try:
        members = _MEMBERS.decode(text)
    except UNDECODABLE:
        return None
    if any(["\0" in name for name in members]):
        return None
    count = len(members)
    compact = sum([len(quote(name)) + len(memoryview(raw)) for name, raw in members.items()]) + 2 * count + (1 if count else 2)
    # No blanks at all, or one behind each colon and each comma.
    if len(text) - compact in (0, 2 * count - 1) or _are_all(members, text):
        return members
    return None


def _are_all(members: Mapping[str, msgspec.Raw], text: bytes) -> bool:
    """Are these members, of which the last counts where a name is given twice, all that an object has?"""
    rest: list[bytes] = []
    at = 0
    for raw in members.values():
        value = bytes(raw)
        if len(value) > KEPT_BYTE_SIZE:
            start = text.find(value, at)
            if start < 0:
                return False
            rest += (text[at:start], b"0")
            at = start + len(value)
    rest.append(text[at:])
    if sum(map(len, rest)) > REST_BYTE_SIZE:
        return False
    try:
        return len(json.loads(b"".join(rest).decode("utf-8", "surrogateescape"), object_pairs_hook=tuple)) == len(members)
    except (ValueError, RecursionError):
        return False


def _names_given_twice(document: Mapping[str, Any], text: bytes, signature: Signature) -> tuple[list[str] | None, list[str] | None]:
    """The names in a document and in its nested object, in order, where some input may be given twice, which a dict does not show."""
    nested = document.get(_NESTED)
    given = {*document, *nested} if type(nested) is dict else document
    if all([text.count(quote(name)) < 2 for name in given if name in signature.inputs]):
        return None, None
    try:
        pairs = json.loads(text.decode("utf-8", "surrogateescape"), object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None, None
    # Of objects with one name the first counts, each time.
    nested = next((value for name, value in pairs if name == _NESTED), ())
    return [name for name, _ in pairs], [name for name, _ in nested] if type(nested) is tuple else None


def _members(given: Mapping[str, Any], names: list[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Names as the original compares them, up to a zero byte, and what it finds by them."""
    for name in given if names is None else names:
        if "\0" in name:
            name = name.partition("\0")[0]
        yield name, given.get(name, _ABSENT)


@contextlib.contextmanager
def _converting() -> Iterator[None]:
    """Says of errors that they are within the nested parameters."""
    try:
        yield
    except StatusError as error:
        raise StatusError(error.code, f"Converting keyword: '{_NESTED}': {error.message}") from None


class _Reading:
    """One pass over a request: what has been read so far."""

    __slots__ = ("_byte_size", "_limit", "_names", "_parameters", "_request_id", "_scratch", "_tensors", "_text", "signature")

    def __init__(self, signature: Signature, scratch: Scratch, limit: int) -> None:
        self.signature = signature
        self._scratch = scratch
        self._limit = limit
        self._byte_size = 0
        self._request_id = ""
        self._text = b""
        self._names: set[str] = set()
        self._tensors: list[Tensor] = []
        self._parameters: Parameters = {}

    def take_id(self, value: Any) -> None:
        """Read the request's id, which like any other member is an input or a parameter besides."""
        if value is _ABSENT:
            return
        if type(value) is not str:
            raise internal(f"Unable to parse 'id': {wrong_type('string')}")
        text = value.partition("\0")[0]
        self._text = quote(text) if text else b""
        self._request_id = clean(text)

    def take_nested(self, value: Any, names: list[str] | None = None) -> None:
        """Read the nested object, whose members are as good as any; ``names`` are theirs where some may be there twice."""
        if _NESTED in self.signature.inputs:
            raise invalid(f"Keyword '{_NESTED}' for nested schema also given as input tensor name")
        if type(value) is not dict:
            reason = no_member(_NESTED) if value is _ABSENT else wrong_type("object")
            raise internal(f"Expected JSON object for keyword: '{_NESTED}': {reason}")
        with _converting():
            for name, inner in _members(value, names):
                self.take(name, inner)

    def take(self, name: str, value: Any) -> None:
        """Read a member: an input where the model has one of this name."""
        spec = self.signature.inputs.get(name)
        if spec is not None:
            if value is _ABSENT:
                raise invalid(f"unexpected key not found in generate request, expecting key '{name}'")
            self._take_input(spec, value)
        elif value is _ABSENT:
            raise internal(f"parameter key '{clean(name)}' was not found in the JSON")
        else:
            given = custom_parameter(name, value)
            self._parameters[clean(name)] = given.partition("\0")[0] if type(given) is str else given

    def _take_input(self, spec: TensorSpec, value: Any) -> None:
        """Read a tensor: one value, or an array with as many elements as the tensor, each of which may be in arrays of its own."""
        name, datatype = spec.name, spec.datatype.name
        values = value if type(value) is list else [value]
        shape = self._shape(spec, len(values))
        check_datatype(name, datatype)
        if datatype == "BYTES":
            content = string_tensor_bytes(values)
            self.check_size(name, len(content))
        else:
            self.check_size(name, numbers_byte_size(name, datatype, len(values)))
            content = tensor_bytes(values, datatype, len(values))
        self._add(spec, shape, content)

    def place(self, spec: TensorSpec, count: int, content: bytes) -> None:
        """Take a tensor of ``count`` elements that were read."""
        shape = self._shape(spec, count)
        self.check_size(spec.name, len(content))
        self._add(spec, shape, content)

    def _add(self, spec: TensorSpec, shape: tuple[int, ...], content: bytes) -> None:
        if spec.name in self._names:
            raise invalid(f"{label(self._request_id)}input '{spec.name}' already exists in request")
        self._names.add(spec.name)
        self._byte_size += len(content)
        place = self._scratch.place(content) if content else Inline(_NOTHING)
        self._tensors.append(Tensor(spec.name, spec.datatype.name, shape, place))

    def check_size(self, name: str, byte_size: int) -> None:
        """Refuse a tensor of ``byte_size`` bytes that would make the request larger than it may be. Raises StatusError INVALID_ARG."""
        total = self._byte_size + byte_size
        if total > self._limit:
            raise invalid(
                f"request size of {total} bytes with input '{name}' of size {byte_size} bytes exceeds the maximum allowed input size of "
                f"{self._limit}. Use --http-max-input-size to increase the limit."
            )

    def _shape(self, spec: TensorSpec, count: int) -> tuple[int, ...]:
        """The shape of ``count`` elements: the last variable dim, the batch's if there is no other, takes what the fixed ones leave."""
        shape = inferred_shape(spec.shape, count)
        if shape is None:
            raise invalid(f"The schema can not convert input '{spec.name}' to tensor with proper shape")
        return shape

    def finished(self) -> GenerateCall:
        """The whole request."""
        return GenerateCall(RequestBody(self._request_id, 1, self._tensors, [], self._parameters), self._text)


def inferred_shape(dims: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    """The shape of ``count`` elements in ``dims``, of which -1 varies: the last of these takes them all; None where none fits."""
    fixed = 1
    variable = -1
    for index, dim in enumerate(dims):
        if dim < 0:
            variable = index
        else:
            fixed *= dim
    quotient, rest = divmod(count, fixed) if fixed else (0, 1)
    if rest or (variable < 0 and quotient != 1):
        return None
    return tuple([quotient if index == variable else 1 if dim < 0 else dim for index, dim in enumerate(dims)])


class _Gathered(Elements):
    """The elements of a flat array, however many: ``count`` of them, as stored, in ``parts``."""

    def __init__(self, name: str, datatype: str, reading: _Reading) -> None:
        super().__init__()
        self.count = 0
        self.parts: list[bytes] = []
        self._byte_size = 0
        self._name = name
        self._datatype = datatype
        self._reading = reading

    def quick(self, text: bytes) -> bool:
        if self._datatype == "BYTES":
            strings = flat_strings(text)
            if strings is None:
                return False
            self._store(text.count(b'"') // 2, strings.tobytes())
            return True
        values = flat_numbers(b"[" + text + b"]", self._datatype)
        if not len(values):
            return False
        self._store_numbers(values)
        return True

    def take(self, values: list[Any]) -> None:
        if self.fault is not None:
            return
        try:
            if self._datatype == "BYTES":
                self._store(len(values), string_content(values))
            else:
                self.fault = misfit_of(values, self._datatype)
                if self.fault is None:
                    self._store_numbers(wide_array(values, self._datatype))
        except StatusError as error:
            self.fault = error

    def _store_numbers(self, values: np.ndarray[Any, Any]) -> None:
        with np.errstate(over="ignore"):
            self._store(len(values), values.astype(DATATYPES[self._datatype].dtype, copy=False).tobytes())

    def _store(self, count: int, content: bytes) -> None:
        self.count += count
        self._byte_size += len(content)
        self._reading.check_size(self._name, self._byte_size)
        self.parts.append(content)
