"""Reads an HTTP inference request: JSON with binary tensors behind it, or a raw tensor alone.

What ordinary clients send is read by one typed decode of the JSON part; binary tensors stay where the
connection received them. A JSON part that was seen before, byte for byte, is not decoded again: most
clients send the same one every time. Whatever that decode refuses, or may read otherwise than the protocol's
own server (members given twice, wrong types, NaN), is read again member by member, which finds the
exact error. Source of the order of checks and their texts: Triton's HTTP front end, see tests/parity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sized
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from ...shm.arrays import np
from ...shm.datatypes import DATATYPES, MAX_COUNT, shape_text
from ...shm.placement import Inline, Placement, Span
from ...workers.contract.json_writing import quote
from ...workers.contract.messages import Parameters, RequestBody, RequestContext, Tensor, WantedOutput
from ...workers.contract.signature import Signature
from ...workers.contract.status import StatusError, internal, invalid, label
from ...workers.contract.validation import batch_size_of
from ..dispatch.sequence_controls import END, START
from ..door.body import ArenaBody
from ..door.correlation import checked_correlation_id
from ..door.forwarding import forward
from ..door.scratch import Regions, Scratch
from .exchange import HttpRequest
from .infer_call import IN_BINARY, IN_JSON, IN_REGION, InferCall, InferSettings, OutputForm
from .infer_envelope import DECODER, Envelope, Input, InputParameters, OutputParameters
from .infer_plan import PLANNED_BYTE_SIZE, keep_plan
from .json_tensor import NUMBERS, REFUSED, flat_numbers, flat_strings, string_tensor_bytes, tensor_bytes
from .json_text import MAX_DEPTH, STEPWISE_BYTE_SIZE, check_containers, depth_error, no_member, parse, wrong_type
from .raw_request import read_raw

_MAX_UINT64 = 2**64 - 1
_FAULTY_COUNT = 1000
OWN_DEPTH = 3
"""Levels that a request has around a tensor's data."""


_FEW_ELEMENTS = 48
_FEW_STRINGS = 128
_DATA = msgspec.json.Decoder()
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError)


class Irregular(Exception):
    """The typed decode may have read something otherwise than it should: read it member by member."""


def too_large(what: str, byte_size: int, limit: int) -> StatusError:
    """The error of something that exceeds ``--http-max-input-size``."""
    return invalid(
        f"{what} of {byte_size} bytes exceeds the maximum allowed input size of {limit} bytes. "
        "Use --http-max-input-size to increase the limit."
    )


def read_request(
    request: HttpRequest,
    json_size: int,
    signature: Signature,
    regions: Regions,
    scratch: Scratch,
    settings: InferSettings,
) -> InferCall:
    """Read an inference request whose first ``json_size`` bytes are JSON; what it says is kept where that may come again.

    Binary inputs refer to the request's body and decoded ones to ``scratch``: both must be kept until
    the inference has ended. Raises StatusError.
    """
    view = request.body.view
    if not json_size:
        call = read_raw(request.body, signature, scratch, settings.max_input_size)
    else:
        if json_size > settings.max_input_size:
            raise too_large("request JSON size", json_size, settings.max_input_size)
        text = bytes(view[:json_size])
        if json_size > STEPWISE_BYTE_SIZE:
            check_containers(text)
        reading = Reading(request, json_size, len(view), signature, regions, scratch, settings)
        try:
            envelope = DECODER.decode(text)
            call = reading.typed(envelope, text)
            if json_size <= PLANNED_BYTE_SIZE and settings.forward is None:
                keep_plan(text, envelope, call, len(view))
        except StatusError as error:
            raise depth_error(text, error) from None
        except (Irregular, *UNDECODABLE):
            reading = Reading(request, json_size, len(view), signature, regions, scratch, settings)
            call = reading.document(parse(text, MAX_DEPTH + OWN_DEPTH))
    if settings.forward is not None:
        forward_headers(request, settings.forward, call.body.parameters)
    return call


_SPACED_MEMBER = re.compile(rb'"[ \t\n\r]+:')
"""A member with a blank before its colon, which counting those without would overlook."""


