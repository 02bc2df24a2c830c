"""What a request is wrapped in: lengths, encodings, JSON syntax, ids and parameters, right and wrong."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import pytest

from ..wire import compact
from .case import Case, Difference, check, infer, tensor

GOOD = {"inputs": [tensor("INPUT0", "INT32", [3], [1, 2, 3])]}
GOOD_TEXT = compact(GOOD)
ONE = {"inputs": [tensor("INPUT0", "INT32", [1], binary_data_size=4)]}
HEADER = "Inference-Header-Content-Length"


def _identity(id: str, content: Any, binary: bytes | None = None, **headers: str) -> Case:
    return infer(id, "identity_int32", content, binary, {name.replace("_", "-"): value for name, value in headers.items()})


def _parameters(id: str, **parameters: Any) -> Case:
    return _identity(id, {"parameters": parameters, **GOOD})


def _parameters_text(id: str, text: str) -> Case:
    return _identity(id, b'{"parameters":' + text.encode() + b',"inputs":' + compact(GOOD["inputs"]) + b"}")


SYNTAX = [
    _identity("empty body", b""),
    _identity("blank body", b"   "),
    _identity("not json", b"hello"),
    _identity("open brace", b"{"),
    _identity("open bracket", b"["),
    _identity("closed early", b'{"inputs"}'),
    _identity("no name", b"{1:2}"),
    _identity("no colon", b'{"inputs" 1}'),
    _identity("no comma in object", b'{"id":"1" "inputs":[]}'),
    _identity("no comma in array", b'{"inputs":[1 2]}'),
    _identity("trailing comma in object", b'{"id":"1",}'),
    _identity("trailing comma in array", b'{"inputs":[1,]}'),
    _identity("trailing text", GOOD_TEXT + b"x"),
    _identity("two roots", GOOD_TEXT + b"{}"),
    _identity("trailing blanks", GOOD_TEXT + b" \r\n\t "),
    _identity("leading blanks", b" \r\n\t " + GOOD_TEXT),
    _identity("comment", b"/* x */" + GOOD_TEXT),
    _identity("byte order mark", b"\xef\xbb\xbf" + GOOD_TEXT),
    _identity("zero byte after", GOOD_TEXT + b"\0"),
    _identity("open string", b'{"id":"1'),
    _identity("bad escape", b'{"id":"\\x"}'),
    _identity("bad hex", b'{"id":"\\u12G4"}'),
    _identity("lone surrogate", b'{"id":"\\ud800"}'),
    _identity("wrong pair", b'{"id":"\\ud800\\u0041"}'),
    _identity("control character", b'{"id":"a\nb"}'),
    _identity("invalid utf-8 in id", b'{"id":"\xff","inputs":' + compact(GOOD["inputs"]) + b"}"),
    _identity("single quotes", b"{'id':'1'}"),
    _identity("no fraction", b'{"id":1.}'),
    _identity("no exponent", b'{"id":1e}'),
    _identity("too big a number", b'{"id":1e400}'),
    _identity("leading zero", b'{"id":01}'),
    _identity("plus sign", b'{"id":+1}'),
    _identity("lone minus", b'{"id":-}'),
    _identity("word", b'{"id":tru}'),
    _identity("capital word", b'{"id":True}'),
    _identity("root array", b"[]"),
    _identity("root string", b'"x"'),
    _identity("root number", b"1"),
    _identity("root null", b"null"),
    _identity("empty object", b"{}"),
    _identity("deep arrays", b'{"x":' + b"[" * 3000 + b"]" * 3000 + b',"inputs":' + compact(GOOD["inputs"]) + b"}"),
    _identity("escaped id", b'{"id":"a\\u00e9\\n\\/\\"\\\\","inputs":' + compact(GOOD["inputs"]) + b"}"),
    _identity("utf-8 id", '{"id":"é€😀","inputs":'.encode() + compact(GOOD["inputs"]) + b"}"),
    _identity("control character escape in id", b'{"id":"\\u0001\\u001f\\u007f\\b\\f\\t","inputs":' + compact(GOOD["inputs"]) + b"}"),
    _identity("duplicate id", b'{"id":"first","id":"second","inputs":' + compact(GOOD["inputs"]) + b"}"),
    _identity("duplicate inputs", b'{"inputs":' + compact(GOOD["inputs"]) + b',"inputs":[]}'),
    _identity("unknown members", {"x": [1, {"y": None}], **GOOD, "z": 1.5}),
    _identity("null character in id", b'{"id":"a\\u0000b","inputs":' + compact(GOOD["inputs"]) + b"}"),
]

MEMBERS = [
    _identity("no inputs", {"id": "1"}),
    _identity("inputs null", {"inputs": None}),
    _identity("inputs object", {"inputs": {}}),
    _identity("inputs string", {"inputs": "x"}),
    _identity("inputs empty", {"inputs": []}),
    _identity("id number", {"id": 7, **GOOD}),
    _identity("id null", {"id": None, **GOOD}),
    _identity("id object", {"id": {}, **GOOD}),
    _identity("id empty", {"id": "", **GOOD}),
    _identity("id plain", {"id": "my id", **GOOD}),
    _identity("parameters null", {"parameters": None, **GOOD}),
    _identity("parameters array", {"parameters": [], **GOOD}),
    _identity("parameters string", {"parameters": "x", **GOOD}),
    _identity("parameters empty", {"parameters": {}, **GOOD}),
    _identity("outputs null", {**GOOD, "outputs": None}),
    _identity("outputs object", {**GOOD, "outputs": {}}),
    _identity("outputs string", {**GOOD, "outputs": "OUTPUT0"}),
    _identity("outputs empty", {**GOOD, "outputs": []}),
    _identity("output is a string", {**GOOD, "outputs": ["OUTPUT0"]}),
    _identity("output without name", {**GOOD, "outputs": [{}]}),
    _identity("output name number", {**GOOD, "outputs": [{"name": 1}]}),
    _identity("output twice", {**GOOD, "outputs": [{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]}),
    _identity("output unknown", {**GOOD, "outputs": [{"name": "OUTPUTX"}]}),
    _identity("output unknown beside a known one", {"id": "7", **GOOD, "outputs": [{"name": "OUTPUT0"}, {"name": "OUTPUTX"}]}),
    _identity("output name empty", {**GOOD, "outputs": [{"name": ""}]}),
    _identity("output parameters array", {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": []}]}),
    _identity("output parameters null", {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": None}]}),
    _identity("output binary_data number", {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": 1}}]}),
    _identity("output binary_data string", {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": "true"}}]}),
    _identity("output binary_data null", {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": None}}]}),
    _identity("output classification string", {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"classification": "2"}}]}),
    _identity("output classification negative", {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"classification": -1}}]}),
    _identity("output classification float", {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 1.0}}]}),
    _identity("output parameter unknown", {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"what": [1]}}]}),
    _identity(
        "output region and classification",
        {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"shared_memory_region": "r", "classification": 1}}]},
    ),
    _identity(
        "output region and binary_data",
        {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"shared_memory_region": "r", "binary_data": True}}]},
    ),
    _identity(
        "output region and binary_data false",
        {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"shared_memory_region": "r", "binary_data": False}}]},
    ),
    _identity("output region number", {**GOOD, "outputs": [{"name": "OUTPUT0", "parameters": {"shared_memory_region": 1}}]}),
]

PARAMETERS = [
    _parameters("custom parameters", a="x", b=1, c=True, d=-5, e=1.5),
    _parameters("custom uint64", a=2**63),
    _parameters_text("custom too big an integer", '{"a":18446744073709551616}'),
    _parameters("custom null", a=None),
    _parameters("custom array", a=[1]),
    _parameters("custom object", a={"b": 1}),
    _parameters("reserved prefix", triton_x=1),
    _parameters("reserved prefix alone", triton_=1),
    _parameters("reserved word", triton_enable_empty_final_response=True),
    _parameters("headers", headers="x"),
    _parameters("empty key", **{"": 1}),
    _parameters("sequence_id number", sequence_id=5),
    _parameters("sequence_id string", sequence_id="five"),
    _parameters("sequence_id of 128", sequence_id="x" * 128),
    _parameters("sequence_id of 129", sequence_id="x" * 129),
    _parameters("sequence_id negative", sequence_id=-1),
    _parameters("sequence_id float", sequence_id=1.5),
    _parameters("sequence_id bool", sequence_id=True),
    _parameters("sequence_id null", sequence_id=None),
    _parameters("sequence_start bool", sequence_start=True),
    _parameters("sequence_start number", sequence_start=1),
    _parameters("sequence_end string", sequence_end="true"),
    _parameters("priority", priority=1),
    _parameters("priority huge", priority=2**64 - 1),
    _parameters("priority negative", priority=-1),
    _parameters("priority string", priority="1"),
    _parameters("priority float", priority=1.0),
    _parameters("timeout", timeout=10000000),
    _parameters("timeout negative", timeout=-1),
    _parameters("timeout string", timeout="1"),
    _parameters("timeout float", timeout=2.5),
    _parameters("binary_data_output", binary_data_output=True),
    _parameters("binary_data_output false", binary_data_output=False),
    _parameters("binary_data_output number", binary_data_output=1),
    _parameters("binary_data_output string", binary_data_output="true"),
    _parameters_text("duplicate parameter", '{"priority":1,"priority":"x"}'),
]

LENGTHS = [
    _identity("header length of the whole", GOOD, b""),
    _identity("header length beyond the body", GOOD, b"", Inference_Header_Content_Length=str(len(GOOD_TEXT) + 1)),
    _identity("header length negative", GOOD, b"", Inference_Header_Content_Length="-1"),
    _identity("header length word", GOOD, b"", Inference_Header_Content_Length="abc"),
    _identity("header length empty", GOOD, b"", Inference_Header_Content_Length=""),
    _identity("header length with a tail", GOOD, b"", Inference_Header_Content_Length=f"{len(GOOD_TEXT)}abc"),
    _identity("header length too big", GOOD, b"", Inference_Header_Content_Length="99999999999"),
    _identity("header length with plus", GOOD, b"", Inference_Header_Content_Length=f"+{len(GOOD_TEXT)}"),
    _identity("header length short", GOOD, b"", Inference_Header_Content_Length="5"),
    _identity("header length 1", GOOD, b"", Inference_Header_Content_Length="1"),
    _identity("binary without header", GOOD_TEXT[:-1].replace(b'"data":[1,2,3]', b'"parameters":{"binary_data_size":12}') + b"}", None),
    _identity("binary", ONE, b"\1\2\3\4"),
    _identity("binary too short", ONE, b"\1\2\3"),
    _identity("binary none", ONE, b""),
    _identity("binary too long", ONE, b"\1\2\3\4\5"),
    _identity("json with a tail", GOOD, b"\1\2\3\4"),
    _identity("binary size below the shape's", {"inputs": [tensor("INPUT0", "INT32", [1], binary_data_size=3)]}, b"\1\2\3"),
    _identity("binary size above the shape's", {"inputs": [tensor("INPUT0", "INT32", [1], binary_data_size=8)]}, b"12345678"),
    _identity("binary size negative", {"inputs": [tensor("INPUT0", "INT32", [1], binary_data_size=-4)]}, b"1234"),
    _identity("binary size string", {"inputs": [tensor("INPUT0", "INT32", [1], binary_data_size="4")]}, b"1234"),
    _identity("binary size float", {"inputs": [tensor("INPUT0", "INT32", [1], binary_data_size=4.0)]}, b"1234"),
    _identity("binary size zero", {"inputs": [tensor("INPUT0", "INT32", [0], binary_data_size=0)]}, b""),
    _identity("binary size huge", {"inputs": [tensor("INPUT0", "INT32", [1], binary_data_size=2**64 - 1)]}, b"1234"),
]

RAW = [
    infer("raw", "identity_int32", b"", b"\1\0\0\0\2\0\0\0"),
    infer("raw empty", "identity_int32", b"", b""),
    infer("raw of a broken size", "identity_int32", b"", b"\1\0\0"),
    infer("raw two inputs", "plain", b"", b"\0" * 64),
    infer("raw two variable dims", "matrix", b"", b"\0" * 64),
    infer("raw fixed", "fixed", b"", bytes(range(24))),
    infer("raw fixed short", "fixed", b"", bytes(range(20))),
    infer("raw batched", "batched_fp32", b"", b"\0" * 16),
    infer("raw bytes", "bytes_one", b"", b"hello"),
    infer("raw bytes empty", "bytes_one", b"", b""),
    infer("raw bytes of a variable shape", "identity_bytes", b"", b"hello"),
    infer("raw bytes batched", "batched_bytes", b"", b"hello"),
    infer("raw bool", "identity_bool", b"", b"\0\1\2"),
    infer("raw fp16", "identity_fp16", b"", b"\0\x3c"),
    infer("raw unknown model", "nosuch", b"", b"hello"),
]

GZIPPED = gzip.compress(GOOD_TEXT, mtime=0)
ENCODINGS = [
    _identity("gzip", GZIPPED, None, Content_Encoding="gzip"),
    _identity("deflate", zlib.compress(GOOD_TEXT), None, Content_Encoding="deflate"),
    _identity("gzip said to be deflate", GZIPPED, None, Content_Encoding="deflate"),
    _identity("deflate said to be gzip", zlib.compress(GOOD_TEXT), None, Content_Encoding="gzip"),
    _identity("identity encoding", GOOD_TEXT, None, Content_Encoding="identity"),
    _identity("empty encoding", GOOD_TEXT, None, Content_Encoding=""),
    _identity("capital encoding", GZIPPED, None, Content_Encoding="GZIP"),
    _identity("brotli", GOOD_TEXT, None, Content_Encoding="br"),
    _identity("two encodings", GZIPPED, None, Content_Encoding="gzip, identity"),
    _identity("gzip of nothing", b"", None, Content_Encoding="gzip"),
    _identity("gzip that is none", GOOD_TEXT, None, Content_Encoding="gzip"),
    _identity("gzip cut off", GZIPPED[:-12], None, Content_Encoding="gzip"),
    _identity(
        "gzip with a binary tail",
        gzip.compress(compact(ONE) + b"\1\2\3\4", mtime=0),
        None,
        Content_Encoding="gzip",
        Inference_Header_Content_Length=str(len(compact(ONE))),
    ),
    _identity(
        "gzip with a header length beyond the compressed size",
        gzip.compress(compact({"pad": " " * 4000, **GOOD}), mtime=0),
        None,
        Content_Encoding="gzip",
        Inference_Header_Content_Length=str(len(compact({"pad": " " * 4000, **GOOD}))),
    ),
    _identity("accept an unknown encoding", GOOD, None, Accept_Encoding="br"),
    _identity("accept identity", GOOD, None, Accept_Encoding="identity"),
    _identity("accept with weights for identity", GOOD, None, Accept_Encoding="gzip;q=0.2, identity;q=0.9"),
    _identity("accept nonsense", GOOD, None, Accept_Encoding=";;,=q"),
    _identity("accept gzip on an error", {"inputs": []}, None, Accept_Encoding="gzip"),
]

_NEWER = "newer releases check this header; 24.10 takes what looks like a number at its start"
_UNPARSABLE = "Unable to parse Inference-Header-Content-Length, "
DIFFERENCES: dict[str, Difference] = {
    "header length word": Difference(_NEWER, 400, _UNPARSABLE + "got: abc"),
    "header length empty": Difference(_NEWER, 400, _UNPARSABLE + "got: "),
    "header length with a tail": Difference(_NEWER, 400, f"{_UNPARSABLE}got: {len(GOOD_TEXT)}abc"),
    "header length with plus": Difference(_NEWER, 400, f"{_UNPARSABLE}got: +{len(GOOD_TEXT)}"),
    "header length too big": Difference(_NEWER, 400, _UNPARSABLE + "value is out of range [ -2147483648, 2147483647 ], got: 99999999999"),
    "gzip that is none": Difference(
        "24.10 takes a body that cannot be decompressed for an empty raw request", 400, "unable to decompress the request body"
    ),
    "output twice": Difference("newer releases refuse it", 400, "[request id: <id_unknown>] output 'OUTPUT0' already exists in request"),
    "deep arrays": Difference("nesting is bounded everywhere", 400, "JSON nesting depth exceeds maximum allowed limit (100)"),
    "null character in id": Difference("24.10 cuts the id there", 200),
}


def _table(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


@_table(SYNTAX + MEMBERS)
def test_json(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@_table(PARAMETERS)
def test_parameters(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@_table(LENGTHS)
def test_lengths(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@_table(RAW)
def test_raw(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@_table(ENCODINGS)
def test_encodings(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)
