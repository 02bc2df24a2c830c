"""Frames as they are written, read by another implementation."""

from __future__ import annotations

import pytest
from hyperframe.frame import Frame, GoAwayFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from tensorfarm.server.grpc import frames
from tensorfarm.server.grpc.frames import ErrorCode


def read(content: bytes) -> Frame:
    """The one frame that bytes are."""
    found, size = Frame.parse_frame_header(memoryview(content[:9]))
    assert len(content) == 9 + size
    found.parse_body(memoryview(content[9:]))
    return found


@pytest.mark.parametrize("byte_size", [0, 1, 255, 256, 16_384, 65_536, 2**24 - 1])
def test_a_frame_begins_with_its_size(byte_size: int) -> None:
    found, size = Frame.parse_frame_header(memoryview(frames.frame_head(byte_size, frames.DATA, frames.END_STREAM, 2**31 - 1)))
    assert (size, found.stream_id, set(found.flags)) == (byte_size, 2**31 - 1, {"END_STREAM"})


def test_frames_of_a_server() -> None:
    settings = read(frames.settings({frames.MAX_CONCURRENT_STREAMS: 7, frames.INITIAL_WINDOW_SIZE: 2**31 - 1}))
    assert isinstance(settings, SettingsFrame) and settings.settings == {3: 7, 4: 2**31 - 1}
    update = read(frames.window_update(5, 2**31 - 1))
    assert isinstance(update, WindowUpdateFrame) and (update.stream_id, update.window_increment) == (5, 2**31 - 1)
    reset = read(frames.reset(5, ErrorCode.REFUSED_STREAM))
    assert isinstance(reset, RstStreamFrame) and reset.error_code == 7
    away = read(frames.go_away(9, ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings"))
    assert isinstance(away, GoAwayFrame)
    assert (away.last_stream_id, away.error_code, away.additional_data) == (9, 11, b"too_many_pings")