def is_regular(envelope: Envelope, text: bytes) -> bool:
    """Whether a JSON part holds no members but those that the typed decode has read from it."""
    members = 1
    if envelope.id is not UNSET:
        members += 1
    if envelope.parameters is not UNSET:
        members += 1 + len(envelope.parameters)
    for item in envelope.inputs:
        parameters = item.parameters
        members += 3
        if parameters is not UNSET:
            members += 1 + sum([field is not UNSET for field in msgspec.structs.astuple(parameters)])
        if item.data is not UNSET:
            members += 1 + bytes(item.data).count(b'":')
    if envelope.outputs is not UNSET:
        members += 1
        for output in envelope.outputs:
            wishes = output.parameters
            members += 1 if wishes is UNSET else 2 + sum([field is not UNSET for field in msgspec.structs.astuple(wishes)])
    return text.count(b'":') == members and not _SPACED_MEMBER.search(text)


class Reading:
    """One pass over a request: what has been read so far."""

    __slots__ = (
        "at",
        "call",
        "end",
        "flags",
        "names",
        "outputs",
        "parameters",
        "regions",
        "request",
        "request_id",
        "scratch",
        "sequence_id",
        "settings",
        "signature",
        "tensors",
    )

    def __init__(
        self,
        request: HttpRequest,
        start: int,
        end: int,
        signature: Signature,
        regions: Regions,
        scratch: Scratch,
        settings: InferSettings,
    ) -> None:
        self.request = request
        self.at = start
        self.end = end
        self.signature = signature
        self.regions = regions
        self.scratch = scratch
        self.settings = settings
        self.request_id = ""
        self.names: set[str] = set()
        self.tensors: list[Tensor] = []
        self.outputs: list[WantedOutput] = []
        self.parameters: Parameters = {}
        self.call = InferCall(_NO_BODY)
        self.sequence_id: int | str = 0
        self.flags = 0

    def typed(self, envelope: Envelope, text: bytes) -> InferCall:
        """Read what the typed decode gave. Raises Irregular where ``text`` may hold more than that, besides StatusError."""
        if not is_regular(envelope, text):
            raise Irregular
        if envelope.id is not UNSET:
            self.request_id = envelope.id
            self.call.id_text = quote(envelope.id) if envelope.id else b""
        if envelope.parameters is not UNSET:
            self.take_parameters(envelope.parameters)
        for item in envelope.inputs:
            self.take_input(item)
        self.end_inputs()
        for output in () if envelope.outputs is UNSET else envelope.outputs:
            self.take_output(output.name, output.parameters)
        return self.finished()

    def document(self, document: Any) -> InferCall:
        """Read a parsed document, whatever it may be. Raises StatusError."""
        members = document if type(document) is dict else {}
        if "id" in members:
            text = _string(members["id"], "id")
            self.call.id_text = quote(text) if text else b""
            self.request_id = clean(text)
        if "parameters" in members:
            if type(members["parameters"]) is not dict:
                raise internal("failed to get request params.: attempt to get members for non-object")
            self.take_parameters(members["parameters"])
        for item in _array(members, "inputs"):
            self.take_input(input_of(item))
        self.end_inputs()
        for item in _array(members, "outputs") if "outputs" in members else ():
            self.take_output(clean(_string(_member(item, "name"), "name")), _parameters_of(item, OutputParameters))
        return self.finished()

    def finished(self) -> InferCall:
        batch_size = batch_size_of(self.tensors, self.signature)
        timeout_us = self.call.timeout_us
        # The body's block is given back when the response has been released.
        lends = type(self.request.body) is ArenaBody
        context = None
        if timeout_us or self.sequence_id or self.flags or lends:
            context = RequestContext(self.sequence_id, self.flags, timeout_us, "", lends)
        self.call.body = RequestBody(self.request_id, batch_size, self.tensors, self.outputs, self.parameters, context)
        return self.call

    def take_parameters(self, given: Mapping[str, Any]) -> None:
        """Read the request's own parameters, in order."""
        call = self.call
        for name, value in given.items():
            if name == "binary_data_output":
                call.form = IN_BINARY if _boolean(value, name) else IN_JSON
            elif name == "sequence_id":
                if _is_unsigned(value):
                    self.sequence_id = value
                else:
                    self.sequence_id = checked_correlation_id(clean(_string(value, name)))
            elif name == "sequence_start":
                self.flags = (self.flags & ~START) | (START if _boolean(value, name) else 0)
            elif name == "sequence_end":
                self.flags = (self.flags & ~END) | (END if _boolean(value, name) else 0)
            elif name == "priority":
                call.priority = _unsigned(value, name)
            elif name == "timeout":
                call.timeout_us = _unsigned(value, name)
            elif name.startswith("triton_"):
                raise invalid("parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.")
            else:
                self.parameters[clean(name)] = custom_parameter(name, value)

    def take_input(self, item: Input) -> None:
        """Read one input, whose name, datatype and shape have the right types."""
        name = item.name
        shape = item.shape
        if name in self.names:
            raise invalid(f"{label(self.request_id)}input '{name}' already exists in request")
        self.names.add(name)
        _check_few("inputs", self.tensors, self.signature.inputs)
        parameters = item.parameters
        datatype = item.datatype if item.datatype in DATATYPES else "<invalid>"
        if parameters is UNSET:
            _check_source(item.data, UNSET, UNSET)
            place = self.decoded(item, datatype)
        else:
            size = parameters.binary_data_size
            if size is not UNSET and item.data is UNSET and parameters.shared_memory_region is UNSET:
                at = self.at
                stop = at + (size if type(size) is int and size >= 0 else _unsigned(size, "binary_data_size"))
                if stop > self.end:
                    raise invalid(
                        f"unexpected size for input '{name}', expecting {stop - self.end} additional bytes "
                        f"for model '{self.signature.model}'"
                    )
                self.at = stop
                place = self.request.body.place(at, stop) if stop > at else Inline(_NOTHING)
            else:
                _check_source(item.data, size, parameters.shared_memory_region)
                place = self.decoded(item, datatype) if item.data is not UNSET else self.span(parameters)
        self.tensors.append(Tensor(name, datatype, shape, place))

    def span(self, parameters: InputParameters | OutputParameters) -> Span:
        """The part of a region that parameters name."""
        region = clean(_string(parameters.shared_memory_region, "shared_memory_region"))
        offset = _unsigned(parameters.shared_memory_offset, "shared_memory_offset")
        byte_size = _unsigned(parameters.shared_memory_byte_size, "shared_memory_byte_size")
        return self.regions.span(region, offset, byte_size)

    def decoded(self, item: Input, datatype: str) -> Placement:
        """The bytes of a tensor that came as JSON."""
        name = item.name
        count = json_count(name, item.shape)
        if not count:
            return Inline(_NOTHING)
        if count >= _FEW_ELEMENTS and type(item.data) is msgspec.Raw:
            content = _plain_elements(item.data, datatype, count, self.settings.max_input_size)
            if content is not None:
                return self.scratch.place(content)
        data: Any = _DATA.decode(item.data) if type(item.data) is msgspec.Raw else item.data
        if type(data) is not list:
            raise internal(f"Unable to parse 'data': {wrong_type('array')}")
        check_datatype(name, datatype)
        limit = self.settings.max_input_size
        if datatype == "BYTES":
            content = string_tensor_bytes(data)
            byte_size = len(content)
        else:
            byte_size = numbers_byte_size(name, datatype, count)
            content = b"" if byte_size > limit else tensor_bytes(data, datatype, count)
        check_byte_size(name, byte_size, limit)
        return self.scratch.place(content)

    def end_inputs(self) -> None:
        """All inputs are read: nothing may be left."""
        if self.at != self.end:
            raise invalid(f"unexpected additional input data for model '{self.signature.model}'")

    def take_output(self, name: str, wishes: OutputParameters | UnsetType) -> None:
        """Read one output that the request lists."""
        forms: dict[str, OutputForm] = self.call.forms or {}  # type: ignore[assignment]
        form, span = (IN_JSON, None) if wishes is UNSET else self.form_of(wishes)
        if name in forms:
            raise invalid(f"{label(self.request_id)}output '{name}' already exists in request")
        _check_few("outputs", self.outputs, self.signature.outputs)
        forms[name] = form
        self.call.forms = forms
        self.outputs.append(WantedOutput(name, span))

    def form_of(self, wishes: OutputParameters) -> tuple[OutputForm, Span | None]:
        """How an output is to be answered, and where to."""
        in_region = wishes.shared_memory_region is not UNSET
        if in_region and wishes.classification is not UNSET:
            raise invalid("Output can't set both 'shared_memory_region' and 'classification'")
        classes = wishes.classification
        if classes is not UNSET and not _is_unsigned(classes):
            raise internal(f"Unable to set 'classification': {wrong_type('unsigned-integer')}")
        binary = wishes.binary_data
        if binary is not UNSET and type(binary) is not bool:
            raise internal(f"Unable to {'set' if in_region else 'parse'} 'binary_data': {wrong_type('boolean')}")
        if in_region:
            if binary is True:
                raise invalid("Output can't set both 'shared_memory_region' and 'binary_data'")
            return IN_REGION, self.span(wishes)
        if classes is not UNSET and classes:
            return OutputForm(binary is True, classes), None
        return IN_BINARY if binary is True else IN_JSON, None


