"""Large tensors in JSON replies: in pieces, and the same text as in one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.server.http import long_reply
from tensorfarm.server.http.exchange import Reply
from tensorfarm.server.http.infer_call import IN_BINARY, InferCall
from tensorfarm.server.http.infer_response import infer_reply
from tensorfarm.server.http.long_reply import LongReply
from tensorfarm.shm.datatypes import DATATYPES, serialize_bytes
from tensorfarm.shm.placement import Inline
from tensorfarm.workers.contract.json_writing import double, quote
from tensorfarm.workers.contract.messages import RequestBody, Tensor
from tensorfarm.workers.contract.status import StatusError

from .echo_service import EchoService, echo_signature, spec
from .infer_reading import finish

VERSION = EchoService({"m": echo_signature("m", [spec("IN", "INT8", -1)])}).find("m")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("SHORT_BYTE_SIZE", 8), ("_PIECE_COUNT", 40), ("_PIECE_BYTE_SIZE", 400)):
        monkeypatch.setattr(long_reply, name, size)
    monkeypatch.setattr("tensorfarm.server.http.infer_response.SHORT_BYTE_SIZE", 8)


def response(*tensors: Tensor, released: list[bool] | None = None) -> Response:
    request = Request(RequestBody("", 1, [], [], {}), 0, lambda response: None)
    return Response(request, list(tensors), on_release=lambda leases: None if released is None else released.append(True))


def written(*tensors: Tensor, call: InferCall | None = None) -> Reply:
    reply = infer_reply(VERSION, call or InferCall(RequestBody("", 1, [], [], {})), response(*tensors))
    return finish(reply.steps()) if isinstance(reply, LongReply) else reply


def output(name: str, datatype: str, shape: tuple[int, ...], content: bytes) -> Tensor:
    return Tensor(name, datatype, shape, Inline(memoryview(content)))


def expected(datatype: str, content: bytes, elements: list[bytes]) -> str:
    if datatype == "BYTES":
        texts = [quote(element).decode("utf-8", "surrogateescape") for element in elements]
    elif datatype in ("FP32", "FP64"):
        texts = [double(value).decode() for value in np.frombuffer(content, DATATYPES[datatype].dtype).tolist()]
    elif datatype == "BOOL":
        texts = ["true" if byte else "false" for byte in content]
    else:
        texts = [str(value) for value in np.frombuffer(content, DATATYPES[datatype].dtype).tolist()]
    return "[" + ",".join(texts) + "]"


@st.composite
def tensors(draw: Any) -> tuple[Tensor, str]:
    datatype = draw(st.sampled_from([name for name in DATATYPES if name not in ("FP16", "BF16")]))
    elements: list[bytes] = []
    if datatype == "BYTES":
        elements = draw(
            st.lists(
                st.binary(max_size=30) | st.text().map(str.encode) | st.sampled_from([b"x" * 600, b'x"' * 300, b"\x00" * 600]), max_size=150
            )
        )
        content, count = serialize_bytes(elements), len(elements)
    else:
        size = DATATYPES[datatype].byte_size
        content = draw(st.binary(max_size=200 * size))
        content = content[: len(content) // size * size]
        count = len(content) // size
    return output("OUT", datatype, (count, 1), content), expected(datatype, content, elements)


@pytest.mark.usefixtures("small_pieces")
class TestPieces:
    @settings(max_examples=300, deadline=None, database=None)
    @given(tensors())
    def test_say_what_the_whole_would(self, case: tuple[Tensor, str]) -> None:
        tensor, text = case
        body = b"".join(written(tensor).body).decode("utf-8", "surrogateescape")
        shape = ",".join(map(str, tensor.shape))
        assert (
            body == '{"model_name":"m","model_version":"1","outputs":[{"name":"OUT","datatype":"'
            f'{tensor.datatype}","shape":[{shape}],"data":{text}}}]}}'
        )

    def test_several_outputs_in_every_form(self) -> None:
        call = InferCall(RequestBody("", 1, [], [], {}), b'"id"', forms={"B": IN_BINARY})
        numbers = np.arange(100, dtype=np.int32)
        many = [output(name, "INT32", (100,), numbers.tobytes()) for name in ("A", "B", "C")]
        reply = written(*many, output("D", "INT32", (1,), numbers[:1].tobytes()), call=call)
        size = int(dict(reply.headers)[b"Inference-Header-Content-Length"])
        body = b"".join(reply.body)
        said = json.loads(body[:size])
        assert [(item["name"], item.get("data")) for item in said["outputs"]] == [
            *(("A", numbers.tolist()), ("B", None)),
            *(("C", numbers.tolist()), ("D", [0])),
        ]
        assert body[size:] == numbers.tobytes()

    @pytest.mark.parametrize(
        ("datatype", "content"),
        [
            ("INT32", bytes(403)),
            ("INT32", bytes(404)),
            ("BYTES", b"\1\0\0\0a" * 101),
            ("BYTES", b"\1\0\0\0a" * 99 + b"\2\0\0\0a"),
            ("BYTES", bytes(399)),
        ],
    )
    def test_outputs_unlike_their_shape(self, datatype: str, content: bytes) -> None:
        with pytest.raises(StatusError, match="^output tensor shape does not match size of output for 'OUT'$"):
            written(output("OUT", datatype, (100,), content))

    def test_stops_once_the_client_has_gone(self) -> None:
        released: list[bool] = []
        waiting = response(output("OUT", "INT8", (100,), bytes(100)), released=released)
        reply = infer_reply(VERSION, InferCall(RequestBody("", 1, [], [], {})), waiting)
        assert isinstance(reply, LongReply)
        steps = reply.steps()
        next(steps)
        waiting.request.cancelled = True
        with pytest.raises(StatusError):
            next(steps)
        assert not released
