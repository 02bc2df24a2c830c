"""The core checks of requests: which fault is reported, in which words, and what is left unchanged."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.shm.datatypes import DATATYPES, element_count, serialize_bytes
from tensorfarm.shm.placement import Inline, Lease, Placement, Span
from tensorfarm.workers.contract.messages import RequestBody, Tensor, WantedOutput
from tensorfarm.workers.contract.signature import Signature, TensorSpec
from tensorfarm.workers.contract.status import Code, StatusError
from tensorfarm.workers.contract.validation import label, validate

NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try "
    "setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)
PREFIX = "[request id: <id_unknown>] "


def spec(
    name: str, datatype: str, *dims: int, batching: bool = True, reshape: tuple[int, ...] | None = None, optional: bool = False
) -> TensorSpec:
    size = DATATYPES[datatype].byte_size
    item = element_count(dims) * size if size and -1 not in dims else -1
    return TensorSpec(name, DATATYPES[datatype], dims, (-1, *dims) if batching else dims, reshape, item, optional)


def signature(model: str, *inputs: TensorSpec, max_batch_size: int = 8) -> Signature:
    return Signature(model, max_batch_size, False, {tensor.name: tensor for tensor in inputs}, {"OUT": spec("OUT", "INT32", 16)})


SIMPLE = signature("simple", spec("A", "INT32", 16), spec("B", "INT32", 16))
OPTIONAL = signature("optional", spec("A", "FP32", 2), spec("B", "FP32", 2, optional=True), max_batch_size=4)
FLAT = signature("flat", spec("A", "FP32", -1, 2, batching=False), max_batch_size=0)
TEXT = signature("text", spec("A", "BYTES", 2), max_batch_size=4)


def tensor(name: str, datatype: str, shape: tuple[int, ...], content: bytes | int = 64) -> Tensor:
    return Tensor(name, datatype, shape, Inline(memoryview(bytes(content))))


def body(*inputs: Tensor, id: str = "", outputs: tuple[str, ...] = (), batch_size: int = 1) -> RequestBody:
    return RequestBody(id, batch_size, list(inputs), [WantedOutput(name) for name in outputs], {})


def a(shape: tuple[int, ...] = (1, 16), datatype: str = "INT32", content: bytes | int = 64) -> Tensor:
    return tensor("A", datatype, shape, content)


def b(shape: tuple[int, ...] = (1, 16), datatype: str = "INT32", content: bytes | int = 64) -> Tensor:
    return tensor("B", datatype, shape, content)


def message(model: Signature, request: RequestBody) -> str:
    with pytest.raises(StatusError) as caught:
        validate(model, request)
    assert caught.value.code is Code.INVALID_ARG
    return caught.value.message


def test_a_good_request_is_returned_as_it_is() -> None:
    request = body(a(), b(), outputs=("OUT",))
    assert validate(SIMPLE, request) is request


def test_order_of_inputs_is_kept() -> None:
    request = body(b(), a())
    assert [tensor.name for tensor in validate(SIMPLE, request).inputs] == ["B", "A"]


@pytest.mark.parametrize("size", [2, 8])
def test_batch_size_comes_from_the_shapes(size: int) -> None:
    request = body(a((size, 16), content=64 * size), b((size, 16), content=64 * size))
    assert validate(SIMPLE, request).batch_size == size


def test_models_that_do_not_batch_have_batch_size_one() -> None:
    assert validate(FLAT, body(tensor("A", "FP32", (3, 2), 24), batch_size=3)).batch_size == 1


def test_optional_inputs_may_be_absent() -> None:
    request = body(tensor("A", "FP32", (1, 2), 8))
    assert validate(OPTIONAL, request) is request


def test_reshape() -> None:
    model = signature("reshape", spec("A", "FP32", 2, -1, reshape=(-1, 1, 2)), max_batch_size=4)
    checked = validate(model, body(tensor("A", "FP32", (3, 2, 5), 120)))
    assert checked.inputs[0].shape == (3, 5, 1, 2)
    assert checked.batch_size == 3


FAULTS: list[tuple[str, Signature, RequestBody, str]] = [
    ("output", SIMPLE, body(a(), b(), outputs=("X",)), "unexpected inference output 'X' for model 'simple'"),
    (
        "output before input",
        SIMPLE,
        body(a(), tensor("Z", "INT32", (1, 16)), outputs=("X",)),
        "unexpected inference output 'X' for model 'simple'",
    ),
    ("input", SIMPLE, body(a(), tensor("Z", "INT32", (1, 16))), "unexpected inference input 'Z' for model 'simple'"),
    (
        "last unknown first",
        SIMPLE,
        body(tensor("Y", "INT32", (1,)), tensor("Z", "INT32", (1,))),
        "unexpected inference input 'Z' for model 'simple'",
    ),
    (
        "one missing",
        SIMPLE,
        body(a()),
        PREFIX + "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['A'], but missing required input(s) ['B']. "
        "Please provide all required input(s).",
    ),
    (
        "all missing",
        SIMPLE,
        body(),
        PREFIX + "expected 2 inputs but got 0 inputs for model 'simple'. Got input(s) [], but missing required input(s) ['A','B']. "
        "Please provide all required input(s).",
    ),
    (
        "one too many",
        SIMPLE,
        body(tensor("X", "INT32", (1, 16)), b(), a()),
        PREFIX + "expected 2 inputs but got 3 inputs for model 'simple'. Got input(s) ['A','B','X'], but missing required input(s) ]. "
        "Please provide all required input(s).",
    ),
    (
        "optional ones",
        OPTIONAL,
        body(),
        PREFIX + "expected number of inputs between 1 and 2 but got 0 inputs for model 'optional'. Got input(s) [], but missing required "
        "input(s) ['A']. Please provide all required input(s).",
    ),
    ("no shape", SIMPLE, body(a(()), b()), PREFIX + "input 'A' has no shape but model requires batch dimension for 'simple'"),
    (
        "batches differ",
        SIMPLE,
        body(a((2, 16), content=128), b()),
        PREFIX + "input 'A' batch size does not match other inputs for 'simple'",
    ),
    ("batch too big", SIMPLE, body(a((9, 16)), b((9, 16))), PREFIX + "inference request batch-size must be <= 8 for 'simple'"),
    ("batch huge", SIMPLE, body(a((2**63 - 1, 16)), b((2**63 - 1, 16))), PREFIX + "inference request batch-size must be <= 8 for 'simple'"),
    ("batch negative", SIMPLE, body(a((-1, 16)), b((-1, 16))), PREFIX + "inference request batch-size must be <= 8 for 'simple'"),
    (
        "batch of nought",
        SIMPLE,
        body(a((0, 16), content=0), b((0, 16), content=0)),
        PREFIX + "input byte size mismatch for input 'B' for model 'simple'. Expected 64, got 0",
    ),
    (
        "datatype",
        SIMPLE,
        body(a(datatype="FP32"), b()),
        PREFIX + "inference input 'A' data-type is 'FP32', but model 'simple' expects 'INT32'",
    ),
    (
        "invalid datatype",
        SIMPLE,
        body(a(datatype="<invalid>"), b()),
        PREFIX + "inference input 'A' data-type is '<invalid>', but model 'simple' expects 'INT32'",
    ),
    (
        "shape",
        SIMPLE,
        body(a((1, 8)), b()),
        PREFIX + "unexpected shape for input 'A' for model 'simple'. Expected [-1,16], got [1,8]. " + NOTE,
    ),
    (
        "rank",
        SIMPLE,
        body(a((1, 16, 1)), b()),
        PREFIX + "unexpected shape for input 'A' for model 'simple'. Expected [-1,16], got [1,16,1]. " + NOTE,
    ),
    (
        "shape, no batch",
        FLAT,
        body(tensor("A", "FP32", (3,), 12)),
        PREFIX + "unexpected shape for input 'A' for model 'flat'. Expected [-1,2], got [3]. ",
    ),
    (
        "wildcard",
        FLAT,
        body(tensor("A", "FP32", (-1, 2), 8)),
        PREFIX + "All input dimensions should be specified for input 'A' for model 'flat', got [-1,2]",
    ),
    ("negative dim", FLAT, body(tensor("A", "FP32", (-7, 2), 8)), PREFIX + "tensor 'A' contains an invalid dimension in shape [-7,2]"),
    (
        "too many elements",
        FLAT,
        body(tensor("A", "FP32", (2**62, 2), 8)),
        PREFIX + "element count for tensor 'A' exceeds maximum size of 9223372036854775807",
    ),
    (
        "too many bytes",
        FLAT,
        body(tensor("A", "FP32", (2**61, 2), 8)),
        PREFIX + "byte size for tensor 'A' exceeds maximum size of 9223372036854775807",
    ),
    (
        "byte size",
        SIMPLE,
        body(a(content=32), b()),
        PREFIX + "input byte size mismatch for input 'A' for model 'simple'. Expected 64, got 32",
    ),
    (
        "byte size before the shape of an earlier input",
        SIMPLE,
        body(a((1, 8)), b(content=5)),
        PREFIX + "input byte size mismatch for input 'B' for model 'simple'. Expected 64, got 5",
    ),
    (
        "with an id",
        SIMPLE,
        body(a(content=32), b(), id="7"),
        "[request id: 7] input byte size mismatch for input 'A' for model 'simple'. Expected 64, got 32",
    ),
]


@pytest.mark.parametrize(("model", "request_body", "text"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_faults(model: Signature, request_body: RequestBody, text: str) -> None:
    assert message(model, request_body) == text


def _length(*sizes: int) -> bytes:
    return b"".join(struct.pack("<I", size) + b"x" * size for size in sizes)


STRINGS: list[tuple[bytes, str]] = [
    (_length(1), PREFIX + "expected 2 string elements for inference input 'A' for model 'text', got 1"),
    (b"", PREFIX + "expected 2 string elements for inference input 'A' for model 'text', got 0"),
    (_length(1, 2, 3), PREFIX + "unexpected number of string elements 3 for inference input 'A' for model 'text', expecting 2"),
    (_length(1, 2, 3, 4, 5), PREFIX + "unexpected number of string elements 3 for inference input 'A' for model 'text', expecting 2"),
    (_length(1, 2) + b"\xff" * 4, PREFIX + "unexpected number of string elements 3 for inference input 'A' for model 'text', expecting 2"),
    (
        _length(1) + b"\1\0",
        PREFIX
        + "incomplete string length indicator for inference input 'A' for model 'text', expecting 4 bytes but only 2 bytes available. "
        "Please make sure the string length indicator is in one buffer.",
    ),
    (
        _length(1, 1) + b"x",
        PREFIX
        + "incomplete string length indicator for inference input 'A' for model 'text', expecting 4 bytes but only 1 bytes available. "
        "Please make sure the string length indicator is in one buffer.",
    ),
    (_length(1) + b"\5\0\0\0ab", "incomplete string data for inference input 'A', expecting string of length 5 but only 2 bytes available"),
    (b"\xff\xff\xff\xff", PREFIX + "expected 2 string elements for inference input 'A' for model 'text', got 1"),
]


@pytest.mark.parametrize(("content", "text"), STRINGS)
def test_string_faults(content: bytes, text: str) -> None:
    assert message(TEXT, body(tensor("A", "BYTES", (1, 2), content))) == text


@pytest.mark.parametrize(("shape", "content"), [((1, 2), _length(0, 0)), ((2, 2), _length(1, 2, 3, 4))])
def test_good_strings(shape: tuple[int, ...], content: bytes) -> None:
    assert validate(TEXT, body(tensor("A", "BYTES", shape, content))).batch_size == shape[0]


def _placed(place: Placement, datatype: str = "BYTES", shape: tuple[int, ...] = (1, 2)) -> RequestBody:
    return body(Tensor("A", datatype, shape, place))


def test_strings_in_the_arena_are_read() -> None:
    content = memoryview(_length(1))
    with pytest.raises(StatusError, match="expected 2 string elements"):
        validate(TEXT, _placed(Lease(0, 64, len(content))), lambda lease: content)


@pytest.mark.parametrize("place", [Span(1, 0, 3), Lease(2, 64, 3)], ids=["a client's region", "a worker's arena"])
def test_strings_elsewhere_are_not_read(place: Placement) -> None:
    def read(lease: Lease) -> memoryview:
        raise AssertionError("read")

    validate(TEXT, _placed(place), read)


def test_region_of_the_wrong_size() -> None:
    request = body(Tensor("A", "FP32", (1, 2), Span(1, 0, 7)))
    assert message(OPTIONAL, request) == PREFIX + "input byte size mismatch for input 'A' for model 'optional'. Expected 8, got 7"


def test_label() -> None:
    assert label("") == PREFIX
    assert label("x") == "[request id: x] "


_DIMS = st.integers(-2, 2**64)


@given(
    st.lists(
        st.tuples(st.sampled_from("ABZ"), st.sampled_from([*DATATYPES, "<invalid>"]), st.lists(_DIMS, max_size=3), st.binary(max_size=80)),
        max_size=3,
    )
)
def test_whatever_comes_is_refused_or_sound(inputs: list[Any]) -> None:
    for model in (SIMPLE, OPTIONAL, FLAT, TEXT):
        request = body(*(tensor(name, datatype, tuple(shape), content) for name, datatype, shape, content in inputs))
        try:
            checked = validate(model, request)
        except StatusError as error:
            assert error.code is Code.INVALID_ARG
            continue
        for given_tensor in checked.inputs:
            known = model.inputs[given_tensor.name]
            assert given_tensor.datatype == known.datatype.name
            if model.batching:
                assert given_tensor.shape[0] == checked.batch_size <= model.max_batch_size
            if known.datatype.byte_size:
                assert element_count(given_tensor.shape) * known.datatype.byte_size == given_tensor.place.byte_size


@given(st.lists(st.binary(max_size=9), min_size=2, max_size=2))
def test_serialised_strings_are_accepted(elements: list[bytes]) -> None:
    validate(TEXT, body(tensor("A", "BYTES", (1, 2), serialize_bytes(elements))))