_NOTHING = memoryview(b"")
_NO_BODY = RequestBody("", 1, [], [], {})


def clean(text: str) -> str:
    """Text fit for messages between processes: bytes that were not UTF-8 are replaced."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _check_few(what: str, given: Sized, known: Sized) -> None:
    """Refuse a list whose fault would only be told once all of it had been read, where that costs too much."""
    if len(given) > len(known) + _FAULTY_COUNT:
        raise invalid(f"request has far more {what} than the {len(known)} of the model")


def _check_source(data: Any, size: Any, region: Any) -> None:
    """An input's data must come from exactly one place."""
    sources = (("'data'", data), ("'binary_data_size'", size), ("'shared_memory_region'", region))
    given = [text for text, field in sources if field is not UNSET]
    if len(given) != 1:
        raise invalid(
            "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
            f"'shared_memory_region' in 'parameters'. But {'set ' + ' '.join(given) if given else 'no field is set'}"
        )


def _plain_elements(array: msgspec.Raw, datatype: str, count: int, limit: int) -> bytes | None:
    """The bytes of a flat array of elements that fit; None where it is anything else, or strings so few that this gains nothing."""
    try:
        if datatype == "BYTES":
            if count < _FEW_STRINGS:
                return None
            strings = flat_strings(bytes(array)[1:-1]) if bytes(array).startswith(b"[") else None
            return strings.tobytes() if strings is not None and len(strings) <= limit else None
        if datatype not in NUMBERS or count * DATATYPES[datatype].byte_size > limit:
            return None
        values = flat_numbers(bytes(array), datatype)
    except REFUSED:
        return None
    if len(values) != count:
        return None
    with np.errstate(over="ignore"):
        return values.astype(DATATYPES[datatype].dtype, copy=False).tobytes()


