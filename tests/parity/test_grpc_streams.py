"""Streams of inferences: order, final flags, errors as messages and as the end of a call, requests that are none, and two streams at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
from google.protobuf.message import Message

from ..servers import wait_until
from .grpc_case import Answer, Pair, Side, output, request, said, tensor
from .grpc_stream import Stream, Talk, same, streaming, surviving
from .test_grpc_infer import CLASSIFICATION, CODES, ERRORS, GOOD, REFUSED, TYPES
from .test_grpc_parameters import CASES as PARAMETERS
from .test_grpc_parameters import SEQUENCES

ENABLE = "triton_enable_empty_final_response"
BY_STATUS = (("triton_grpc_error", "true"),)
WORDS = list(range(16))


def _plain(id: str = "", model: str = "plain", **more: Any) -> Any:
    return request(model, *(tensor(f"INPUT{at}", "INT32", [16], int=WORDS) for at in (0, 1)), id=id, **more)


def _repeat(times: int, id: str, together: bool = False, **more: Any) -> Any:
    inputs = [tensor("TIMES", "INT32", [1], int=[times])]
    if together:
        inputs.append(tensor("FINAL_APART", "BOOL", [1], bool=[False]))
    return request("repeater", *inputs, id=id, **more)


def _messages(*scripts: Any) -> list[Message | bytes]:
    """The requests of unary tests that are messages."""
    return [call.message for script in scripts for call in script if isinstance(call.message, Message)]


DECOUPLED_VERBS = (
    *("no_response", "one_response", "three_responses", "many_responses", "error_first", "error_later", "empty_between", "from_thread"),
    *("raised", "raised_later", "raised_last", "returned_late", "two_references"),
)
UNLIKE = ("variable shapes", "batch shapes", "decoupled models", "no message", "asked twice")
"""Of the unary tests: those whose answers are to differ, and those that are no unary tests of one response."""

TALKS: dict[str, Talk] = {
    "nothing": Talk([]),
    "empty message": Talk([b""]),
    "one": Talk([_plain()]),
    "one with an id": Talk([_plain("q")]),
    "one with a flag": Talk([_plain("q", parameters={ENABLE: True}), _plain("r", parameters={ENABLE: False})]),
    "several models": Talk(
        [_plain("1"), said("answers", "bytes", id="2"), _plain("3", "nope"), said("faults", "value", id="4"), _plain("5")]
    ),
    "no message": Talk([_plain("1"), b"\xff", _plain("3")]),
    "no message at first": Talk([b"\x0a\x02\xff\xfe", _plain("2")]),
    "no message after errors": Talk([_plain("1", "nope"), _plain("2"), b"\x0a\x05abc"]),
    "good": Talk(_messages(*(script for id, script in GOOD.items() if id not in ("ensembles", "outputs asked for twice")))),
    "ensembles": Talk(
        [request("over_plain", *(tensor(name, "INT32", [16], int=WORDS) for name in "AB"), id="q"), said("over_answers", "bytes")]
    ),
    "typed contents": Talk(_messages(*(script for id, script in TYPES.items() if id != "strings"))),
    **{f"refused: {id}": Talk(_messages(script)) for id, script in REFUSED.items() if id not in UNLIKE},
    "classification": Talk(_messages(*(script for id, script in CLASSIFICATION.items() if id not in UNLIKE))),
    "parameters": Talk(
        _messages(*(PARAMETERS[f"{name!r}"] for name in ("sequence_start", "priority", "timeout", ENABLE, "triton_foo", "custom")))
    ),
    "sequences": Talk(_messages(*SEQUENCES.values())),
    "errors of models": Talk(
        _messages(*(ERRORS[id] for id in ("codes", "codes of a step", "texts", "raised", "raised in a step"))),
    ),
    **{
        f"senders: {verb}": Talk([said("senders", verb, id="1"), said("senders", verb, id="2", parameters={ENABLE: True})])
        for verb in ("none", "list_of_none", "error", "late")
    },
    "decoupled requests that are refused": Talk(
        [
            request("streams", id="1"),
            request("streams", id="2", version="5"),
            request("streams", id="3", version="x"),
            said("streams", "one_response", id="4", parameters={"sequence_id": 1.5}),
            said("streams", "one_response", id="5", outputs=["NOSUCH"]),
            request("streams"),
        ]
    ),
    **{
        f"{model}: {verb}": Talk(
            [
                said(model, verb, id=f"{at} {verb}", parameters=parameters)
                for at, parameters in enumerate(({}, {ENABLE: True}, {ENABLE: False}))
            ],
            apart=True,
        )
        for model in ("streams", "over_streams")
        for verb in DECOUPLED_VERBS
    },
    **{
        f"responses {'together with' if together else 'and'} the end": Talk(
            [_repeat(times, f"{times} {enable}", together, parameters={ENABLE: enable}) for times in (0, 1, 3) for enable in (False, True)],
            apart=True,
        )
        for together in (False, True)
    },
    "without an id": Talk([_repeat(3, "", parameters={ENABLE: True})]),
    "decoupled outputs": Talk(
        [
            said("streams", "three_responses", id="1", outputs=["SAID"]),
            request("repeater", tensor("TIMES", "INT32", [1], int=[2]), id="2", outputs=[output("NUMBER", classification=1)]),
            request("repeater", tensor("TIMES", "INT32", [1], int=[2]), id="3", outputs=[output("NUMBER", classification=0)]),
        ],
        apart=True,
    ),
    "by status: good": Talk([_plain("1"), _plain("2")], BY_STATUS),
    **{f"by status: {code}": Talk([said("answers", code, id="1")], BY_STATUS) for code in CODES},
    "by status: no text": Talk([said("answers", "error without text", id="1")], BY_STATUS),
    "by status: not ascii": Talk([said("answers", "error not ascii", id="1")], BY_STATUS),
    "by status: raised": Talk([said("faults", "two lines", id="1")], BY_STATUS),
    "by status: in a step": Talk([said("over_answers", "NOT_FOUND", id="1")], BY_STATUS),
    "by status: decoupled": Talk([said("streams", "raised", id="1")], BY_STATUS),
    "by status: refused": Talk(
        [
            _plain("1", "nope"),
            _plain("2", parameters={"triton_x": 1}),
            _plain("3", outputs=["NOSUCH"]),
            request("plain", id="4"),
            _plain("5"),
        ],
        BY_STATUS,
    ),
    **{
        f"not by status: {value!r}": Talk([said("answers", "NOT_FOUND", id="1"), _plain("2")], (("triton_grpc_error", value),))
        for value in ("True", "TRUE", "1", "t", "false", "", "true ")
    },
    "not by status: another key": Talk([said("answers", "NOT_FOUND", id="1"), _plain("2")], (("triton-grpc-error", "true"),)),
    "by status: key twice": Talk([said("answers", "NOT_FOUND", id="1")], (("triton_grpc_error", "true"), ("triton_grpc_error", "false"))),
    "not by status: key twice": Talk(
        [said("answers", "NOT_FOUND", id="1")], (("triton_grpc_error", "false"), ("triton_grpc_error", "true"))
    ),
}


@pytest.mark.parametrize("id", TALKS)
def test_talk(id: str, grpc_ends: Pair) -> None:
    theirs, ours = grpc_ends.both(partial(surviving, TALKS[id].on))
    same(theirs, ours)


# what depends on time: a request to ``held`` that is called "hold…" is answered once there is a file of that name


def _held(id: str) -> Any:
    return request("held", tensor("X", "INT32", [1], int=[1]), id=id)


def _release(side: Side, id: str) -> None:
    (side.notes / f"held {id}").touch()


def _begun(side: Side, id: str) -> None:
    """Wait until the model has been given a request."""
    notes = side.notes / "held"
    wait_until(lambda: notes.exists() and f'"{id}"' in notes.read_text(), f"{id} to run")


def _asked_for(text: str | Answer) -> str:
    match = re.search(r' id: "([^"]*)"', str(text))
    return match[1] if match else str(text)


def _ids(stream: Stream, count: int) -> list[str]:
    return [_asked_for(stream.receive()) for _ in range(count)]


def order_of_requests(side: Side) -> Any:
    """Responses of models that are not decoupled, and errors, wait for each other; those of decoupled ones do not."""
    with streaming(side) as stream:
        stream.send(_held("hold order"))
        _begun(side, "hold order")
        stream.send(_plain("2"), _plain("3", "nope"), _repeat(2, "4"), request("streams", id="5"), said("streams", "error_first", id="6"))
        came = sorted(_ids(stream, 4))
        _release(side, "hold order")
        came += _ids(stream, 3)
        stream.close()
        return came, stream.rest()


def half_close(side: Side) -> Any:
    """What was asked before is answered after."""
    with streaming(side) as stream:
        stream.send(_held("hold half"), _plain("2"))
        stream.close()
        _begun(side, "hold half")
        _release(side, "hold half")
        return stream.rest()


def no_message_behind_one_that_runs(side: Side) -> Any:
    with streaming(side) as stream:
        stream.send(_held("hold broken"), b"\xff", _plain("3"))
        _begun(side, "hold broken")
        _release(side, "hold broken")
        return stream.rest()


def two_streams(side: Side) -> Any:
    """One does not wait for the other."""
    with streaming(side) as first, streaming(side) as second:
        first.send(_held("hold two"))
        _begun(side, "hold two")
        second.send(_plain("2"), _repeat(1, "3"))
        came = sorted(_ids(second, 2))
        second.close()
        came.append(str(second.rest()))
        _release(side, "hold two")
        first.close()
        return came, first.rest()


def after_an_error(side: Side) -> Any:
    """A stream goes on, one message at a time, until its client ends it."""
    with streaming(side) as stream:
        came = []
        for at, message in enumerate(
            (_plain("1", "nope"), said("answers", "NOT_FOUND", id="2"), _plain("3"), said("streams", "raised", id="4"))
        ):
            stream.send(message)
            came.append((at, stream.receive()))
        stream.close()
        return came, stream.rest()


def deadline(side: Side) -> Any:
    """Of a call with a request that runs: the client is told, and the server does not mind."""
    with streaming(side, timeout_s=0.6) as stream:
        stream.send(_plain("1"), _held("hold late"))
        came = [_asked_for(one) for one in stream.rest()]
    _begun(side, "hold late")
    _release(side, "hold late")
    return came, Talk([_plain("after")]).on(side)


def given_up(side: Side) -> Any:
    """The same where the client gives it up."""
    with streaming(side) as stream:
        stream.send(_plain("1"), _held("hold given"))
        came = _ids(stream, 1)
        _begun(side, "hold given")
        stream.cancel()
        came += [_asked_for(one) for one in stream.rest()]
    _release(side, "hold given")
    return came, Talk([_plain("after")]).on(side)


def by_status_after_responses(side: Side) -> Any:
    """What came before the error is delivered; the error itself is the end."""
    with streaming(side, BY_STATUS) as stream:
        stream.send(_plain("1"), _repeat(2, "2"))
        came = sorted(_ids(stream, 3))
        stream.send(said("answers", "UNAVAILABLE", id="3"))
        return came, stream.rest()


def by_status_with_others_outstanding(side: Side) -> Any:
    """The error ends the call at once, with nothing for the others, nor from them."""
    with streaming(side, BY_STATUS) as stream:
        stream.send(_held("hold outstanding"))
        _begun(side, "hold outstanding")
        stream.send(said("streams", "three_responses", id="2"))
        came = _ids(stream, 3)
        stream.send(said("streams", "error_first", id="3"), _plain("4"))
        came += map(str, stream.rest())
    _release(side, "hold outstanding")
    return came, Talk([_plain("after")]).on(side)[1:]


def test_by_status_with_others_outstanding(grpc_ends: Pair) -> None:
    """At tensorfarm alone: 24.10 dies of it."""
    came, after = by_status_with_others_outstanding(grpc_ends.ours)
    assert came == ["2"] * 3 + [str(Answer("NOT_FOUND", "first"))]
    assert after == [Answer("OK", "")]


TIMED: Mapping[str, Any] = {
    play.__name__: play
    for play in (
        *(order_of_requests, half_close, no_message_behind_one_that_runs, two_streams, after_an_error),
        *(deadline, given_up, by_status_after_responses),
    )
}


@pytest.mark.parametrize("id", TIMED)
def test_timed(id: str, grpc_ends: Pair) -> None:
    theirs, ours = grpc_ends.both(partial(surviving, TIMED[id]))
    same(theirs, ours)
