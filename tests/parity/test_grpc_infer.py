"""Unary inference: tensors in every form, what is refused and in which order, results, errors of models, and what is counted."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from ..model_repository import DATATYPES
from ..servers import wait_until
from ..wire import exchange
from .grpc_case import UNSET, Call, Differs, Pair, Script, Side, check, encoded, infer, output, request, said, send, tensor, unsigned

WORDS = list(range(16))
RAW = struct.pack("<16i", *WORDS)


def _sorted(response: Any) -> None:
    """In order of names: an ensemble's outputs come in the order in which the real server happens to get them."""
    pairs = sorted(zip(response.outputs, response.raw_output_contents, strict=True), key=lambda pair: pair[0].name)
    made = pb.ModelInferResponse(outputs=[one for one, _ in pairs], raw_output_contents=[content for _, content in pairs])
    response.ClearField("outputs")
    response.ClearField("raw_output_contents")
    response.MergeFrom(made)


def _plain(*, first: Any = None, second: Any = None, model: str = "plain", **more: Any) -> Call:
    """A request to the model of two inputs, both needed."""
    inputs = (
        tensor("INPUT0", "INT32", [16], int=WORDS) if first is None else first,
        tensor("INPUT1", "INT32", [16], int=WORDS) if second is None else second,
    )
    return infer(model, *(one for one in inputs if one), **more)


def _bare(name: str, shape: Sequence[int] = (16,), datatype: str = "INT32", **parameters: Any) -> Any:
    return tensor(name, datatype, shape, parameters)


def _twice(**more: Any) -> tuple[Call, Call]:
    """The same request without and with an id, which some texts begin with."""
    return _plain(**more), _plain(id="q", **more)


def _one(name: str, datatype: str, shape: Sequence[int], raw: Sequence[bytes] = (), **contents: Any) -> Call:
    return infer("typed", tensor(name, datatype, shape, **contents), raw=raw, outputs=[f"{name}_OUT"])