def check_datatype(name: str, datatype: str) -> None:
    """Refuse an input whose datatype has no JSON form, or is none. Raises StatusError INVALID_ARG."""
    if datatype in ("FP16", "BF16"):
        raise invalid(f"receiving {datatype} data via JSON is not supported. Please use the binary data format for input {name}")
    if datatype not in DATATYPES:
        raise invalid(f"invalid datatype for input {name}")


def numbers_byte_size(name: str, datatype: str, count: int) -> int:
    """How long ``count`` elements are. Raises StatusError INVALID_ARG where no size can say it."""
    item_size = DATATYPES[datatype].byte_size
    byte_size = count * item_size
    if byte_size > MAX_COUNT:
        raise invalid(
            f"byte size overflow for input '{name}': element count ({count}) * data type size ({item_size}) "
            f"exceeds maximum allowed size ({MAX_COUNT})"
        )
    return byte_size


def check_byte_size(name: str, byte_size: int, limit: int) -> None:
    """Refuse a tensor that came as JSON and is larger than a request may be. Raises StatusError INVALID_ARG."""
    if byte_size > limit:
        raise invalid(
            f"JSON input '{name}' has a byte_size ({byte_size} bytes) that exceeds the maximum allowed value of {limit} bytes. "
            "Use --http-max-input-size to increase the limit."
        )


