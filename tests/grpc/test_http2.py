"""HTTP/2 as a server of calls speaks it, frame by frame. Source of the rules: RFC 9113."""

from __future__ import annotations

import gc
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.grpc import frames
from tensorfarm.server.grpc.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ErrorCode,
    frame,
    window_update,
)
from tensorfarm.server.grpc.header_block import written
from tensorfarm.server.grpc.http2 import ConnectionFailure, Http2Limits

from .doors import cut
from .sans_io import HELLO, REQUEST, SMALL, Frame, Server, cancel, data, frames_in, headers, sent_on, setting

TRAILERS = written(((b"grpc-status", b"0"),))
FIELDS = [(b":method", b"POST"), (b":path", b"/x"), (b"content-type", b"application/grpc")]

# the beginning


def test_our_settings_come_first() -> None:
    server = Server(SMALL, b"")
    first, second = server.sent()
    assert first == Frame(SETTINGS, 0, 0, setting((3, 4), (4, 1000), (5, 20_000), (6, 400))[9:])
    assert second == Frame(WINDOW_UPDATE, 0, 0, (2**30 - 65_535).to_bytes(4, "big"))


@pytest.mark.parametrize("text", [b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.1\r\n\r\n", b"\x16\x03\x01", PREFACE[:-1] + b"x", b"pri"])
def test_what_does_not_begin_as_http2_is_told_so(text: bytes) -> None:
    for pieces in ([text], [text[at : at + 1] for at in range(len(text))]):
        assert Server(None, b"").failure(*pieces).code is ErrorCode.PROTOCOL_ERROR


def test_the_preface_may_come_in_pieces() -> None:
    for at in range(len(HELLO) + 1):
        server = Server(None, b"")
        server.taken()
        server.feed(HELLO[:at], HELLO[at:])
        assert server.http2.prefaced
        assert server.sent() == [Frame(SETTINGS, ACK, 0, b"")]


@pytest.mark.parametrize(
    "first",
    [headers(1), data(1, b"x"), window_update(0, 1), frame(PING, 0, 0, bytes(8)), frame(SETTINGS, ACK, 0), frame(PRIORITY, 0, 1, bytes(5))]
    + [frame(99, 0, 0), data(0)],
)
def test_the_first_frame_is_settings(first: bytes) -> None:
    assert Server(None, b"").failure(PREFACE + first).code is ErrorCode.PROTOCOL_ERROR


# settings and pings


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (setting((INITIAL_WINDOW_SIZE, 2**31)), ErrorCode.FLOW_CONTROL_ERROR),
        (setting((MAX_FRAME_SIZE, 16_383)), ErrorCode.PROTOCOL_ERROR),
        (setting((MAX_FRAME_SIZE, 2**24)), ErrorCode.PROTOCOL_ERROR),
        (setting((2, 2)), ErrorCode.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(SETTINGS, ACK, 0, bytes(6)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(PING, 0, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(RST_STREAM, 0, 1, bytes(5)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(PRIORITY, 0, 1, bytes(4)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(CONTINUATION, END_HEADERS, 1), ErrorCode.PROTOCOL_ERROR),
        (headers(0), ErrorCode.PROTOCOL_ERROR),
        (headers(2), ErrorCode.PROTOCOL_ERROR),
        (headers(1, b"", END_HEADERS | PADDED), ErrorCode.PROTOCOL_ERROR),
        (headers(1, b"\x02\x88", END_HEADERS | PADDED), ErrorCode.PROTOCOL_ERROR),
        (headers(1, bytes(4), END_HEADERS | WITH_PRIORITY), ErrorCode.PROTOCOL_ERROR),
        (headers(1, b"\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (cancel(0), ErrorCode.PROTOCOL_ERROR),
        (cancel(1), ErrorCode.PROTOCOL_ERROR),
        (window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
        (window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (headers(1) + window_update(1, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (headers(1) + window_update(1, 100) + setting((INITIAL_WINDOW_SIZE, 2**31 - 1)), ErrorCode.FLOW_CONTROL_ERROR),
        (headers(1) + data(1, b"\x01", PADDED), ErrorCode.PROTOCOL_ERROR),
        (headers(1) + data(1, b"", PADDED) + bytes(1), ErrorCode.PROTOCOL_ERROR),
        (headers(1) + headers(1), ErrorCode.PROTOCOL_ERROR),
        (headers(1, REQUEST, END_HEADERS | END_STREAM) + headers(1, REQUEST, END_HEADERS | END_STREAM), ErrorCode.STREAM_CLOSED),
        (headers(1, REQUEST, END_HEADERS | END_STREAM) + data(1), ErrorCode.STREAM_CLOSED),
        (headers(1) + data(1, b"", END_STREAM) + data(1, b"x"), ErrorCode.STREAM_CLOSED),
        (frame(DATA, 0, 1, bytes(20_001)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(PING, 0, 0, bytes(500)), ErrorCode.ENHANCE_YOUR_CALM),
        (headers(1, bytes(500)), ErrorCode.ENHANCE_YOUR_CALM),
    ],
)
def test_a_broken_rule_ends_the_connection(broken: bytes, code: ErrorCode) -> None:
    failure = Server(SMALL).failure(broken)
    assert failure.code is code
    assert failure.text


def test_settings_are_acknowledged_and_unknown_ones_mean_nothing() -> None:
    server = Server()
    server.feed(setting((99, 1), (2, 0), (3, 0), (6, 1), (1, 0)))
    assert server.sent() == [Frame(SETTINGS, ACK, 0, b"")]
    server.feed(frame(SETTINGS, ACK, 0))
    assert server.sent() == []


def test_pings_are_answered_and_answers_heard() -> None:
    server = Server()
    server.feed(frame(PING, 0, 0, b"12345678"), frame(PING, ACK, 0, b"abcdefgh"))
    assert server.sent() == [Frame(PING, ACK, 0, b"12345678")]
    assert server.pings == [(False, b"12345678"), (True, b"abcdefgh")]
    server.http2.ping(b"are you?")
    assert server.sent() == [Frame(PING, 0, 0, b"are you?")]


def test_what_nobody_knows_means_nothing() -> None:
    server = Server()
    server.feed(frame(99, 255, 7, b"what"), frame(PRIORITY, 0, 9, bytes(5)), frame(GOAWAY, 0, 0, bytes(8)))
    assert (server.sent(), server.events) == ([], [])


# header blocks


def test_padding_and_priority_are_no_part_of_a_block() -> None:
    server = Server()
    for number, flags, content in [
        (1, PADDED, b"\x00" + REQUEST),
        (3, PADDED, b"\x05" + REQUEST + bytes(5)),
        (5, WITH_PRIORITY, bytes(5) + REQUEST),
        (7, PADDED | WITH_PRIORITY, b"\xff" + bytes(5) + REQUEST + bytes(255)),
    ]:
        assert server.open(number, END_HEADERS | flags, content).head == FIELDS


@pytest.mark.parametrize("places", [[0], [1], [10, 20], [len(REQUEST)], [0, 0, 5], [5, 5]])
def test_a_block_may_be_continued(places: list[int]) -> None:
    server = Server()
    bounds = [0, *places, len(REQUEST)]
    pieces = [REQUEST[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
    server.feed(headers(1, pieces[0], END_STREAM))
    for piece in pieces[1:-1]:
        server.feed(frame(CONTINUATION, 0, 1, piece))
    assert server.events == []
    server.feed(frame(CONTINUATION, END_HEADERS, 1, pieces[-1]))
    assert server.calls[1].head == FIELDS
    assert server.events == [(1, "begin"), (1, "end")]


@pytest.mark.parametrize(
    "between",
    [data(1, b"x"), headers(3), frame(PING, 0, 0, bytes(8)), frame(CONTINUATION, END_HEADERS, 3), frame(99, 0, 0), cancel(1), data(0)],
)
def test_nothing_comes_between_the_pieces_of_a_block(between: bytes) -> None:
    assert Server().failure(headers(1, REQUEST[:9], 0) + between).code is ErrorCode.PROTOCOL_ERROR


def test_a_block_has_a_size_and_a_number_of_pieces() -> None:
    many = headers(1, REQUEST, 0) + frame(CONTINUATION, 0, 1) * 3
    Server(SMALL).feed(many)
    assert Server(SMALL).failure(many + frame(CONTINUATION, 0, 1)).code is ErrorCode.ENHANCE_YOUR_CALM
    assert Server(SMALL).failure(headers(1, bytes(300), 0) + frame(CONTINUATION, 0, 1, bytes(101))).code is ErrorCode.ENHANCE_YOUR_CALM


def test_a_block_that_says_more_than_it_may_ends_the_connection() -> None:
    """One byte may stand for 4000."""
    server = Server()
    long = b"\x40\x01x\x7f\xa1\x1e" + bytes(4000)
    server.feed(headers(1, long))
    most = Http2Limits().block_byte_size // (4000 + 1 + 32)
    server.feed(headers(3, b"\xbe" * most))
    assert server.failure(headers(5, b"\xbe" * (most + 1))).code is ErrorCode.COMPRESSION_ERROR


def test_trailers_of_a_client_end_its_side() -> None:
    server = Server()
    server.open(1)
    server.feed(data(1, b"abc"), headers(1, written(((b"x", b"y"),)), END_HEADERS | END_STREAM))
    assert server.events == [(1, "begin"), (1, "data"), (1, "end")]


# streams


def test_numbers_that_were_passed_over_are_closed() -> None:
    server = Server()
    server.open(5)
    server.feed(headers(3), data(3, b"x"), window_update(3, 1), cancel(3), frame(PRIORITY, 0, 3, bytes(5)))
    assert server.events == [(5, "begin")]
    assert server.sent() == []


def test_streams_beyond_the_limit_are_refused_and_their_blocks_read() -> None:
    server = Server(SMALL)
    for number in (1, 3, 5, 7):
        server.open(number)
    server.feed(headers(9, b"\x40\x01a\x01b" + REQUEST), data(9, b"x", END_STREAM))
    assert server.sent() == [Frame(RST_STREAM, 0, 9, b"\0\0\0\x07")]
    server.feed(cancel(1))
    assert server.open(11, END_HEADERS, b"\xbe").head == [(b"a", b"b")]


def test_no_stream_begins_after_goodbye() -> None:
    server = Server()
    server.open(1)
    server.http2.go_away(soon=True)
    assert server.sent() == [Frame(GOAWAY, 0, 0, b"\x7f\xff\xff\xff" + bytes(4))]
    server.open(3)
    server.http2.go_away()
    assert server.sent() == [Frame(GOAWAY, 0, 0, b"\0\0\0\x03" + bytes(4))]
    server.feed(headers(5))
    assert server.sent() == [Frame(RST_STREAM, 0, 5, b"\0\0\0\x07")]
    assert sorted(server.http2.streams) == [1, 3]


def test_a_reset_is_the_end_of_a_call() -> None:
    server = Server()
    call = server.open(1)
    call.stream.on_left = lambda: server.events.append((1, "left"))
    server.feed(setting((INITIAL_WINDOW_SIZE, 0)))
    call.stream.send([b"abc"])
    server.feed(cancel(1), data(1, b"x"), cancel(1))
    assert server.events == [(1, "begin"), (1, "gone")]
    assert len(server.http2.left) == 1 and not server.http2.streams
    server.taken()
    server.feed(window_update(1, 10), window_update(0, 10), setting((INITIAL_WINDOW_SIZE, 100)))
    assert sent_on(1, server.sent()) == b""


def test_our_reset_is_the_end_too() -> None:
    server = Server()
    server.open(1).stream.reset(ErrorCode.INTERNAL_ERROR)
    assert server.sent() == [Frame(RST_STREAM, 0, 1, b"\0\0\0\x02")]
    server.feed(data(1, b"x", END_STREAM), window_update(1, 1), cancel(1))
    assert server.events == [(1, "begin"), (1, "gone")]


def test_a_reply_ends_the_stream_and_asks_for_no_more() -> None:
    server = Server()
    for number, end in ((1, True), (3, False)):
        call = server.open(number, END_HEADERS | END_STREAM if end else END_HEADERS)
        call.stream.send_headers(b"\x88")
        call.stream.send([b"ab", b"", memoryview(b"c")], TRAILERS)
        assert server.sent() == [
            Frame(HEADERS, END_HEADERS, number, b"\x88"),
            Frame(DATA, 0, number, b"abc"),
            Frame(HEADERS, END_HEADERS | END_STREAM, number, TRAILERS),
        ] + [Frame(RST_STREAM, 0, number, bytes(4))] * (not end)
    assert not server.http2.streams


def test_a_lost_connection_is_the_end_of_all_calls() -> None:
    server = Server()
    for number in (1, 3):
        server.open(number).stream.on_left = lambda: None
    server.http2.lost()
    assert server.events[2:] == [(1, "gone"), (3, "gone")]
    assert len(server.http2.left) == 2 and not server.http2.streams


# what may come


def test_padding_counts_but_is_no_data() -> None:
    server = Server(SMALL)
    call = server.open(1)
    server.feed(data(1, b"\x03abc\0\0\0", PADDED), data(1, b"\x00", PADDED), data(1, b"\x02\0\0", PADDED))
    assert call.content == b"abc"
    assert call.stream.allowed == 1000 - 7 - 1 - 3
    server.feed(data(1, b"\xff" + bytes(200) + bytes(255), PADDED))
    assert server.sent() == [] and len(call.content) == 203
    server.feed(data(1, b"\x00" + bytes(40), PADDED | END_STREAM))
    assert len(call.content) == 243 and server.events[-1] == (1, "end")


def test_a_stream_is_given_its_window_back_by_halves() -> None:
    server = Server(SMALL)
    call = server.open(1)
    server.feed(data(1, bytes(499)))
    assert server.sent() == []
    server.feed(data(1, b"x"))
    assert server.sent() == [Frame(WINDOW_UPDATE, 0, 1, (500).to_bytes(4, "big"))]
    server.feed(data(1, bytes(1000)))
    assert call.stream.allowed == 1000
    assert server.failure(data(1, bytes(1001))).code is ErrorCode.FLOW_CONTROL_ERROR


def test_a_held_stream_is_given_nothing_until_it_is_let_go() -> None:
    server = Server(SMALL)
    call = server.open(1)
    call.stream.holds = 1
    server.feed(data(1, bytes(1000)))
    assert server.sent() == [] and len(call.content) == 1000
    assert server.failure(data(1, b"x")).code is ErrorCode.FLOW_CONTROL_ERROR
    call.stream.holds = 0
    call.stream.give_window()
    call.stream.give_window()
    assert server.sent() == [Frame(WINDOW_UPDATE, 0, 1, (1000).to_bytes(4, "big"))]


def test_the_connection_is_given_its_window_back() -> None:
    """Also for bytes that nobody wants."""
    server = Server()
    server.open(1).stream.reset(ErrorCode.CANCEL)
    server.taken()
    piece = memoryview(data(1, bytes(1 << 20)))
    for _ in range(512):
        server.http2.receive(piece)
    assert server.sent() == []
    server.feed(data(1, b"x"))
    assert server.sent() == [Frame(WINDOW_UPDATE, 0, 0, (2**29 + 1).to_bytes(4, "big"))]


def test_a_data_frame_is_handed_on_as_it_comes() -> None:
    server = Server()
    call = server.open(1)
    whole = data(1, b"\x04" + b"abcdef" + bytes(4), PADDED | END_STREAM)
    for at in range(len(whole)):
        server.feed(whole[at : at + 1])
        assert len(call.content) == min(max(at - 9, 0), 6)
    assert server.events[-1] == (1, "end")


def test_a_stream_that_ends_in_the_middle_of_a_frame() -> None:
    server = Server()
    call = server.open(1)
    call.on_data = lambda: call.stream.reset(ErrorCode.CANCEL) if 1 in server.http2.streams else None
    whole = data(1, bytes(100), END_STREAM)
    server.feed(whole[:50], whole[50:], headers(3))
    assert [what for what in server.events if what[1] != "data"] == [(1, "begin"), (1, "gone"), (3, "begin")]


# what may be sent


def test_data_waits_for_the_windows() -> None:
    server = Server()
    call = server.open(1, END_HEADERS | END_STREAM)
    content = bytes(range(256)) * 400
    call.stream.send([content, b"end"], TRAILERS)
    first = server.sent()
    assert sent_on(1, first) == content[:65_535] and max(len(one.content) for one in first) == 16_384
    server.feed(window_update(1, 1000), window_update(0, 10))
    second = server.sent()
    assert len(sent_on(1, second)) == 10
    server.feed(window_update(0, 2**20))
    third = server.sent()
    assert len(sent_on(1, third)) == 990
    server.feed(window_update(1, 2**20))
    last = server.sent()
    assert sent_on(1, first + second + third + last) == content + b"end"
    assert server.events[-1] == (1, "sent")
    assert last[-1] == Frame(HEADERS, END_HEADERS | END_STREAM, 1, TRAILERS)


def test_an_empty_reply_needs_no_window() -> None:
    server = Server()
    server.feed(setting((INITIAL_WINDOW_SIZE, 0)))
    server.taken()
    call = server.open(1, END_HEADERS | END_STREAM)
    server.feed(setting((INITIAL_WINDOW_SIZE, 0)))
    server.taken()
    call.stream.send([], TRAILERS)
    assert server.sent() == [Frame(HEADERS, END_HEADERS | END_STREAM, 1, TRAILERS)]


def test_the_initial_window_changes_open_streams() -> None:
    server = Server()
    server.feed(setting((INITIAL_WINDOW_SIZE, 10)))
    call = server.open(1)
    call.stream.send([b"0123456789abcdef"])
    assert sent_on(1, server.sent()) == b"0123456789"
    server.feed(setting((INITIAL_WINDOW_SIZE, 4)))
    assert call.stream.window == -6
    server.feed(window_update(1, 6))
    assert sent_on(1, server.sent()) == b""
    server.feed(setting((INITIAL_WINDOW_SIZE, 5), (INITIAL_WINDOW_SIZE, 7)))
    assert sent_on(1, server.sent()) == b"abc"
    server.feed(window_update(1, 3))
    assert sent_on(1, server.sent()) == b"def"
    assert server.open(3).stream.window == 7


def test_frames_are_as_large_as_the_client_takes() -> None:
    server = Server()
    server.feed(setting((MAX_FRAME_SIZE, 40_000), (INITIAL_WINDOW_SIZE, 2**20)), window_update(0, 2**20))
    server.open(1).stream.send([bytes(100_000)])
    assert [len(one.content) for one in server.sent() if one.kind == DATA] == [40_000, 40_000, 20_000]


def test_nothing_is_sent_while_the_socket_is_full() -> None:
    server = Server()
    call = server.open(1)
    server.http2.paused = True
    call.stream.send([b"abc"], TRAILERS)
    server.feed(window_update(0, 1), window_update(1, 1))
    assert server.sent() == []
    server.http2.paused = False
    server.http2.pump_all()
    assert sent_on(1, server.sent()) == b"abc" and not server.http2.streams


def test_streams_that_wait_take_turns() -> None:
    server = Server()
    server.feed(setting((INITIAL_WINDOW_SIZE, 2**24), (MAX_FRAME_SIZE, 2**20)))
    for number in (1, 3, 5):
        server.open(number).stream.send([bytes(2**21)], TRAILERS)
    server.taken()
    server.feed(window_update(0, 2**23))
    turns = [(one.number, len(one.content)) for one in server.sent() if one.kind == DATA]
    got = {1: 65_535, 3: 0, 5: 0}
    for number, size in turns:
        got[number] += size
        assert max(got.values()) - min(got.values()) <= 2 * 256 * 1024 + 65_535 or min(got.values()) == 2**21
    assert set(got.values()) == {2**21}


def test_a_stream_that_may_not_send_does_not_stop_others() -> None:
    server = Server()
    server.feed(setting((INITIAL_WINDOW_SIZE, 0)), window_update(0, 2**20))
    for number in (1, 3, 5):
        server.open(number).stream.send([bytes(1000)], TRAILERS)
    server.taken()
    server.feed(window_update(3, 5000))
    assert len(sent_on(3, server.sent())) == 1000
    assert sorted(server.http2.streams) == [1, 5]


# floods

IDLE = {
    "ping": frame(PING, 0, 0, bytes(8)),
    "pong": frame(PING, ACK, 0, bytes(8)),
    "settings": frame(SETTINGS, 0, 0),
    "settings ack": frame(SETTINGS, ACK, 0),
    "empty data": data(1),
    "padding": data(1, b"\x02\0\0", PADDED),
    "priority": frame(PRIORITY, 0, 1, bytes(5)),
    "unknown": frame(77, 0, 0, b"x"),
    "goaway": frame(GOAWAY, 0, 0, bytes(8)),
    "window": window_update(1, 1),
    "window of all": window_update(0, 1),
    "window of a closed one": window_update(3, 1),
    "reset of a closed one": cancel(3),
}


@pytest.mark.parametrize("idle", IDLE.values(), ids=IDLE)
def test_a_flood_of_nothing_ends_the_connection(idle: bytes) -> None:
    server = Server(SMALL)
    server.feed(headers(1), headers(3), cancel(3), data(1, b"x"))
    for _ in range(10):
        server.feed(idle)
    assert server.failure(idle).code is ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("idle", IDLE.values(), ids=IDLE)
def test_what_brings_something_in_between_is_no_flood(idle: bytes) -> None:
    server = Server(SMALL)
    server.feed(headers(1), headers(3), cancel(3))
    for _ in range(5):
        server.feed(idle * 9, data(1, b"x"))
    assert server.calls[1].content == b"x" * 5


def test_opening_and_resetting_leaves_nothing() -> None:
    server = Server()
    tracemalloc.start()
    try:
        for number in range(1, 20_001, 2):
            server.feed(headers(number) + data(number, bytes(10)) + cancel(number))
            server.calls.clear()
            server.events.clear()
            if number == 2001:
                gc.collect()
                early = tracemalloc.get_traced_memory()[0]
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < early + 20_000
    finally:
        tracemalloc.stop()
    assert not server.http2.streams and not server.http2.left and server.sent() == []


def test_one_frame_of_settings_takes_no_longer_than_others() -> None:
    """It may name the initial window many times, with many streams open: they are gone through once."""
    server = Server()
    for number in range(1, 4001, 2):
        server.open(number)
    begun = time.process_time()
    server.feed(setting(*[(INITIAL_WINDOW_SIZE, 60_000 + index % 2) for index in range(64)]))
    assert time.process_time() - begun < 0.1
    assert server.calls[1].stream.window == 60_001
    assert server.failure(setting(*[(99, 0)] * 65)).code is ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "idle",
    [frame(SETTINGS, 0, 0), frame(PING, 0, 0, bytes(8)) * 5 + frame(SETTINGS, 0, 0), window_update(0, 1)],
    ids=["settings", "pings", "windows"],
)
def test_a_stream_that_waits_for_its_window_allows_no_flood(idle: bytes) -> None:
    server = Server(SMALL)
    server.feed(setting((INITIAL_WINDOW_SIZE, 0)))
    server.open(1).stream.send([b"abc"])
    assert server.failure(*[idle] * 30).code is ErrorCode.ENHANCE_YOUR_CALM


def test_a_stream_far_below_its_window_allows_no_flood() -> None:
    server = Server(SMALL)
    server.open(1).stream.send([b"abc" * 22_000])
    server.feed(setting((INITIAL_WINDOW_SIZE, 0)))
    # Of what has been sent a client may tell piece by piece.
    assert server.failure(*[window_update(1, 1)] * 100).code is ErrorCode.ENHANCE_YOUR_CALM


def test_a_long_block_is_sent_in_pieces() -> None:
    server = Server()
    trailers = written(((b"grpc-message", b"x" * 40_000),))
    server.open(1, END_HEADERS | END_STREAM).stream.send([], trailers)
    found = server.sent()
    assert [(one.kind, one.flags) for one in found] == [(HEADERS, END_STREAM), (CONTINUATION, 0), (CONTINUATION, END_HEADERS)]
    assert b"".join([one.content for one in found]) == trailers


def test_a_call_may_end_its_stream_when_it_hears_that_all_was_sent() -> None:
    server = Server()
    server.feed(setting((INITIAL_WINDOW_SIZE, 0)))
    call = server.open(1, END_HEADERS | END_STREAM)
    call.on_sent = lambda: call.stream.send([], TRAILERS)
    call.stream.send([b"abc"])
    server.taken()
    server.feed(window_update(1, 3))
    assert [one.kind for one in server.sent()] == [DATA, HEADERS]


def test_no_window_is_given_to_a_stream_that_has_ended() -> None:
    server = Server(SMALL)
    call = server.open(1)
    call.on_data = lambda: call.stream.send([], TRAILERS) if 1 in server.http2.streams else None
    server.feed(data(1, bytes(900)))
    assert [one.kind for one in server.sent()] == [HEADERS, RST_STREAM]


# bytes cut at any place

numbers = st.sampled_from([1, 3, 5, 7, 9])
pieces = st.one_of(
    st.builds(headers, numbers, st.just(REQUEST), st.sampled_from([END_HEADERS, END_HEADERS | END_STREAM])),
    st.builds(
        lambda number, at: headers(number, REQUEST[:at], 0) + frame(CONTINUATION, END_HEADERS, number, REQUEST[at:]),
        numbers,
        st.integers(0, 40),
    ),
    st.builds(data, numbers, st.binary(max_size=60), st.sampled_from([0, 0, END_STREAM])),
    st.builds(
        lambda number, content, padding: data(number, bytes((padding,)) + content + bytes(padding), PADDED),
        numbers,
        st.binary(max_size=20),
        st.integers(0, 20),
    ),
    st.builds(window_update, numbers | st.just(0), st.integers(1, 1000)),
    st.builds(cancel, numbers),
    st.builds(lambda value: setting((INITIAL_WINDOW_SIZE, value)), st.integers(0, 100)),
    st.just(frame(PING, 0, 0, b"ping....")),
    st.builds(frame, st.integers(10, 255), st.integers(0, 255), numbers, st.binary(max_size=30)),
    st.binary(max_size=12),
)


def view_of(chunks: list[bytes]) -> tuple[object, ...]:
    """All that is seen of a server that is fed like this; every call answers a little."""
    server = Server(None, b"")
    failure = None
    try:
        for chunk in chunks:
            server.feed(chunk)
    except ConnectionFailure as error:
        failure = (error.code, error.text)
    heard = {number: (bytes(call.content), call.head) for number, call in server.calls.items()}
    return server.events, heard, server.taken(), server.pings, failure, server.http2.window, sorted(server.http2.streams)


@given(st.lists(pieces, max_size=14), st.data())
@settings(max_examples=150, deadline=None)
def test_bytes_may_be_cut_anywhere(sequence: list[bytes], draw: st.DataObject) -> None:
    content = HELLO + b"".join(sequence)
    places = draw.draw(st.lists(st.integers(0, len(content)), max_size=20))
    whole = view_of([content])
    assert view_of(cut(content, places)) == whole
    assert view_of([content[at : at + 1] for at in range(len(content))]) == whole


def test_frames_read_back() -> None:
    assert frames_in(headers(1) + data(1, b"x")) == [Frame(HEADERS, END_HEADERS, 1, REQUEST), Frame(DATA, 0, 1, b"x")]


def test_limits_are_those_of_the_settings() -> None:
    assert Http2Limits().frame_byte_size <= frames.LARGEST_MAX_FRAME