def _strings(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


LISTS: Mapping[str, Sequence[Any]] = {
    "bool": [True],
    "int": [1],
    "int64": [1],
    "uint": [1],
    "uint64": [1],
    "fp32": [1.0],
    "fp64": [1.0],
    "bytes": [b"a"],
}
"""Each typed list with one element, in order of their numbers."""


def _every_list(datatype: str) -> Script:
    return tuple(_one(datatype, datatype, [1] if datatype != "FP32" else [1, 1], **{kind: values}) for kind, values in LISTS.items())


GOOD: dict[str, Script] = {
    "typed contents": (_plain(), _plain(id="r1"), _plain(version="1"), _plain(version="1x", id="ü € 🙂")),
    "raw contents": (_plain(first=_bare("INPUT0"), second=_bare("INPUT1"), raw=[RAW, RAW]),),
    "outputs asked for": (
        _plain(outputs=["OUTPUT1", "OUTPUT0"]),
        _plain(outputs=["OUTPUT1"]),
        infer("asked", tensor("FIRST", "INT32", [2], int=[1, 2]), outputs=["OTHER"]),
        infer("asked", tensor("FIRST", "INT32", [2], int=[1, 2])),
        Call("ModelInfer", said("answers", "own order")),
        Call("ModelInfer", said("answers", "own order", outputs=["TWO", "SAID", "MANY"])),
        Call("ModelInfer", said("answers", "nothing", outputs=["SAID"])),
    ),
    "outputs asked for twice": (_plain(outputs=["OUTPUT0", "OUTPUT0"]),),
    "ensembles": (
        infer("over_plain", tensor("A", "INT32", [16], int=WORDS), tensor("B", "INT32", [16], int=WORDS), id="r1"),
        Call("ModelInfer", said("over_answers", "bytes")),
        Call("ModelInfer", said("over_answers", "bytes", id="q", outputs=["SAID"])),
        Call("ModelInfer", request("over_asked", tensor("FIRST", "INT32", [1], int=[1]), parameters={"custom": 5}), rewrite=_sorted),
    ),
    "versions": tuple(infer("versions_all", tensor("INPUT0", "INT32", [1], int=[1]), version=version) for version in ("", "2", "5")),
    "no inputs": (infer("typed"), infer("typed", id="q")),
    "batches": (
        infer("classes", tensor("SCORES", "FP32", [3, 4], fp32=range(12))),
        infer("batched_bytes", tensor("INPUT0", "BYTES", [2, 2], bytes=[b"a", b"", b"\xff\x00", b"long" * 99])),
    ),
    "large": (infer("asked", tensor("FIRST", "INT32", [300_000]), raw=[bytes(1_200_000)], outputs=["OTHER"]),),
}

TYPES: dict[str, Script] = {
    **{f"typed lists of {datatype}": _every_list(datatype) for datatype in DATATYPES if datatype not in ("FP16", "BF16")},
    "typed lists of FP16 and BF16": (*_every_list("FP16"), *_every_list("BF16")),
    "numbers that are cut": (
        _one("INT8", "INT8", [3], int=[1, 300, -1]),
        _one("UINT8", "UINT8", [2], uint=[300, 255]),
        _one("INT16", "INT16", [2], int=[70000, -70000]),
        _one("UINT16", "UINT16", [1], uint=[70000]),
        _one("UINT64", "UINT64", [1], uint64=[2**64 - 1]),
        _one("INT64", "INT64", [1], int64=[-(2**63)]),
        _one("FP32", "FP32", [1, 3], fp32=[float("nan"), float("inf"), -0.0]),
    ),
    "two lists": (
        *(_one("INT32", "INT32", [1], **{"int": [1], kind: values}) for kind, values in LISTS.items() if kind != "int"),
        _one("BOOL", "BOOL", [1], bool=[True], int=[1]),
        _one("FP64", "FP64", [1], bool=[True], bytes=[b"a"]),
        _one("BYTES", "BYTES", [1], fp64=[1.0], bytes=[b"a"]),
    ),
    "raw of all": (
        _one("FP16", "FP16", [1], [b"\0\x3c"]),
        _one("BF16", "BF16", [1], [b"\x80\x3f"]),
        _one("BOOL", "BOOL", [2], [b"\x00\x02"]),
        _one("BYTES", "BYTES", [2], [_strings(b"a", b"")]),
        _one("FP64", "FP64", [1], [struct.pack("<d", 1.5)]),
    ),
    "unknown datatypes": tuple(
        call
        for datatype in ("FOO", "", "int32", "STRING", "TYPE_INT32")
        for id in ("", "q")
        for call in (
            _plain(first=tensor("INPUT0", datatype, [16], int=WORDS), id=id),
            _plain(first=_bare("INPUT0", [16], datatype), second=_bare("INPUT1"), raw=[RAW, RAW], id=id),
        )
    ),
    "nothing in it": (
        _one("INT32", "INT32", [0]),
        _one("INT32", "INT32", []),
        _one("FP16", "FP16", [0]),
        _one("INT32", "INT32", [0], [b""]),
        _one("BYTES", "BYTES", [0], [b""]),
        _one("FP32", "FP32", [0, 3], [b""]),
        _one("BYTES", "BYTES", [1], bytes=[b""]),
    ),
    "strings": tuple(
        infer("batched_bytes", tensor("INPUT0", "BYTES", [1, 2]), raw=[raw], id=id)
        for raw in (
            b"\1\0\0",
            b"\1\0\0\0a\2\0\0",
            b"\1\0\0\0a",
            b"\1\0\0\0a\5\0\0\0bc",
            _strings(b"a", b"b", b"c"),
            b"",
            b"\xff\xff\xff\xffa",
            _strings(b"a", b"b") + b"\0",
        )
        for id in ("", "q")
    ),
    "numbers of strings": tuple(infer("batched_bytes", tensor("INPUT0", "BYTES", [1, 2], bytes=[b"x"] * count)) for count in (1, 2, 3)),
}

REFUSED: dict[str, Script] = {
    "without data": (*_twice(first=_bare("INPUT0")), *_twice(first=_bare("INPUT0"), second=_bare("INPUT1"))),
    "raw for one of two": _twice(first=_bare("INPUT0"), second=_bare("INPUT1"), raw=[RAW]),
    "raw for more": _twice(first=_bare("INPUT0"), second=_bare("INPUT1"), raw=[RAW] * 3),
    "raw for no inputs": (infer("typed", raw=[RAW]), infer("plain", raw=[RAW, RAW])),
    "contents and raw": (
        *_twice(raw=[RAW, RAW]),
        *_twice(first=_bare("INPUT0"), raw=[RAW, RAW]),
        *_twice(second=_bare("INPUT1"), raw=[RAW]),
    ),
    "missing inputs": (*_twice(second=()), *_twice(first=(), second=()), infer("asked"), infer("asked", id="q")),
    "unknown inputs": (
        *_twice(first=tensor("NOSUCH", "INT32", [16], int=WORDS)),
        *_twice(first=tensor("", "INT32", [16], int=WORDS)),
        infer("asked", tensor("FIRST", "INT32", [1], int=[1]), tensor("FOURTH", "INT32", [1], int=[1])),
    ),
    "an input twice": _twice(second=tensor("INPUT0", "INT32", [16], int=WORDS)),
    "unknown outputs": (*_twice(outputs=["NOSUCH"]), *_twice(outputs=[""]), *_twice(outputs=["OUTPUT0", "output0"])),
    "other datatypes": (
        *_twice(first=tensor("INPUT0", "INT64", [16], int64=WORDS)),
        *_twice(first=tensor("INPUT0", "FP32", [16], fp32=WORDS)),
    ),
    "other shapes": tuple(
        call
        for shape in ([15], [17], [1, 16], [16, 1], [], [4, 4], [-1], [-16], [-2], [0], [2**62], [2**62, 4], [2**32, 2**32])
        for call in _twice(first=tensor("INPUT0", "INT32", shape, int=WORDS))
    ),
    "variable shapes": tuple(
        infer("asked", tensor("FIRST", "INT32", shape, int=[1, 2]), id=id)
        for shape in ([1], [3], [-1], [-2], [2, 1], [], [0], [2**62])
        for id in ("", "q")
    ),
    "other lengths": (
        *_twice(first=tensor("INPUT0", "INT32", [16], int=WORDS[:-1])),
        *_twice(first=_bare("INPUT0"), second=_bare("INPUT1"), raw=[RAW[:-1], RAW]),
        *_twice(first=_bare("INPUT0"), second=_bare("INPUT1"), raw=[RAW, RAW + b"\0"]),
        *_twice(first=_bare("INPUT0"), second=_bare("INPUT1"), raw=[RAW, b""]),
    ),
    "batch shapes": tuple(
        infer("classes", tensor("SCORES", "FP32", shape, fp32=[1] * count), id=id)
        for shape, count in (([9, 4], 36), ([0, 4], 0), ([1, 3], 3), ([4], 4), ([], 4), ([1, 1, 4], 4), ([-1, 4], 4), ([1, -1], 4))
        for id in ("", "q")
    ),
    "models and versions": tuple(
        _plain(model=model, version=version, id=id)
        for model, version in (
            *(("plain", version) for version in ("2", "0", "-1", "x", "", "99999999999999999999", "1.5", "01")),
            *(("nope", version) for version in ("", "1", "x")),
            *(("", version) for version in ("", "x")),
            *(("never", version) for version in ("", "1")),
            *(("versions_all", version) for version in ("3", "4")),
            ("Plain", ""),
            ("plain/1", ""),
        )
        for id in ("", "q")
    ),
    "decoupled models": (
        Call("ModelInfer", said("streams", "one_response")),
        Call("ModelInfer", said("streams", "one_response", id="q", parameters={"sequence_id": 1.5})),
        Call("ModelInfer", said("over_streams", "one_response")),
        infer("streams"),
        infer("streams", version="5"),
        infer("streams", version="x"),
    ),
    "what is told of several": (
        _plain(model="nope", version="x", parameters={"sequence_id": 1.5}),
        _plain(version="x", parameters={"sequence_id": 1.5}),
        _plain(first=_bare("INPUT0"), parameters={"sequence_id": 1.5}),
        _plain(first=_bare("INPUT0"), outputs=["NOSUCH"]),
        _plain(first=tensor("INPUT0", "INT64", [16], int=WORDS), outputs=["NOSUCH"]),
        _plain(first=tensor("NOSUCH", "INT32", [16], int=WORDS), outputs=["NOSUCH"]),
        _plain(first=tensor("INPUT0", "FP32", [15], fp32=WORDS), outputs=["NOSUCH"]),
        _plain(first=tensor("INPUT0", "FP32", [15], fp32=WORDS), second=()),
        _plain(first=tensor("INPUT0", "INT32", [15], int=WORDS), second=tensor("INPUT1", "FP32", [16], fp32=WORDS)),
        _plain(first=tensor("INPUT0", "INT32", [4, 4], int=WORDS[:5])),
        _plain(outputs=[output("OUTPUT0", classification=0), "NOSUCH"]),
        _plain(first=_bare("INPUT0"), outputs=[output("OUTPUT0", classification=0)]),
        _plain(second=tensor("INPUT0", "INT32", [16], fp32=[1.0])),
        _plain(first=tensor("INPUT0", "INT32", [1], int=[1]), second=tensor("INPUT0", "INT32", [16], int=WORDS)),
    ),
    "no message": (
        Call("ModelInfer"),
        Call("ModelInfer", b"\xff"),
        Call("ModelInfer", b"\x0a\x02\xff\xfe"),
        Call("ModelInfer", b"\x3a\x05ab"),
    ),
    "unknown fields": (Call("ModelInfer", encoded(_plain().message) + b"\xfa\x3f\x03abc"),),
}

SCORES = tensor("SCORES", "FP32", [2, 4], fp32=[1, 5, 2, -1, 0, 0, 7, 7])


def _classes(**parameters: Any) -> Call:
    return infer("classes", SCORES, outputs=[output("LABELLED", **parameters), "BARE"])


def _typed_classes(datatype: str, values: Mapping[str, Any], raw: Sequence[bytes] = (), count: int = 2) -> Call:
    length = [2] if datatype != "FP32" else [1, 2]
    return infer("typed", tensor(datatype, datatype, length, **values), raw=raw, outputs=[output(f"{datatype}_OUT", classification=count)])


CLASSIFICATION: dict[str, Script] = {
    "numbers of classes": tuple(_classes(classification=count) for count in (1, 2, 4, 5, 1000)),
    "no numbers of classes": tuple(_classes(classification=value) for value in (0, -1, "1", True, 1.0, unsigned(1), UNSET)),
    "without labels": (infer("classes", SCORES, outputs=[output("BARE", classification=3)]),),
    "both": (infer("classes", SCORES, outputs=[output("BARE", classification=1), output("LABELLED", classification=2)]),),
    "asked twice": (
        infer("classes", SCORES, outputs=[output("BARE", classification=1), output("BARE", classification=2)]),
        infer("classes", SCORES, outputs=[output("BARE", classification=1), "BARE"]),
        infer("classes", SCORES, outputs=["BARE", output("BARE", classification=2)]),
    ),
    "classes of all": (
        *(_typed_classes(datatype, {"int": [-3, 5]}) for datatype in ("INT8", "INT16", "INT32")),
        *(_typed_classes(datatype, {"uint": [3, 5]}) for datatype in ("UINT8", "UINT16", "UINT32")),
        _typed_classes("INT64", {"int64": [-(2**62), 2**62]}),
        _typed_classes("UINT64", {"uint64": [2**64 - 1, 0]}),
        _typed_classes("FP32", {"fp32": [1.5, 1e30]}, count=1),
        _typed_classes("FP64", {"fp64": [1.5, 1e300]}),
        _typed_classes("BOOL", {"bool": [True, False]}),
        _typed_classes("FP16", {}, [b"\0\x3c\0\x40"]),
        _typed_classes("BF16", {}, [b"\x80\x3f\0\x40"]),
    ),
    "classes of nothing": (
        infer("typed", tensor("INT32", "INT32", [0]), raw=[b""], outputs=[output("INT32_OUT", classification=1)]),
        Call("ModelInfer", said("answers", "empty", outputs=[output("MANY", classification=2)])),
    ),
    "classes of infinite numbers": (
        infer(
            "typed",
            tensor("FP64", "FP64", [4], fp64=[1, float("-inf"), float("inf"), -0.0]),
            outputs=[output("FP64_OUT", classification=4)],
        ),
    ),
    "unknown parameters of outputs": tuple(
        _classes(**{name: value}) for name in ("foo", "binary_data", "triton_x", "") for value in (True, 1, "x", 1.5, UNSET)
    ),
}

CODES = ("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED")


def _says(model: str, *verbs: str, **more: Any) -> Script:
    return tuple(Call("ModelInfer", said(model, verb, id=id, **more)) for verb in verbs for id in ("", "q"))


ERRORS: dict[str, Script] = {
    "codes": _says("answers", *CODES),
    "codes of a step": _says("over_answers", *CODES, "error not ascii", "nothing", "unknown name"),
    "texts": _says("answers", "error and outputs", "error by position", "error without text", "error not ascii"),
    "outputs": _says(
        "answers", "unknown name", "other datatype", "too long", "other rank", "twice", "empty", "scalar", "not finite", "no texts"
    ),
    "responses": _says("answers", "no responses", "two responses", "list of numbers", "tuple", "none as output", "nothing", "no outputs"),
    "raised": _says("faults", "value", "own", "two lines", "not ascii", "model", "deep", "chained", "stop"),
    "raised in a step": _says("over_faults", "value", "good"),
    "by sender": _says("senders", "none", "list_of_none", "error", "late"),
}

FATAL: dict[str, Script] = {
    "classes of strings": (
        infer("batched_bytes", tensor("INPUT0", "BYTES", [1, 2], bytes=[b"a", b"b"]), outputs=[output("OUTPUT0", classification=1)]),
    ),
}
"""Never sent to the real server."""

BOTH = {**GOOD, **TYPES, **REFUSED, **CLASSIFICATION, **ERRORS, **FATAL}
_NO_CLASSES = "class result not available for output due to unsupported type"
_TWICE = "newer releases refuse it"


def _requested_twice(name: str) -> Differs:
    return Differs(_TWICE, "INVALID_ARGUMENT", f"[request id: <id_unknown>] output '{name}' already exists in request")


_NEGATIVE = "newer releases look at the dimensions"
_INVALID = "tensor 'FIRST' contains an invalid dimension in shape [-2]"
_OVERFLOW = "byte size for tensor 'FIRST' exceeds maximum size of 9223372036854775807"
_TOO_LARGE = "inference request batch-size must be <= 8 for 'classes'"
DIFFERENCES: dict[str, Sequence[Differs]] = {
    "variable shapes": [
        Differs(_NEGATIVE, "INVALID_ARGUMENT", f"[request id: {id}] {text}")
        for text in (_INVALID, _OVERFLOW)
        for id in ("<id_unknown>", "q")
    ],
    "batch shapes": [Differs(_NEGATIVE, "INVALID_ARGUMENT", f"[request id: {id}] {_TOO_LARGE}") for id in ("<id_unknown>", "q")],
    "classes of strings": [Differs("24.10 dies of it", "INVALID_ARGUMENT", f"{_NO_CLASSES} 'BYTES'", fatal=True)],
    "outputs asked for twice": [_requested_twice("OUTPUT0")],
    "asked twice": [_requested_twice("BARE")] * 3,
    "outputs": [Differs("24.10 gives the first of two outputs of one name the shapes of both", "OK", None)] * 2,
}


@pytest.mark.parametrize("id", BOTH)
def test_infer(id: str, grpc_ends: Pair) -> None:
    check(grpc_ends, id, BOTH[id], DIFFERENCES)


# what is counted

COUNTED: dict[str, tuple[Sequence[str], Script]] = {
    "refused": (("plain", "classes", "batched_bytes", "streams"), tuple(call for script in REFUSED.values() for call in script)),
    "strings": (("batched_bytes",), TYPES["strings"]),
    "models' errors": (("answers", "over_answers"), (*ERRORS["codes"], *ERRORS["codes of a step"], *ERRORS["texts"])),
    "models' responses": (("answers",), (*ERRORS["outputs"], *ERRORS["responses"])),
    "raised": (("faults", "over_faults"), (*ERRORS["raised"], *ERRORS["raised in a step"])),
    "by sender": (("senders",), ERRORS["by sender"]),
    "classes": (("classes", "typed"), tuple(call for id, script in CLASSIFICATION.items() if id not in DIFFERENCES for call in script)),
    "good": (
        ("plain", "asked", "over_plain", "versions_all"),
        tuple(call for id, script in GOOD.items() if id not in DIFFERENCES for call in script),
    ),
}
TWICE = "the real server counts an ensemble's failed request twice"


def _failures(model: str, reason: str, why: str, theirs: int, ours: int) -> dict[str, tuple[str, int, int]]:
    names = (f"{model} 1 fail", f'{model} nv_inference_request_failure reason="{reason}",version="1"')
    return dict.fromkeys(names, (why, theirs, ours))


OTHERWISE: dict[str, dict[str, tuple[str, int, int]]] = {
    "strings": _failures("batched_bytes", "BACKEND", "what the original leaves to the backend is looked at before here", 2, 0),
    "models' errors": _failures("over_answers", "OTHER", TWICE, 36, 18),
    "raised": _failures("over_faults", "OTHER", TWICE, 4, 2),
}
"""Counters that grow otherwise: why, by how much at the real server, and at tensorfarm."""


def _counters(side: Side, models: Sequence[str]) -> dict[str, int]:
    """The counters of models, in statistics and metrics, by name."""
    found: dict[str, int] = {}
    for model in models:
        response = pb.ModelStatisticsResponse()
        method = side.channel.unary_unary("/inference.GRPCInferenceService/ModelStatistics")
        response.ParseFromString(method(pb.ModelStatisticsRequest(name=model).SerializeToString(), timeout=20))
        for entry in response.model_stats:
            name = f"{entry.name} {entry.version}"
            found |= {f"{name} {what}": getattr(entry, what) for what in ("inference_count", "execution_count")}
            found |= {f"{name} {field.name}": value.count for field, value in entry.inference_stats.ListFields()}
            for batch in entry.batch_stats:
                found |= {
                    f"{name} {batch.batch_size} {field.name}": value.count for field, value in batch.ListFields() if field.message_type
                }
    text = exchange(side.server.metrics_port, "GET", "/metrics").body.decode()
    for line in text.splitlines():
        match = re.fullmatch(r'(nv_inference_\w+)\{model="(\w+)",(\S+)\} (\S+)', line)
        if match is not None and match[2] in models and not match[1].endswith(("_us", "_pending_request_count")):
            found[f"{match[2]} {match[1]} {match[3]}"] = int(float(match[4]))
    return found


def _growth(side: Side, models: Sequence[str], before: Mapping[str, int]) -> dict[str, int]:
    after = _counters(side, models)
    return {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}


@pytest.mark.parametrize("id", COUNTED)
def test_counters(id: str, grpc_ends: Pair) -> None:
    models, script = COUNTED[id]

    def ask(side: Side) -> dict[str, int]:
        before = _counters(side, models)
        for call in script:
            send(side, call)
        return before

    before = grpc_ends.both(ask)
    grown = [_growth(side, models, one) for side, one in zip((grpc_ends.theirs, grpc_ends.ours), before, strict=True)]

    def agree() -> bool:
        grown[:] = [_growth(side, models, one) for side, one in zip((grpc_ends.theirs, grpc_ends.ours), before, strict=True)]
        for at, counters in enumerate(grown):
            for name, (_, *counts) in OTHERWISE.get(id, {}).items():
                if counters.pop(name, 0) != counts[at]:
                    counters[f"{name}, to be {counts[at]}"] = 1
        return grown[0] == grown[1]

    try:
        wait_until(agree, "the same counters", 3.0, 0.1)
    except AssertionError:
        assert grown[1] == grown[0]