def json_count(name: str, shape: tuple[int, ...]) -> int:
    """How many elements a JSON tensor must have."""
    if not shape:
        return 0
    count = 1
    for dim in shape:
        if dim < 0:
            raise invalid(f"invalid shape for input '{name}': shape {shape_text(shape)} contains one or more invalid dimensions")
        count *= dim
        if count > MAX_COUNT:
            raise invalid(
                f"invalid shape for input '{name}': shape {shape_text(shape)} causes total element count "
                f"to exceed maximum size of {MAX_COUNT}"
            )
    return count


# what the typed decode refuses: the same structs, from untyped values


def input_of(item: Any) -> Input:
    """An input of a parsed document. Its parameters and data may still be of any type."""
    parameters = _parameters_of(item, InputParameters)
    data = item.get("data", UNSET) if type(item) is dict else UNSET
    size, region = (UNSET, UNSET) if parameters is UNSET else (parameters.binary_data_size, parameters.shared_memory_region)
    _check_source(data, size, region)
    name = clean(_string(_member(item, "name"), "name"))
    datatype = _string(_member(item, "datatype"), "datatype")
    shape = [_unsigned(dim, "shape") for dim in _array(item, "shape")]
    # a dim beyond int64 becomes what its bits say
    return Input(name, datatype, tuple([dim - 2**64 if dim > MAX_COUNT else dim for dim in shape]), parameters, data)


_Given = TypeVar("_Given", InputParameters, OutputParameters)


def _parameters_of(item: Any, kind: type[_Given]) -> _Given | UnsetType:
    given = item.get("parameters") if type(item) is dict else None
    if type(given) is not dict:
        return UNSET
    return kind(**{name: given[name] for name in kind.__struct_fields__ if name in given})


def _member(value: Any, name: str) -> Any:
    return value.get(name, UNSET) if type(value) is dict else UNSET


def _array(value: Any, name: str) -> list[Any]:
    member = _member(value, name)
    if type(member) is not list:
        raise internal(f"Unable to parse '{name}': {no_member(name) if member is UNSET else wrong_type('array')}")
    return member


def _string(value: Any, name: str) -> str:
    if type(value) is not str:
        raise internal(f"Unable to parse '{name}': {no_member(name) if value is UNSET else wrong_type('string')}")
    return value


def _boolean(value: Any, name: str) -> bool:
    if type(value) is not bool:
        raise internal(f"Unable to parse '{name}': {wrong_type('boolean')}")
    return value


def _is_unsigned(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_UINT64


def _unsigned(value: Any, name: str) -> int:
    if value is UNSET:
        return 0
    if not _is_unsigned(value):
        raise internal(f"Unable to parse '{name}': {wrong_type('unsigned-integer')}")
    return int(value)


def custom_parameter(name: str, value: Any) -> str | int | float | bool:
    """A parameter that means nothing to us. Integers beyond int64 are doubles."""
    if type(value) is str:
        return clean(value)
    if type(value) is int:
        return value if -(2**63) <= value < 2**63 else float(value)
    if type(value) is bool or type(value) is float:
        return value
    raise invalid(f"parameter '{clean(name)}' has invalid type. It should be either 'int', 'bool', or 'string'.")


def forward_headers(request: HttpRequest, pattern: re.Pattern[str], parameters: Parameters) -> None:
    """Make a parameter of each header whose name matches. Raises StatusError INVALID_ARG for reserved names."""
    headers = request.head.headers
    names: Iterable[bytes] = request.head.original_names or [name for name, _ in headers]
    pairs = [(raw.decode("latin-1"), value.decode("utf-8", "replace")) for raw, (_, value) in zip(names, headers, strict=False)]
    forward(pairs, pattern, parameters)
